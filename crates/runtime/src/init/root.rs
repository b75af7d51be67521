//! The root gets a place in the mount namespace, and what is bound into it is taken from the host.

use rustix::mount::{MountPropagationFlags, mount_change};

use super::{Init, hooks};
use crate::{Error, Result, hostroot, sources};

pub(super) fn run(init: &mut Init) -> Result<()> {
    if init.sources.is_empty() {
        *init.sources = sources::take(init.plan()?)?;
    }
    if !init.plan()?.namespaces.has_mount() {
        return hostroot::attach(&init.root, hooks::root_place(init));
    }
    leave_peers()?;
    // Over everything, or where hooks look for it: `pivot` then drops what lies under it.
    hooks::attach_root(&init.root, hooks::root_place(init))
}

/// From here on, no mount made in this namespace appears on the host, nor the other way round.
pub(super) fn leave_peers() -> Result<()> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(|errno| Error::call("make mounts private", errno))
}
