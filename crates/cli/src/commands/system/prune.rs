//! `proa system prune`: all that nobody uses.

use super::super::confirm::confirm;
use super::super::container_prune::{self, filters};
use proa_engine::volumes::VolumeFilters;

use super::super::image::prune as image_prune;
use super::super::kernel::prune as kernel_prune;
use super::super::network::prune as network_prune;
use crate::context::Context;
use crate::error::Outcome;
use crate::format::size;

/// Remove what nobody uses: instances that do not run, networks, images, and kernels
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Remove every image and kernel file that no instance uses, and templates, not only images without a name
    #[arg(short, long)]
    all: bool,
    /// Anonymous volumes that no instance has as well
    #[arg(long)]
    volumes: bool,
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
    // Conditions are about what has labels.
    let (kernels, templates) = (args.filter.is_empty(), args.all && args.filter.is_empty());
    let volumes = args.volumes.then(|| VolumeFilters::of_prune(&args.filter)).transpose()?;
    let mut what = vec![container_prune::WHAT, network_prune::WHAT, image_prune::what(args.all)];
    what.extend(args.volumes.then_some("all anonymous volumes that no instance has"));
    what.extend(templates.then_some("all templates of virtual machines"));
    what.extend(kernels.then(|| kernel_prune::what(args.all)));
    if !confirm(args.force, &what)? {
        return Ok(0);
    }
    let engine = context.engine()?;
    let mut bytes = container_prune::prune(engine, &filters)?;
    network_prune::prune(engine, &filters)?;
    if let Some(filters) = &volumes {
        let pruned = engine.prune_volumes(false, filters)?;
        if !pruned.volumes.is_empty() {
            println!("Deleted Volumes:\n{}\n", pruned.volumes.join("\n"));
        }
        bytes += pruned.bytes;
    }
    let pruned = engine.prune_images(args.all, &filters)?;
    image_prune::print(&pruned);
    bytes += pruned.bytes;
    if templates {
        for template in engine.templates()? {
            // Somebody else may have removed it.
            if let Ok(template) = engine.remove_template(&template.id) {
                println!("Deleted Template: {}", template.id);
                bytes += template.bytes;
            }
        }
    }
    if kernels {
        bytes += kernel_prune::prune(engine, args.all)?;
    }
    println!("Total reclaimed space: {}", size(bytes));
    Ok(0)
}
