//! Containers without a mount namespace of their own, for what shall see the host's mounts come and go.
//!
//! The root is a bind mount of itself at its own path, in the mount namespace of whoever creates the container, with
//! the spec's mounts in it; the program's processes are locked in by `chroot`, as in runc and crun. That is no wall
//! against a process with `CAP_SYS_CHROOT`: who leaves the namespace away has asked for that.
//!
//! All of it goes with one `umount`, by whoever deletes the container. Which mount is ours is told by the one that
//! was there before: an engine may have mounted the root itself.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use proa_oci::runtime::{NamespaceKind, Spec};
use proa_sys::mount::{self, MountAttr, PRIVATE};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::container::{Create, Rootfs};
use crate::init::attach_at;
use crate::plan::has_own;
use crate::{Error, Result};

/// Whether a container can do without a mount namespace.
pub(crate) fn check(create: &Create) -> Result<()> {
    let refuse = |what: &str| {
        Err(Error::unsupported(format!(
            "a container without a mount namespace of its own {what}: add one to the spec"
        )))
    };
    let Rootfs::Directory(path) = &create.rootfs else { return refuse("needs a directory as its root") };
    if create.nodev {
        return refuse("cannot be kept from the host's devices");
    }
    match std::fs::canonicalize(path) {
        Ok(path) if path == Path::new("/") => refuse("cannot have the host's root"),
        Ok(_) => Ok(()),
        Err(error) => Err(Error::at(path, error)),
    }
}

/// Mounts the root at its own path.
pub(crate) fn attach(root: &OwnedFd, path: &Path) -> Result<()> {
    attach_at(root, path)?;
    // Below a shared mount it has become one; what is mounted in it is nobody else's affair, and would stay in what
    // lies under it.
    let private = MountAttr { propagation: PRIVATE, ..MountAttr::default() };
    mount::set(root.as_fd(), true, &private).map_err(|error| Error::call("mount_setattr", error))
}

/// What tells later whether there is something to unmount, of a container that is about to be created; `None` for one
/// that has a mount namespace.
///
/// # Errors
/// The root is not there.
pub fn mount_before(spec: &Spec, rootfs: &Path) -> Result<Option<u64>> {
    let is_hosts = spec.linux.as_ref().is_none_or(|linux| !has_own(linux, NamespaceKind::Mount));
    is_hosts.then(|| mount_of(rootfs).map_err(|errno| Error::at(rootfs, errno))).transpose()
}

/// Undoes the mounts of a container whose processes have ended, if there are any.
///
/// # Errors
/// They cannot be undone.
pub fn unmount_root(rootfs: &Path, before: u64) -> Result<()> {
    match mount_of(rootfs) {
        // Not made yet, or gone with all that was in it.
        Ok(now) if now == before => Ok(()),
        Err(Errno::NOENT) => Ok(()),
        Ok(_) => unmount(rootfs, UnmountFlags::DETACH).map_err(|errno| Error::at(rootfs, errno)),
        Err(errno) => Err(Error::at(rootfs, errno)),
    }
}

/// The number of the mount that a path leads to.
fn mount_of(path: &Path) -> Result<u64, Errno> {
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
    let number = info
        .ok()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok()));
    number.ok_or(Errno::IO)
}
