//! The filters are run here by a machine of our own.

use super::*;
use proa_oci::defaults::default_seccomp;

const EPERM: u32 = ERRNO | 1;
const AF_ALG: u64 = 38;

/// Runs a filter on one call.
fn run(program: &[Insn], audit: u32, number: u32, args: &[u64]) -> u32 {
    let mut data = [0_u32; 16];
    (data[0], data[1]) = (number, audit);
    for (at, arg) in args.iter().enumerate() {
        (data[4 + 2 * at], data[5 + 2 * at]) = (*arg as u32, (*arg >> 32) as u32);
    }
    let (mut a, mut at) = (0_u32, 0_usize);
    loop {
        let Insn { code, jt, jf, k } = program[at];
        at += 1;
        let mut jump = |holds: bool| at += usize::from(if holds { jt } else { jf });
        match code {
            LOAD => a = data[k as usize / 4],
            AND => a &= k,
            JUMP => at += k as usize,
            JUMP_EQUAL => jump(a == k),
            JUMP_GREATER => jump(a > k),
            JUMP_GREATER_EQUAL => jump(a >= k),
            RETURN => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn number(name: &str, architecture: Architecture) -> u32 {
    table::numbers(name).unwrap()[architecture.column]
}

fn docker(capabilities: &[&str]) -> impl Fn(Architecture, &str, &[u64]) -> u32 {
    let mut profile = default_seccomp(&capabilities.iter().map(ToString::to_string).collect::<Vec<_>>());
    profile.architectures =
        ["X86_64", "X86", "AARCH64", "ARM"].iter().map(|name| format!("SCMP_ARCH_{name}")).collect();
    let program = compile(&profile).unwrap();
    move |architecture, name, args| run(&program, architecture.audit, number(name, architecture), args)
}

#[test]
fn the_table_is_sorted() {
    assert!(table::TABLE.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert_eq!((number("openat2", X86_64), number("socketcall", X86)), (437, 102));
    assert_eq!((number("openat", AARCH64), number("openat", ARM)), (56, 322));
}

#[test]
fn dockers_profile_allows_what_programs_need() {
    let filter = docker(&[]);
    for architecture in [X86_64, X86, AARCH64, ARM] {
        for name in ["read", "execve", "openat", "futex", "getrandom", "close_range", "prctl", "ptrace"] {
            assert_eq!(filter(architecture, name, &[]), ALLOW, "{name}");
        }
        for name in [
            "mount",
            "keyctl",
            "bpf",
            "unshare",
            "setns",
            "io_uring_setup",
            "kexec_load",
            "add_key",
            "perf_event_open",
        ] {
            assert_eq!(filter(architecture, name, &[]), EPERM, "{name}");
        }
    }
    assert_eq!(filter(X86_64, "arch_prctl", &[]), ALLOW);
    assert_eq!(filter(X86_64, "io_uring_enter", &[]), EPERM);
    assert_eq!(filter(X86_64, "userfaultfd", &[]), EPERM);
    assert_eq!(docker(&["CAP_SYS_ADMIN"])(X86_64, "mount", &[]), ALLOW);
}

#[test]
fn namespaces_are_made_by_nobody_without_the_right() {
    let filter = docker(&[]);
    assert_eq!(filter(X86_64, "clone", &[0x0100_0011]), ALLOW);
    for flag in [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        assert_eq!(filter(X86_64, "clone", &[flag | 17]), EPERM, "{flag:#x}");
    }
    assert_eq!(filter(X86_64, "clone3", &[]), ERRNO | ENOSYS);
    assert_eq!(docker(&["CAP_SYS_ADMIN"])(X86_64, "clone", &[0x1000_0000]), ALLOW);
}

#[test]
fn alg_and_vsock_sockets_are_refused_however_they_are_asked_for() {
    let filter = docker(&[]);
    for family in (0..46).filter(|family| ![AF_ALG, 40].contains(family)) {
        assert_eq!(filter(X86_64, "socket", &[family]), ALLOW, "{family}");
    }
    for family in [AF_ALG, 40] {
        // The kernel looks at the lower half of the register only.
        for high in [0, 1 << 32, 0xffff_ffff << 32] {
            assert_eq!(filter(X86_64, "socket", &[family | high]), EPERM);
        }
        assert_eq!(filter(X86, "socket", &[family]), EPERM);
    }
    assert_eq!(filter(X86, "socketcall", &[1]), EPERM);
    assert_eq!(filter(X86, "socketcall", &[3]), ALLOW);
}

#[test]
fn other_entrances_are_closed() {
    let program = compile(&default_seccomp(&[])).unwrap();
    assert_eq!(run(&program, X86_64.audit, X32_BIT | number("read", X86_64), &[]), EPERM);
    assert_eq!(run(&program, X86_64.audit, X32_BIT | 512, &[]), EPERM);
    assert_eq!(run(&program, 0x1234, 0, &[]), KILL_PROCESS);
    assert_eq!(run(&program, X86_64.audit, table::NEWEST + 1, &[]), ERRNO | ENOSYS);
    assert_eq!(run(&program, X86_64.audit, u32::MAX, &[]), EPERM);
    assert!(program.len() < 1500, "{}", program.len());
}

#[test]
fn every_operator_compares_all_64_bits() {
    let values = [0, 1, 5, u64::from(u32::MAX), 1 << 32, (1 << 32) + 5, (5 << 32) + 1, u64::MAX];
    let holds = |op: &str, x: u64, y: u64| match op {
        "NE" => x != y,
        "LT" => x < y,
        "LE" => x <= y,
        "EQ" => x == y,
        "GE" => x >= y,
        "GT" => x > y,
        _ => x & y == y & 5,
    };
    for op in ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"] {
        for y in values {
            let arg = SeccompArg { index: 2, value: y, value_two: y & 5, op: format!("SCMP_CMP_{op}") };
            let always = SeccompArg { index: 0, value: 0, value_two: 0, op: "SCMP_CMP_EQ".into() };
            let mut seccomp = one_rule("SCMP_ACT_ALLOW", vec![arg.clone(), always, arg]);
            seccomp.architectures = vec!["SCMP_ARCH_X86_64".into()];
            let program = compile(&seccomp).unwrap();
            for x in values {
                let expected = if holds(op, x, y) { ALLOW } else { EPERM };
                assert_eq!(
                    run(&program, X86_64.audit, number("read", X86_64), &[0, 0, x]),
                    expected,
                    "{x:#x} {op} {y:#x}"
                );
            }
        }
    }
}

fn one_rule(action: &str, args: Vec<SeccompArg>) -> Seccomp {
    let rule = SeccompRule {
        names: vec!["read".into(), "no_such_call".into()],
        action: action.into(),
        errno_ret: None,
        args,
    };
    Seccomp { default_action: "SCMP_ACT_ERRNO".into(), syscalls: vec![rule], ..Seccomp::default() }
}

#[test]
fn what_is_not_known_is_refused() {
    let arg = |op: &str, index| vec![SeccompArg { index, op: op.into(), ..SeccompArg::default() }];
    assert!(compile(&one_rule("SCMP_ACT_GUESS", vec![])).is_err());
    assert!(Filter::new(&one_rule("SCMP_ACT_NOTIFY", vec![])).is_err());
    assert!(compile(&one_rule("SCMP_ACT_ALLOW", arg("SCMP_CMP_LIKE", 0))).is_err());
    assert!(compile(&one_rule("SCMP_ACT_ALLOW", arg("SCMP_CMP_EQ", 6))).is_err());
    assert!(
        Filter::new(&Seccomp {
            flags: vec!["SECCOMP_FILTER_FLAG_WAIT".into()],
            ..one_rule("SCMP_ACT_ALLOW", vec![])
        })
        .is_err()
    );
    assert!(
        compile(&Seccomp { architectures: vec!["x86".into()], ..one_rule("SCMP_ACT_ALLOW", vec![]) })
            .is_err()
    );
}
