//! A tar reader for untrusted streams: one pass, one buffer, nothing trusted.
//!
//! Understood are v7, ustar, star's and GNU's headers, GNU's long names, pax records, and sparse files in the
//! four ways they are written. Global pax headers are ignored, as Docker ignores them. A truncated stream is
//! an error unless it ends where an entry could begin.
//!
//! ```text
//!   next() ─▶ Entry ─▶ fill()/consume() until fill() gives nothing ─▶ next() …─▶ None ─▶ drain()
//! ```
//! `next` skips what was not read of the entry before.

mod header;
mod pax;
mod sparse;

use std::io::{ErrorKind, Read};

use header::{BLOCK, Header};
use pax::Pax;
pub use sparse::Segment;

use super::{LayerError, Limits};

/// Longest pax header or long name.
const MAX_EXTENSION: u64 = 1 << 20;
/// Bytes read at once: enough to make a read cheap, little enough to stay in the cache.
const BUFFER: usize = 256 << 10;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// Another name of an earlier entry.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One entry as the archive has it; nothing of it is checked against the file system to be made.
#[derive(Debug)]
pub struct Entry {
    /// What it makes.
    pub kind: EntryKind,
    /// Its name, as written.
    pub path: Vec<u8>,
    /// The target of a link.
    pub link: Vec<u8>,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Device number.
    pub device: (u32, u32),
    /// Extended attributes, each name once.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of the file, its holes counted.
    pub size: u64,
    /// Where in the file the stored bytes belong: in order, apart, inside `size`.
    pub segments: Vec<Segment>,
}

/// The reader of one archive.
pub struct Archive<'a, R> {
    source: R,
    limits: &'a Limits,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes read from the source.
    total: u64,
    /// Stored bytes of the current entry not yet consumed.
    left: u64,
    /// Padding after them.
    padding: u64,
}

/// What the headers before an entry said about it.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Pax,
}

impl<'a, R: Read> Archive<'a, R> {
    /// Starts to read at the first header.
    pub fn new(source: R, limits: &'a Limits) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self { source, limits, buffer, start: 0, end: 0, total: 0, left: 0, padding: 0 }
    }

    /// Bytes consumed so far.
    pub fn offset(&self) -> u64 {
        self.total - (self.end - self.start) as u64
    }

    fn malformed(&self, reason: &'static str) -> LayerError {
        LayerError::Malformed { offset: self.offset(), reason }
    }

    /// The next entry; `None` at the end of the archive.
    pub fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        self.skip_rest()?;
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.size().ok_or_else(|| self.malformed("bad size"))?;
            match header.kind() {
                b'x' => {
                    let bytes = self.payload(size)?;
                    extensions.pax = Pax::parse(&bytes).map_err(|reason| self.malformed(reason))?;
                }
                b'L' => extensions.path = Some(until_nul(self.payload(size)?)),
                b'K' => extensions.link = Some(until_nul(self.payload(size)?)),
                b'g' | b'V' => {
                    (self.left, self.padding) = (size, padding(size));
                    self.skip_rest()?;
                }
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    /// Stored bytes of the current entry, as many as are at hand; none when all were consumed.
    pub fn fill(&mut self) -> Result<&[u8], LayerError> {
        if self.left == 0 {
            return Ok(&[]);
        }
        if self.start == self.end && self.read_more()? == 0 {
            return Err(self.malformed("ends in the middle of a file"));
        }
        let at_hand = (self.end - self.start).min(usize::try_from(self.left).unwrap_or(usize::MAX));
        Ok(&self.buffer[self.start..self.start + at_hand])
    }

    /// Marks bytes that [`fill`](Self::fill) gave as used.
    pub fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        self.left -= bytes as u64;
    }

    /// Reads what follows the archive's end, so that who reads through us sees every byte of the stream; gives
    /// the stream's length.
    pub fn drain(&mut self) -> Result<u64, LayerError> {
        loop {
            self.start = self.end;
            if self.read_more()? == 0 {
                return Ok(self.total);
            }
        }
    }

    /// Appends to the buffer; 0 at the stream's end.
    fn read_more(&mut self) -> Result<usize, LayerError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let read = loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(read) => break read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(LayerError::Read(error)),
            }
        };
        self.end += read;
        self.total += read as u64;
        if self.total > self.limits.max_uncompressed {
            let max = self.limits.max_uncompressed;
            return Err(LayerError::Limit { what: "bytes of tar stream", max });
        }
        Ok(read)
    }

    /// One block, or `None` if the stream ends before its first byte.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, LayerError> {
        while self.end - self.start < BLOCK {
            if self.read_more()? == 0 {
                if self.start == self.end {
                    return Ok(None);
                }
                return Err(self.malformed("ends in the middle of a block"));
            }
        }
        let mut block = [0; BLOCK];
        block.copy_from_slice(&self.buffer[self.start..self.start + BLOCK]);
        self.start += BLOCK;
        Ok(Some(block))
    }

    /// The next header; `None` at the archive's end, which is a block of zeros or the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, LayerError> {
        let Some(block) = self.block()? else { return Ok(None) };
        let header = Header(block);
        if header.is_zero() {
            return Ok(None);
        }
        if !header.sum_is_right() {
            return Err(self.malformed("bad checksum in a header"));
        }
        Ok(Some(header))
    }

    fn skip_rest(&mut self) -> Result<(), LayerError> {
        self.left = self.left.checked_add(self.padding).ok_or_else(|| self.malformed("bad size"))?;
        self.padding = 0;
        loop {
            let at_hand = self.fill()?.len();
            if at_hand == 0 {
                return Ok(());
            }
            self.consume(at_hand);
        }
    }

    /// All of a small entry's bytes.
    fn payload(&mut self, size: u64) -> Result<Vec<u8>, LayerError> {
        if size > MAX_EXTENSION {
            return Err(LayerError::Limit { what: "bytes in an extended header", max: MAX_EXTENSION });
        }
        (self.left, self.padding) = (size, padding(size));
        let mut bytes = Vec::with_capacity(size as usize);
        loop {
            let at_hand = self.fill()?;
            if at_hand.is_empty() {
                break;
            }
            bytes.extend_from_slice(at_hand);
            let used = at_hand.len();
            self.consume(used);
        }
        self.skip_rest()?;
        Ok(bytes)
    }

    /// Puts an entry together and makes its data the next to be read.
    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, LayerError> {
        let Extensions { path, link, mut pax } = extensions;
        let path = pax.path.take().or(path).unwrap_or_else(|| header.name());
        let link = pax.link.take().or(link).unwrap_or_else(|| header.link().to_vec());
        if path.len().max(link.len()) > self.limits.max_path {
            return Err(LayerError::Limit { what: "bytes in a path", max: self.limits.max_path as u64 });
        }
        let kind = self.kind(header, &path)?;
        let stored = pax.size.or(header.size()).ok_or_else(|| self.malformed("bad size"))?;
        let stored = if kind == EntryKind::File { stored } else { 0 };
        (self.left, self.padding) = (stored, padding(stored));
        let mut entry = self.describe(kind, header, &mut pax)?;
        (entry.path, entry.link, entry.size) = (path, link, stored);
        if kind == EntryKind::File {
            self.place(header, pax, &mut entry)?;
        }
        Ok(entry)
    }

    fn kind(&self, header: &Header, path: &[u8]) -> Result<EntryKind, LayerError> {
        Ok(match header.kind() {
            // Before there was a type for directories, a slash at the end told them apart.
            b'0' | 0 if path.ends_with(b"/") => EntryKind::Directory,
            b'0' | 0 | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::Char,
            b'4' => EntryKind::Block,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => {
                let reason = format!("its type '{}' is not one that a layer may hold", other.escape_ascii());
                return Err(LayerError::entry(path, reason));
            }
        })
    }

    fn describe(&self, kind: EntryKind, header: &Header, pax: &mut Pax) -> Result<Entry, LayerError> {
        let bad = |what| self.malformed(what);
        let id = |pax: Option<u64>, plain: Option<i64>| {
            let value = pax.or_else(|| plain.and_then(|id| id.try_into().ok()))?;
            // The last number means "leave as it is" to chown.
            u32::try_from(value).ok().filter(|&id| id != u32::MAX)
        };
        let mode = header.mode().ok_or_else(|| bad("bad mode"))?;
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => (header.mtime().ok_or_else(|| bad("bad time"))?, 0),
        };
        let device = match kind {
            EntryKind::Char | EntryKind::Block => {
                let (major, minor) = header.device().ok_or_else(|| bad("bad device number"))?;
                let part = |part: i64, max: u32| u32::try_from(part).ok().filter(|&part| part <= max);
                // 12 and 20 bits are what Linux has.
                part(major, 0xfff).zip(part(minor, 0xf_ffff)).ok_or_else(|| bad("bad device number"))?
            }
            _ => (0, 0),
        };
        Ok(Entry {
            kind,
            path: Vec::new(),
            link: Vec::new(),
            mode: (mode & 0o7777) as u16,
            uid: id(pax.uid, header.uid()).ok_or_else(|| bad("bad owner"))?,
            gid: id(pax.gid, header.gid()).ok_or_else(|| bad("bad group"))?,
            mtime,
            device,
            xattrs: std::mem::take(&mut pax.xattrs),
            size: 0,
            segments: Vec::new(),
        })
    }

    /// Finds out where a file's stored bytes belong.
    fn place(&mut self, header: &Header, pax: Pax, entry: &mut Entry) -> Result<(), LayerError> {
        let segments = if header.kind() == b'S' {
            let size = header::number(&header.0[483..495]).and_then(|size| size.try_into().ok());
            entry.size = size.ok_or_else(|| self.malformed("bad size of a sparse file"))?;
            self.old_map(header)?
        } else if pax.sparse.in_data {
            entry.size = pax.sparse.size.ok_or_else(|| self.malformed("sparse file without a size"))?;
            self.map_in_data()?
        } else if let Some(map) = pax.sparse.map {
            entry.size = pax.sparse.size.ok_or_else(|| self.malformed("sparse file without a size"))?;
            map
        } else {
            vec![Segment { offset: 0, len: entry.size }]
        };
        let checked = sparse::checked(segments, entry.size, self.left);
        entry.segments = checked.ok_or_else(|| self.malformed("bad map of a sparse file"))?;
        // Sizes are signed in every system call.
        if i64::try_from(entry.size).is_err() {
            return Err(self.malformed("bad size"));
        }
        Ok(())
    }

    /// Old GNU: four pieces in the header, more in blocks that follow it, before the data.
    fn old_map(&mut self, header: &Header) -> Result<Vec<Segment>, LayerError> {
        let mut segments = Vec::new();
        let bad = "bad map of a sparse file";
        sparse::push_old(&mut segments, &header.0[386..482]).ok_or_else(|| self.malformed(bad))?;
        let mut more = header.0[482] != 0;
        while more {
            let block = self.block()?.ok_or_else(|| self.malformed("ends in a sparse map"))?;
            sparse::push_old(&mut segments, &block[..504]).ok_or_else(|| self.malformed(bad))?;
            more = block[504] != 0;
            if segments.len() > sparse::MAX_SEGMENTS {
                let max = sparse::MAX_SEGMENTS as u64;
                return Err(LayerError::Limit { what: "pieces of a sparse file", max });
            }
        }
        Ok(segments)
    }

    /// Format 1.0: the first stored blocks are the map.
    fn map_in_data(&mut self) -> Result<Vec<Segment>, LayerError> {
        let mut map = sparse::DataMap::default();
        loop {
            let left = self.left.checked_sub(BLOCK as u64);
            self.left = left.ok_or_else(|| self.malformed("ends in a sparse map"))?;
            let block = self.block()?.ok_or_else(|| self.malformed("ends in a sparse map"))?;
            if let Some(segments) = map.push(&block).map_err(|reason| self.malformed(reason))? {
                return Ok(segments);
            }
        }
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len()));
    bytes
}
