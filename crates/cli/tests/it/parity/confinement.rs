//! Ways from a process to its kernel, each tried by a real program; and what opens them on purpose.

use std::path::Path;

use super::{Bed, at_both_levels};
use crate::harness::{build, program, workspace};

at_both_levels!(
    refused_calls,
    kernel_files,
    groups,
    held_to_a_policy,
    asked_is_given,
    default_privileges,
    our_programs;
    ;
    // Of the host's devices, which an ordinary user cannot have.
    privileged,
);

/// Calls by entrance and number, and the error that each must end with.
#[cfg(target_arch = "x86_64")]
const CALLS: &[(&str, &str)] = &[
    ("6 41 38 5 0", "-1"),          // socket(AF_ALG)
    ("6 41 0x100000026 5 0", "-1"), // the same, for a kernel that looks at half of the register
    ("6 41 40 1 0", "-1"),          // socket(AF_VSOCK)
    ("3 359 38 5 0", "-1"),         // socket(AF_ALG) of 32-bit code
    ("6 41 1 1 0", "0"),            // socket(AF_UNIX)
    ("6 425 1 0", "-1"),            // io_uring_setup
    ("3 425 1 0", "-1"),            // the same of 32-bit code
    ("6 321 0 0 0", "-1"),          // bpf
    ("6 323 0", "-1"),              // userfaultfd
    ("6 248 0 0 0 0", "-1"),        // add_key
    ("6 249 0 0 0 0", "-1"),        // request_key
    ("6 250 0 0", "-1"),            // keyctl
    ("6 298 0 0 0 0", "-1"),        // perf_event_open
    ("6 272 0x10000000", "-1"),     // unshare(CLONE_NEWUSER)
    ("6 56 0x10000011", "-1"),      // clone(CLONE_NEWUSER)
    ("6 435 0 0", "-38"),           // clone3
    ("6 165 0 0 0 0", "-1"),        // mount
    ("6 430 0 0", "-1"),            // fsopen
    ("6 428 0 0 0", "-1"),          // open_tree
    ("6 467 0 0 0 0", "-1"),        // open_tree_attr
    ("6 308 0 0", "-1"),            // setns
    ("6 175 0 0 0", "-1"),          // init_module
    ("6 246 0 0 0 0", "-1"),        // kexec_load
    ("6 169 0", "-1"),              // reboot
    ("x 39", "-1"),                 // getpid of x32
];

#[cfg(not(target_arch = "x86_64"))]
const CALLS: &[(&str, &str)] =
    &[("6 198 38 5 0", "-1"), ("6 198 40 1 0", "-1"), ("6 198 1 1 0", "0"), ("6 425 1 0", "-1")];

/// AF_ALG by `socketcall`: denied by the filter, or by AppArmor where the filter lets it pass.
const SOCKETCALL: Option<&str> = if cfg!(target_arch = "x86_64") { Some("s 1 38 5") } else { None };

fn refused_calls(bed: &Bed) {
    let tools = build(&workspace().join("crates/runtime/tests/it/programs/denied.c"));
    let volume = format!("{}:/tools:ro", tools.path().display());
    // One run: a guest's boot is dear.
    let calls = CALLS.iter().map(|(call, _)| *call).chain(SOCKETCALL);
    let script: Vec<String> = calls.map(|call| format!("/tools/denied {call}")).collect();
    let results = bed.run_ok(&["-v", &volume], &["sh", "-c", &script.join(";")]);
    let results: Vec<&str> = results.lines().collect();
    assert_eq!(results.len(), script.len());
    for ((call, expected), result) in CALLS.iter().zip(&results) {
        assert_eq!(result, expected, "{call}");
    }
    for result in &results[CALLS.len()..] {
        assert!(["-1", "-13"].contains(result), "{result}");
    }
}

fn kernel_files(bed: &Bed) {
    let written = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/panic_on_oom",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/mm/ksm/run",
        "/sys/power/state",
    ];
    let mut script = String::new();
    for path in written {
        // A file that this kernel lacks cannot be made either.
        script.push_str(&format!("(echo x > {path}) 2>/dev/null && echo wrote {path};"));
    }
    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts"] {
        script.push_str(&format!("test -z \"$(head -c 1 {path} 2>/dev/null)\" || echo read {path};"));
    }
    for path in ["/sys/firmware", "/sys/kernel/security", "/sys/kernel/debug", "/proc/scsi", "/proc/acpi"] {
        script.push_str(&format!("test -z \"$(ls {path} 2>/dev/null)\" || echo listed {path};"));
    }
    script.push_str("mkdir /p; mount -t proc proc /p 2>/dev/null && echo mounted proc;");
    script.push_str("mount -o remount,rw /proc/sys 2>/dev/null && echo remounted;");
    script.push_str("umount /proc/kcore 2>/dev/null && echo unmasked; echo done");
    assert_eq!(bed.run_ok(&[], &["sh", "-c", &script]), "done");
    assert_eq!(
        bed.run_ok(&["--cap-add", "SYS_RAWIO", "--cap-add", "SYSLOG"], &["sh", "-c", &script]),
        "done"
    );
}

fn privileged(bed: &Bed) {
    let script = "grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/self/status | tr -d '[:blank:]'; \
        grep -E ' (sysfs|proc) ' /proc/mounts | cut -d' ' -f2,4 | cut -d, -f1; \
        mknod /dev/made c 1 5 && head -c 1 /dev/made | wc -c; \
        test -c /dev/mem || test -c /dev/kmsg || test -c /dev/hwrng || echo no devices; \
        test -e /dev/pts/ptmx && echo pts; mount -t tmpfs none /tmp && echo mounted";
    let seen = bed.run_ok(&["--privileged"], &["sh", "-c", script]);
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[1..3], ["NoNewPrivs:0", "Seccomp:0"], "{seen}");
    let effective = u64::from_str_radix(lines[0].strip_prefix("CapEff:").unwrap(), 16).unwrap();
    assert_ne!(effective & 1 << 21, 0, "{seen}");
    let masked = |line: &&str| line.starts_with("/proc/") || line.ends_with(" ro");
    assert!(!lines.iter().any(masked) && lines.contains(&"/sys rw"), "{seen}");
    assert_eq!(lines[lines.len() - 3..], ["1", "pts", "mounted"], "{seen}");
    let name = "mighty";
    bed.ok(&["create", "--isolation", bed.level, "--name", name, "--privileged", "busybox"]);
    let shown = "{{.HostConfig.Privileged}} {{.HostConfig.MaskedPaths}} {{.HostConfig.SecurityOpt}}";
    assert_eq!(bed.ok(&["inspect", "--format", shown, name]), "true <no value> [label=disable]");
    bed.ok(&["rm", name]);
}

fn groups(bed: &Bed) {
    bed.detach("grouped", &["--group-add", "4242", "--group-add", "nogroup"], &["sleep", "1000"]);
    let ids = |output: String| output.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let first = bed.ok(&["exec", "grouped", "grep", "^Groups:", "/proc/1/status"]);
    let first = ids(first);
    assert!(first.contains(&"4242".into()) && first.contains(&"65534".into()), "{first:?}");
    let exec = ids(bed.ok(&["exec", "grouped", "id", "-G"]));
    assert_eq!(first[1..].iter().filter(|id| !exec.contains(id)).count(), 0, "{first:?} {exec:?}");
    // Root has the group 0 as one of its groups, as in Docker.
    assert!(exec.contains(&"0".into()), "{exec:?}");
    bed.ok(&["rm", "-f", "grouped"]);
    let missing = bed.run(&["--group-add", "strangers"], &["id"]);
    assert!([125, 126].contains(&missing.code) && missing.stderr.contains("strangers"), "{missing:?}");
}

fn held_to_a_policy(bed: &Bed) {
    let refused = bed.run(&["--policy", "restricted", "--cap-add", "SYS_ADMIN"], &["true"]);
    assert_eq!(refused.code, 125, "{refused:?}");
    for word in ["SYS_ADMIN", "--cap-drop ALL", "--user", "no-new-privileges"] {
        assert!(refused.stderr.contains(word), "{word} in {refused:?}");
    }
    let hard = ["--policy", "restricted", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"];
    let seen = bed.run_ok(&[&hard[..], &["--user", "1234:1234"]].concat(), &["id", "-u"]);
    assert_eq!(seen, "1234");
}

/// What was asked for is there, or nothing runs.
fn asked_is_given(bed: &Bed) {
    for (flags, word) in [
        (&["--security-opt", "apparmor=no-such-profile"][..], "no-such-profile"),
        (&["--security-opt", "label=type:no_such_t"], "label"),
        (&["--security-opt", "seccomp=/no/such/profile"], "/no/such/profile"),
        (&["--security-opt", "landlock=maybe"], "landlock"),
        (&["--security-opt", "no-new-privileges=maybe"], "no-new-privileges"),
        (&["--kernel", "/no/such/kernel"], "kernel"),
        (&["--policy", "strong"], "strong"),
    ] {
        let output = bed.run(flags, &["echo", "ran"]);
        assert_eq!((output.code, output.stdout.as_str()), (125, ""), "{flags:?}: {output:?}");
        assert!(output.stderr.contains(word), "{flags:?}: {output:?}");
    }
}

/// The host's configuration speaks where the user does not.
fn default_privileges(bed: &Bed) {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.toml");
    std::fs::write(&config, "[security]\npolicy = 'baseline'\nno-new-privileges = true\n").unwrap();
    let run = |flags: &[&str]| {
        let line = ["--config", config.to_str().unwrap(), "run", "--rm", "--isolation", bed.level];
        let command = ["busybox", "grep", "^NoNewPrivs:", "/proc/self/status"];
        bed.proa(&[&line[..], flags, &command].concat())
    };
    assert_eq!(run(&[]).stdout, "NoNewPrivs:\t1\n");
    if !bed.is_vm() {
        assert_eq!(run(&["--security-opt", "no-new-privileges=false"]).stdout, "NoNewPrivs:\t0\n");
    }
    for flags in [&["--privileged"][..], &["--policy", "privileged"]] {
        let refused = run(flags);
        assert_eq!((refused.code, refused.stdout.as_str()), (125, ""), "{refused:?}");
        assert!(refused.stderr.contains("baseline"), "{refused:?}");
    }
}

/// CVE-2019-5736: our programs cannot be written from inside, neither as PID 1, nor as what runs an entrypoint that
/// names whoever starts it as its interpreter.
fn our_programs(bed: &Bed) {
    let installed = bed.proa.binary().parent().unwrap();
    let read =
        || ["proa", "proa-monitor", "proa-agent"].map(|name| std::fs::read(installed.join(name)).unwrap());
    let before = read();
    let script = "head -c 9 /proc/1/cmdline; echo; for file in /proc/1/exe /proc/self/exe; do \
        (cat /bin/busybox > $file) 2>/dev/null && echo wrote $file; \
        (echo x >> $file) 2>/dev/null && echo wrote $file; \
        rm $file 2>/dev/null && echo removed $file; done; echo done";
    assert_eq!(bed.run_ok(&["--init"], &["sh", "-c", script]), "proa-init\ndone");
    let tools = bed.directory();
    let entry = tools.path().join("run");
    std::fs::write(&entry, "#!/proc/self/exe\n").unwrap();
    std::fs::set_permissions(&entry, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let volume = format!("{}:/evil", tools.path().display());
    let output = bed.run(&["-v", &volume, "--entrypoint", "/evil/run"], &[]);
    assert_ne!(output.code, 0, "{output:?}");
    assert!(read() == before, "our programs have changed");
}

/// A container on the host's network must not talk to the host's abstract sockets (CVE-2020-15257). A guest has a
/// network of its own.
#[test]
fn abstract_sockets_of_the_host() {
    use std::os::linux::net::SocketAddrExt;
    let bed = Bed::new("container");
    let tools = program("abstract");
    let volume = format!("{}:/tools:ro", tools.path().display());
    let name = format!("proa-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let connect = |flags: &[&str]| {
        bed.run_ok(&[&["-v", &volume, "--network"], flags].concat(), &["/tools/abstract", &name])
    };
    // Landlock denies with EPERM; a kernel before 6.12 cannot.
    let denied = if proa_sys::landlock::abi() >= 6 { "1" } else { "0" };
    assert_eq!(connect(&["host"]), denied);
    assert_eq!(connect(&["host", "--security-opt", "no-new-privileges"]), denied);
    assert_eq!(connect(&["host", "--security-opt", "landlock=unconfined"]), "0");
    assert_eq!(connect(&["none"]), "111");
    bed.detach("scoped", &["-v", &volume, "--network", "host"], &["sleep", "1000"]);
    assert_eq!(bed.ok(&["exec", "scoped", "/tools/abstract", &name]), denied);
    // It may still mount, where it has the right.
    let mounts = ["--network", "host", "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"];
    assert_eq!(bed.run_ok(&mounts, &["sh", "-c", "mount -t tmpfs x /tmp && echo mounted"]), "mounted");
    bed.ok(&["rm", "-f", "scoped"]);
}

/// A program with the set-user-id bit that an instance or an image holds gives a user of the host nothing
/// (CVE-2025-64507): nobody but root gets at it.
#[test]
fn set_user_id_programs_are_out_of_reach() {
    let bed = Bed::new("container");
    let script = "cp /bin/busybox /root/become; chmod 4755 /root/become /root; sleep 1000";
    let id = bed.detach("tempting", &[], &["sh", "-c", script]);
    let made = bed.proa.root().join("instances").join(&id).join("upper/root/become");
    bed.proa.wait_for("the program", || {
        std::fs::metadata(&made).is_ok_and(|metadata| {
            std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o4000 != 0
        })
    });
    let run = bed.ok(&["info", "--format", "{{.RunRoot}}"]);
    let layer = std::fs::read_dir(Path::new(&run).join("layers")).unwrap().next().unwrap().unwrap().path();
    for path in [made, layer.join("bin/busybox")] {
        assert!(path.exists(), "{}", path.display());
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "cat"]).arg(&path);
        let output = command.output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && words.contains("Permission denied"),
            "{}: {words}",
            path.display()
        );
    }
    bed.ok(&["rm", "-f", "tempting"]);
}
