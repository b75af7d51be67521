//! `proa update`

use proa_engine::update::LimitUpdate;

use crate::context::Context;
use crate::error::{Failure, Outcome, each};
use crate::flags::UpdateFlags;

/// Change the limits of instances
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    limits: UpdateFlags,
    #[arg(long, hide = true)]
    restart: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let limits = args.limits.read()?;
    if args.restart.as_ref().is_some_and(|policy| policy != "no") {
        return Err(Failure::usage("--restart needs restart policies, which Proa does not have yet"));
    }
    if limits == LimitUpdate::default() && args.restart.is_none() {
        return Err(Failure::usage("nothing to change was given").with_hint("see `proa update --help`"));
    }
    let engine = context.engine()?;
    each(&args.instances, |name| {
        engine.update(&engine.find(name)?, &limits)?;
        println!("{name}");
        Ok(())
    })
}
