//! `proa container prune`: instances that do not run.

use jiff::tz::TimeZone;
use proa_engine::Engine;
use proa_engine::parse::now_ns;
use proa_engine::prune::PruneFilters;

use super::confirm::confirm;
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::format::size;

/// What it removes.
pub const WHAT: &str = "all instances that do not run";

/// Remove all instances that do not run
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only some: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let filters = filters(&args.filter)?;
    if !confirm(args.force, &[WHAT])? {
        return Ok(0);
    }
    let bytes = prune(context.engine()?, &filters)?;
    println!("Total reclaimed space: {}", size(bytes));
    Ok(0)
}

/// Reads conditions.
///
/// # Errors
/// One makes no sense.
pub fn filters(texts: &[String]) -> Result<PruneFilters, Failure> {
    Ok(PruneFilters::parse(texts, now_ns(), &TimeZone::system())?)
}

/// Removes them, and says which.
///
/// # Errors
/// One cannot be removed.
pub fn prune(engine: &Engine, filters: &PruneFilters) -> Result<u64, Failure> {
    let pruned = engine.prune_instances(filters)?;
    if !pruned.ids.is_empty() {
        println!("Deleted Containers:\n{}\n", pruned.ids.join("\n"));
    }
    Ok(pruned.bytes)
}
