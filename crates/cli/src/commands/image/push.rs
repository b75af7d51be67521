//! `proa push`: an image to a registry.

use proa_oci::reference::Reference;

use crate::context::Context;
use crate::error::Failure;
use crate::progress::Bars;

/// Upload an image to a registry
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the digest alone
    #[arg(short, long)]
    pub quiet: bool,
    /// NAME[:TAG]
    pub image: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Result<i32, Failure> {
    let target = Reference::parse(&args.image)?;
    let options = context.registry_options()?;
    let store = context.engine()?.store()?;
    let digest = proa_image::push(store, &args.image, &target, &options, &Bars::new(args.quiet))?;
    context.engine()?.tell_image("push", &target.familiar(), &target.familiar_repository());
    if args.quiet {
        println!("{digest}")
    } else {
        println!("{target} {digest}")
    }
    Ok(0)
}
