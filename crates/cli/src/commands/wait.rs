//! `proa wait`

use crate::context::Context;
use crate::error::{Outcome, each};

/// Wait until instances end, and print their exit codes
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
        println!("{}", engine.wait(&engine.find(name)?)?);
        Ok(())
    })
}
