//! A log in files: appended, rotated, and compressed when they are old.
//!
//! When the file has reached its limit, `log.json` becomes `log.json.1` and so on before the next entry is written;
//! entries are never split over files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use proa_protocol::log::{COMPRESSED, LogConfig};
use proa_supervisor::PollSet;

use super::compress::Compressor;

/// The files of one instance's log.
pub struct Files {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: u64,
    max_files: u32,
    compressor: Option<Box<Compressor>>,
    out: Vec<u8>,
}

impl Files {
    /// Opens the log at `path`, to append to it.
    pub fn open(path: PathBuf, config: &LogConfig) -> io::Result<Self> {
        let file = open(&path)?;
        let size = file.metadata()?.len();
        let compressor = config.compress.then(|| Box::new(Compressor::new(&path)));
        Ok(Self {
            path,
            file,
            size,
            max_size: config.max_size,
            max_files: config.max_files,
            compressor,
            out: Vec::new(),
        })
    }

    /// The same, of records: half of one is cut off.
    pub fn open_records(path: PathBuf, config: &LogConfig) -> io::Result<Self> {
        let mut files = Self::open(path, config)?;
        let whole = super::local::whole(&File::open(&files.path)?, files.size)?;
        if whole < files.size {
            files.file.set_len(whole)?;
            files.size = whole;
        }
        Ok(files)
    }

    /// Where the next entry goes.
    pub fn next(&mut self) -> &mut Vec<u8> {
        if self.max_size > 0 && self.size + self.out.len() as u64 >= self.max_size {
            self.flush();
            self.rotate();
        }
        &mut self.out
    }

    /// Writes what was taken, in one call.
    pub fn flush(&mut self) {
        if self.out.is_empty() {
            return;
        }
        let mut written = 0;
        while written < self.out.len() {
            match self.file.write(&self.out[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // The disk is full, say. An instance must not stand still for its log, so these lines are
                    // given up; half a line would spoil the next.
                    let length = self.file.metadata().map_or(0, |metadata| metadata.len());
                    let _ = self.file.set_len(length.saturating_sub(written as u64));
                    written = 0;
                    break;
                }
            }
        }
        self.size += written as u64;
        // An idle monitor keeps no buffer.
        self.out = Vec::new();
    }

    /// Begins a new file. Where that fails, the old one goes on.
    fn rotate(&mut self) {
        let last = self.max_files.saturating_sub(1);
        if self.compressor.is_some() {
            // Of the oldest either form may be there, and the other may follow it.
            let _ = fs::remove_file(numbered(&self.path, last));
            let _ = fs::remove_file(compressed(&self.path, last));
        }
        for number in (1..last).rev() {
            let _ = fs::rename(numbered(&self.path, number), numbered(&self.path, number + 1));
            if self.compressor.is_some() {
                let _ = fs::rename(compressed(&self.path, number), compressed(&self.path, number + 1));
            }
        }
        let moved = if self.max_files > 1 {
            fs::rename(&self.path, numbered(&self.path, 1))
        } else {
            fs::remove_file(&self.path)
        };
        if let Some(compressor) = &mut self.compressor {
            compressor.rotated(last);
        }
        if let (Ok(()), Ok(file)) = (moved, open(&self.path)) {
            self.file = file;
            self.size = 0;
        }
    }

    /// Adds what to wait for.
    pub fn poll_fds<'fd>(&'fd self, token: u64, set: &mut PollSet<'fd>) {
        if let Some(compressor) = &self.compressor {
            compressor.poll_fds(token, set);
        }
    }

    /// What it waits for is there.
    pub fn ready(&mut self) {
        if let Some(compressor) = &mut self.compressor {
            compressor.ready();
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// The file that was rotated so many times.
pub fn numbered(path: &Path, number: u32) -> PathBuf {
    PathBuf::from(format!("{}.{number}", path.display()))
}

/// The same, compressed.
pub fn compressed(path: &Path, number: u32) -> PathBuf {
    PathBuf::from(format!("{}.{number}{COMPRESSED}", path.display()))
}
