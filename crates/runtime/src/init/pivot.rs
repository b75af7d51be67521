//! The root becomes `/`, and the host's tree goes away with all its mounts.

use std::os::fd::{AsFd, BorrowedFd};

use proa_sys::mount::{self, MountAttr, PRIVATE, RDONLY};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use super::Init;
use crate::{Error, Result, inroot};

pub(super) fn run(init: &mut Init) -> Result<()> {
    let (propagation, recursive) = init.plan()?.propagation;
    let set = |attr: MountAttr, recursive| {
        mount::set(init.root.as_fd(), recursive, &attr).map_err(|error| Error::call("mount_setattr", error))
    };
    if init.plan()?.readonly_root {
        // It could not be made later. What is wrong with it is said by the step that enters it.
        let _ = inroot::make_dir_all(init.root.as_fd(), &init.job.process.spec.cwd, 0o755);
        set(MountAttr { set: RDONLY, ..MountAttr::default() }, false)?;
    }
    // The root of a ramdisk cannot be pivoted away from: it stays, below ours, out of reach.
    let no_pivot = init.job.detach.is_some_and(|detach| detach.no_pivot);
    if no_pivot || !init.plan()?.namespaces.has_mount() {
        enter(init.root.as_fd())?;
    } else {
        fchdir(&*init.root).map_err(|errno| Error::call("fchdir", errno))?;
        pivot()?;
        chdir(c"/").map_err(|errno| Error::at("/", errno))?;
    }
    if propagation != PRIVATE {
        set(MountAttr { propagation, ..MountAttr::default() }, recursive)?;
    }
    Ok(())
}

/// Makes a directory the root of this process alone.
pub(super) fn enter(root: BorrowedFd) -> Result<()> {
    fchdir(root).map_err(|errno| Error::call("fchdir", errno))?;
    rustix::process::chroot(".").map_err(|errno| Error::call("chroot", errno))?;
    chdir(c"/").map_err(|errno| Error::at("/", errno))
}

fn pivot() -> Result<()> {
    // Both names the same: the old root ends up over the new one, from where it is detached at once.
    pivot_root(".", ".").map_err(|errno| Error::call("pivot_root", errno))?;
    unmount(c".", UnmountFlags::DETACH).map_err(|errno| Error::call("drop the host's root", errno))
}
