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
