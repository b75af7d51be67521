//! `proa image prune`: images nobody names or uses.

use proa_engine::prune::budget;
use proa_image::store::Pruned;

use super::super::confirm::confirm;
use super::super::container_prune::filters;
use crate::context::Context;
use crate::error::Failure;
use crate::format::size;

/// Remove images that have no name
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Remove every image that no instance uses
    #[arg(short, long)]
    pub all: bool,
    /// Remove unused images, those used longest ago first, until the rest takes no more than SIZE
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["all", "filter"])]
    pub budget: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Only some: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
}

/// What it removes.
pub fn what(all: bool) -> &'static str {
    if all { "all images that no instance uses" } else { "all images that have no name" }
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Result<i32, Failure> {
    let filters = filters(&args.filter)?;
    let limit = args.budget.as_deref().map(budget).transpose()?;
    let most = limit.map(|limit| format!("unused images, until the rest takes no more than {}", size(limit)));
    if !confirm(args.force, &[most.as_deref().unwrap_or_else(|| what(args.all))])? {
        return Ok(0);
    }
    let engine = context.engine()?;
    let pruned = match limit {
        Some(limit) => engine.prune_images_to(limit, None)?,
        None => engine.prune_images(args.all, &filters)?,
    };
    print(&pruned);
    println!("Total reclaimed space: {}", size(pruned.bytes));
    Ok(0)
}

/// Says what was removed.
pub fn print(pruned: &Pruned) {
    if !pruned.removed.is_empty() {
        println!("Deleted Images:");
        pruned.removed.iter().for_each(super::rmi::print);
        println!();
    }
}
