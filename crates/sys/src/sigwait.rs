//! Waiting for signals instead of handling them.

use std::io;

/// A signal that was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// Raised by the kernel (a terminal's Ctrl-C, say), not sent by a process.
    pub by_kernel: bool,
}

fn all() -> libc::sigset_t {
    // SAFETY: sigset_t is plain data, which sigfillset initializes.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        set
    }
}

/// Blocks every signal in this thread, so that it can be waited for.
///
/// # Errors
/// `sigprocmask(2)` failed.
pub fn block_all() -> io::Result<()> {
    let set = all();
    // SAFETY: the set lives across the call; the old one is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Waits for the next signal; all must be blocked.
///
/// # Errors
/// `sigwaitinfo(2)` was interrupted.
pub fn wait() -> io::Result<Received> {
    let set = all();
    // SAFETY: siginfo_t is plain data, which the kernel fills; both live across the call.
    let (signal, info) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        (libc::sigwaitinfo(&raw const set, &raw mut info), info)
    };
    if signal < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Received { signal, by_kernel: info.si_code > 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sent_signal_is_received_and_known_as_sent() {
        block_all().unwrap();
        let thread = rustix::thread::gettid();
        // SAFETY: three integers; the signal is blocked in this thread.
        unsafe {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), thread.as_raw_nonzero().get(), libc::SIGUSR1)
        };
        assert_eq!(wait().unwrap(), Received { signal: libc::SIGUSR1, by_kernel: false });
    }
}
