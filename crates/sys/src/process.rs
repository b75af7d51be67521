//! What a process says about itself: descriptors, namespaces, keyring, scheduling, filters.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

fn check(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// The kernel is older than 5.11.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: three integers.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
}

/// Moves the calling thread into new namespaces (`CLONE_NEW…` alone).
///
/// # Errors
/// `unshare(2)` failed, or a flag is not a namespace's.
pub fn unshare_namespaces(flags: u64) -> io::Result<()> {
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWTIME;
    if flags & !(namespaces as u64) != 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: an integer; the flags that would split memory or descriptors are refused above.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags) })
}

/// Does something by a thread of its own, whose namespaces may change: an ordinary user's process that has left the
/// host's network namespace cannot come back. The thread is gone when this returns, so that the process may fork.
pub fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let (done, thread) = std::thread::scope(|scope| {
        let thread = scope.spawn(|| (work(), rustix::thread::gettid()));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    // It is joined a moment before the kernel has taken it off the list.
    let path = format!("/proc/self/task/{}", thread.as_raw_nonzero());
    while std::fs::exists(&path).unwrap_or(false) {
        std::thread::yield_now();
    }
    done
}

/// Gives the process a new session keyring of this name.
///
/// # Errors
/// `keyctl(2)` failed; `ENOSYS` where the kernel has no keyrings.
pub fn join_session_keyring(name: &std::ffi::CStr) -> io::Result<()> {
    // SAFETY: an integer and a NUL-terminated string.
    check(unsafe {
        libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING as usize, name.as_ptr())
    })
}

/// Sets the I/O priority of the calling thread: class 1 to 3, level 0 to 7.
///
/// # Errors
/// `ioprio_set(2)` failed.
pub fn set_io_priority(class: u32, level: u32) -> io::Result<()> {
    const WHO_PROCESS: usize = 1;
    // SAFETY: three integers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0usize, (class << 13 | level) as usize) })
}

/// Sets the execution domain.
///
/// # Errors
/// `personality(2)` failed.
pub fn set_personality(domain: u64) -> io::Result<()> {
    // SAFETY: an integer.
    check(unsafe { libc::syscall(libc::SYS_personality, domain) })
}

/// Attributes for `sched_setattr(2)`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SchedAttr {
    /// Set by [`set_scheduler`].
    pub size: u32,
    /// `SCHED_…`.
    pub policy: u32,
    /// `SCHED_FLAG_…`.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Static priority.
    pub priority: u32,
    /// Deadline runtime, ns.
    pub runtime: u64,
    /// Deadline, ns.
    pub deadline: u64,
    /// Deadline period, ns.
    pub period: u64,
}

/// Sets the scheduling attributes of the calling thread.
///
/// # Errors
/// `sched_setattr(2)` failed.
pub fn set_scheduler(mut attr: SchedAttr) -> io::Result<()> {
    attr.size = size_of::<SchedAttr>() as u32;
    // SAFETY: the structure has the kernel's layout (first version, 48 bytes) and its size is in it.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0usize, &raw mut attr, 0usize) })
}

/// One instruction of a classic BPF program (`struct sock_filter`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Insn {
    /// Operation.
    pub code: u16,
    /// Instructions skipped where the condition holds.
    pub jt: u8,
    /// Instructions skipped where it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Installs a system call filter on the calling thread.
///
/// # Errors
/// The kernel refuses the program, or the process has neither `CAP_SYS_ADMIN` nor `no_new_privs`.
pub fn install_filter(program: &[Insn], flags: u64) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program =
        libc::sock_fprog { len: length, filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    // SAFETY: `Insn` has the layout of `sock_filter`; the kernel copies the program and does not write to it.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER as usize, flags, &raw const program)
    })
}

/// The same, and returns the descriptor by which somebody answers the calls that the filter notifies of.
///
/// # Errors
/// As for [`install_filter`]; there is another such filter already.
pub fn install_filter_with_listener(program: &[Insn], flags: u64) -> io::Result<OwnedFd> {
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program =
        libc::sock_fprog { len: length, filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    let flags = flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: as in `install_filter`.
    let fd = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER as usize, flags, &raw const program)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor; it is close-on-exec and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sets the NUMA memory policy of the calling thread: a mode with its flags, and the nodes as a bit mask.
///
/// # Errors
/// `set_mempolicy(2)` failed; `ENOSYS` where the kernel has no NUMA.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> io::Result<()> {
    let (pointer, bits) =
        if nodes.is_empty() { (std::ptr::null(), 0) } else { (nodes.as_ptr(), nodes.len() * 64 + 1) };
    // SAFETY: the kernel reads as many words as the number of bits (which it counts one less) says.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode as usize, pointer, bits) })
}

/// Puts signal handling back to what a new program expects: every signal at its default, none blocked, however
/// this process was started (`nohup`, a shell's `&`, glibc's `posix_spawn` all leave signals ignored).
pub fn reset_signals() {
    const LAST: libc::c_int = 64;
    const SET_SIZE: usize = 8;
    /// `struct kernel_sigaction` of any architecture, or a signal set: all zero.
    static NOTHING: [u64; 4] = [0; 4];
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the kernel reads the zeroed structures and writes nothing. Raw calls, since the C library keeps two
    // signals to itself. They fail for SIGKILL and SIGSTOP alone, which cannot be changed.
    unsafe {
        for signal in 1..=LAST {
            libc::syscall(libc::SYS_rt_sigaction, signal, NOTHING.as_ptr(), none, SET_SIZE);
        }
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, NOTHING.as_ptr(), none, SET_SIZE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaces_can_be_unshared() {
        assert_eq!(
            unshare_namespaces(libc::CLONE_FILES as u64).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn what_is_done_aside_leaves_no_thread() {
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        assert_eq!((0..100).map(|_| aside(|| 1)).sum::<i32>(), 100);
        assert!(threads() <= before);
    }

    #[test]
    fn a_filter_must_be_a_program() {
        assert!(install_filter(&[], 0).is_err());
    }
}
