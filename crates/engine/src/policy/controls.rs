//! The controls, one function each.

use super::{Dialect, Level, RunAs, Seccomp, Subject, Violation};

/// Capabilities that baseline lets be added.
const BASELINE_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Kernel parameters that baseline lets be set, as of version 1.37.
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// SELinux types that baseline lets be set.
const SELINUX_TYPES: &[&str] =
    &["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

/// One control of the standards.
#[derive(Debug)]
pub struct Control {
    /// Its name in the standards.
    pub name: &'static str,
    /// The weakest level that has it.
    pub level: Level,
    /// What is wrong, and what mends it.
    find: fn(&Subject) -> Vec<(String, String)>,
}

/// All controls, in the order of the standards.
pub const CONTROLS: &[Control] = {
    use Level::{Baseline, Restricted};
    const fn control(
        name: &'static str,
        level: Level,
        find: fn(&Subject) -> Vec<(String, String)>,
    ) -> Control {
        Control { name, level, find }
    }
    &[
        control("HostProcess", Baseline, host_process),
        control("Host Namespaces", Baseline, host_namespaces),
        control("Privileged Containers", Baseline, privileged),
        control("Capabilities", Baseline, capabilities_baseline),
        control("HostPath Volumes", Baseline, host_paths),
        control("Host Ports", Baseline, host_ports),
        control("Host Probes / Lifecycle Hooks", Baseline, probe_hosts),
        control("AppArmor", Baseline, apparmor),
        control("SELinux", Baseline, selinux),
        control("/proc Mount Type", Baseline, proc_mount),
        control("Seccomp", Baseline, seccomp_baseline),
        control("Sysctls", Baseline, sysctls),
        control("Volume Types", Restricted, volume_types),
        control("Privilege Escalation", Restricted, escalation),
        control("Running as Non-root", Restricted, non_root),
        control("Running as Non-root user", Restricted, non_root_user),
        control("Seccomp", Restricted, seccomp_restricted),
        control("Capabilities", Restricted, capabilities_restricted),
    ]
};

/// How a subject breaks a level; nothing where it keeps it.
pub fn check(subject: &Subject, level: Level) -> Vec<Violation> {
    let asked = CONTROLS.iter().filter(|control| control.level <= level);
    let violations = asked.flat_map(|control| {
        (control.find)(subject).into_iter().map(|(problem, mend)| Violation {
            subject: subject.name.clone(),
            control: control.name,
            level: control.level,
            problem,
            mend,
        })
    });
    violations.collect()
}

impl Subject {
    /// The words for one's dialect: options of `run`, keys of Compose, fields of a pod.
    fn words(&self, run: &str, compose: &str, kube: &str) -> String {
        match self.dialect {
            Dialect::Run => run,
            Dialect::Compose => compose,
            Dialect::Kube => kube,
        }
        .to_owned()
    }
}

fn when(broken: bool, problem: &str, mend: String) -> Vec<(String, String)> {
    if broken { vec![(problem.to_owned(), mend)] } else { Vec::new() }
}

fn host_process(subject: &Subject) -> Vec<(String, String)> {
    let mend = "securityContext.windowsOptions.hostProcess: false".to_owned();
    when(subject.host_process, "it is a process of a Windows host", mend)
}

fn host_namespaces(subject: &Subject) -> Vec<(String, String)> {
    let shared = subject.host_namespaces.iter();
    let mend = |kind: &str| match (subject.dialect, kind) {
        (Dialect::Run, "network") => "--network none".to_owned(),
        (Dialect::Run, kind) => format!("leave --{kind} host out"),
        (Dialect::Compose, "network") => "remove network_mode: host".to_owned(),
        (Dialect::Compose, kind) => format!("remove {kind}: host"),
        (Dialect::Kube, "network") => "spec.hostNetwork: false".to_owned(),
        (Dialect::Kube, kind) => format!("spec.host{}: false", kind.to_ascii_uppercase()),
    };
    shared.map(|kind| (format!("it shares the {kind} namespace of the host"), mend(kind))).collect()
}

fn privileged(subject: &Subject) -> Vec<(String, String)> {
    let mend = subject.words(
        "leave --privileged out",
        "remove privileged: true",
        "securityContext.privileged: false",
    );
    when(subject.privileged, "it has all privileges", mend)
}

fn capabilities_baseline(subject: &Subject) -> Vec<(String, String)> {
    added(subject, BASELINE_CAPABILITIES)
}

fn added(subject: &Subject, allowed: &[&str]) -> Vec<(String, String)> {
    let bad = subject.added.iter().filter(|name| !allowed.contains(&name.as_str()));
    let mend = |name: &str| {
        subject.words(
            &format!("leave --cap-add {name} out"),
            &format!("remove {name} from cap_add"),
            &format!("remove {name} from securityContext.capabilities.add"),
        )
    };
    bad.map(|name| (format!("the capability {name} is added"), mend(name))).collect()
}

fn host_paths(subject: &Subject) -> Vec<(String, String)> {
    let mend = |path: &str| {
        subject.words(
            &format!("leave the mount or device of {path} out; --tmpfs, or proa cp, in its place"),
            &format!("replace {path} by a named volume"),
            &format!("replace the hostPath volume {path}, as by emptyDir or a persistentVolumeClaim"),
        )
    };
    subject.host_paths.iter().map(|path| (format!("{path} of the host is mounted"), mend(path))).collect()
}

fn host_ports(subject: &Subject) -> Vec<(String, String)> {
    let mend = |port: &str| {
        subject.words(
            &format!("leave -p {port} out"),
            &format!("replace ports: {port} by expose"),
            &format!("remove hostPort: {port}"),
        )
    };
    subject
        .host_ports
        .iter()
        .map(|port| (format!("it takes the port {port} of the host"), mend(port)))
        .collect()
}

fn probe_hosts(subject: &Subject) -> Vec<(String, String)> {
    let hosts = subject.probe_hosts.iter();
    let mend = |host: &str| format!("remove host: {host} from probes and lifecycle handlers");
    hosts.map(|host| (format!("a probe or handler connects to {host}"), mend(host))).collect()
}

fn apparmor(subject: &Subject) -> Vec<(String, String)> {
    let mend = subject.words(
        "leave --security-opt apparmor=unconfined out",
        "remove apparmor=unconfined from security_opt",
        "securityContext.appArmorProfile.type: RuntimeDefault",
    );
    when(subject.apparmor_unconfined, "AppArmor is switched off", mend)
}

fn selinux(subject: &Subject) -> Vec<(String, String)> {
    // A privileged instance has no label, and is told of that already.
    let label = subject.words(
        "leave --security-opt label=… out",
        "remove label:… from security_opt",
        "remove securityContext.seLinuxOptions",
    );
    let mut found =
        when(subject.selinux.disabled && !subject.privileged, "SELinux is switched off", label.clone());
    if let Some(kind) = &subject.selinux.kind
        && !SELINUX_TYPES.contains(&kind.as_str())
    {
        found.push((format!("the SELinux type {kind} is none of a container's"), label.clone()));
    }
    found.extend(when(subject.selinux.user, "an SELinux user is set", label.clone()));
    found.extend(when(subject.selinux.role, "an SELinux role is set", label));
    found
}

fn proc_mount(subject: &Subject) -> Vec<(String, String)> {
    let mend = subject.words(
        "leave --security-opt systempaths=unconfined out",
        "remove systempaths=unconfined from security_opt",
        "securityContext.procMount: Default",
    );
    when(subject.proc_unmasked, "the masks over /proc and /sys are taken away", mend)
}

fn seccomp_mend(subject: &Subject) -> String {
    subject.words(
        "leave --security-opt seccomp=unconfined out",
        "remove seccomp=unconfined from security_opt",
        "securityContext.seccompProfile.type: RuntimeDefault",
    )
}

fn seccomp_baseline(subject: &Subject) -> Vec<(String, String)> {
    let off = subject.seccomp == Seccomp::Unconfined;
    when(off, "there is no system call filter", seccomp_mend(subject))
}

fn seccomp_restricted(subject: &Subject) -> Vec<(String, String)> {
    let open = subject.seccomp == Seccomp::Open;
    when(open, "no system call filter is set, which means none", seccomp_mend(subject))
}

fn sysctls(subject: &Subject) -> Vec<(String, String)> {
    let bad = subject.sysctls.iter().filter(|name| !SAFE_SYSCTLS.contains(&name.as_str()));
    let mend = |name: &str| {
        subject.words(
            &format!("leave --sysctl {name} out"),
            &format!("remove {name} from sysctls"),
            &format!("remove {name} from spec.securityContext.sysctls"),
        )
    };
    bad.map(|name| (format!("the kernel parameter {name} is set"), mend(name))).collect()
}

fn volume_types(subject: &Subject) -> Vec<(String, String)> {
    let volumes = subject.other_volumes.iter();
    let mend = "use configMap, csi, downwardAPI, emptyDir, ephemeral, image, persistentVolumeClaim, projected or secret";
    volumes
        .map(|(name, kind)| (format!("the volume {name} is of the type {kind}"), mend.to_owned()))
        .collect()
}

fn escalation(subject: &Subject) -> Vec<(String, String)> {
    let mend = subject.words(
        "--security-opt no-new-privileges",
        "security_opt: [no-new-privileges:true]",
        "securityContext.allowPrivilegeEscalation: false",
    );
    when(subject.escalation, "programs may raise their privileges", mend)
}

fn user_mend(subject: &Subject) -> String {
    subject.words(
        "--user with a number other than 0, as --user 65532:65532",
        "user: with a number other than 0, as \"65532:65532\"",
        "securityContext.runAsNonRoot: true",
    )
}

fn non_root(subject: &Subject) -> Vec<(String, String)> {
    let problem = match &subject.user {
        RunAs::Open => "it may run as root".to_owned(),
        RunAs::Named(name) => format!("it runs as {name}, who can be root by the image's /etc/passwd"),
        RunAs::Root | RunAs::NonRoot => return Vec::new(),
    };
    when(!subject.user_namespace, &problem, user_mend(subject))
}

fn non_root_user(subject: &Subject) -> Vec<(String, String)> {
    let root = subject.user == RunAs::Root && !subject.user_namespace;
    when(root, "it runs as root", user_mend(subject))
}

fn capabilities_restricted(subject: &Subject) -> Vec<(String, String)> {
    let mend =
        subject.words("--cap-drop ALL", "cap_drop: [ALL]", "securityContext.capabilities.drop: [\"ALL\"]");
    let mut found = when(!subject.drops_all, "not all capabilities are dropped", mend);
    // What baseline forbids is told by baseline's control.
    let beyond = subject.added.iter().filter(|name| BASELINE_CAPABILITIES.contains(&name.as_str()));
    let beyond = Subject { added: beyond.cloned().collect(), ..subject.clone() };
    found.extend(added(&beyond, &["NET_BIND_SERVICE"]));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::SelinuxOptions;

    /// Keeps even restricted.
    fn good() -> Subject {
        Subject { drops_all: true, user: RunAs::NonRoot, ..Subject::default() }
    }

    fn controls(subject: &Subject, level: Level) -> Vec<&'static str> {
        check(subject, level).iter().map(|violation| violation.control).collect()
    }

    #[test]
    fn what_is_good_passes_everywhere() {
        for level in [Level::Privileged, Level::Baseline, Level::Restricted] {
            assert_eq!(check(&good(), level), []);
        }
    }

    #[test]
    fn every_control_finds_what_it_is_for() {
        let text = |text: &str| vec![text.to_owned()];
        type Case = (&'static str, Level, fn(&mut Subject, fn(&str) -> Vec<String>));
        let cases: &[Case] = &[
            ("HostProcess", Level::Baseline, |s, _| s.host_process = true),
            ("Host Namespaces", Level::Baseline, |s, _| s.host_namespaces = vec!["pid"]),
            ("Privileged Containers", Level::Baseline, |s, _| s.privileged = true),
            ("Capabilities", Level::Baseline, |s, text| s.added = text("SYS_ADMIN")),
            ("HostPath Volumes", Level::Baseline, |s, text| s.host_paths = text("/etc")),
            ("Host Ports", Level::Baseline, |s, text| s.host_ports = text("80")),
            ("Host Probes / Lifecycle Hooks", Level::Baseline, |s, text| s.probe_hosts = text("h")),
            ("AppArmor", Level::Baseline, |s, _| s.apparmor_unconfined = true),
            ("SELinux", Level::Baseline, |s, _| s.selinux.kind = Some("spc_t".into())),
            ("SELinux", Level::Baseline, |s, _| s.selinux.user = true),
            ("SELinux", Level::Baseline, |s, _| s.selinux.role = true),
            ("SELinux", Level::Baseline, |s, _| s.selinux.disabled = true),
            ("/proc Mount Type", Level::Baseline, |s, _| s.proc_unmasked = true),
            ("Seccomp", Level::Baseline, |s, _| s.seccomp = Seccomp::Unconfined),
            ("Sysctls", Level::Baseline, |s, text| s.sysctls = text("net.core.somaxconn")),
            ("Volume Types", Level::Restricted, |s, _| s.other_volumes = vec![("v".into(), "nfs".into())]),
            ("Privilege Escalation", Level::Restricted, |s, _| s.escalation = true),
            ("Running as Non-root", Level::Restricted, |s, _| s.user = RunAs::Open),
            ("Running as Non-root", Level::Restricted, |s, _| s.user = RunAs::Named("app".into())),
            ("Running as Non-root user", Level::Restricted, |s, _| s.user = RunAs::Root),
            ("Seccomp", Level::Restricted, |s, _| s.seccomp = Seccomp::Open),
            ("Capabilities", Level::Restricted, |s, _| s.drops_all = false),
            ("Capabilities", Level::Restricted, |s, text| s.added = text("CHOWN")),
        ];
        for (control, level, change) in cases {
            for dialect in [Dialect::Run, Dialect::Compose, Dialect::Kube] {
                let mut subject = Subject { dialect, ..good() };
                change(&mut subject, text);
                assert_eq!(controls(&subject, *level), [*control], "{control}");
                let weaker = if *level == Level::Baseline { Level::Privileged } else { Level::Baseline };
                assert_eq!(check(&subject, weaker), [], "{control}");
                assert_eq!(controls(&subject, Level::Restricted), [*control], "{control}");
                let found = &check(&subject, *level)[0];
                assert!(!found.problem.is_empty() && !found.mend.is_empty());
                assert!(!found.line().contains('\n'));
            }
        }
    }

    #[test]
    fn what_the_standards_allow_is_allowed() {
        let subject = Subject {
            added: vec!["NET_BIND_SERVICE".into()],
            selinux: SelinuxOptions { kind: Some("container_kvm_t".into()), ..SelinuxOptions::default() },
            sysctls: SAFE_SYSCTLS.iter().map(ToString::to_string).collect(),
            ..good()
        };
        assert_eq!(check(&subject, Level::Restricted), []);
        let chown = Subject { added: vec!["CHOWN".into()], ..good() };
        assert_eq!(check(&chown, Level::Baseline), []);
        let mapped = Subject { user: RunAs::Root, user_namespace: true, ..good() };
        assert_eq!(check(&mapped, Level::Restricted), []);
    }

    #[test]
    fn each_mistake_is_told_once() {
        let subject = Subject {
            privileged: true,
            selinux: SelinuxOptions { disabled: true, ..SelinuxOptions::default() },
            added: vec!["SYS_ADMIN".into(), "CHOWN".into()],
            ..good()
        };
        assert_eq!(
            controls(&subject, Level::Restricted),
            ["Privileged Containers", "Capabilities", "Capabilities"]
        );
    }
}
