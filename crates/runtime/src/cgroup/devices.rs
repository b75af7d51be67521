//! Device rules: lines for cgroup v1, an eBPF program for v2.

use std::os::fd::BorrowedFd;

use proa_oci::runtime::DeviceRule;
use proa_sys::bpf::{Ebpf, attach_device_program, load_device_program};

use crate::{Error, Result};

/// Devices that every container has, whatever its rules say: null, zero, full, random, urandom; tty, console,
/// ptmx; terminals.
pub(super) const ALWAYS: &[(i64, Option<i64>)] = &[
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// A rule by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// 1 block, 2 character; `None` for both.
    kind: Option<i32>,
    major: Option<i64>,
    minor: Option<i64>,
    access: i32,
}

fn parse(rules: &[DeviceRule]) -> Result<Vec<Rule>> {
    let mut parsed = Vec::with_capacity(rules.len() + ALWAYS.len());
    for rule in rules {
        let kind = match rule.kind.as_deref() {
            None | Some("a" | "") => None,
            Some("b") => Some(1),
            Some("c" | "u") => Some(2),
            Some(kind) => return Err(Error::invalid(format!("device rule of unknown type '{kind}'"))),
        };
        let access = rule.access.as_deref().filter(|access| !access.is_empty()).unwrap_or("rwm");
        let access = access.bytes().try_fold(0, |bits, byte| match byte {
            b'm' => Ok(bits | MKNOD),
            b'r' => Ok(bits | READ),
            b'w' => Ok(bits | WRITE),
            _ => Err(Error::invalid(format!("device rule of unknown access '{access}'"))),
        })?;
        // -1 stands for all in older documents.
        let number = |value: Option<i64>| value.filter(|number| *number >= 0);
        parsed.push(Rule {
            allow: rule.allow,
            kind,
            major: number(rule.major),
            minor: number(rule.minor),
            access,
        });
    }
    parsed.extend(ALWAYS.iter().map(|&(major, minor)| Rule {
        allow: true,
        kind: Some(2),
        major: Some(major),
        minor,
        access: MKNOD | READ | WRITE,
    }));
    Ok(parsed)
}

impl Rule {
    fn is_for_all(&self) -> bool {
        self.kind.is_none()
            && self.major.is_none()
            && self.minor.is_none()
            && self.access == MKNOD | READ | WRITE
    }
}

/// Files and lines for cgroup v1.
pub(super) fn lines(rules: &[DeviceRule]) -> Result<Vec<(&'static str, String)>> {
    let line = |rule: &Rule| {
        let file = if rule.allow { "devices.allow" } else { "devices.deny" };
        if rule.is_for_all() {
            return vec![(file, "a".to_owned())];
        }
        let number = |value: Option<i64>| value.map_or_else(|| "*".to_owned(), |value| value.to_string());
        let access: String = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
            .iter()
            .filter(|(bit, _)| rule.access & bit != 0)
            .map(|(_, c)| c)
            .collect();
        // `a` with numbers would lose the numbers.
        let kinds: &[char] = match rule.kind {
            Some(1) => &['b'],
            Some(_) => &['c'],
            None => &['b', 'c'],
        };
        let text = |kind| format!("{kind} {}:{} {access}", number(rule.major), number(rule.minor));
        kinds.iter().map(|kind| (file, text(kind))).collect()
    };
    Ok(parse(rules)?.iter().flat_map(line).collect())
}

/// Attaches the rules to a v2 cgroup. Where everything is allowed there is nothing to attach.
pub(super) fn attach(cgroup: BorrowedFd, rules: &[DeviceRule]) -> Result<()> {
    if rules.iter().all(|rule| rule.allow) {
        return Ok(());
    }
    let program =
        load_device_program(&program(&parse(rules)?)).map_err(|error| Error::call("device rules", error))?;
    use std::os::fd::AsFd;
    attach_device_program(cgroup, program.as_fd()).map_err(|error| Error::call("device rules", error))
}

/// The last rule that fits decides, so they are asked from the last to the first; nothing fits: allowed, as in
/// a new cgroup.
///
/// ```text
///   r1 = context { u32 access << 16 | kind, u32 major, u32 minor }
///   r2 = kind   r3 = access   r4 = major   r5 = minor
/// ```
fn program(rules: &[Rule]) -> Vec<Ebpf> {
    const LOAD_WORD: u8 = 0x61;
    const AND: u8 = 0x54;
    const SHIFT_RIGHT: u8 = 0x74;
    const MOVE_REGISTER: u8 = 0xbc;
    let op = |code, registers, offset, immediate| Ebpf { code, registers, offset, immediate };
    let mut program = vec![
        op(LOAD_WORD, 0x12, 0, 0),
        op(MOVE_REGISTER, 0x23, 0, 0),
        op(AND, 0x02, 0, 0xffff),
        op(SHIFT_RIGHT, 0x03, 0, 16),
        op(LOAD_WORD, 0x14, 4, 0),
        op(LOAD_WORD, 0x15, 8, 0),
    ];
    for rule in rules.iter().rev() {
        program.extend(rule_code(rule));
        if rule.is_for_all() {
            return program;
        }
    }
    program.extend(answer(true));
    program
}

fn answer(allow: bool) -> [Ebpf; 2] {
    [
        Ebpf { code: 0xb7, immediate: i32::from(allow), ..Ebpf::default() },
        Ebpf { code: 0x95, ..Ebpf::default() },
    ]
}

fn rule_code(rule: &Rule) -> Vec<Ebpf> {
    const NOT_EQUAL: u8 = 0x56;
    const ANY_BIT: u8 = 0x46;
    const MOVE_REGISTER: u8 = 0xbc;
    const AND: u8 = 0x54;
    let op = |code, registers, immediate| Ebpf { code, registers, offset: 0, immediate };
    let mut tests = Vec::new();
    if let Some(kind) = rule.kind {
        tests.push(op(NOT_EQUAL, 0x02, kind));
    }
    if rule.access != MKNOD | READ | WRITE {
        tests.push(op(MOVE_REGISTER, 0x36, 0));
        if rule.allow {
            // Allowed if nothing is asked for beyond what the rule gives.
            tests.push(op(AND, 0x06, !rule.access));
            tests.push(op(NOT_EQUAL, 0x06, 0));
        } else {
            // Denied if anything is asked for that the rule takes: skip the way out where a bit is common.
            tests.push(op(ANY_BIT, 0x06, rule.access));
        }
    }
    if let Some(major) = rule.major {
        tests.push(op(NOT_EQUAL, 0x04, major as i32));
    }
    if let Some(minor) = rule.minor {
        tests.push(op(NOT_EQUAL, 0x05, minor as i32));
    }
    finish(tests, rule.allow, NOT_EQUAL, ANY_BIT)
}

/// Appends the answer, and lets every test that fails jump behind it.
fn finish(tests: Vec<Ebpf>, allow: bool, not_equal: u8, any_bit: u8) -> Vec<Ebpf> {
    const JUMP: u8 = 0x05;
    let mut code = Vec::new();
    for test in tests {
        if test.code == any_bit {
            // There is no "no common bit": over the jump that leaves.
            code.push(Ebpf { offset: 1, ..test });
            code.push(Ebpf { code: JUMP, ..Ebpf::default() });
        } else {
            code.push(test);
        }
    }
    code.extend(answer(allow));
    let end = code.len();
    for (at, insn) in code.iter_mut().enumerate() {
        if insn.code == not_equal || insn.code == JUMP {
            insn.offset = (end - at - 1) as i16;
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_oci::defaults::default_device_rules;

    #[test]
    fn lines_are_the_kernels() {
        let lines = lines(&default_device_rules()).unwrap();
        assert_eq!(lines[0], ("devices.deny", "a".to_owned()));
        assert_eq!(lines[1], ("devices.allow", "c *:* m".to_owned()));
        assert!(lines.contains(&("devices.allow", "c 136:* rwm".to_owned())));
        let both =
            [DeviceRule { allow: true, major: Some(10), access: Some("r".into()), ..DeviceRule::default() }];
        assert_eq!(
            super::lines(&both).unwrap()[..2],
            [("devices.allow", "b 10:* r".into()), ("devices.allow", "c 10:* r".into())]
        );
        let bad = [DeviceRule { access: Some("x".into()), ..DeviceRule::default() }];
        assert!(super::lines(&bad).is_err());
    }

    /// Runs a program on one access.
    fn run(program: &[Ebpf], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let mut registers = [0_i32; 16];
        let mut at = 0;
        loop {
            let Ebpf { code, registers: r, offset, immediate } = program[at];
            let (target, source) = (usize::from(r & 15), usize::from(r >> 4));
            at += 1;
            match (code, offset) {
                (0x61, 0) => registers[target] = access << 16 | kind,
                (0x61, 4) => registers[target] = major,
                (0x61, _) => registers[target] = minor,
                (0xbc, _) => registers[target] = registers[source],
                (0x54, _) => registers[target] &= immediate,
                (0x74, _) => registers[target] = (registers[target] as u32 >> immediate) as i32,
                (0xb7, _) => registers[target] = immediate,
                (0x95, _) => return registers[0] == 1,
                (0x05, _) => at += offset as usize,
                (0x56, _) => at += if registers[target] == immediate { 0 } else { offset as usize },
                (0x46, _) => at += if registers[target] & immediate != 0 { offset as usize } else { 0 },
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn the_program_allows_dockers_devices_and_no_others() {
        let code = program(&parse(&default_device_rules()).unwrap());
        load_device_program(&code).expect("the verifier takes it (this test needs root)");
        assert!(run(&code, 2, READ | WRITE, 1, 3));
        assert!(run(&code, 2, READ, 136, 7));
        assert!(run(&code, 1, MKNOD, 8, 0));
        assert!(!run(&code, 1, READ, 8, 0));
        assert!(!run(&code, 1, READ | MKNOD, 8, 0));
        assert!(!run(&code, 2, READ, 1, 1));
        assert!(!run(&code, 1, READ, 1, 3));
    }

    #[test]
    fn a_denial_of_one_access_leaves_the_others() {
        let rule =
            |allow, access: &str| DeviceRule { allow, access: Some(access.into()), ..DeviceRule::default() };
        let code = program(&parse(&[rule(true, "rwm"), rule(false, "w")]).unwrap());
        load_device_program(&code).expect("the verifier takes it (this test needs root)");
        assert!(run(&code, 1, READ, 8, 0));
        assert!(!run(&code, 1, READ | WRITE, 8, 0));
        let open = program(&parse(&[rule(true, "rwm")]).unwrap());
        assert!(run(&open, 1, READ | WRITE | MKNOD, 8, 0));
    }
}
