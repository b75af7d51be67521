//! What the process may not do: capabilities, seccomp, masked and read-only paths, device nodes.

use super::{Bed, at_both_levels};

at_both_levels!(capabilities, seccomp, no_new_privileges, masked_paths, read_only_root, devices, descriptors);

fn status(bed: &Bed, flags: &[&str], field: &str) -> String {
    let line = bed.run_ok(flags, &["grep", &format!("^{field}:"), "/proc/self/status"]);
    line.split_whitespace().last().unwrap().to_owned()
}

fn capabilities(bed: &Bed) {
    // Docker's fourteen.
    assert_eq!(status(bed, &[], "CapBnd"), "00000000a80425fb");
    assert_eq!(status(bed, &[], "CapEff"), "00000000a80425fb");
    assert_eq!(status(bed, &[], "CapInh"), "0000000000000000");
    assert_eq!(status(bed, &["--cap-drop", "ALL"], "CapBnd"), "0000000000000000");
    assert_eq!(
        status(bed, &["--cap-drop", "all", "--cap-add", "net_bind_service"], "CapEff"),
        "0000000000000400"
    );
    let unknown = bed.run(&["--cap-add", "FLYING"], &["true"]);
    assert_eq!(unknown.code, 125);
    assert!(unknown.stderr.contains("FLYING"), "{unknown:?}");
}

fn seccomp(bed: &Bed) {
    assert_eq!(status(bed, &[], "Seccomp"), "2");
    assert_eq!(status(bed, &["--security-opt", "seccomp=unconfined"], "Seccomp"), "0");
    // A call that needs no privilege on most kernels, and that the default profile denies.
    let denied = bed.run(&[], &["unshare", "-U", "true"]);
    assert_ne!(denied.code, 0, "{denied:?}");
    let missing = bed.run(&["--security-opt", "seccomp=/no/such/profile.json"], &["true"]);
    assert_eq!(missing.code, 125);
    assert!(missing.stderr.contains("/no/such/profile.json"), "{missing:?}");
}

fn no_new_privileges(bed: &Bed) {
    assert_eq!(status(bed, &[], "NoNewPrivs"), "0");
    assert_eq!(status(bed, &["--security-opt", "no-new-privileges"], "NoNewPrivs"), "1");
}

fn masked_paths(bed: &Bed) {
    // Not every kernel has /proc/kcore.
    assert_eq!(bed.run_ok(&[], &["sh", "-c", "cat /proc/kcore 2>/dev/null | wc -c"]), "0");
    assert_eq!(bed.run_ok(&[], &["sh", "-c", "ls /sys/firmware | wc -l"]), "0");
    for path in ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/sys/kernel/uevent_helper"] {
        let write = format!("echo b 2>/dev/null > {path}");
        assert_ne!(bed.run(&[], &["sh", "-c", &write]).code, 0, "{path}");
    }
}

fn read_only_root(bed: &Bed) {
    let flags = ["--read-only", "--tmpfs", "/scratch"];
    let script = "touch /file 2>/dev/null && echo wrote; touch /scratch/file && echo scratch";
    assert_eq!(bed.run_ok(&flags, &["sh", "-c", script]), "scratch");
}

fn devices(bed: &Bed) {
    let script = "head -c 4 /dev/zero | wc -c; echo gone >/dev/null; head -c 3 /dev/urandom | wc -c; ls /dev";
    let seen = bed.run_ok(&[], &["sh", "-c", script]);
    assert!(seen.starts_with("4\n3\n"), "{seen}");
    for node in ["console", "vda", "sda", "kvm", "mem", "loop0"] {
        assert!(!seen.lines().any(|line| line == node), "{node} in {seen}");
    }
    // A node that the workload makes itself opens nothing, wherever it is made.
    for place in ["/node", "/dev/node", "/dev/shm/node", "/tmp/node"] {
        let open = format!("mknod {place} b 254 0 && head -c 1 {place} 2>/dev/null | wc -c");
        let output = bed.run(&[], &["sh", "-c", &open]);
        assert!(output.stdout.is_empty() || output.stdout == "0\n", "{place}: {output:?}");
    }
}

fn descriptors(bed: &Bed) {
    // 3 is what `ls` itself opened to read the directory.
    assert_eq!(bed.run_ok(&[], &["ls", "/proc/self/fd"]), "0\n1\n2\n3");
    for number in 3..12 {
        let output = bed.run(&["-w", &format!("/proc/self/fd/{number}")], &["ls", "../../../etc/shadow"]);
        assert_ne!(output.code, 0, "{number}: {output:?}");
        if bed.is_vm() && number > 4 {
            break;
        }
    }
}
