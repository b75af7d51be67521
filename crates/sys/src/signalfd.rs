//! Signals as bytes of a descriptor, for loops that poll.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Blocked signals, read from a descriptor; unblocked again when dropped.
#[derive(Debug)]
pub struct SignalFd {
    fd: OwnedFd,
    set: libc::sigset_t,
}

impl SignalFd {
    /// Blocks these signals in this thread and makes them readable. The descriptor is close-on-exec and never
    /// blocks. Programs started by `std::process` have nothing blocked.
    ///
    /// # Errors
    /// A number names no signal, or no descriptor is left.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        // SAFETY: sigset_t is plain data, made valid by sigemptyset before it is used.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` lives through the calls.
        unsafe { libc::sigemptyset(&raw mut set) };
        for signal in signals {
            // SAFETY: as above; a wrong number is reported.
            if unsafe { libc::sigaddset(&raw mut set, *signal) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: the mask is read only; no old mask is asked for.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: as above.
        unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        Ok(Self { fd, set })
    }

    /// The next signal that has come, if any.
    ///
    /// # Errors
    /// Reading failed.
    pub fn next_signal(&self) -> io::Result<Option<i32>> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.fd, &mut info) {
            // The number is the first field, 32 bits.
            Ok(_) => Ok(Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

impl Drop for SignalFd {
    fn drop(&mut self) {
        // SAFETY: the mask was made by `new` and is read only.
        unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &raw const self.set, std::ptr::null_mut()) };
    }
}

/// Lets a write to a pipe that nobody reads end this process, as in programs not written in Rust.
pub fn end_on_broken_pipe() {
    // SAFETY: the default action needs no handler; SIGPIPE can always be set.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::Signal;

    #[test]
    fn a_blocked_signal_is_read() {
        // A signal that no other test of this process sends; each test of nextest has a process of its own.
        let signals = SignalFd::new(&[Signal::USR2.as_raw()]).unwrap();
        assert_eq!(signals.next_signal().unwrap(), None);
        // To this thread: others do not block it.
        // SAFETY: no memory is involved.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
        assert_eq!(signals.next_signal().unwrap(), Some(Signal::USR2.as_raw()));
        assert!(SignalFd::new(&[9999]).is_err());
    }
}
