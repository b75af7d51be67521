//! `clone3(2)` used as a fork, and as a fork that copies no memory.

use std::io;
use std::mem::ManuallyDrop;
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

fn arguments(
    flags: u64,
    exit_signal: u64,
    cgroup: Option<BorrowedFd>,
    pidfd: &mut libc::c_int,
) -> libc::clone_args {
    // SAFETY: clone_args is plain integers, for which zero means "not used".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64 | CLEAR_SIGHAND;
    args.pidfd = &raw mut *pidfd as u64;
    args.exit_signal = exit_signal;
    if let Some(cgroup) = cgroup {
        args.flags |= INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    args
}

/// # Safety
/// As for [`fork_into`].
unsafe fn clone(flags: u64, exit_signal: u64, cgroup: Option<BorrowedFd>) -> io::Result<Fork> {
    let mut pidfd: libc::c_int = -1;
    let mut args = arguments(flags, exit_signal, cgroup, &mut pidfd);
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

/// Runs `work` in a new process, born straight into a cgroup v2 directory where one is given, that shares this one's
/// memory, and stands still until that process runs a program or ends. It ends when `work` returns. Its descriptors,
/// namespaces and credentials are a copy; it has no signal handlers; its end raises `SIGCHLD`.
///
/// # Errors
/// `clone3(2)` failed.
///
/// # Safety
/// What `work` leaves in memory this process goes on with: it must not end the lifetime of a descriptor that this
/// process goes on to use or to close. What it has allocated and does not free stays. For other architectures, the
/// process must have one thread, as for [`fork_into`].
#[cfg(target_arch = "x86_64")]
pub unsafe fn share_into<F: FnOnce()>(cgroup: Option<BorrowedFd>, work: F) -> io::Result<(u32, OwnedFd)> {
    let mut pidfd: libc::c_int = -1;
    let flags = libc::CLONE_VM as u64 | libc::CLONE_VFORK as u64;
    let mut args = arguments(flags, libc::SIGCHLD as u64, cgroup, &mut pidfd);
    // It is the child that runs it.
    let mut work = ManuallyDrop::new(work);
    let result: libc::c_long;
    // SAFETY: with no stack of its own the child goes on at the stack pointer of ours, below which it may write
    // (this block has not said `nostack`), while we stand still. It never comes back from the call, so nothing above
    // is touched but by `work`, which outlives it and is run once. Registers are each process's own; the kernel
    // changes `rcx` and `r11`.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw mut args,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") &raw mut work,
            in("r13") run_and_exit::<F> as extern "C" fn(*mut ManuallyDrop<F>) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result as i32));
    }
    // SAFETY: the kernel has just stored a new descriptor there, and nobody else knows of it.
    Ok((result as u32, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// The same by a copy of the memory, in which the caller does not stand still.
///
/// # Errors
/// `clone3(2)` failed.
///
/// # Safety
/// As for [`fork_into`].
#[cfg(not(target_arch = "x86_64"))]
pub unsafe fn share_into<F: FnOnce()>(cgroup: Option<BorrowedFd>, work: F) -> io::Result<(u32, OwnedFd)> {
    // SAFETY: one thread only, as the caller promises.
    match unsafe { fork_into(0, cgroup) }? {
        Fork::Parent { pid, pidfd } => Ok((pid, pidfd)),
        Fork::Child => run_and_exit(&raw mut ManuallyDrop::new(work)),
    }
}

/// What the child of [`share_into`] does.
extern "C" fn run_and_exit<F: FnOnce()>(work: *mut ManuallyDrop<F>) -> ! {
    let _guard = ExitOnDrop;
    // SAFETY: the parent's frame, which stands still, holds it, and takes it no more.
    unsafe { ManuallyDrop::take(&mut *work)() };
    exit_now(125)
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
    fn a_child_that_shares_writes_our_memory_and_has_descriptors_of_its_own() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut seen = Vec::new();
        let list = &mut seen;
        let work = || {
            list.push(rustix::process::getpid());
            // SAFETY: this is the child's copy of the number, and the child ends without using it.
            drop(unsafe { OwnedFd::from_raw_fd(write.as_raw_fd()) });
        };
        // SAFETY: nothing else is touched.
        let (pid, pidfd) = unsafe { share_into(None, work) }.unwrap();
        let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(125));
        #[cfg(target_arch = "x86_64")]
        assert_eq!(seen.iter().map(|id| id.as_raw_pid() as u32).collect::<Vec<_>>(), [pid]);
        assert_eq!(rustix::io::write(&write, b"x"), Ok(1));
        drop(read);
    }

    #[test]
    fn what_cannot_be_shared_into_is_an_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: it does not run.
        let result = unsafe { share_into(Some(file.as_fd()), || exit_now(1)) };
        assert!(result.is_err());
    }

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
