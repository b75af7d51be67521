//! `proa container prune`: instances that do not run.

use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::format::size;

/// Remove all instances that do not run
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    if !args.force {
        return Err(Failure::usage("this removes all instances that do not run: say --force"));
    }
    let engine = context.engine()?;
    let mut freed = 0;
    for instance in engine.instances()?.iter().filter(|instance| !instance.is_live()) {
        let (own, _) = engine.sizes(instance);
        engine.remove(instance, false, false)?;
        freed += own;
        println!("{}", instance.record.id);
    }
    println!("Total reclaimed space: {}", size(freed));
    Ok(0)
}
