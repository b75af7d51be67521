//! `proa machine create`

use proa_engine::machine::MachineRequest;

use crate::context::{self, Context};
use crate::error::{Failure, Outcome};
use crate::flags::{MachineFlags, MachineWanted};

/// Make a machine that boots a disk
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: MachineFlags,
    /// Its name
    name: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let MachineWanted { disks, disk_size, machine, seed, config, host_config } = args.flags.read()?;
    let request = MachineRequest {
        name: args.name.clone(),
        disks,
        disk_size,
        machine,
        seed,
        config,
        host_config,
        network: context.network_settings()?,
        log: context.log_settings()?,
    };
    let created = context.engine()?.create_machine(request).map_err(|error| Failure::from(error).of_run())?;
    created.warnings.iter().for_each(|line| context::notice(line));
    println!("{}", created.record.id);
    Ok(0)
}
