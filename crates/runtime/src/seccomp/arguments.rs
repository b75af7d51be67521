//! Conditions on arguments: 64-bit comparisons on a 32-bit machine.

use proa_oci::runtime::SeccompArg;
use proa_sys::process::Insn;

use super::{AND, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_EQUAL, LOAD, RETURN, insn};
use crate::{Error, Result};

const OFFSET_ARGUMENTS: u32 = 16;

/// Where a comparison goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Go {
    Next,
    Holds,
    Fails,
}

/// One instruction whose jumps are not yet numbers.
type Draft = (Insn, Go, Go);

/// Appends code that returns the action of the first rule whose conditions all hold, else the default.
pub(super) fn emit(rules: &[(Vec<SeccompArg>, u32)], default: u32, program: &mut Vec<Insn>) {
    for (conditions, action) in rules {
        let drafts: Vec<Vec<Draft>> = conditions.iter().map(condition).collect();
        let mut rest: usize = drafts.iter().map(Vec::len).sum();
        for draft in drafts {
            let length = draft.len();
            for (at, (mut insn, yes, no)) in draft.into_iter().enumerate() {
                // To hold is to go on behind this comparison; to fail, behind the rule and its return.
                let offset = |go| match go {
                    Go::Next => 0,
                    Go::Holds => length - at - 1,
                    Go::Fails => rest - at,
                };
                (insn.jt, insn.jf) = (offset(yes) as u8, offset(no) as u8);
                program.push(insn);
            }
            rest -= length;
        }
        program.push(insn(RETURN, *action));
    }
    program.push(insn(RETURN, default));
}

/// Checks a rule's conditions.
pub(super) fn check(conditions: &[SeccompArg]) -> Result<()> {
    const OPERATORS: &[&str] = &["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    for condition in conditions {
        if condition.index > 5 {
            return Err(Error::invalid(format!("seccomp: no argument {}", condition.index)));
        }
        if !condition.op.strip_prefix("SCMP_CMP_").is_some_and(|op| OPERATORS.contains(&op)) {
            return Err(Error::invalid(format!("seccomp: operator '{}' is not known", condition.op)));
        }
    }
    // Six comparisons of six instructions: every jump fits its eight bits.
    match conditions.len() {
        0..=6 => Ok(()),
        many => Err(Error::invalid(format!("seccomp: {many} conditions in one rule"))),
    }
}

fn condition(arg: &SeccompArg) -> Vec<Draft> {
    use Go::{Fails, Holds};
    match arg.op.as_str() {
        "SCMP_CMP_EQ" => equal(arg, u64::MAX, arg.value, Holds, Fails),
        "SCMP_CMP_NE" => equal(arg, u64::MAX, arg.value, Fails, Holds),
        "SCMP_CMP_MASKED_EQ" => equal(arg, arg.value, arg.value_two, Holds, Fails),
        "SCMP_CMP_GT" => above(arg, JUMP_GREATER, Holds, Fails),
        "SCMP_CMP_GE" => above(arg, JUMP_GREATER_EQUAL, Holds, Fails),
        "SCMP_CMP_LE" => above(arg, JUMP_GREATER, Fails, Holds),
        // Others than LT have been refused by `check`.
        _ => above(arg, JUMP_GREATER_EQUAL, Fails, Holds),
    }
}

fn load(arg: &SeccompArg, high: bool) -> Draft {
    (insn(LOAD, OFFSET_ARGUMENTS + 8 * arg.index + 4 * u32::from(high)), Go::Next, Go::Next)
}

fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}

fn equal(arg: &SeccompArg, mask: u64, value: u64, yes: Go, no: Go) -> Vec<Draft> {
    let (mask_high, mask_low) = halves(mask);
    let (high, low) = halves(value);
    let mut drafts = Vec::new();
    let mut half = |is_high, mask, value, yes| {
        drafts.push(load(arg, is_high));
        if mask != u32::MAX {
            drafts.push((insn(AND, mask), Go::Next, Go::Next));
        }
        drafts.push((insn(JUMP_EQUAL, value), yes, no));
    };
    if (mask_high, high) != (0, 0) {
        half(true, mask_high, high, Go::Next);
    }
    half(false, mask_low, low, yes);
    drafts
}

fn above(arg: &SeccompArg, low_operator: u16, yes: Go, no: Go) -> Vec<Draft> {
    let (high, low) = halves(arg.value);
    vec![
        load(arg, true),
        (insn(JUMP_GREATER, high), yes, Go::Next),
        (insn(JUMP_EQUAL, high), Go::Next, no),
        load(arg, false),
        (insn(low_operator, low), yes, no),
    ]
}
