//! Waiting for a process in the foreground: our signals are its signals, our terminal its terminal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proa_sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use rustix::io::Errno;
use rustix::process::Signal;

use crate::console::{self, Raw};
use crate::error::{Failure, Result};

/// How long a process runs before it is worth a cgroup of its own, where nothing is limited.
const SETTLED_MS: i64 = 50;

/// Signals that come, held back from the moment this is made.
pub struct Foreground {
    signals: SignalFd,
}

impl Foreground {
    /// Holds signals back, so that none is lost while the process is being made.
    ///
    /// # Errors
    /// The kernel gives no descriptor for them.
    pub fn new() -> Result<Self> {
        let ours = [Signal::KILL, Signal::STOP, Signal::CHILD, Signal::PIPE, Signal::URG].map(Signal::as_raw);
        // 32 and 33 are the C library's.
        let numbers: Vec<i32> =
            (1..=64).filter(|number| !ours.contains(number) && !matches!(number, 32 | 33)).collect();
        let signals = SignalFd::new(&numbers).map_err(|error| Failure::new(format!("signals: {error}")))?;
        Ok(Self { signals })
    }

    /// Waits for the end of a process. `settled` is called once if it still runs after a moment.
    ///
    /// # Errors
    /// Waiting failed.
    pub fn wait(
        &self,
        pidfd: BorrowedFd,
        master: Option<&OwnedFd>,
        mut settled: Option<impl FnOnce()>,
        mut signal: impl FnMut(i32),
    ) -> Result<()> {
        let _raw = master.map(|master| {
            console::copy_size(master);
            Raw::new()
        });
        let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
        let (mut reads_input, mut reads_output) = (master.is_some(), master.is_some());
        loop {
            let limit = settled.is_some().then_some(Timespec { tv_sec: 0, tv_nsec: SETTLED_MS * 1_000_000 });
            let null = master.filter(|_| reads_output);
            let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
            fds.extend(null.map(|master| PollFd::new(master, PollFlags::IN)));
            if reads_input {
                fds.push(PollFd::new(&stdin, PollFlags::IN));
            }
            match poll(&mut fds, limit.as_ref()) {
                Ok(0) => settled.take().into_iter().for_each(|settled| settled()),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(Failure::new(format!("poll: {errno}"))),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if let (Some(master), true) = (null, ready.get(2) == Some(&true)) {
                reads_output = console::copy(master.as_fd(), stdout);
            }
            let input = if null.is_some() { 3 } else { 2 };
            if let (Some(master), true) = (master, reads_input && ready.get(input) == Some(&true)) {
                reads_input = console::copy(stdin, master.as_fd());
            }
            if ready[1] {
                self.forward(master, &mut signal);
            }
            // All that the process has written comes before its end.
            if ready[0] && ready.get(2) != Some(&true) {
                return Ok(());
            }
            if ready[0] && !reads_output {
                return Ok(());
            }
        }
    }

    fn forward(&self, master: Option<&OwnedFd>, signal: &mut impl FnMut(i32)) {
        while let Ok(Some(number)) = self.signals.next_signal() {
            match (number == Signal::WINCH.as_raw(), master) {
                (true, Some(master)) => console::copy_size(master),
                (true, None) => {}
                (false, _) => signal(number),
            }
        }
    }
}
