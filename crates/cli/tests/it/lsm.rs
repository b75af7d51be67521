//! What the host's security modules do to instances of the level container, where its kernel has them; elsewhere
//! that they are refused when they are asked for by name.
//!
//! The guest of `cargo xtask guest-suite` has AppArmor, or SELinux with the policy of `xtask/src/guest/policy.cil`.

use std::fs;
use std::path::Path;

use crate::harness::{Output, Proa};

fn has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y")
}

fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

fn shell(proa: &Proa, flags: &[&str], script: &str) -> Output {
    proa.run(&[&["run", "--rm"], flags, &["busybox", "sh", "-c", script]].concat())
}

fn ok(proa: &Proa, arguments: &[&str]) -> String {
    let output = proa.run(arguments);
    assert_eq!(output.code, 0, "{arguments:?}: {output:?}");
    output.stdout.trim_end().to_owned()
}

/// What a shell printed that ended well.
fn said(proa: &Proa, flags: &[&str], script: &str) -> String {
    let output = shell(proa, flags, script);
    assert_eq!(output.code, 0, "{flags:?} {script}: {output:?}");
    output.stdout.trim_end().to_owned()
}

fn assert_refused(output: &Output, part: &str) {
    assert_eq!(output.code, 125, "{output:?}");
    assert!(output.stderr.contains(part), "{output:?}");
}

const OWN_LABEL: &str = "tr -d '\\000' </proc/self/attr/current; echo";

#[test]
fn our_apparmor_profile_is_loaded_and_confines() {
    let proa = Proa::with_busybox();
    if !has_apparmor() {
        return assert_refused(
            &shell(&proa, &["--security-opt", "apparmor=proa-default"], "true"),
            "AppArmor",
        );
    }
    assert_eq!(said(&proa, &[], OWN_LABEL), "proa-default (enforce)");
    let open = [
        "--cap-add",
        "ALL",
        "--security-opt",
        "seccomp=unconfined",
        "--security-opt",
        "systempaths=unconfined",
    ];
    let tries = "(echo x >/proc/sys/kernel/core_pattern) 2>/dev/null && echo wrote; \
        (mount -t tmpfs none /mnt) 2>/dev/null && echo mounted; \
        (echo b >/proc/sysrq-trigger) 2>/dev/null && echo triggered; echo done";
    // Nothing but the profile is left to refuse these.
    assert_eq!(said(&proa, &open, tries), "done");
    assert_eq!(said(&proa, &["--security-opt", "apparmor=unconfined"], OWN_LABEL), "unconfined");
    assert_eq!(said(&proa, &["--privileged"], OWN_LABEL), "unconfined");
    assert_refused(&shell(&proa, &["--security-opt", "apparmor=no-such"], "true"), "no-such");
}

#[test]
fn an_exec_has_the_profile_and_may_signal_its_instance() {
    let proa = Proa::with_busybox();
    if !has_apparmor() {
        return;
    }
    ok(
        &proa,
        &[
            "run",
            "-d",
            "--name",
            "held",
            "busybox",
            "sh",
            "-c",
            "trap 'exit 7' USR1; while :; do sleep 1; done",
        ],
    );
    assert_eq!(ok(&proa, &["exec", "held", "sh", "-c", OWN_LABEL]), "proa-default (enforce)");
    ok(&proa, &["exec", "held", "kill", "-USR1", "1"]);
    assert_eq!(ok(&proa, &["wait", "held"]), "7");
    // The same after the monitor's own signal.
    ok(&proa, &["start", "held"]);
    ok(&proa, &["kill", "-s", "KILL", "held"]);
    ok(&proa, &["rm", "held"]);
}

#[test]
fn selinux_labels_an_instance_and_its_volumes() {
    let proa = Proa::with_busybox();
    if !has_selinux() {
        return assert_refused(
            &shell(&proa, &["--security-opt", "label=type:container_t"], "true"),
            "SELinux",
        );
    }
    let label = said(&proa, &[], OWN_LABEL);
    let level = label.strip_prefix("system_u:system_r:container_t:s0:c").unwrap_or_else(|| panic!("{label}"));
    assert!(level.contains(",c"), "{label}");
    assert_ne!(said(&proa, &[], OWN_LABEL), label, "each instance has categories of its own");
    // Its image, its own files and those that Proa makes for it are its to use.
    let uses = "cat /etc/hosts /etc/hostname >/dev/null && echo x >/made && cat /made && ls /bin >/dev/null && ls /dev/shm";
    assert_eq!(said(&proa, &["--hostname", "h"], uses), "x");
    let volume = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::write(volume.path().join("file"), "kept\n").unwrap();
    let bind = |options: &str| format!("{}:/v{options}", volume.path().display());
    let read = "cat /v/file 2>/dev/null || echo denied";
    assert_eq!(said(&proa, &["-v", &bind("")], read), "denied");
    assert_eq!(said(&proa, &["-v", &bind(""), "--security-opt", "label=disable"], read), "kept");
    assert_eq!(said(&proa, &["-v", &bind(":Z")], read), "kept");
    assert_eq!(said(&proa, &["-v", &bind("")], read), "denied", "it has another instance's categories");
    assert_eq!(said(&proa, &["-v", &bind(":z")], read), "kept");
    assert_eq!(said(&proa, &["-v", &bind("")], read), "kept", "it is shared now");
    assert_refused(&shell(&proa, &["--security-opt", "label=type:no_such_t"], "true"), "no_such_t");
}
