//! `proa update`

use proa_engine::config::RestartPolicy;
use proa_engine::update::LimitUpdate;

use crate::context::Context;
use crate::error::{Failure, Outcome, each};
use crate::flags::{UpdateFlags, usage};

/// Change the limits and the restart policy of instances
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    limits: UpdateFlags,
    /// Run them again when they end: no, on-failure[:COUNT], always or unless-stopped
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let mut limits = args.limits.read()?;
    limits.restart = args.restart.as_deref().map(RestartPolicy::parse).transpose().map_err(usage)?;
    if limits == LimitUpdate::default() {
        return Err(Failure::usage("nothing to change was given").with_hint("see `proa update --help`"));
    }
    let engine = context.engine()?;
    each(&args.instances, |name| {
        engine.update(&engine.find(name)?, &limits)?;
        println!("{name}");
        Ok(())
    })
}
