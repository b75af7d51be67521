//! `proa machine create`

use proa_engine::Kind;
use proa_engine::machine::{DiskSource, MachineRequest};
use proa_oci::reference::Reference;

use crate::commands::image::pull;
use crate::context::{self, Context};
use crate::error::{Failure, Outcome};
use crate::flags::MachineFlags;
use crate::progress::Bars;

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
    let request = args.flags.read(&args.name)?;
    request.disks.iter().try_for_each(|disk| ensure_here(context, disk))?;
    let (network, log) = (context.network_settings()?, context.log_settings()?);
    let request = MachineRequest { network, log, ..request };
    let created = context
        .engine()?
        .create_machine(request, &Bars::new(false))
        .map_err(|error| Failure::from(error).of_run())?;
    created.warnings.iter().for_each(|line| context::notice(line));
    println!("{}", created.record.id);
    Ok(0)
}

/// Pulls a disk image that is not here.
fn ensure_here(context: &Context, disk: &DiskSource) -> Result<(), Failure> {
    let DiskSource::Image(name) = disk else { return Ok(()) };
    match context.engine()?.store()?.resolve(name).map_err(Failure::from) {
        Err(failure) if failure.kind() == Kind::NotFound => {
            context::notice(&format!(
                "there is no file {name}, and no image of that name here, so it is pulled"
            ));
            pull::fetch(context, &Reference::parse(name)?, None, false).map(drop)
        }
        other => other.map(drop),
    }
}
