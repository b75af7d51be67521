//! What the store has that nothing needs any more, and its removal: kernels ([`crate::kernel`]), first files of other agents
//! and kernels, empty file systems of older formats.
//!
//! Nothing that a guest is about to start from goes away: whoever starts one shares a lock from when it looks until its VMM
//! has what it needs ([`Store::share`]), and here that lock is held alone. Each thing loses its name before it is removed, so
//! that what is killed here leaves nothing by halves.

use std::path::PathBuf;

use proa_protocol::kernel::{PruneKernels, Pruned};

use crate::kernel::Kernel;
use crate::store::Store;
use crate::{VmError, disk, initramfs};

/// Removes all that nothing needs; what it was.
///
/// # Errors
/// The store cannot be locked, or something cannot be removed.
pub fn prune_kernels(wanted: &PruneKernels) -> Result<Vec<Pruned>, VmError> {
    let store = Store::open(&wanted.store)?;
    let _alone = store.alone()?;
    let lock = store.lock()?;
    let mut removed = Vec::new();
    let mut remove = |part: &str, names: Vec<String>| {
        names.into_iter().try_for_each(|name| -> Result<(), VmError> {
            let path = PathBuf::from(part).join(name);
            let bytes = proa_sys::trees::disk_usage(&store.path(&path));
            store.remove(&lock, &store.path(&path))?;
            removed.push(Pruned { name: path.to_string_lossy().into_owned(), bytes });
            Ok(())
        })
    };
    remove("kernels", Kernel::unneeded(&store, wanted.wanted.as_deref()))?;
    remove("initramfs", initramfs::unneeded(&store, &wanted.agent))?;
    remove("disks", store.older("disks", disk::FORMAT, &[]))?;
    Ok(removed)
}
