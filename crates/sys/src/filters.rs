//! The seccomp filters that are in force on another process (`ptrace(2)`, `PTRACE_SECCOMP_GET_FILTER`).

use std::io;

/// One instruction of a classic BPF program (`struct sock_filter`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a test holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;

/// The filters of a process, the newest first. The process is stopped for a moment and then goes on.
///
/// # Errors
/// There is no such process, the caller may not trace it, or the kernel lacks `CONFIG_CHECKPOINT_RESTORE`.
pub fn of_process(pid: u32) -> io::Result<Vec<Vec<Instruction>>> {
    let pid = pid as libc::pid_t;
    // SAFETY: PTRACE_SEIZE takes no pointers; a failure is reported and nothing is attached.
    check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0usize, 0usize) })?;
    let filters = stop(pid).and_then(|()| read_all(pid));
    // SAFETY: PTRACE_DETACH takes no pointers; if the tracee is gone there is nothing to detach.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, 0usize, 0usize) };
    filters
}

fn stop(pid: libc::pid_t) -> io::Result<()> {
    // SAFETY: PTRACE_INTERRUPT takes no pointers.
    check(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0usize, 0usize) })?;
    let mut status = 0;
    // SAFETY: `status` lives through the call; __WALL waits for a tracee that is not our child.
    check(unsafe { libc::waitpid(pid, &mut status, libc::__WALL) }.into())?;
    Ok(())
}

fn read_all(pid: libc::pid_t) -> io::Result<Vec<Vec<Instruction>>> {
    let mut filters = Vec::new();
    loop {
        // SAFETY: a null pointer asks for the length alone.
        let length = unsafe { libc::ptrace(PTRACE_SECCOMP_GET_FILTER as _, pid, filters.len(), 0usize) };
        if length < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOENT) {
            return Ok(filters);
        }
        // EINVAL: the process has no filter at all.
        if length < 0 && filters.is_empty() && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
        {
            return Ok(filters);
        }
        let mut program = vec![Instruction::default(); check(length)? as usize];
        // SAFETY: `program` has room for as many instructions as the kernel just said there are; the tracee is
        // stopped, so its filters cannot change in between.
        check(unsafe {
            libc::ptrace(PTRACE_SECCOMP_GET_FILTER as _, pid, filters.len(), program.as_mut_ptr())
        })?;
        filters.push(program);
    }
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    #[test]
    fn a_plain_process_has_no_filter() {
        let mut child = Command::new("sleep").arg("100").stdin(Stdio::null()).spawn().unwrap();
        let filters = super::of_process(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(filters.unwrap(), Vec::<Vec<_>>::new());
    }

    #[test]
    fn no_such_process_is_an_error() {
        assert!(super::of_process(u32::MAX >> 1).is_err());
    }
}
