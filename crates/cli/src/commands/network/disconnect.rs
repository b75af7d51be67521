//! `proa network disconnect`

use crate::context::Context;
use crate::error::Outcome;

/// Take an instance's place in a network away
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Changes nothing
    #[arg(short, long, hide = true)]
    force: bool,
    /// The network
    network: String,
    /// The instance
    instance: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    engine.disconnect_network(&engine.find(&args.instance)?, &engine.network(&args.network)?)?;
    Ok(0)
}
