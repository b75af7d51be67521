//! `proa network prune`

use proa_engine::Engine;
use proa_engine::prune::PruneFilters;

use crate::commands::confirm::confirm;
use crate::commands::container_prune;
use crate::context::Context;
use crate::error::{Failure, Outcome};

/// What it removes.
pub const WHAT: &str = "all networks that no instance is in";

/// Remove networks that no instance is in
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
    let filters = container_prune::filters(&args.filter)?;
    if confirm(args.force, &[WHAT])? {
        prune(context.engine()?, &filters)?;
    }
    Ok(0)
}

/// Removes them, and says which.
///
/// # Errors
/// One cannot be removed.
pub fn prune(engine: &Engine, filters: &PruneFilters) -> Result<(), Failure> {
    let removed = engine.prune_networks(filters)?;
    if !removed.is_empty() {
        println!("Deleted Networks:\n{}\n", removed.join("\n"));
    }
    Ok(())
}
