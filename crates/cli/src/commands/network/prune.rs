//! `proa network prune`

use proa_engine::network::NetworkFilters;

use crate::context::Context;
use crate::error::{Failure, Outcome};

/// Remove networks that no instance is in
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only those for which this holds: label, until
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let filters = NetworkFilters::parse(&args.filter)?;
    if !args.force {
        return Err(Failure::usage("this removes all networks that no instance is in: say --force"));
    }
    let removed = context.engine()?.prune_networks(&filters)?;
    if !removed.is_empty() {
        println!("Deleted Networks:");
        removed.iter().for_each(|name| println!("{name}"));
    }
    Ok(0)
}
