//! Compressing rotated files, in a child so that nobody waits for it.
//!
//! ```text
//!   log.json.1 ─child─▶ log.json.gz.new ─renamed─▶ log.json.1.gz      then log.json.1 goes
//! ```
//!
//! One at a time, the oldest first. Files are renamed by further rotations meanwhile, so their numbers are kept up
//! here. What a crash leaves is the file as it was, and a beginning that the next monitor removes.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use proa_supervisor::PollSet;
use proa_sys::job::{self, Job};
use rustix::event::PollFlags;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::files::{compressed, numbered};

/// Compresses one log's files.
pub struct Compressor {
    path: PathBuf,
    fresh: PathBuf,
    at_work: Option<(Job, u32)>,
    waiting: VecDeque<u32>,
}

impl Compressor {
    /// That of the log at `path`.
    pub fn new(path: &Path) -> Self {
        let fresh = PathBuf::from(format!("{}.gz.new", path.display()));
        // A crash may have left one.
        let _ = fs::remove_file(&fresh);
        Self { path: path.to_owned(), fresh, at_work: None, waiting: VecDeque::new() }
    }

    /// The files have been renamed, each to the next number, as far as `last`, and there is a new one.
    pub fn rotated(&mut self, last: u32) {
        if let Some((_, number)) = &mut self.at_work {
            *number += 1;
        }
        self.waiting.iter_mut().for_each(|number| *number += 1);
        if last > 0 {
            self.waiting.push_back(1);
        }
        self.waiting.retain(|number| *number <= last);
        self.start();
    }

    /// Adds what to wait for.
    pub fn poll_fds<'fd>(&'fd self, token: u64, set: &mut PollSet<'fd>) {
        if let Some((job, _)) = &self.at_work {
            set.add(token, job.pidfd.as_fd(), PollFlags::IN);
        }
    }

    /// The child has ended, perhaps.
    pub fn ready(&mut self) {
        let Some((job, number)) = self.at_work.take() else { return };
        match waitid(WaitId::PidFd(job.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(None) => self.at_work = Some((job, number)),
            Ok(Some(status)) if status.exit_status() == Some(0) => {
                self.finish(number);
                self.start();
            }
            // The disk is full, say: the file stays as it is.
            _ => {
                let _ = fs::remove_file(&self.fresh);
                self.start();
            }
        }
    }

    fn finish(&self, number: u32) {
        let plain = numbered(&self.path, number);
        // Rotated away meanwhile: then there is nothing to keep.
        if plain.exists() && fs::rename(&self.fresh, compressed(&self.path, number)).is_ok() {
            let _ = fs::remove_file(plain);
        } else {
            let _ = fs::remove_file(&self.fresh);
        }
    }

    fn start(&mut self) {
        while self.at_work.is_none()
            && let Some(number) = self.waiting.pop_front()
        {
            // One that cannot be compressed stays as it is.
            self.at_work = self.spawn(number).ok().map(|job| (job, number));
        }
    }

    fn spawn(&self, number: u32) -> io::Result<Job> {
        let from = File::open(numbered(&self.path, number))?;
        let to = File::create(&self.fresh)?;
        job::spawn(&[from.as_fd(), to.as_fd()], || i32::from(compress(&from, &to).is_err()))
    }
}

fn compress(mut from: &File, to: &File) -> io::Result<()> {
    let inode = from.metadata()?.ino().to_string();
    let mut writer = GzBuilder::new().comment(inode).write(to, Compression::fast());
    io::copy(&mut from, &mut writer)?;
    writer.finish()?;
    // The file that it was made of goes next.
    to.sync_all()
}
