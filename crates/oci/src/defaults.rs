//! Docker's defaults as plain data: capabilities, masked and read-only paths, mounts, namespaces, devices.

mod seccomp;

pub use seccomp::{allow_socketcall, default_seccomp};

use crate::runtime::{
    Capabilities, DeviceRule, Linux, Mount, Namespace, NamespaceKind, Process, Resources, Root, SPEC_VERSION,
    Spec,
};

/// `PATH` where the image sets none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Capabilities that Docker gives a container.
pub const DEFAULT_CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Every capability of Linux 6.x, in the kernel's order: the position is the number.
pub const ALL_CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Paths a container must not read: they tell of the host, or steer its hardware.
pub const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths a container must not write.
pub const READONLY_PATHS: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Annotation that asks our runtime for a Landlock domain, for which the specification has no field.
pub const LANDLOCK_ANNOTATION: &str = "proa.landlock";
/// Its value for a domain that cannot connect to abstract unix sockets made outside it.
pub const LANDLOCK_SOCKETS: &str = "abstract-unix-sockets";

/// Docker's default capabilities.
pub fn default_capabilities() -> Vec<String> {
    DEFAULT_CAPABILITIES.iter().map(ToString::to_string).collect()
}

/// The capability sets of a process that has these: bounding, effective and permitted. Inheritable and ambient
/// are empty, so that a program run by another user gains nothing (CVE-2022-24769).
pub fn capability_sets(names: Vec<String>) -> Capabilities {
    Capabilities {
        bounding: names.clone(),
        effective: names.clone(),
        permitted: names,
        ..Capabilities::default()
    }
}

/// The spec that Docker gives a container before image and flags are applied. Its capabilities are Docker's,
/// and it has no seccomp profile: make that by [`default_seccomp`] once the capabilities are settled.
pub fn default_spec() -> Spec {
    Spec {
        oci_version: SPEC_VERSION.to_owned(),
        process: Some(Process {
            cwd: "/".to_owned(),
            env: vec![format!("PATH={DEFAULT_PATH}")],
            capabilities: Some(capability_sets(default_capabilities())),
            oom_score_adj: Some(0),
            ..Process::default()
        }),
        root: Some(Root { path: "rootfs".to_owned(), readonly: false }),
        mounts: default_mounts(),
        linux: Some(Linux {
            namespaces: default_namespaces(),
            resources: Some(Resources { devices: default_device_rules(), ..Resources::default() }),
            masked_paths: strings(MASKED_PATHS),
            readonly_paths: strings(READONLY_PATHS),
            ..Linux::default()
        }),
        ..Spec::default()
    }
}

/// New namespaces of every kind but user and time.
pub fn default_namespaces() -> Vec<Namespace> {
    use NamespaceKind::{Cgroup, Ipc, Mount, Network, Pid, Uts};
    [Mount, Network, Uts, Pid, Ipc, Cgroup].map(|kind| Namespace { kind, path: None }).to_vec()
}

/// `/proc`, `/dev` and what is in it, `/sys`, the cgroups.
pub fn default_mounts() -> Vec<Mount> {
    let mount = |destination: &str, kind: &str, options: &[&str]| Mount {
        destination: destination.to_owned(),
        kind: Some(kind.to_owned()),
        source: Some(kind.to_owned()),
        options: strings(options),
        ..Mount::default()
    };
    vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]),
    ]
}

/// No device but the harmless ones, terminals, and making nodes (which then cannot be opened).
pub fn default_device_rules() -> Vec<DeviceRule> {
    let rule = |allow, kind: &str, major, minor, access: &str| DeviceRule {
        allow,
        kind: Some(kind.to_owned()),
        major,
        minor,
        access: Some(access.to_owned()),
    };
    let mut rules = vec![
        rule(false, "a", None, None, "rwm"),
        rule(true, "c", None, None, "m"),
        rule(true, "b", None, None, "m"),
    ];
    // null, zero, full, random, urandom; tty, console, ptmx; terminals.
    let devices = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
    rules.extend(devices.map(|(major, minor)| rule(true, "c", Some(major), Some(minor), "rwm")));
    rules.push(rule(true, "c", Some(136), None, "rwm"));
    rules
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_known_by_their_number() {
        assert_eq!(ALL_CAPABILITIES[21], "CAP_SYS_ADMIN");
        assert_eq!(ALL_CAPABILITIES[40], "CAP_CHECKPOINT_RESTORE");
        assert!(DEFAULT_CAPABILITIES.iter().all(|name| ALL_CAPABILITIES.contains(name)));
        let sets = capability_sets(default_capabilities());
        assert!(sets.inheritable.is_empty() && sets.ambient.is_empty());
    }

    #[test]
    fn the_default_spec_is_closed() {
        let spec = default_spec();
        let linux = spec.linux.unwrap();
        let rules = linux.resources.unwrap().devices;
        assert!(!rules[0].allow);
        assert!(rules[1..].iter().all(|rule| rule.allow));
        assert!(linux.masked_paths.iter().any(|path| path == "/proc/kcore"));
        assert!(
            spec.mounts
                .iter()
                .find(|mount| mount.destination == "/sys")
                .unwrap()
                .options
                .contains(&"ro".into())
        );
    }
}
