//! Device programs of cgroup v2: the eBPF that decides which device nodes may be opened.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One eBPF instruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ebpf {
    /// Operation.
    pub code: u8,
    /// Destination register in the low half, source in the high.
    pub registers: u8,
    /// Jump or memory offset.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}

const PROG_LOAD: usize = 5;
const PROG_ATTACH: usize = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// The head of `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads a device program.
///
/// # Errors
/// The verifier or the kernel's policy refuses it.
pub fn load_device_program(program: &[Ebpf]) -> io::Result<OwnedFd> {
    let attr = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: the attribute and what it points to live across the call, which only reads them.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attr, size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor; it is close-on-exec and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches a device program to a cgroup, beside those of its ancestors.
///
/// # Errors
/// `bpf(2)` failed.
pub fn attach_device_program(cgroup: BorrowedFd, program: BorrowedFd) -> io::Result<()> {
    let attr = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the attribute lives across the call, which only reads it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attr, size_of::<Attach>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_denies_all_loads() {
        let program = [
            Ebpf { code: 0xb7, ..Ebpf::default() }, // r0 = 0
            Ebpf { code: 0x95, ..Ebpf::default() }, // exit
        ];
        load_device_program(&program).expect("this test needs root");
        assert!(load_device_program(&[]).is_err());
    }
}
