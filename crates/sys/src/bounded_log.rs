//! A log that cannot grow: what an untrusted writer says, up to a size.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, SeekFrom};

/// A memory file of fixed size with a writing end; what does not fit is refused to the writer.
#[derive(Debug)]
pub struct BoundedLog {
    file: std::fs::File,
    writer: OwnedFd,
}

impl BoundedLog {
    /// A log of `size` bytes, all of them unwritten; memory is used as it fills.
    ///
    /// # Errors
    /// The kernel has no sealable memory files, or `/proc` is not mounted.
    pub fn new(size: u64) -> io::Result<Self> {
        let file = rustix::fs::memfd_create("log", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, size)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        // Opened anew, so that the writer has a position of its own and cannot read.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let writer = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { file: file.into(), writer })
    }

    /// What to give to the writer.
    pub fn writer(&self) -> &OwnedFd {
        &self.writer
    }

    /// The last `limit` bytes that were written.
    pub fn tail(&self, limit: usize) -> Vec<u8> {
        let end = rustix::fs::seek(&self.writer, SeekFrom::Current(0)).unwrap_or_default();
        let start = end.saturating_sub(limit as u64);
        let mut bytes = vec![0; (end - start) as usize];
        let count = self.file.read_at(&mut bytes, start).unwrap_or_default();
        bytes.truncate(count);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_end_of_what_fits_and_refuses_the_rest() {
        let log = BoundedLog::new(8).unwrap();
        assert!(log.tail(4).is_empty());
        rustix::io::write(log.writer(), b"abcdef").unwrap();
        assert_eq!(log.tail(4), b"cdef");
        assert!(rustix::io::write(log.writer(), b"ghi").is_err());
        rustix::io::write(log.writer(), b"gh").unwrap();
        assert_eq!(log.tail(100), b"abcdefgh");
    }
}
