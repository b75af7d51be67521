//! `proa system stop`: the end of everything of a state directory.

use std::time::Duration;

use crate::context::Context;
use crate::error::Outcome;

/// End everything of this state directory: instances, monitors, layer mounts
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds to wait before killing
    #[arg(short = 't', long, visible_alias = "time", value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    for name in context.engine()?.stop_all(Duration::from_secs(args.timeout))? {
        println!("{name}");
    }
    context.leave()?;
    Ok(0)
}
