//! The EROFS form of a layer: one image file, written front to back but for block 0, which comes last.
//!
//! The bytes on disk are described in [`format`](self::format); what is where is decided so:
//!
//! - A file's last, partial block of at most [`MAX_TAIL`] bytes stands behind its inode: small files cost no
//!   block and no second read. Longer tails would bloat the inode area for walks that read no data.
//! - A file with holes has a table of chunks, holes take neither blocks nor table entries worth speaking of.
//!   Runs of zeros that are stored as data become holes of the image file itself.
//! - Inodes of a directory stand together, 32 bytes each where all that differs fits, else 64. The time that
//!   most inodes share is the image's time, so that those can be small.
//! - The UUID is made of the metadata, so equal layers have equal ones and overlayfs can tell others apart.

mod check;
mod chunks;
mod dirents;
mod format;
mod out;
mod place;
mod tails;
mod write;

use std::io::Read;
use std::path::Path;

use chunks::Chunks;
use format::BLOCK;
use out::Output;
use tails::Tails;

use super::ingest::Store;
use super::tar::{Archive, Entry, Segment};
use super::tree::{NodeId, Tree, Xattrs};
use super::{LayerError, LeftOut};

pub use check::{Summary, check, is_whole};

/// Longest tail that stands behind its inode.
const MAX_TAIL: u64 = 2048;
/// Most bytes of chunk tables in one image: a sparse file of exbibytes takes a kilobyte of tar.
const MAX_TABLES: u64 = 256 << 20;

/// Where a file's data is.
#[derive(Debug)]
pub enum Content {
    /// In blocks from this one.
    Plain(u32),
    /// In blocks from this one; the rest is in the tails, from this byte.
    Inline(u32, u64),
    /// In chunks.
    Chunks(Box<Chunks>),
}

/// An image being written.
pub struct Image {
    out: Output,
    tails: Tails,
    /// Bytes of chunk tables so far.
    tables: u64,
}

impl Image {
    /// Creates the image's file, of at most `max` bytes.
    pub fn create(path: &Path, max: u64) -> Result<Self, LayerError> {
        let mut out = Output::create(path, max)?;
        out.zeros(BLOCK)?;
        Ok(Self { out, tails: Tails::new(path), tables: 0 })
    }

    /// Writes the stored bytes to their place in a file without holes in the image, the tail aside.
    fn put_plain<R: Read>(
        &mut self,
        archive: &mut Archive<'_, R>,
        entry: &Entry,
        tail: u64,
    ) -> Result<Content, LayerError> {
        let block = self.out.block();
        let dense = matches!(entry.segments[..], [Segment { offset: 0, len }] if len == entry.size);
        if tail > 0 && dense {
            copy(archive, entry.size - tail, |bytes| self.out.write(bytes))?;
            let at = self.tails.end();
            copy(archive, tail, |bytes| self.tails.push(bytes))?;
            return Ok(Content::Inline(block, at));
        }
        let start = self.out.position();
        for segment in &entry.segments {
            self.out.zeros(segment.offset - (self.out.position() - start))?;
            copy(archive, segment.len, |bytes| self.out.write(bytes))?;
        }
        self.out.zeros(entry.size - (self.out.position() - start))?;
        self.out.align(BLOCK)?;
        Ok(Content::Plain(block))
    }

    fn put_chunks<R: Read>(
        &mut self,
        archive: &mut Archive<'_, R>,
        entry: &Entry,
        mut chunks: Chunks,
    ) -> Result<Content, LayerError> {
        self.tables = self.tables.saturating_add(chunks.table_bytes());
        if self.tables > MAX_TABLES {
            return Err(LayerError::Limit { what: "bytes of maps of sparse files", max: MAX_TABLES });
        }
        let mut segments = entry.segments.iter().peekable();
        for i in 0..chunks.runs.len() {
            let run = chunks.runs[i];
            let begin = run.first * chunks.chunk();
            let bytes = chunks.run_bytes(&run, entry.size);
            chunks.runs[i].block = self.out.block();
            let start = self.out.position();
            while let Some(segment) = segments.next_if(|segment| segment.offset < begin + bytes) {
                self.out.zeros(segment.offset - begin - (self.out.position() - start))?;
                copy(archive, segment.len, |bytes| self.out.write(bytes))?;
            }
            self.out.zeros(bytes - (self.out.position() - start))?;
        }
        Ok(Content::Chunks(Box::new(chunks)))
    }

    /// Bytes of the file's tail that shall stand behind its inode.
    fn tail(size: u64, xattrs: &Xattrs) -> u64 {
        let tail = size % BLOCK;
        let fits = tail <= MAX_TAIL && write::EXTENDED + format::xattr_bytes(xattrs) + tail <= BLOCK;
        if fits { tail } else { 0 }
    }
}

impl Store for Image {
    type Content = Content;

    fn put<R: Read>(
        &mut self,
        archive: &mut Archive<'_, R>,
        entry: &Entry,
        xattrs: &Xattrs,
    ) -> Result<Content, LayerError> {
        match Chunks::plan(entry.size, &entry.segments) {
            Some(chunks) => self.put_chunks(archive, entry, chunks),
            None => self.put_plain(archive, entry, Self::tail(entry.size, xattrs)),
        }
    }

    fn finish(self, tree: &Tree<Content>, order: &[NodeId]) -> Result<(u64, LeftOut), LayerError> {
        Ok((write::metadata(self.out, self.tails, tree, order)?, LeftOut::default()))
    }
}

/// Hands on `count` bytes of the archive's current entry.
fn copy<R: Read>(
    archive: &mut Archive<'_, R>,
    mut count: u64,
    mut sink: impl FnMut(&[u8]) -> Result<(), LayerError>,
) -> Result<(), LayerError> {
    while count > 0 {
        let at_hand = archive.fill()?;
        let used = at_hand.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        sink(&at_hand[..used])?;
        archive.consume(used);
        count -= used as u64;
    }
    Ok(())
}
