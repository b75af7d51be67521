//! How many system calls a process's seccomp filters let through.
//!
//! The filters are read from the process and evaluated, so the answer is what the kernel would do, whoever made
//! the filter. A system call counts when it is let through with all arguments zero.

use std::ops::RangeInclusive;

use proa_sys::filters::{Instruction, of_process};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "x86_64")]
const RANGES: [RangeInclusive<u32>; 2] = [0..=334, 424..=467];

#[cfg(not(target_arch = "x86_64"))]
const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(not(target_arch = "x86_64"))]
const RANGES: [RangeInclusive<u32>; 3] = [0..=243, 260..=294, 424..=467];

const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;

/// Numbers of the system calls that Linux 6.18 has on this architecture.
pub fn known_syscalls() -> impl Iterator<Item = u32> {
    RANGES.into_iter().flatten()
}

/// How many of them this process may make; `None` where that cannot be read.
pub fn reachable_syscalls(pid: u32) -> Option<usize> {
    let filters = of_process(pid).ok()?;
    let allowed = |number: &u32| filters.iter().all(|filter| allows(filter, *number));
    Some(known_syscalls().filter(allowed).count())
}

fn allows(filter: &[Instruction], number: u32) -> bool {
    // A filter that this evaluator does not understand counts as open: never claim more safety than there is.
    evaluate(filter, number).is_none_or(|action| matches!(action & 0xffff_0000, ALLOW | LOG))
}

/// Runs a classic BPF program over `struct seccomp_data`; `None` if it holds an unknown instruction.
fn evaluate(program: &[Instruction], number: u32) -> Option<u32> {
    let load = |offset: u32| match offset {
        0 => number,
        4 => ARCHITECTURE,
        _ => 0,
    };
    let (mut a, mut x, mut memory, mut at) = (0u32, 0u32, [0u32; 16], 0usize);
    loop {
        let Instruction { code, jt, jf, k } = *program.get(at)?;
        at += 1;
        let operand = if code & 0x08 != 0 { x } else { k };
        match code & 0x07 {
            0x00 => {
                a = match code & 0xe0 {
                    0x00 => k,
                    0x20 => load(k),
                    0x60 => *memory.get(k as usize)?,
                    0x80 => 64,
                    _ => return None,
                }
            }
            0x01 => {
                x = match code & 0xe0 {
                    0x00 => k,
                    0x60 => *memory.get(k as usize)?,
                    0x80 => 64,
                    _ => return None,
                }
            }
            0x02 => *memory.get_mut(k as usize)? = a,
            0x03 => *memory.get_mut(k as usize)? = x,
            0x04 => a = arithmetic(code & 0xf0, a, operand)?,
            0x05 => {
                let holds = match code & 0xf0 {
                    0x00 => {
                        at += k as usize;
                        continue;
                    }
                    0x10 => a == operand,
                    0x20 => a > operand,
                    0x30 => a >= operand,
                    0x40 => a & operand != 0,
                    _ => return None,
                };
                at += usize::from(if holds { jt } else { jf });
            }
            0x06 => return Some(if code & 0x18 == 0x10 { a } else { k }),
            _ if code & 0xf8 == 0x80 => a = x,
            _ => x = a,
        }
    }
}

fn arithmetic(operation: u16, a: u32, operand: u32) -> Option<u32> {
    Some(match operation {
        0x00 => a.wrapping_add(operand),
        0x10 => a.wrapping_sub(operand),
        0x20 => a.wrapping_mul(operand),
        0x30 => a.checked_div(operand)?,
        0x40 => a | operand,
        0x50 => a & operand,
        0x60 => a.checked_shl(operand)?,
        0x70 => a.checked_shr(operand)?,
        0x80 => a.wrapping_neg(),
        0xa0 => a ^ operand,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction { code, jt, jf, k }
    }

    #[test]
    fn a_filter_is_evaluated_for_each_number() {
        // Allow 7 only: load number, if equal to 7 return allow, else errno 1.
        let program = [
            instruction(0x20, 0, 0, 0),
            instruction(0x15, 0, 1, 7),
            instruction(0x06, 0, 0, ALLOW),
            instruction(0x06, 0, 0, 0x0005_0001),
        ];
        assert!(allows(&program, 7));
        assert!(!allows(&program, 8));
        assert_eq!(known_syscalls().filter(|number| allows(&program, *number)).count(), 1);
    }

    #[test]
    fn what_is_not_understood_counts_as_open() {
        assert!(allows(&[instruction(0x28, 0, 0, 0)], 1));
        assert!(allows(&[], 1));
    }
}
