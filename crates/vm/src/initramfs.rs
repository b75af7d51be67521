//! The guest's first files: the agent as `/init`, and the modules it loads, in the order of their names.
//!
//! The image is not compressed: under software emulation unpacking costs more than reading.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::VmError;
use crate::cpio::Archive;
use crate::kernel::Kernel;
use crate::store::{Store, identity, short_hex};

/// Changes when the layout of the image changes.
const FORMAT: &str = "1";
/// Images kept; each agent and each kernel needs its own.
const KEPT: usize = 8;

/// The image for this kernel and agent, made if the store has none.
pub(crate) fn find(store: &Store, kernel: &Kernel, agent: &Path, sharing: bool) -> Result<PathBuf, VmError> {
    let metadata = fs::metadata(agent).map_err(VmError::io(agent))?;
    let mut hash = Sha256::new();
    let sharing_part = if sharing { "sharing" } else { "" };
    for part in [FORMAT, &kernel.name(), &identity(agent, &metadata), sharing_part] {
        hash.update(part);
        hash.update([0]);
    }
    let directory = store.path("initramfs");
    let path = directory.join(format!("{}.cpio", short_hex(hash)));
    if path.exists() {
        return Ok(path);
    }
    let lock = store.lock()?;
    let bytes = build(kernel, agent, sharing)?;
    store.write(&lock, &path, &bytes)?;
    remove_oldest(&directory);
    Ok(path)
}

fn build(kernel: &Kernel, agent: &Path, sharing: bool) -> Result<Vec<u8>, VmError> {
    let mut archive = Archive::new();
    for directory in ["dev", "proc", "newroot", "modules"] {
        archive.directory(directory);
    }
    archive.character_device("dev/console", 5, 1);
    archive.file("init", 0o755, &fs::read(agent).map_err(VmError::io(agent))?);
    for (number, (name, path)) in kernel.modules(sharing).into_iter().enumerate() {
        let bytes = fs::read(&path).map_err(VmError::io(&path))?;
        archive.file(&format!("modules/{number:02}-{name}.ko"), 0o644, &bytes);
    }
    Ok(archive.finish())
}

/// A guest reads its image while it starts, so only old ones may go.
fn remove_oldest(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut images: Vec<_> = entries
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    images.sort();
    let surplus = images.len().saturating_sub(KEPT);
    for (_, path) in images.into_iter().take(surplus) {
        // What cannot be removed now is tried again with the next image.
        let _ = fs::remove_file(path);
    }
}
