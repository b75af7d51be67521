//! `proa system reap`: what a monitor calls when nobody else removes an instance that was to go.

use crate::context::Context;
use crate::error::Outcome;

/// Remove an instance that was to go when it ended
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Its id
    id: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    context.engine()?.reap(&args.id)?;
    Ok(0)
}
