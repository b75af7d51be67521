//! System call filters: the spec's `seccomp` section compiled to classic BPF.
//!
//! ```text
//!   architecture ─▶ its section ─▶ binary search by number ─▶ return an action
//!                                                         └─▶ rules on arguments ─▶ return an action
//!   any other ─▶ kill
//! ```
//!
//! Numbers with the same answer are joined into ranges, so a profile of 400 calls is a tree of some eight
//! levels. (libseccomp compares one by one; the kernel runs a filter for each of ~900 numbers when it is
//! installed, to cache which it always allows, so the shape of the filter is time at each start.)
//!
//! x32 calls, which are x86_64 calls with a bit set, are refused as if no rule named them. Calls younger than
//! the table get `ENOSYS` where the default would be another errno, so that libraries fall back.

mod arguments;
mod table;

use std::collections::BTreeMap;

use proa_oci::runtime::{Seccomp, SeccompArg, SeccompRule};
use proa_oci::state::{ContainerProcessState, SECCOMP_FD, State};
use proa_sys::process::Insn;

use crate::{Error, Result};

// Operations of classic BPF, and where `struct seccomp_data` has its fields.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const ENOSYS: u32 = 38;
/// Only with a listener.
const WAIT_KILLABLE_RECV: u64 = 0x20;
const X32_BIT: u32 = 0x4000_0000;
/// The kernel's limit (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

/// An architecture: its audit number, its column in the table, and whether x32 numbers must be cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Architecture {
    audit: u32,
    column: usize,
    has_x32: bool,
}

const X86_64: Architecture = Architecture { audit: 0xc000_003e, column: 0, has_x32: true };
const X86: Architecture = Architecture { audit: 0x4000_0003, column: 1, has_x32: false };
const AARCH64: Architecture = Architecture { audit: 0xc000_00b7, column: 2, has_x32: false };
const ARM: Architecture = Architecture { audit: 0x4000_0028, column: 3, has_x32: false };

/// What a filter answers for one call.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Return(u32),
    /// The first rule whose conditions all hold; else the default.
    Rules(Vec<(Vec<SeccompArg>, u32)>),
}

/// A compiled filter and how it is installed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub program: Vec<Insn>,
    /// `SECCOMP_FILTER_FLAG_…`.
    pub flags: u64,
    /// Who answers the calls that it notifies of.
    pub listener: Option<Listener>,
}

/// Who answers calls, and what it is told besides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Listener {
    /// Path of its socket.
    pub path: String,
    /// A `ContainerProcessState`.
    pub message: String,
    metadata: String,
}

impl Filter {
    /// Compiles a filter with all that belongs to it.
    pub(crate) fn new(seccomp: &Seccomp) -> Result<Self> {
        let listener = listener(seccomp)?;
        let all = flags(&seccomp.flags)?;
        let flags = if listener.is_some() { all } else { all & !WAIT_KILLABLE_RECV };
        Ok(Self { program: compile(seccomp)?, flags, listener })
    }

    /// The same, for this process of this container.
    pub(crate) fn for_process(&self, pid: u32, state: &State) -> Self {
        let listener = self.listener.as_ref().map(|listener| {
            let message = ContainerProcessState {
                oci_version: state.oci_version.clone(),
                fds: vec![SECCOMP_FD.to_owned()],
                pid,
                metadata: listener.metadata.clone(),
                state: state.clone(),
            };
            Listener { message: message.to_json(), ..listener.clone() }
        });
        Self { listener, ..self.clone() }
    }
}

/// Where the notifications of a profile go, if it has any.
pub(crate) fn listener_path(seccomp: &Seccomp) -> Option<&str> {
    let path = seccomp.listener_path.as_deref().filter(|path| !path.is_empty())?;
    seccomp.syscalls.iter().any(|rule| rule.action == "SCMP_ACT_NOTIFY").then_some(path)
}

fn listener(seccomp: &Seccomp) -> Result<Option<Listener>> {
    let mut notifying = seccomp.syscalls.iter().filter(|rule| rule.action == "SCMP_ACT_NOTIFY").peekable();
    if notifying.peek().is_none() {
        return Ok(None);
    }
    // The descriptor is sent by the process that is behind the filter already.
    if notifying.any(|rule| rule.names.iter().any(|name| name == "sendmsg")) {
        return Err(Error::unsupported(
            "seccomp: sendmsg cannot be notified of: the runtime sends the listener's descriptor by it",
        ));
    }
    let path = listener_path(seccomp)
        .ok_or_else(|| Error::invalid("seccomp: SCMP_ACT_NOTIFY needs a listenerPath"))?;
    let metadata = seccomp.listener_metadata.clone().unwrap_or_default();
    Ok(Some(Listener { path: path.to_owned(), metadata, message: String::new() }))
}

fn flags(names: &[String]) -> Result<u64> {
    names.iter().try_fold(0, |flags, name| {
        Ok(flags
            | match name.as_str() {
                // The process has one thread.
                "SECCOMP_FILTER_FLAG_TSYNC" => 0,
                "SECCOMP_FILTER_FLAG_LOG" => 0x02,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => 0x04,
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => WAIT_KILLABLE_RECV,
                other => return Err(Error::invalid(format!("seccomp: flag '{other}' is not known"))),
            })
    })
}

/// Compiles a filter. Every rule must name known actions and operators; names of calls that no architecture
/// here has are ignored, as the specification allows.
///
/// # Errors
/// Names what is not known.
pub fn compile(seccomp: &Seccomp) -> Result<Vec<Insn>> {
    let default = action(&seccomp.default_action, seccomp.default_errno_ret)?;
    if default == NOTIFY {
        return Err(Error::invalid("seccomp: SCMP_ACT_NOTIFY cannot be the default action"));
    }
    let rules = resolve(&seccomp.syscalls)?;
    let mut program = vec![insn(LOAD, OFFSET_ARCHITECTURE)];
    for architecture in architectures(&seccomp.architectures)? {
        let section = section(architecture, &answers(&rules, architecture, default), default);
        // An offset of a conditional jump has eight bits only: jump over a long jump.
        program.push(Insn { code: JUMP_EQUAL, jt: 1, jf: 0, k: architecture.audit });
        program.push(insn(JUMP, section.len() as u32));
        program.extend(section);
    }
    program.push(insn(RETURN, KILL_PROCESS));
    if program.len() > MAX_INSTRUCTIONS {
        return Err(Error::invalid(format!(
            "seccomp: the profile needs {} instructions, {MAX_INSTRUCTIONS} are allowed",
            program.len()
        )));
    }
    Ok(program)
}

fn architectures(names: &[String]) -> Result<Vec<Architecture>> {
    let native = if cfg!(target_arch = "aarch64") { AARCH64 } else { X86_64 };
    if names.is_empty() {
        return Ok(vec![native]);
    }
    let mut list = Vec::new();
    for name in names {
        let architecture = match name.as_str() {
            "SCMP_ARCH_X86_64" => X86_64,
            "SCMP_ARCH_X86" => X86,
            "SCMP_ARCH_AARCH64" => AARCH64,
            "SCMP_ARCH_ARM" => ARM,
            "SCMP_ARCH_NATIVE" => native,
            // Its numbers are refused whatever a profile says.
            "SCMP_ARCH_X32" => continue,
            other if other.starts_with("SCMP_ARCH_") => continue,
            other => return Err(Error::invalid(format!("seccomp: architecture '{other}' is not known"))),
        };
        if !list.contains(&architecture) {
            list.push(architecture);
        }
    }
    Ok(list)
}

/// A rule for one call, by all architectures' numbers.
struct Resolved<'a> {
    numbers: &'static [u32; 4],
    args: &'a [SeccompArg],
    action: u32,
}

/// Looks up every name once. Names that no architecture here has are left out.
fn resolve(rules: &[SeccompRule]) -> Result<Vec<Resolved<'_>>> {
    let mut resolved = Vec::with_capacity(512);
    for rule in rules {
        let action = action(&rule.action, rule.errno_ret)?;
        arguments::check(&rule.args)?;
        let numbers = rule.names.iter().filter_map(|name| table::numbers(name));
        resolved.extend(numbers.map(|numbers| Resolved { numbers, args: &rule.args, action }));
    }
    Ok(resolved)
}

/// Number to answer, for calls whose answer is not the default.
fn answers(rules: &[Resolved], architecture: Architecture, default: u32) -> BTreeMap<u32, Answer> {
    let mut answers = BTreeMap::new();
    for rule in rules {
        let number = rule.numbers[architecture.column];
        if number == table::NONE {
            continue;
        }
        match answers.entry(number).or_insert_with(|| Answer::Rules(Vec::new())) {
            // A rule without conditions holds whatever others say; the first of them counts.
            Answer::Return(_) => {}
            answer if rule.args.is_empty() => *answer = Answer::Return(rule.action),
            Answer::Rules(rules) => rules.push((rule.args.to_vec(), rule.action)),
        }
    }
    answers.retain(|_, answer| *answer != Answer::Return(default));
    answers
}

fn section(architecture: Architecture, answers: &BTreeMap<u32, Answer>, default: u32) -> Vec<Insn> {
    let default_answer = Answer::Return(default);
    let mut ranges: Vec<(u32, &Answer)> = vec![(0, &default_answer)];
    for (number, answer) in answers {
        extend(&mut ranges, *number, answer);
        if !answers.contains_key(&(number + 1)) {
            extend(&mut ranges, number + 1, &default_answer);
        }
    }
    let unknown = Answer::Return(ERRNO | ENOSYS);
    let youngest = table::NEWEST + 1;
    if default & 0xffff_0000 == ERRNO && ranges.last().is_some_and(|(start, _)| *start <= youngest) {
        extend(&mut ranges, youngest, &unknown);
    }
    if architecture.has_x32 {
        extend(&mut ranges, X32_BIT, &default_answer);
    }
    let mut program = vec![insn(LOAD, OFFSET_NUMBER)];
    search(&ranges, default, &mut program);
    program
}

/// Appends a range, joined with the last where the answers are the same.
fn extend<'a>(ranges: &mut Vec<(u32, &'a Answer)>, start: u32, answer: &'a Answer) {
    match ranges.last_mut() {
        Some(last) if last.0 == start => last.1 = answer,
        Some(last) if last.1 == answer => {}
        _ => ranges.push((start, answer)),
    }
}

/// A binary search; every branch ends in a return.
fn search(ranges: &[(u32, &Answer)], default: u32, program: &mut Vec<Insn>) {
    match ranges {
        [] => program.push(insn(RETURN, default)),
        [(_, Answer::Return(action))] => program.push(insn(RETURN, *action)),
        [(_, Answer::Rules(rules))] => arguments::emit(rules, default, program),
        ranges => {
            let (below, above) = ranges.split_at(ranges.len() / 2);
            let mut left = Vec::new();
            search(below, default, &mut left);
            let start = above[0].0;
            match u8::try_from(left.len()) {
                Ok(skip) => program.push(Insn { code: JUMP_GREATER_EQUAL, jt: skip, jf: 0, k: start }),
                Err(_) => {
                    program.push(Insn { code: JUMP_GREATER_EQUAL, jt: 0, jf: 1, k: start });
                    program.push(insn(JUMP, left.len() as u32));
                }
            }
            program.extend(left);
            search(above, default, program);
        }
    }
}

fn action(name: &str, errno: Option<u32>) -> Result<u32> {
    const EPERM: u32 = 1;
    let data = errno.unwrap_or(EPERM);
    if data > 0xffff {
        return Err(Error::invalid(format!("seccomp: errno {data} is not known")));
    }
    Ok(match name {
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_ERRNO" => ERRNO | data,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => 0,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => 0x0003_0000,
        "SCMP_ACT_TRACE" => 0x7ff0_0000 | data,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        "SCMP_ACT_NOTIFY" => NOTIFY,
        other => return Err(Error::invalid(format!("seccomp: action '{other}' is not known"))),
    })
}

fn insn(code: u16, k: u32) -> Insn {
    Insn { code, jt: 0, jf: 0, k }
}

#[cfg(test)]
mod tests;
