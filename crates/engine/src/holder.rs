//! Processes of ours that nobody has as a child, each known by the lock it holds on a file with its process id.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long they may take to end, and how long each is waited for before it is asked again who there is.
const END: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// Ends whoever holds the lock of this file, if a word of its command line is this one. No file means nobody.
///
/// # Errors
/// One does not end.
pub(crate) fn end(path: &Path, word: &[u8], signal: Signal) -> io::Result<()> {
    let Ok(file) = fs::File::open(path) else { return Ok(()) };
    let deadline = Instant::now() + END;
    while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let holder = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        end_one(holder, word, signal, left.min(PAUSE));
    }
    Ok(())
}

/// Waits for the end of whoever holds that lock, at most as long as `limit`; whether nobody does.
pub(crate) fn await_end(path: &Path, word: &[u8], limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let pid = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else { return true };
        let Ok(holder) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
        if !is_called(pid, word) {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let _ = rustix::event::poll(
            &mut [PollFd::new(&holder, PollFlags::IN)],
            Timespec::try_from(left).ok().as_ref(),
        );
    }
}

/// Whether a word of its command line is this one.
fn is_called(pid: Pid, word: &[u8]) -> bool {
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|found| found == word)
}

/// Signals it if it is one, and waits a moment for its end.
fn end_one(pid: Option<i32>, word: &[u8], signal: Signal, limit: Duration) {
    let holder =
        pid.and_then(Pid::from_raw).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok().zip(Some(pid)));
    let limit = Timespec::try_from(limit).ok();
    let Some((holder, pid)) = holder else {
        // It has just begun, or just ended.
        let _ = rustix::event::poll(&mut [], limit.as_ref());
        return;
    };
    if is_called(pid, word) {
        let _ = pidfd_send_signal(&holder, signal);
    }
    let _ = rustix::event::poll(&mut [PollFd::new(&holder, PollFlags::IN)], limit.as_ref());
}
