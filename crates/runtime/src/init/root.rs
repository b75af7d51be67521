//! The root gets a place in the mount namespace, and what is bound into it is taken from the host.

use std::os::fd::AsFd;

use rustix::fs::CWD;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree,
};

use super::Init;
use crate::plan::MountSource;
use crate::{Error, Result};

pub(super) fn run(init: &mut Init) -> Result<()> {
    take_sources(init)?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(|errno| Error::call("make mounts private", errno))?;
    // Over everything: `pivot` then drops what lies under it.
    move_mount(init.root.as_fd(), c"", CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| Error::call("attach the root", errno))
}

/// Clones of what is bound, while the mounts are still peers of the host's: a bind that asks for `rshared` or
/// `rslave` must stay one.
fn take_sources(init: &mut Init) -> Result<()> {
    for mount in &init.plan()?.mounts {
        let MountSource::Bind(bind) = &mount.source else { continue };
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if bind.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let source = open_tree(CWD, bind.path, flags)
            .map_err(|errno| Error::at(bind.path, errno).context(format!("mount {}", mount.destination)))?;
        init.sources.push(source);
    }
    Ok(())
}
