//! The tails of files and directories, from when they stream in until their inodes are written.
//!
//! A few mebibytes wait in memory; a layer of very many small files spills them to a file without a name.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::layer::LayerError;

/// Bytes kept in memory before they are spilled.
const MEMORY: usize = 16 << 20;
/// Bytes read back at once. Inodes are written about in the order their tails came.
const WINDOW: usize = 256 << 10;

/// An append-only store of bytes, found again by where they were put.
pub struct Tails {
    image: PathBuf,
    memory: Vec<u8>,
    /// What was spilled, and how much.
    spill: Option<File>,
    spilled: u64,
    /// Spilled bytes read back, and where they begin.
    window: Vec<u8>,
    window_at: u64,
}

impl Tails {
    /// No tails; they may be spilled beside `image`.
    pub fn new(image: &Path) -> Self {
        Self {
            image: image.to_owned(),
            memory: Vec::new(),
            spill: None,
            spilled: 0,
            window: Vec::new(),
            window_at: 0,
        }
    }

    /// Where the next byte will be put.
    pub fn end(&self) -> u64 {
        self.spilled + self.memory.len() as u64
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        self.memory.extend_from_slice(bytes);
        if self.memory.len() < MEMORY {
            return Ok(());
        }
        self.flush().map_err(LayerError::write(&self.image, "set aside ends of files beside the layer"))
    }

    fn flush(&mut self) -> io::Result<()> {
        let file = match &mut self.spill {
            Some(file) => file,
            none => none.insert(unnamed(&self.image)?),
        };
        file.write_all(&self.memory)?;
        self.spilled += self.memory.len() as u64;
        self.memory.clear();
        Ok(())
    }

    /// The bytes put at `range`, in one or two pieces.
    pub fn get(&mut self, range: Range<u64>) -> Result<[&[u8]; 2], LayerError> {
        let memory_at = |at: u64| (at.max(self.spilled) - self.spilled) as usize;
        let rest = memory_at(range.start)..memory_at(range.end);
        let end = range.end.min(self.spilled);
        if range.start >= end {
            return Ok([&self.memory[rest], &[]]);
        }
        let window_end = self.window_at + self.window.len() as u64;
        if range.start < self.window_at || end > window_end {
            self.load(range.start, end)
                .map_err(LayerError::write(&self.image, "read back ends of files beside the layer"))?;
        }
        let spilled = (range.start - self.window_at) as usize..(end - self.window_at) as usize;
        Ok([&self.window[spilled], &self.memory[rest]])
    }

    /// Makes the window hold the spilled bytes from `start` to `end`, and more.
    fn load(&mut self, start: u64, end: u64) -> io::Result<()> {
        let length = WINDOW.max((end - start) as usize).min((self.spilled - start) as usize);
        self.window.resize(length, 0);
        self.window_at = start;
        let file = self.spill.as_ref().ok_or(io::ErrorKind::NotFound)?;
        file.read_exact_at(&mut self.window, start)
    }
}

/// A file that nobody else can find, on the same file system as `image`.
fn unnamed(image: &Path) -> io::Result<File> {
    let mut path = image.as_os_str().to_owned();
    path.push(".tails");
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_found_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut tails = Tails::new(&dir.path().join("image"));
        let mut ranges = Vec::new();
        for i in 0..50_000usize {
            let start = tails.end();
            tails.push(&vec![i as u8; i * 7 % 2000]).unwrap();
            ranges.push((start..tails.end(), i as u8));
        }
        assert!(tails.spilled > 0 && tails.memory.len() < MEMORY);
        // The last put before and the first after the spill meet in this range.
        let across = tails.spilled - 10..tails.spilled + 10;
        let pieces = tails.get(across).unwrap();
        assert_eq!((pieces[0].len(), pieces[1].len()), (10, 10));
        for step in [1, 7919] {
            for i in 0..ranges.len() {
                let (range, value) = &ranges[i * step % ranges.len()];
                let pieces = tails.get(range.clone()).unwrap();
                assert_eq!((pieces[0].len() + pieces[1].len()) as u64, range.end - range.start);
                assert!(pieces.concat().iter().all(|byte| byte == value));
            }
        }
        assert_eq!(dir.path().read_dir().unwrap().count(), 0, "nothing is left with a name");
    }
}
