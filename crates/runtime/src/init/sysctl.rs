//! Kernel parameters, those alone that belong to a namespace of the container's own; written through our own
//! `/proc` (CVE-2025-52881).

use std::os::fd::{AsFd, OwnedFd};

use proa_oci::runtime::{Linux, NamespaceKind};
use rustix::fs::{OFlags, ResolveFlags};

use super::Init;
use crate::plan::has_own;
use crate::{Error, Result, inroot};

const IPC: &[&str] = &[
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

pub(super) fn run(init: &mut Init) -> Result<()> {
    let linux = init.plan()?.linux;
    for (name, value) in &linux.sysctl {
        write(&init.proc, &format!("sys/{}", check(linux, name)?), value)?;
    }
    Ok(())
}

/// Writes a file of `/proc`, never through a link.
pub(super) fn write(proc: &OwnedFd, path: &str, value: &str) -> Result<()> {
    let fail = |errno| Error::at(format!("/proc/{path}"), errno);
    // `self` is a link of the kernel's own, and not a magic one.
    let file = inroot::open(proc.as_fd(), path, OFlags::WRONLY, ResolveFlags::NO_XDEV).map_err(fail)?;
    rustix::io::write(&file, value.as_bytes()).map_err(fail)?;
    Ok(())
}

/// The path of a parameter below `/proc/sys`, if it may be set. Whichever of `.` and `/` comes first in a name divides
/// it, as for sysctl(8); the other is part of a name then (`net/ipv4/conf/eth0.1/forwarding`).
fn check(linux: &Linux, name: &str) -> Result<String> {
    let refuse = |why: &str| Err(Error::invalid(format!("sysctl '{name}': {why}")));
    let path: String = match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'.') => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    };
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) || path.contains('\0') {
        return refuse("not a name");
    }
    let kind = if path.starts_with("net/") {
        NamespaceKind::Network
    } else if IPC.contains(&path.as_str()) || path.starts_with("fs/mqueue/") {
        NamespaceKind::Ipc
    } else if path == "kernel/domainname" {
        NamespaceKind::Uts
    } else if path.starts_with("user/") {
        NamespaceKind::User
    } else if path == "kernel/hostname" {
        return refuse("set the spec's hostname");
    } else {
        return refuse("it would change the host: only those of the container's namespaces can be set");
    };
    if !has_own(linux, kind) {
        return refuse("the container shares this namespace with the host");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_oci::runtime::Namespace;

    #[test]
    fn only_names_of_own_namespaces() {
        let linux = Linux {
            namespaces: vec![Namespace { kind: NamespaceKind::Ipc, path: None }],
            ..Linux::default()
        };
        assert_eq!(check(&linux, "kernel.sem").unwrap(), "kernel/sem");
        assert_eq!(check(&linux, "kernel/sem").unwrap(), "kernel/sem");
        check(&linux, "fs.mqueue.queues_max").unwrap();
        for name in [
            "kernel.core_pattern",
            "vm.swappiness",
            "net.ipv4.ip_forward",
            "net..x",
            "kernel.hostname",
            "kernel/../kernel/core_pattern",
            "kernel.sem/../../sysrq-trigger",
            "/kernel/sem",
            "net.../x",
        ] {
            assert!(check(&linux, name).is_err(), "{name}");
        }
        let linux = Linux {
            namespaces: vec![Namespace { kind: NamespaceKind::Network, path: None }],
            ..Linux::default()
        };
        let both = ["net/ipv4/conf/eth0.1/forwarding", "net.ipv4.conf.eth0/1.forwarding"];
        assert!(both.iter().all(|name| check(&linux, name).unwrap() == both[0]));
        assert!(check(&linux, "net.../x").is_err());
    }
}
