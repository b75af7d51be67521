//! `proa machine save`

use proa_oci::reference::Reference;

use crate::context::Context;
use crate::error::Outcome;
use crate::progress::Bars;

/// Make a disk image of a machine's first disk
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or id of the machine, which must not run
    machine: String,
    /// NAME[:TAG] of the image
    image: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    let image = engine.save_disk_image(
        &engine.find(&args.machine)?,
        &Reference::parse(&args.image)?,
        &Bars::new(false),
    )?;
    println!("{}", image.id);
    Ok(0)
}
