//! The filter, tried from inside through every entrance of the kernel.

use crate::support::{Fixture, compile, process};

crate::tests![calls_are_refused_through_every_entrance, capabilities_open_calls];

const EPERM: &str = "-1";
const ENOSYS: &str = "-38";

/// Runs the calls (entrance, number, arguments) and gives their results.
fn results(capabilities: &[&str], calls: &[&str]) -> Vec<String> {
    let script: Vec<String> = calls.iter().map(|call| format!("denied {call}")).collect();
    let fixture = Fixture::shell(&script.join(";")).capabilities(capabilities);
    compile(&fixture, "denied", &[]);
    let outcome = fixture.run();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    outcome.stdout.lines().map(ToOwned::to_owned).collect()
}

#[cfg(target_arch = "x86_64")]
fn calls_are_refused_through_every_entrance() {
    let calls = [
        "6 41 38 5 0",          // socket(AF_ALG)
        "6 41 0x100000026 5 0", // the same, for a kernel that looks at half of the register
        "6 41 40 1 0",          // socket(AF_VSOCK)
        "6 41 1 1 0",           // socket(AF_UNIX)
        "s 1 38 5 0",           // socketcall(SYS_SOCKET, AF_ALG)
        "3 359 38 5 0",         // socket(AF_ALG) of 32-bit code
        "3 20",                 // getpid of 32-bit code: allowed
        "6 425 1 0",            // io_uring_setup
        "6 250 0 0",            // keyctl
        "6 272 0x10000000",     // unshare(CLONE_NEWUSER)
        "6 56 0x10000011",      // clone(CLONE_NEWUSER)
        "6 435 0 0",            // clone3
        "6 321 0 0 0",          // bpf
        "6 323 0",              // userfaultfd
        "6 165 0 0 0 0",        // mount
        "x 39",                 // getpid of x32
        "6 999",                // a call of the future
    ];
    let results = results(&[], &calls);
    let expected = [
        EPERM, EPERM, EPERM, "0", EPERM, EPERM, "", EPERM, EPERM, EPERM, EPERM, ENOSYS, EPERM, EPERM, EPERM,
        EPERM, ENOSYS,
    ];
    for ((call, result), expected) in calls.iter().zip(&results).zip(expected) {
        assert!(expected.is_empty() && !result.starts_with('-') || result == expected, "{call}: {result}");
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn calls_are_refused_through_every_entrance() {
    let results = results(&[], &["6 198 38 5 0", "6 198 1 1 0", "6 425 1 0"]);
    assert_eq!(results, [EPERM, "0", EPERM]);
}

fn capabilities_open_calls() {
    let mount = |names: &[&str]| {
        Fixture::shell("mount -t tmpfs x /tmp && echo mounted; unshare -m true && echo unshared")
            .capabilities(names)
            .run()
            .stdout
    };
    assert_eq!(mount(&[]), "");
    assert_eq!(mount(&["CAP_SYS_ADMIN"]), "mounted\nunshared\n");
    // No filter at all, if the spec has none.
    let fixture = Fixture::shell("grep Seccomp: /proc/self/status").with(|spec| {
        spec.linux_mut().seccomp = None;
        process(spec).no_new_privileges = true;
    });
    assert_eq!(fixture.run().stdout, "Seccomp:\t0\n");
}
