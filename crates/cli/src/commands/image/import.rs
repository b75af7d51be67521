//! `proa import`: an image from the tar of a root file system.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use proa_image::archive::{ImportOptions, import};
use proa_oci::image::Platform;
use proa_oci::reference::Reference;

use crate::context::Context;
use crate::error::Failure;
use crate::progress::Bars;

/// Make an image of a root file system's tar
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A Dockerfile instruction for the image's config, as 'CMD ["sh"]'
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// A message for the image's history
    #[arg(short, long, default_value = "")]
    pub message: String,
    /// Platform of the programs in it, as linux/amd64
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// The tar; - is standard input
    pub file: PathBuf,
    /// NAME[:TAG] for the image
    pub name: Option<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Result<i32, Failure> {
    let target = args.name.as_deref().map(Reference::parse).transpose()?;
    let platform = args.platform.as_deref().map(|text| {
        Platform::parse(text).ok_or_else(|| Failure::usage(format!("{text:?} is no platform: give OS/ARCH")))
    });
    let options = ImportOptions {
        changes: args.change.clone(),
        message: args.message.clone(),
        platform: platform.transpose()?,
        ..ImportOptions::default()
    };
    let input: Box<dyn Read> = match args.file.as_os_str() == "-" {
        true => Box::new(std::io::stdin().lock()),
        false => Box::new(File::open(&args.file).map_err(|error| Failure::io("open", &args.file, error))?),
    };
    let image = import(context.engine()?.store()?, input, target.as_ref(), &options, &Bars::new(false))?;
    context.engine()?.tell_image("import", image.id.as_str(), image.id.as_str());
    println!("{}", image.id);
    Ok(0)
}
