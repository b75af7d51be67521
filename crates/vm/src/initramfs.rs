//! The guest's first files: the agent as `/init`, and the modules it loads, in the order of their names: those in `/modules`
//! at once, those in `/late` when they are needed.
//!
//! The image is not compressed: under software emulation unpacking costs more than reading.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cpio::Archive;
use crate::kernel::Kernel;
use crate::store::{Store, identity, key_of};
use crate::{VmError, VmSpec};

/// Changes when the layout of the image changes.
const FORMAT: &str = "2";
/// Images kept; each agent and each kernel needs its own.
const KEPT: usize = 8;

/// The image for this kernel and agent, and for guests with shares or without, made if the store has none.
pub(crate) fn find(store: &Store, kernel: &Kernel, spec: &VmSpec, sharing: bool) -> Result<PathBuf, VmError> {
    let agent = identify(&spec.agent)?;
    let mut extras = Vec::new();
    for (file, target) in &spec.extras.files {
        extras.extend([identify(file)?, target.clone()]);
    }
    let directory = store.path("initramfs");
    let path = directory.join(name(kernel, agent, sharing, extras));
    if path.exists() {
        return Ok(path);
    }
    let lock = store.lock()?;
    let bytes = build(kernel, spec, sharing)?;
    store.write(&lock, &path, &bytes)?;
    remove_oldest(&directory);
    Ok(path)
}

/// Names of images that no guest of this agent starts from, of those that have nothing on top.
pub(crate) fn unneeded(store: &Store, agent: &Path) -> Vec<String> {
    // Without an agent there are no guests.
    let Ok(agent) = identify(agent) else { return Vec::new() };
    let of_kernel =
        |kernel: &Kernel| [true, false].map(|sharing| name(kernel, agent.clone(), sharing, Vec::new()));
    let needed: Vec<String> = Kernel::all(store).iter().flat_map(of_kernel).collect();
    store.names("initramfs").into_iter().filter(|name| !needed.contains(name)).collect()
}

fn name(kernel: &Kernel, agent: String, sharing: bool, extras: Vec<String>) -> String {
    let sharing = if sharing { "sharing" } else { "" };
    let mut parts = vec![FORMAT.to_owned(), kernel.name(), agent, sharing.to_owned()];
    parts.extend(extras);
    format!("{}.cpio", key_of(&parts))
}

fn identify(path: &Path) -> Result<String, VmError> {
    fs::metadata(path).map(|metadata| identity(path, &metadata)).map_err(VmError::io(path))
}

fn build(kernel: &Kernel, spec: &VmSpec, sharing: bool) -> Result<Vec<u8>, VmError> {
    let load = |path: &Path| fs::read(path).map_err(VmError::io(path));
    let mut archive = Archive::new();
    for directory in ["dev", "proc", "newroot", "modules", "late"] {
        archive.directory(directory);
    }
    archive.character_device("dev/console", 5, 1);
    archive.file("init", 0o755, &load(&spec.agent)?);
    for (path, target) in &spec.extras.files {
        archive.file(target, 0o755, &load(path)?);
    }
    let modules = [("modules", kernel.modules(sharing)), ("late", kernel.late_modules())];
    for (directory, modules) in modules {
        for (number, (name, path)) in modules.into_iter().enumerate() {
            archive.file(&format!("{directory}/{number:02}-{name}.ko"), 0o644, &load(&path)?);
        }
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
