//! `proa rename`

use crate::context::Context;
use crate::error::Outcome;

/// Give an instance another name
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or id
    instance: String,
    /// Its new name
    name: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    engine.rename(&engine.find(&args.instance)?, &args.name)?;
    Ok(0)
}
