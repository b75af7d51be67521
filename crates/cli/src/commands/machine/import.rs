//! `proa machine import`

use std::path::PathBuf;

use proa_oci::reference::Reference;
use proa_protocol::machine::DiskFormat;

use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::progress::Bars;

/// Make a disk image of a file
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Form of the file, rather than what its first bytes say: raw, qcow2, vmdk, vdi, vhd or vhdx
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// A disk of any form
    file: PathBuf,
    /// NAME[:TAG] of the image
    image: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let unknown = || {
        let names: Vec<&str> = DiskFormat::ALL.iter().map(|(name, _)| *name).collect();
        Failure::usage("there is no such --format").with_hint(names.join(", "))
    };
    let format =
        args.format.as_deref().map(|name| DiskFormat::parse(name).ok_or_else(unknown)).transpose()?;
    let reference = Reference::parse(&args.image)?;
    let image = context.engine()?.import_disk_image(&args.file, format, &reference, &Bars::new(false))?;
    println!("{}", image.id);
    Ok(0)
}
