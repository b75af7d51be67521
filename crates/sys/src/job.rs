//! Work that may block, done by a forked child instead of a thread.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

use crate::clone::{ExitOnDrop, Fork, exit_now, fork_into};

/// A forked child at work.
#[derive(Debug)]
pub struct Job {
    /// Its process id.
    pub pid: u32,
    /// Readable when it has ended; its parent must reap it.
    pub pidfd: OwnedFd,
}

/// Forks a child that runs `work` and exits with what it returns. The child dies with its parent, and holds no
/// descriptors but standard input, output, error and `keep`: it must not keep locks, sockets or pipes alive.
/// What `work` captured of other descriptors is closed by then.
///
/// # Errors
/// This process has more than one thread, or the kernel cannot fork.
pub fn spawn(keep: &[BorrowedFd], work: impl FnOnce() -> i32) -> io::Result<Job> {
    require_one_thread()?;
    let parent = getpid();
    // SAFETY: this process has one thread, as was just checked, and only that thread could start another.
    match unsafe { fork_into(0, None) }? {
        Fork::Parent { pid, pidfd } => Ok(Job { pid, pidfd }),
        Fork::Child => {
            let _guard = ExitOnDrop;
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            let keep = keep.iter().map(|fd| fd.as_raw_fd() as u32).chain(0..3).collect();
            // SAFETY: the child uses none of the others: it runs `work` alone, whose descriptors are in `keep`, and
            // ends without destructors.
            if getppid() != Some(parent) || unsafe { close_others(keep) }.is_err() {
                exit_now(125);
            }
            exit_now(work())
        }
    }
}

fn require_one_thread() -> io::Result<()> {
    // `.`, `..` and a directory for each thread are links to it.
    let threads = rustix::fs::stat("/proc/self/task")?.st_nlink.saturating_sub(2);
    if threads == 1 { Ok(()) } else { Err(io::Error::other(format!("cannot fork with {threads} threads"))) }
}

/// Closes every descriptor but those of these numbers.
///
/// # Errors
/// The kernel is older than 5.9.
///
/// # Safety
/// Nothing may go on to use, or to close, a descriptor that is closed here.
pub unsafe fn close_others(mut keep: Vec<u32>) -> io::Result<()> {
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep.into_iter().chain([u32::MAX]) {
        if fd > first {
            // SAFETY: three integers; the caller promises the rest.
            let result = unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
            if result == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        first = first.max(fd.saturating_add(1));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_forbid_a_fork() {
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv());
        assert!(spawn(&[], || 0).unwrap_err().to_string().contains("threads"));
        drop(stop);
        assert!(thread.join().unwrap().is_err());
    }
}
