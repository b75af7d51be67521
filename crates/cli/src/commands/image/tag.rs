//! `proa tag`: another name for an image.

use proa_oci::reference::Reference;

use crate::context::Context;
use crate::error::Failure;

/// Give an image another name
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image: NAME[:TAG] or an id
    pub source: String,
    /// The new name: NAME[:TAG]
    pub target: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Result<i32, Failure> {
    let engine = context.engine()?;
    let target = Reference::parse(&args.target)?;
    let image = engine.store()?.resolve(&args.source)?;
    engine.store()?.tag(&args.source, &target)?;
    engine.tell_image("tag", image.id.as_str(), &target.familiar());
    Ok(0)
}
