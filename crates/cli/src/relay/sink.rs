//! One of our standard streams as a place for output that may have to wait.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;

use rustix::fs::FileType;
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

/// A stream and what waits for it.
pub struct Sink {
    fd: BorrowedFd<'static>,
    waiting: VecDeque<Vec<u8>>,
    /// Bytes of the first waiting piece that are written.
    written: usize,
    /// Pipes and sockets can be asked not to block without changing them for others who have them.
    never_blocks: bool,
    closed: bool,
}

impl Sink {
    /// Wraps a standard stream.
    pub fn new(fd: BorrowedFd<'static>) -> Self {
        let kind = rustix::fs::fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let never_blocks = matches!(kind, Ok(FileType::Fifo | FileType::Socket));
        Self { fd, waiting: VecDeque::new(), written: 0, never_blocks, closed: false }
    }

    /// Whether output waits.
    pub fn is_full(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether nobody reads any more.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Adds output and writes what can be written; how many bytes that was.
    pub fn push(&mut self, bytes: Vec<u8>) -> u32 {
        if bytes.is_empty() {
            return 0;
        }
        self.waiting.push_back(bytes);
        self.flush()
    }

    /// Writes what can be written; how many bytes that was.
    pub fn flush(&mut self) -> u32 {
        let mut total = 0;
        while let Some(piece) = self.waiting.front() {
            match self.write(&piece[self.written..]) {
                Ok(count) => {
                    total += count as u32;
                    self.written += count;
                    if self.written == piece.len() {
                        self.waiting.pop_front();
                        self.written = 0;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) if self.never_blocks => {
                    self.never_blocks = false
                }
                Err(_) => {
                    self.closed = true;
                    self.waiting.clear();
                }
            }
        }
        total
    }

    fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        if self.never_blocks {
            // An offset of -1 is the stream's own place.
            return pwritev2(self.fd, &[IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT);
        }
        rustix::io::write(self.fd, bytes)
    }

    /// Writes all that waits, for as long as it takes.
    pub fn finish(&mut self) {
        while self.is_full() {
            self.flush();
            if self.is_full() {
                let mut fds =
                    [rustix::event::PollFd::from_borrowed_fd(self.fd, rustix::event::PollFlags::OUT)];
                // If polling fails, the next write says why.
                let _ = rustix::event::poll(&mut fds, None);
            }
        }
    }
}
