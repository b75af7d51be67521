//! Masked and read-only paths. A file is covered by the null device, a directory by an empty one; both are
//! handled by descriptor, and what covers is checked to be what it should be (CVE-2025-31133).

use std::os::fd::{AsFd, OwnedFd};

use proa_sys::mount::{self, MountAttr, RDONLY};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, fsconfig_set_string};

use super::{Init, devices, mounts};
use crate::{Error, Result, inroot, rootfs};

pub(super) fn masked(init: &mut Init) -> Result<()> {
    let root = init.root.as_fd();
    let mut null: Option<OwnedFd> = None;
    let mut empty: Option<OwnedFd> = None;
    for path in &init.plan()?.linux.masked_paths {
        let Some(target) = existing(init, path)? else { continue };
        let stat = inroot::stat(target.as_fd()).map_err(|errno| Error::at(path, errno))?;
        let is_dir = inroot::is(&stat, FileType::Directory);
        let slot = if is_dir { &mut empty } else { &mut null };
        let cover = match slot {
            Some(used) => {
                rootfs::clone_handle(used.as_fd(), false).map_err(|errno| Error::at(path, errno))?
            }
            None if is_dir => empty_dir()?,
            None => devices::null_mount(root)?,
        };
        mounts::attach(cover.as_fd(), target.as_fd()).map_err(|error| error.context(path))?;
        // Attached: before 6.15 a mount that is in no place could not be cloned.
        *slot = Some(cover);
    }
    Ok(())
}

pub(super) fn readonly(init: &mut Init) -> Result<()> {
    for path in &init.plan()?.linux.readonly_paths {
        let Some(target) = existing(init, path)? else { continue };
        let tree = rootfs::clone_handle(target.as_fd(), true).map_err(|errno| Error::at(path, errno))?;
        mount::set(tree.as_fd(), true, &MountAttr { set: RDONLY, ..MountAttr::default() })
            .map_err(|error| Error::at(path, error))?;
        mounts::attach(tree.as_fd(), target.as_fd()).map_err(|error| error.context(path))?;
    }
    Ok(())
}

/// A handle on a path, if it exists in this container.
fn existing(init: &Init, path: &str) -> Result<Option<OwnedFd>> {
    match inroot::handle(init.root.as_fd(), path) {
        Ok(handle) => Ok(Some(handle)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(Error::at(path, errno)),
    }
}

/// An empty directory that stays empty, one for all masked directories.
fn empty_dir() -> Result<OwnedFd> {
    let context = rootfs::open_context("tmpfs")?;
    fsconfig_set_string(context.as_fd(), "mode", "555").map_err(|errno| rootfs::explain(&context, errno))?;
    let attr = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rootfs::finish(context, attr)
}
