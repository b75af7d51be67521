//! What is bound into a container, taken from the host as detached clones.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use proa_oci::runtime::IdMapping;
use proa_sys::clone::{ExitOnDrop, Fork, exit_now, fork_into};
use proa_sys::mount::{self, IDMAP, MountAttr};
use rustix::event::pause;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, capabilities, move_into_link_name_space};

use crate::fork::{end, made_aside, open_namespace, write_id_maps};
use crate::plan::{IdMap, MountSource, Plan, namespaces};
use crate::{Error, Result};

/// Clones of what is bound, while the mounts are still peers of the host's: a bind that asks for `rshared` or
/// `rslave` must stay one.
pub(crate) fn take(plan: &Plan) -> Result<Vec<OwnedFd>> {
    let mut sources = Vec::new();
    for mount in &plan.mounts {
        let MountSource::Bind(bind) = &mount.source else { continue };
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if bind.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        if let Some(taken) = plan.taken.iter().find(|taken| taken.destination == mount.destination) {
            let mount = taken.mount.try_clone().map_err(|error| Error::call("dup", error))?;
            sources.push(mount);
            continue;
        }
        let path = Path::new(&plan.state.bundle).join(bind.path);
        let source = open_tree(CWD, &path, flags)
            .map_err(|errno| Error::at(&path, errno).context(format!("mount {}", mount.destination)))?;
        sources.push(source);
    }
    Ok(sources)
}

/// The same by the parent, who may go where the root of a user namespace may not, whose clones have no locked flags,
/// and who may map ids. Where it may not clone mounts, nothing: then the child does it in its own namespaces.
pub(crate) fn take_outside(plan: &Plan, pid: u32) -> Result<Vec<OwnedFd>> {
    let held = capabilities(None).map_err(|errno| Error::call("capget", errno))?;
    let mut mapped = plan.mounts.iter().filter(|mount| mount.idmap.is_some());
    if !held.effective.contains(CapabilitySet::SYS_ADMIN) {
        return match mapped.next() {
            Some(mount) => Err(Error::unsupported(format!(
                "mount {}: mapping ids needs CAP_SYS_ADMIN on the host",
                mount.destination
            ))),
            None => Ok(Vec::new()),
        };
    }
    let sources = take(plan)?;
    let binds = plan.mounts.iter().filter(|mount| matches!(mount.source, MountSource::Bind(_)));
    for (mount, source) in binds.zip(&sources) {
        if let Some(idmap) = &mount.idmap {
            map_ids(source, idmap, pid)
                .map_err(|error| error.context(format!("mount {}: id map", mount.destination)))?;
        }
    }
    Ok(sources)
}

/// A clone of what is mounted at a path of a process's own root, with what is mounted below it. Only who is in a mount
/// namespace may clone its mounts, and links of that root lead nowhere else from there (invariant 9).
///
/// # Errors
/// The process has ended, or has no such mount.
pub fn mounted_in(pid: u32, path: &str) -> Result<OwnedFd> {
    let namespace = open_namespace(pid)?;
    made_aside(0, || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
            .map_err(|errno| Error::call("enter the mount namespace", errno))?;
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        open_tree(CWD, path, flags).map_err(|errno| Error::at(path, errno))
    })
}

fn map_ids(source: &OwnedFd, idmap: &IdMap, pid: u32) -> Result<()> {
    let namespace = if idmap.maps[0].is_empty() { open(pid)? } else { user_namespace(idmap.maps)? };
    use std::os::fd::AsRawFd;
    let attr = MountAttr { set: IDMAP, userns_fd: namespace.as_raw_fd() as u64, ..MountAttr::default() };
    mount::set(source.as_fd(), idmap.recursive, &attr).map_err(|error| match error.raw_os_error() {
        Some(22) => Error::unsupported("this file system cannot map ids"),
        _ => Error::call("mount_setattr", error),
    })
}

/// A clone of the layer's mount whose owners are those inside the user namespace.
pub(crate) fn mapped_layer(path: &Path, namespace: &OwnedFd) -> Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let layer = open_tree(CWD, path, flags).map_err(|errno| Error::at(path, errno))?;
    let attr = MountAttr { set: IDMAP, userns_fd: namespace.as_raw_fd() as u64, ..MountAttr::default() };
    mount::set(layer.as_fd(), false, &attr).map_err(|error| match error.raw_os_error() {
        Some(22) => Error::unsupported(format!(
            "{}: a user namespace of its own needs layers whose owners the kernel can map (EROFS or ext4, Linux 5.19): \
             use --userns host",
            path.display()
        )),
        _ => Error::at(path, error).context("map the layer's owners"),
    })?;
    Ok(layer)
}

/// A user namespace with these maps; a process has to be in it while they are written.
fn user_namespace(maps: [&[IdMapping]; 2]) -> Result<OwnedFd> {
    // SAFETY: this crate's callers have one thread (invariant 4); its documentation asks for that.
    match unsafe { fork_into(namespaces::USER, None) }.map_err(|error| Error::call("clone3", error))? {
        Fork::Child => {
            let _guard = ExitOnDrop;
            // Its end is the parent's kill, or the parent's own.
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
            pause();
            exit_now(0)
        }
        Fork::Parent { pid, pidfd } => {
            let namespace = write_id_maps(pid, maps).and_then(|()| open(pid));
            end(pidfd.as_fd());
            namespace
        }
    }
}

/// The user namespace of a process that has not been reaped.
pub(crate) fn open(pid: u32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/user");
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::at(path, errno))
}
