//! `clone3(2)` used as a fork.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// libc's constants overflow their type.
const CLEAR_SIGHAND: u64 = 1 << 32;
const INTO_CGROUP: u64 = 1 << 33;

/// Which side of the fork this is.
#[derive(Debug)]
pub enum Fork {
    /// The new process.
    Child,
    /// The process that called, with the child's id and descriptor.
    Parent {
        /// The child's id in the caller's pid namespace.
        pid: u32,
        /// Close-on-exec; readable when the child has ended.
        pidfd: OwnedFd,
    },
}

/// Forks into new namespaces (`CLONE_NEW…` in `flags`) and, where given, straight into a cgroup v2 directory.
/// The child has no signal handlers; its end raises `SIGCHLD`.
///
/// # Errors
/// `clone3(2)` failed.
///
/// # Safety
/// The process must have one thread only: the child keeps a copy of the caller's memory, in which a lock held
/// by another thread (the allocator's, say) would stay locked for ever.
pub unsafe fn fork_into(flags: u64, cgroup: Option<BorrowedFd>) -> io::Result<Fork> {
    // SAFETY: one thread only, as the caller promises.
    unsafe { clone(flags, libc::SIGCHLD as u64, cgroup) }
}

/// The same, but the new process is a child of the caller's parent.
///
/// # Errors
/// `clone3(2)` failed.
///
/// # Safety
/// As for [`fork_into`].
pub unsafe fn fork_sibling(flags: u64) -> io::Result<Fork> {
    // SAFETY: one thread only, as the caller promises. The end raises the signal that the caller's own raises.
    unsafe { clone(flags | libc::CLONE_PARENT as u64, 0, None) }
}

/// # Safety
/// As for [`fork_into`].
unsafe fn clone(flags: u64, exit_signal: u64, cgroup: Option<BorrowedFd>) -> io::Result<Fork> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain integers, for which zero means "not used".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64 | CLEAR_SIGHAND;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = exit_signal;
    if let Some(cgroup) = cgroup {
        args.flags |= INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the arguments live across the call; without CLONE_VM the child gets its own copy of the stack.
    // One thread only, as the caller promises.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match result {
        0 => Ok(Fork::Child),
        pid if pid > 0 => {
            // SAFETY: the kernel has just stored a new descriptor there, and nobody else knows of it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Fork::Parent { pid: pid as u32, pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the process at once: no destructors, no `atexit`, nothing flushed. For the child of a fork.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Ends the process when dropped, so that a panic in the child of a fork cannot unwind into the parent's code.
#[derive(Debug)]
pub struct ExitOnDrop;

impl Drop for ExitOnDrop {
    fn drop(&mut self) {
        exit_now(125)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use std::os::fd::AsFd;

    #[test]
    fn the_child_runs_and_is_known_by_its_descriptor() {
        // SAFETY: the child calls _exit alone, which takes no lock.
        match unsafe { fork_into(0, None) }.unwrap() {
            Fork::Child => exit_now(7),
            Fork::Parent { pidfd, .. } => {
                let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
                assert_eq!(status.exit_status(), Some(7));
            }
        }
    }
}
