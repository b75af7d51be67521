//! The filter by which a process of ours that faces strangers keeps to a list of system calls.
//!
//! Everything else ends it, sockets of other families and memory that can be executed among them.

use std::io;

use crate::process::{Insn, install_filter};

const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;

// Where `struct seccomp_data` has its fields: of arguments, the lower halves.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST: u32 = 16;
const THIRD: u32 = 32;

#[cfg(target_arch = "x86_64")]
const OURS: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OURS: u32 = 0xc000_00b7;

/// Keeps the calling thread to these calls for good, and to sockets of these families where it may make any.
///
/// # Errors
/// The kernel refuses, or the process has neither `CAP_SYS_ADMIN` nor `no_new_privs`.
pub fn keep_to(calls: &[libc::c_long], families: &[libc::c_int]) -> io::Result<()> {
    install_filter(&program(calls, families), 0)
}

/// A list of calls is short enough to compare one by one; the kernel remembers which are always allowed.
fn program(calls: &[libc::c_long], families: &[libc::c_int]) -> Vec<Insn> {
    let mut program = vec![
        insn(LOAD, 0, 0, ARCHITECTURE),
        insn(JUMP_EQUAL, 1, 0, OURS),
        insn(RETURN, 0, 0, KILL),
        insn(LOAD, 0, 0, NUMBER),
    ];
    for call in calls {
        let then = match *call {
            libc::SYS_socket => allow_families(families),
            libc::SYS_mmap | libc::SYS_mprotect => forbid_bits(libc::PROT_EXEC as u32),
            _ => vec![insn(RETURN, 0, 0, ALLOW)],
        };
        program.push(insn(JUMP_EQUAL, 0, then.len() as u8, *call as u32));
        program.extend(then);
    }
    program.push(insn(RETURN, 0, 0, KILL));
    program
}

fn allow_families(families: &[libc::c_int]) -> Vec<Insn> {
    let mut part = vec![insn(LOAD, 0, 0, FIRST)];
    for family in families {
        part.extend([insn(JUMP_EQUAL, 0, 1, *family as u32), insn(RETURN, 0, 0, ALLOW)]);
    }
    part.push(insn(RETURN, 0, 0, KILL));
    part
}

/// Of the third argument.
fn forbid_bits(bits: u32) -> Vec<Insn> {
    let tail = [insn(RETURN, 0, 0, KILL), insn(RETURN, 0, 0, ALLOW)];
    [&[insn(LOAD, 0, 0, THIRD), insn(JUMP_SET, 0, 1, bits)][..], &tail].concat()
}

fn insn(code: u16, jt: u8, jf: u8, k: u32) -> Insn {
    Insn { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do, for programs of these instructions.
    fn judge(program: &[Insn], number: libc::c_long, arguments: [u32; 3]) -> u32 {
        let (mut place, mut value) = (0, 0);
        loop {
            let Insn { code, jt, jf, k } = program[place];
            place += 1;
            let skip = |is: bool| usize::from(if is { jt } else { jf });
            match code {
                LOAD => {
                    value = match k {
                        NUMBER => number as u32,
                        ARCHITECTURE => OURS,
                        _ => arguments[(k as usize - 16) / 8],
                    }
                }
                JUMP_EQUAL => place += skip(value == k),
                JUMP_SET => place += skip(value & k != 0),
                _ => return k,
            }
        }
    }

    #[test]
    fn what_is_not_listed_ends_the_process() {
        let calls = [libc::SYS_close, libc::SYS_socket, libc::SYS_mmap, libc::SYS_exit];
        let program = program(&calls, &[libc::AF_INET, libc::AF_INET6]);
        let exec = (libc::PROT_READ | libc::PROT_EXEC) as u32;
        for (number, arguments, answer) in [
            (libc::SYS_close, [3, 0, 0], ALLOW),
            (libc::SYS_exit, [0, 0, 0], ALLOW),
            (libc::SYS_openat, [0, 0, 0], KILL),
            (libc::SYS_mprotect, [0, 0, 0], KILL),
            (libc::SYS_socket, [libc::AF_INET as u32, 1, 0], ALLOW),
            (libc::SYS_socket, [libc::AF_INET6 as u32, 1, 0], ALLOW),
            (libc::SYS_socket, [libc::AF_UNIX as u32, 1, 0], KILL),
            (libc::SYS_mmap, [0, 4096, libc::PROT_READ as u32], ALLOW),
            (libc::SYS_mmap, [0, 4096, exec], KILL),
            (libc::SYS_close | 0x4000_0000, [3, 0, 0], KILL),
        ] {
            assert_eq!(judge(&program, number, arguments), answer, "{number} {arguments:?}");
        }
    }
}
