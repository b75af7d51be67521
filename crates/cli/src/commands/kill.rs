//! `proa kill`

use crate::context::Context;
use crate::error::{Outcome, each};

/// Send a signal to instances
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Signal
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// Names or ids
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    each(&args.instances, |name| {
        engine.kill(&engine.find(name)?, &args.signal)?;
        println!("{name}");
        Ok(())
    })
}
