//! `proa load`: images from an archive.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use proa_image::PullOptions;
use proa_image::archive::load;

use crate::context::Context;
use crate::error::Failure;
use crate::progress::Bars;

/// Load images from an archive: docker save's, or an OCI layout; plain, gzip or zstd
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Read this file instead of standard input
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Result<i32, Failure> {
    let input: Box<dyn Read> = match &args.input {
        Some(path) => Box::new(File::open(path).map_err(|error| Failure::io("open", path, error))?),
        None if std::io::stdin().is_terminal() => {
            return Err(Failure::usage("give an archive: --input FILE, or standard input"));
        }
        None => Box::new(std::io::stdin().lock()),
    };
    let engine = context.engine()?;
    let store = engine.store()?;
    for loaded in load(store, input, &PullOptions::default(), &Bars::new(args.quiet))? {
        engine.tell_image("load", loaded.image.id.as_str(), loaded.image.id.as_str());
        match loaded.names.is_empty() {
            true => println!("Loaded image ID: {}", loaded.image.id),
            false => loaded.names.iter().for_each(|name| println!("Loaded image: {}", super::familiar(name))),
        }
    }
    Ok(0)
}
