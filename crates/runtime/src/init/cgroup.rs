//! What the container sees of its cgroups: `/sys/fs/cgroup` and the cgroup namespace.
//!
//! | host | `/sys/fs/cgroup` | namespace |
//! | --- | --- | --- |
//! | v2 | the container's own subtree | made once in the cgroup |
//! | v1, joined before the start | read-only binds of the container's own directories | made before the program |
//! | v1, joined later, or none | the empty directory of sysfs: nothing is limited, so nothing can be read | made before the program |

use std::os::fd::{AsFd, BorrowedFd};

use proa_sys::mount::{self, MountAttr, PRIVATE, RDONLY};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::{Init, Place, mounts};
use crate::cgroup::View;
use crate::plan::{MountPlan, namespaces};
use crate::{Error, Result, inroot, rootfs};

pub(super) fn mount(root: BorrowedFd, plan: &MountPlan, view: &View) -> Result<()> {
    match view {
        View::Nothing => Ok(()),
        View::Unified => {
            let target = mounts::target_dir(root, plan)?;
            let context = rootfs::open_context("cgroup2")?;
            let tree = rootfs::finish(context, MountAttrFlags::from_bits_retain(plan.attr.set as u32))?;
            mounts::attach(tree.as_fd(), target.as_fd())
        }
        View::Hierarchies(hierarchies) => {
            let target = mounts::target_dir(root, plan)?;
            let tmpfs = rootfs::finish(
                rootfs::open_context("tmpfs")?,
                MountAttrFlags::from_bits_retain((plan.attr.set & !RDONLY) as u32),
            )?;
            mounts::attach(tmpfs.as_fd(), target.as_fd())?;
            for (name, path) in hierarchies {
                let own = rootfs::clone_tree(CWD, path).map_err(|errno| Error::at(path, errno))?;
                let attr = MountAttr { propagation: PRIVATE, ..plan.attr };
                mount::set(own.as_fd(), true, &attr).map_err(|error| Error::at(path, error))?;
                let target = inroot::make_dir_all(tmpfs.as_fd(), name, 0o755)?;
                mounts::attach(own.as_fd(), target.as_fd())?;
            }
            link_parts(tmpfs.as_fd(), hierarchies)?;
            mount::set(tmpfs.as_fd(), false, &MountAttr { set: RDONLY, ..MountAttr::default() })
                .map_err(|error| Error::call("mount_setattr", error))
        }
    }
}

/// `cpu` beside `cpu,cpuacct`, as everybody expects.
fn link_parts(dir: BorrowedFd, hierarchies: &[(String, std::path::PathBuf)]) -> Result<()> {
    for (name, _) in hierarchies.iter().filter(|(name, _)| name.contains(',')) {
        for part in name.split(',') {
            match rustix::fs::symlinkat(name.as_str(), dir, part) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::at(part, errno)),
            }
        }
    }
    Ok(())
}

/// On cgroup v1 the parent has joined us to our cgroups, or will later: the namespace is made now.
pub(super) fn late_namespace(init: &mut Init) -> Result<()> {
    let Place::New { plan, cgroups, .. } = &init.job.place else { return Ok(()) };
    if !plan.namespaces.new_cgroup() || cgroups.namespace_at_once() {
        return Ok(());
    }
    proa_sys::process::unshare_namespaces(namespaces::CGROUP).map_err(|error| Error::call("unshare", error))
}
