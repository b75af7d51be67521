//! `proa save`: images into an archive.

use std::fs::{self, File};
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use proa_image::archive::{ArchiveFormat, save};

use crate::context::Context;
use crate::error::Failure;

/// Save images to an archive that docker, podman and skopeo read
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// docker-archive (an OCI layout as well) or oci-archive
    #[arg(long, value_name = "FORMAT", default_value = "docker-archive")]
    pub format: Format,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

/// Kinds of archive.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Format {
    /// Both kinds at once.
    DockerArchive,
    /// An OCI layout alone.
    OciArchive,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Result<i32, Failure> {
    let format = match args.format {
        Format::DockerArchive => ArchiveFormat::Docker,
        Format::OciArchive => ArchiveFormat::Oci,
    };
    let engine = context.engine()?;
    let store = engine.store()?;
    match &args.output {
        Some(path) => write_file(path, |out| Ok(save(store, &args.images, format, out)?))?,
        None if std::io::stdout().is_terminal() => {
            return Err(Failure::usage("an archive is not for a terminal: give --output FILE, or redirect"));
        }
        None => save(store, &args.images, format, &mut std::io::stdout().lock())?,
    }
    for name in &args.images {
        let image = store.resolve(name)?;
        engine.tell_image("save", image.id.as_str(), image.id.as_str());
    }
    Ok(0)
}

/// Writes beside the file and renames, so that a failure leaves what was there before.
fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<(), Failure>) -> Result<(), Failure> {
    let is_special = fs::metadata(path).is_ok_and(|found| !found.is_file());
    let target = if is_special {
        path.to_owned()
    } else {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        PathBuf::from(name)
    };
    let io = |error| Failure::io("write", path, error);
    let mut out = BufWriter::new(File::create(&target).map_err(io)?);
    let result = write(&mut out).and_then(|()| out.flush().map_err(io));
    if is_special {
        return result;
    }
    let result = result.and_then(|()| fs::rename(&target, path).map_err(io));
    if result.is_err() {
        // The failure itself says more than one to clean up.
        let _ = fs::remove_file(&target);
    }
    result
}
