//! What a poll round waits for, shared by the supervisor and by the loop that drives it.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Tokens from here on belong to the loop that drives a supervisor; the supervisor's own are smaller.
pub const HOST_TOKENS: u64 = 1 << 32;

/// Descriptors to wait for, each with a token that names it afterwards.
#[derive(Default)]
pub struct PollSet<'fd> {
    fds: Vec<PollFd<'fd>>,
    tokens: Vec<u64>,
}

impl<'fd> PollSet<'fd> {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits for `flags` on `fd` too. Errors and hang-ups are always reported.
    pub fn add(&mut self, token: u64, fd: BorrowedFd<'fd>, flags: PollFlags) {
        self.fds.push(PollFd::from_borrowed_fd(fd, flags));
        self.tokens.push(token);
    }

    /// Whether there is nothing to wait for.
    pub fn is_empty(&self) -> bool {
        self.fds.is_empty()
    }

    /// Waits until something is ready or `timeout` is over; an interrupting signal counts as nothing ready.
    ///
    /// # Errors
    /// `poll(2)` fails, which only lack of memory makes it do.
    pub fn wait(mut self, timeout: Option<Duration>) -> io::Result<Vec<(u64, PollFlags)>> {
        let timeout = timeout.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut self.fds, timeout.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let events = self.fds.iter().map(PollFd::revents).zip(self.tokens);
        Ok(events.filter(|(flags, _)| !flags.is_empty()).map(|(flags, token)| (token, flags)).collect())
    }
}
