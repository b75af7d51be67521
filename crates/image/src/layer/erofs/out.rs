//! Sequential writing of an image, in large pieces, with long runs of zeros left as holes in the file.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::format::BLOCK;
use crate::layer::LayerError;

/// Bytes of the buffer.
const BUFFER: usize = 1 << 20;
/// Shortest run of zeros that becomes a hole: shorter ones would cost more in extents than they save.
const HOLE: usize = 64 << 10;

/// The image being written.
pub struct Output {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    /// Where the buffer's first byte belongs; a multiple of `HOLE`.
    base: u64,
    /// Bytes in the file that are holes.
    holes: u64,
    /// Most bytes there may be.
    max: u64,
}

impl Output {
    /// Creates the file; `max` is the most bytes it may have.
    pub fn create(path: &Path, max: u64) -> Result<Self, LayerError> {
        let file = File::create_new(path).map_err(LayerError::write(path, "create the layer"))?;
        // Block addresses are 32 bits wide, the last of them is a mark.
        let max = max.min(u64::from(u32::MAX) * BLOCK - BUFFER as u64);
        let buffer = Vec::with_capacity(BUFFER);
        Ok(Self { file, path: path.to_owned(), buffer, base: 0, holes: 0, max })
    }

    /// Bytes written so far.
    pub fn position(&self) -> u64 {
        self.base + self.buffer.len() as u64
    }

    /// The block that begins here; the position must be a block's.
    pub fn block(&self) -> u32 {
        debug_assert!(self.position().is_multiple_of(BLOCK));
        (self.position() / BLOCK) as u32
    }

    /// Appends bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), LayerError> {
        while !bytes.is_empty() {
            let fits = bytes.len().min(BUFFER - self.buffer.len());
            self.buffer.extend_from_slice(&bytes[..fits]);
            bytes = &bytes[fits..];
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Appends zeros; many of them cost nothing.
    pub fn zeros(&mut self, count: u64) -> Result<(), LayerError> {
        let mut left = self.check(count)?;
        while left > 0 {
            if self.buffer.is_empty() {
                let whole = left - left % BUFFER as u64;
                self.base += whole;
                self.holes += whole;
                left -= whole;
            }
            let fits = left.min((BUFFER - self.buffer.len()) as u64);
            self.buffer.resize(self.buffer.len() + fits as usize, 0);
            left -= fits;
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Zeros up to the next multiple of `unit`.
    pub fn align(&mut self, unit: u64) -> Result<(), LayerError> {
        let position = self.position();
        self.zeros(position.next_multiple_of(unit) - position)
    }

    fn check(&self, more: u64) -> Result<u64, LayerError> {
        match self.position().checked_add(more) {
            Some(end) if end <= self.max => Ok(more),
            _ => Err(LayerError::Limit { what: "bytes of layer", max: self.max }),
        }
    }

    /// Writes the buffer out, but for its runs of zeros.
    fn flush(&mut self) -> Result<(), LayerError> {
        self.check(0)?;
        let mut at = 0;
        while at < self.buffer.len() {
            let zero = is_zero(piece(&self.buffer, at));
            let start = at;
            while at < self.buffer.len() && is_zero(piece(&self.buffer, at)) == zero {
                at = (at + HOLE).min(self.buffer.len());
            }
            if zero {
                self.holes += (at - start) as u64;
                continue;
            }
            let begin = self.base + start as u64;
            let write = self
                .file
                .seek(SeekFrom::Start(begin))
                .and_then(|_| self.file.write_all(&self.buffer[start..at]));
            write.map_err(LayerError::write(&self.path, "write the layer"))?;
        }
        self.base += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes what is left and block 0, and gives the bytes the image takes on disk.
    pub fn finish(mut self, first: &[u8]) -> Result<u64, LayerError> {
        self.align(BLOCK)?;
        self.flush()?;
        let end = self.base;
        let done = self.file.set_len(end).and_then(|()| self.file.write_all_at(first, 0));
        done.map_err(LayerError::write(&self.path, "write the layer"))?;
        Ok(end - self.holes)
    }
}

fn piece(buffer: &[u8], at: usize) -> &[u8] {
    &buffer[at..buffer.len().min(at + HOLE)]
}

/// Whether all bytes are zero; almost always the first few tell.
fn is_zero(piece: &[u8]) -> bool {
    let (words, rest) = piece.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn holes_and_data_land_where_they_belong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let mut out = Output::create(&path, 1 << 40).unwrap();
        out.zeros(BLOCK).unwrap();
        out.write(b"begin").unwrap();
        out.align(BLOCK).unwrap();
        out.zeros(10 << 30).unwrap();
        out.write(&vec![7; 3 << 20]).unwrap();
        out.write(&vec![0; 5 << 20]).unwrap();
        out.write(b"end").unwrap();
        let used = out.finish(b"first").unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), (10 << 30) + (8 << 20) + 3 * BLOCK);
        assert!(meta.blocks() * 512 < 8 << 20, "{}", meta.blocks());
        assert!((3 << 20..5 << 20).contains(&used), "{used}");
        let file = File::open(&path).unwrap();
        let mut bytes = [0; 5];
        for (at, want) in [(0, b"first"), (BLOCK, b"begin"), (2 * BLOCK + (10 << 30), &[7; 5])] {
            file.read_exact_at(&mut bytes, at).unwrap();
            assert_eq!(&bytes, want, "at {at}");
        }
    }

    #[test]
    fn a_limit_holds() {
        let dir = tempfile::tempdir().unwrap();
        let mut out = Output::create(&dir.path().join("image"), 1 << 20).unwrap();
        assert!(out.zeros(1 << 30).is_err());
        assert!(out.zeros(u64::MAX).is_err());
        assert!(out.write(&vec![1; 3 << 20]).is_err());
    }
}
