//! `proa unpause`

use crate::context::Context;
use crate::error::{Outcome, each};

/// Thaw instances
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or ids
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    each(&args.instances, |name| {
        engine.unpause(&engine.find(name)?)?;
        println!("{name}");
        Ok(())
    })
}
