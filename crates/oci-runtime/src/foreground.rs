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
        let mut terminal = master.map(Terminal::new);
        loop {
            let (mut ended, mut signalled) = (false, false);
            let limit = settled.is_some().then_some(Timespec { tv_sec: 0, tv_nsec: SETTLED_MS * 1_000_000 });
            let own = [(pidfd, &mut ended), (self.signals.as_fd(), &mut signalled)];
            let others = terminal.iter_mut().flat_map(Terminal::sources);
            if !wait_for(own.into_iter().chain(others), limit)? {
                settled.take().into_iter().for_each(|settled| settled());
            }
            let moved = terminal.as_mut().is_some_and(Terminal::move_bytes);
            if signalled {
                self.forward(master, &mut signal);
            }
            // All that the process has written comes before its end.
            if ended && !moved {
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

/// Waits for any of these, and marks those that are ready; `false` if none is within the limit.
fn wait_for<'a>(
    sources: impl Iterator<Item = (BorrowedFd<'a>, &'a mut bool)>,
    limit: Option<Timespec>,
) -> Result<bool> {
    let (fds, marks): (Vec<_>, Vec<_>) = sources.unzip();
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let count = match poll(&mut polled, limit.as_ref()) {
        Ok(count) => count,
        Err(Errno::INTR) => return Ok(true),
        Err(errno) => return Err(Failure::new(format!("poll: {errno}"))),
    };
    for (mark, polled) in marks.into_iter().zip(&polled) {
        *mark = !polled.revents().is_empty();
    }
    Ok(count > 0)
}

/// The process's terminal, and ours before it.
struct Terminal<'a> {
    master: &'a OwnedFd,
    _raw: Raw,
    /// Whether each side can still be read, and whether it is ready.
    output: (bool, bool),
    input: (bool, bool),
}

impl<'a> Terminal<'a> {
    fn new(master: &'a OwnedFd) -> Self {
        console::copy_size(master);
        Self { master, _raw: Raw::new(), output: (true, false), input: (true, false) }
    }

    /// What to wait for.
    fn sources(&mut self) -> impl Iterator<Item = (BorrowedFd<'_>, &mut bool)> {
        let (output, input) = (&mut self.output, &mut self.input);
        (output.1, input.1) = (false, false);
        let output = output.0.then_some((self.master.as_fd(), &mut output.1));
        let input = input.0.then_some((rustix::stdio::stdin(), &mut input.1));
        output.into_iter().chain(input)
    }

    /// Moves what is ready; whether the process had written something, or closed its side just now.
    fn move_bytes(&mut self) -> bool {
        if self.input.1 {
            self.input.0 = console::copy(rustix::stdio::stdin(), self.master.as_fd());
        }
        if self.output.1 {
            self.output.0 = console::copy(self.master.as_fd(), rustix::stdio::stdout());
        }
        self.output.1
    }
}
