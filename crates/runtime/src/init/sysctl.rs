//! Kernel parameters, those alone that belong to a namespace of the container's own; written through our own
//! `/proc` (CVE-2025-52881).

use std::os::fd::{AsFd, OwnedFd};

use proa_oci::runtime::{Linux, NamespaceKind};
use rustix::fs::{OFlags, ResolveFlags};

use super::Init;
use crate::plan::has_own;
use crate::{Error, Result, inroot};

const IPC: &[&str] = &[
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

pub(super) fn run(init: &mut Init) -> Result<()> {
    let linux = init.plan()?.linux;
    for (name, value) in &linux.sysctl {
        check(linux, name)?;
        write(&init.proc, &format!("sys/{}", name.replace('.', "/")), value)?;
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

fn check(linux: &Linux, name: &str) -> Result<()> {
    let refuse = |why: &str| Err(Error::invalid(format!("sysctl '{name}': {why}")));
    if name.contains('/') || name.split('.').any(str::is_empty) {
        return refuse("not a name");
    }
    let kind = if name.starts_with("net.") {
        NamespaceKind::Network
    } else if IPC.contains(&name) || name.starts_with("fs.mqueue.") {
        NamespaceKind::Ipc
    } else {
        return refuse("it would change the host: only those of the ipc and network namespaces can be set");
    };
    if !has_own(linux, kind) {
        return refuse("the container shares this namespace with the host");
    }
    Ok(())
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
        check(&linux, "kernel.sem").unwrap();
        check(&linux, "fs.mqueue.queues_max").unwrap();
        for name in [
            "kernel.core_pattern",
            "vm.swappiness",
            "net.ipv4.ip_forward",
            "net..x",
            "kernel/sem",
            "net.../x",
        ] {
            assert!(check(&linux, name).is_err(), "{name}");
        }
    }
}
