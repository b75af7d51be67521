//! `features`: what this runtime can do, as `features.json` of the specification.

use proa_oci::defaults::{self, ALL_CAPABILITIES};
use proa_oci::runtime::{Hooks, IdMapping, Mount, Process, SPEC_VERSION, Seccomp, SeccompRule, Spec};
use proa_runtime::seccomp;
use serde_json::{Value, json};

use crate::args::Parsed;
use crate::criu;
use crate::error::Result;
use crate::out;

/// Names that may stand in a spec; those that are understood are found by asking the code that does it.
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];
const ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
const OPERATORS: &[&str] = &[
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];
const FLAGS: &[&str] = &[
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"];

/// Runs it.
///
/// # Errors
/// Nobody reads.
pub fn run(parsed: &Parsed) -> Result<u8> {
    out::json(&features(criu::is_there(parsed)))
}

fn features(checkpoint: bool) -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": hooks(),
        "mountOptions": known(MOUNT_OPTIONS, proa_runtime::knows_mount_option),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": ALL_CAPABILITIES,
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": false },
            "seccomp": {
                "enabled": true,
                "actions": known(ACTIONS, knows_action),
                "operators": OPERATORS,
                "archs": ARCHITECTURES,
                "knownFlags": known(FLAGS, knows_flag),
                "supportedFlags": known(FLAGS, knows_flag),
            },
            "apparmor": { "enabled": knows_process(|process| process.apparmor_profile = Some("x".to_owned())) },
            "selinux": { "enabled": knows_process(|process| process.selinux_label = Some("x".to_owned())) },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": knows_idmap() } },
            "netDevices": { "enabled": knows_net_devices() },
        },
        "annotations": { "org.opencontainers.runc.checkpoint.enabled": checkpoint.to_string() },
    })
}

fn known(names: &[&'static str], knows: impl Fn(&str) -> bool) -> Vec<&'static str> {
    names.iter().copied().filter(|name| knows(name)).collect()
}

fn knows_action(name: &str) -> bool {
    let rule =
        SeccompRule { names: vec!["getcwd".to_owned()], action: name.to_owned(), ..SeccompRule::default() };
    let listener_path = (name == "SCMP_ACT_NOTIFY").then(|| "/run/listener".to_owned());
    let default_action = "SCMP_ACT_ALLOW".to_owned();
    seccomp::compile(&Seccomp { default_action, syscalls: vec![rule], listener_path, ..Seccomp::default() })
        .is_ok()
}

fn knows_flag(name: &str) -> bool {
    let default_action = "SCMP_ACT_ALLOW".to_owned();
    seccomp::compile(&Seccomp { default_action, flags: vec![name.to_owned()], ..Seccomp::default() }).is_ok()
}

/// Whether a default spec with this change would be taken.
fn knows(change: impl FnOnce(&mut Spec)) -> bool {
    let mut spec = defaults::default_spec();
    if let Some(process) = &mut spec.process {
        process.args = vec!["sh".to_owned()];
    }
    change(&mut spec);
    proa_runtime::check("features", &spec).is_ok()
}

fn knows_process(change: impl Fn(&mut Process)) -> bool {
    knows(|spec| spec.process.iter_mut().for_each(&change))
}

fn hooks() -> Vec<&'static str> {
    let all = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    if knows(|spec| spec.hooks = Some(Hooks::default())) { all.to_vec() } else { Vec::new() }
}

fn knows_idmap() -> bool {
    knows(|spec| {
        let mappings = vec![IdMapping { container_id: 0, host_id: 1000, size: 1 }];
        spec.mounts.push(Mount {
            destination: "/data".to_owned(),
            kind: Some("bind".to_owned()),
            source: Some("/data".to_owned()),
            options: vec!["bind".to_owned()],
            uid_mappings: mappings.clone(),
            gid_mappings: mappings,
        });
    })
}

fn knows_net_devices() -> bool {
    knows(|spec| drop(spec.linux_mut().net_devices.insert("eth0".to_owned(), Default::default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_what_is_done() {
        let features = features(false);
        assert_eq!(features["annotations"]["org.opencontainers.runc.checkpoint.enabled"], "false");
        let has = |pointer: &str, name: &str| {
            features.pointer(pointer).unwrap().as_array().unwrap().iter().any(|known| known == name)
        };
        assert!(has("/mountOptions", "rbind") && has("/mountOptions", "rro"));
        assert!(has("/linux/seccomp/actions", "SCMP_ACT_ERRNO"));
        assert_eq!(features["ociVersionMax"], SPEC_VERSION);
    }
}
