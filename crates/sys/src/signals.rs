//! Signals that a process survives without its children inheriting that.

use std::io;

extern "C" fn nothing(_signal: libc::c_int) {}

/// Makes the process survive these signals. Unlike ignored ones they are not inherited by programs it runs.
/// System calls that can be restarted are.
///
/// # Errors
/// A number names no signal, or one that cannot be caught.
pub fn survive(signals: &[rustix::process::Signal]) -> io::Result<()> {
    for signal in signals {
        // SAFETY: sigaction is plain data for which zero means no flags and an empty mask; the handler does nothing.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal.as_raw(), &raw const action, std::ptr::null_mut())
        };
        if result == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Puts the C library's own two signals back to their defaults. glibc's `posix_spawn` starts programs with both
/// ignored, and refuses to have that changed; what we run shall start with nothing ignored.
pub fn default_library_signals() {
    const LIBRARY_SIGNALS: [libc::c_int; 2] = [32, 33];
    /// `struct kernel_sigaction`, zeroed: the default, no flags, nothing masked. Longer than any architecture's.
    static DEFAULT: [u64; 4] = [0; 4];
    const SET_SIZE: usize = 8;
    for signal in LIBRARY_SIGNALS {
        // SAFETY: the kernel reads the structure and writes nothing. It fails for nothing but a bad number.
        unsafe {
            let none = std::ptr::null_mut::<libc::c_void>();
            libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), none, SET_SIZE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal, getpid, kill_process};

    #[test]
    fn a_caught_signal_does_not_end_us() {
        survive(&[Signal::HUP]).unwrap();
        kill_process(getpid(), Signal::HUP).unwrap();
        assert!(survive(&[Signal::KILL]).is_err());
    }
}
