//! Kernels that users have given a name (`proa_protocol::kernel`).

use std::fs;
use std::path::PathBuf;

use proa_protocol::kernel::{AddKernel, DEFAULT, DIRECTORY, NAMED, NamedKernel};

use super::{Candidate, Kernel, More};
use crate::VmError;
use crate::store::Store;

/// Keeps a kernel, and its modules, under a name.
///
/// # Errors
/// It is no kernel for guests, or the name is taken.
pub fn add_kernel(wanted: &AddKernel) -> Result<NamedKernel, VmError> {
    let store = Store::open(&wanted.store)?;
    let names = directory_of_names(&store);
    fs::create_dir_all(&names).map_err(VmError::io(&names))?;
    let mut candidate = Candidate::named(&wanted.image)?;
    // Its own, whatever becomes of the file or of another name for it.
    candidate.key = format!("own-{}-{}", wanted.name, candidate.key);
    if let Some(modules) = &wanted.modules {
        candidate.module_roots = vec![modules.clone()];
    }
    let lock = store.lock()?;
    let file = names.join(&wanted.name);
    if file.exists() {
        return Err(VmError::KernelNameTaken { name: wanted.name.clone() });
    }
    let kernel = Kernel::import(&store, &lock, &candidate, &More::new(&[]))?;
    if let (Some(modules), true) = (&wanted.modules, kernel.info.modules.is_empty()) {
        return Err(VmError::NoModules { directory: modules.clone(), release: kernel.info.release });
    }
    let named = NamedKernel {
        directory: kernel.name(),
        release: kernel.info.release.clone(),
        source: candidate.origin,
    };
    store.write_json(&lock, &file, &named)?;
    Ok(named)
}

impl Kernel {
    /// The kernel of that name.
    pub(super) fn called(store: &Store, name: &str) -> Result<Self, VmError> {
        let unknown = || VmError::NoSuchKernel { name: name.to_owned() };
        let named: NamedKernel = store.read_json(directory_of_names(store).join(name)).ok_or_else(unknown)?;
        let key = named.directory.split_once('-').map(|(_, key)| key).ok_or_else(unknown)?;
        Self::load(store, key).ok_or_else(unknown)
    }
}

/// The name of the kernel for guests that name none, if one was chosen.
pub(super) fn default_name(store: &Store) -> Option<String> {
    let target = fs::read_link(directory_of_names(store).join(DEFAULT)).ok()?;
    target.to_str().map(str::to_owned)
}

fn directory_of_names(store: &Store) -> PathBuf {
    store.path(DIRECTORY).join(NAMED)
}
