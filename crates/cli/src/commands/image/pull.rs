//! `proa pull`: an image from a registry.

use proa_image::PullOptions;
use proa_oci::image::Platform;
use proa_oci::reference::Reference;

use crate::context::Context;
use crate::error::Failure;
use crate::progress::Bars;

/// Download an image from a registry
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the name alone
    #[arg(short, long)]
    pub quiet: bool,
    /// Platform to choose, as linux/amd64
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// NAME[:TAG|@DIGEST]
    pub image: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Result<i32, Failure> {
    let reference = Reference::parse(&args.image)?;
    fetch(context, &reference, args.platform.as_deref(), args.quiet)?;
    println!("{reference}");
    Ok(0)
}

/// Pulls with progress on standard error; also what `run` does with an image that is missing.
pub fn fetch(
    context: &Context,
    reference: &Reference,
    platform: Option<&str>,
    quiet: bool,
) -> Result<proa_image::Image, Failure> {
    let platform = platform.map(parse_platform).transpose()?;
    let options = PullOptions { registry: context.registry_options()?, platform, ..PullOptions::default() };
    let pulled = proa_image::pull(context.engine()?.store()?, reference, &options, &Bars::new(quiet));
    let image =
        pulled.map_err(|error| Failure::from(error).context(&format!("pull {}", reference.familiar())))?;
    context.engine()?.tell_image("pull", &reference.familiar(), &reference.familiar_repository());
    if let Some(budget) = context.image_budget()? {
        context.engine()?.prune_images_to(budget, Some(&image.id))?;
    }
    Ok(image)
}

fn parse_platform(text: &str) -> Result<Platform, Failure> {
    Platform::parse(text)
        .ok_or_else(|| Failure::usage(format!("{text:?} is no platform: give OS/ARCH[/VARIANT]")))
}
