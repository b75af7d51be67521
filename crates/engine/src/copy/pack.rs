//! A host tree as a tar stream.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use crate::error::Error;

/// What went wrong: with the files, or with whoever takes the stream.
pub(super) enum Failure {
    Source(Error),
    Stream(io::Error),
}

/// Writes the file or tree at `source`, its entries named below `name`, or below nothing.
pub(super) fn pack(
    out: &mut dyn Write,
    source: &Path,
    name: Option<&str>,
    follow: bool,
    keep_owners: bool,
) -> Result<(), Failure> {
    let mut builder = Builder::new(out);
    let packer = Packer { keep_owners };
    packer.add(&mut builder, source, Path::new(name.unwrap_or(".")), follow)?;
    builder.finish().map_err(Failure::Stream)
}

struct Packer {
    keep_owners: bool,
}

impl Packer {
    fn add<W: Write>(
        &self,
        builder: &mut Builder<W>,
        source: &Path,
        name: &Path,
        follow: bool,
    ) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::Source(Error::io("copy", source, error));
        let metadata = if follow { fs::metadata(source) } else { fs::symlink_metadata(source) };
        let metadata = metadata.map_err(failed)?;
        let mut header = self.header(&metadata);
        let kind = metadata.file_type();
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            header.set_size(0);
            builder.append_data(&mut header, name, io::empty()).map_err(Failure::Stream)?;
            return self.add_children(builder, source, name);
        }
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            let target = fs::read_link(source).map_err(failed)?;
            return builder.append_link(&mut header, name, target).map_err(Failure::Stream);
        }
        if kind.is_fifo() {
            header.set_entry_type(EntryType::Fifo);
            header.set_size(0);
            return builder.append_data(&mut header, name, io::empty()).map_err(Failure::Stream);
        }
        if !kind.is_file() {
            let error = io::Error::other("it is a socket or a device");
            return Err(Failure::Source(Error::io("copy", source, error)));
        }
        let file = File::open(source).map_err(failed)?;
        builder.append_data(&mut header, name, exactly(file, metadata.len())).map_err(Failure::Stream)
    }

    fn add_children<W: Write>(
        &self,
        builder: &mut Builder<W>,
        source: &Path,
        name: &Path,
    ) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::Source(Error::io("copy", source, error));
        let entries =
            fs::read_dir(source).map_err(failed)?.collect::<io::Result<Vec<_>>>().map_err(failed)?;
        let mut names: Vec<PathBuf> = entries.into_iter().map(|entry| entry.file_name().into()).collect();
        names.sort();
        for child in names {
            self.add(builder, &source.join(&child), &name.join(&child), false)?;
        }
        Ok(())
    }

    fn header(&self, metadata: &Metadata) -> Header {
        let mut header = Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        header.set_size(metadata.len());
        let (uid, gid) = if self.keep_owners { (metadata.uid(), metadata.gid()) } else { (0, 0) };
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header
    }
}

/// As many bytes as the header says, whatever happens to the file meanwhile: a file that shrinks is filled up
/// with zeros, so that the archive stays one.
fn exactly(file: File, size: u64) -> impl io::Read {
    use io::Read;
    file.chain(io::repeat(0)).take(size)
}
