//! `proa stop`

use proa_engine::life::StopOptions;

use crate::context::Context;
use crate::error::{Outcome, each};

/// Ask instances to end, then end them
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Signal to send first
    #[arg(short, long)]
    signal: Option<String>,
    /// Seconds to wait before killing; -1 waits for ever
    #[arg(short = 't', long, visible_alias = "time", value_name = "SECONDS", allow_negative_numbers = true)]
    timeout: Option<i64>,
    /// Names or ids
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    let options = StopOptions { timeout: args.timeout, signal: args.signal.clone(), until_boot: false };
    each(&args.instances, |name| {
        engine.stop(&engine.find(name)?, &options)?;
        println!("{name}");
        Ok(())
    })
}
