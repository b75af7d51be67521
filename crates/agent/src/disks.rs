//! The guest's disks, in the order in which the VMM has them: the writable one, then the layers, lowest first.
//!
//! ```text
//!   driver loaded, bound to nothing ─▶ configuration says how many there are ─▶ bound one by one
//! ```
//!
//! A guest that comes from a template has places for more disks than it uses, and what is in them is not what was
//! there when it booted. So a disk is looked at when it is wanted and not before.

use std::fs;
use std::path::{Path, PathBuf};

use crate::boot::wait_for;
use crate::error::{At, Error};

/// The driver's module, as in the names of the initramfs.
pub const DRIVER: &str = "virtio_blk";
const BUS: &str = "/sys/bus/virtio";
/// Bound by the kernel as they come, or not.
const AUTOPROBE: &str = "drivers_autoprobe";
/// `VIRTIO_ID_BLOCK`, as sysfs writes it.
const BLOCK: &str = "0x0002";

/// Loads the driver without letting it look at any disk. `sys` is where sysfs is mounted.
pub fn load_driver(sys: &str, load: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    let switch = Path::new(sys).join("bus/virtio").join(AUTOPROBE);
    // Without the switch the kernel binds them all, which `bind` takes as it is.
    let _ = fs::write(&switch, "0");
    let loaded = load();
    let _ = fs::write(&switch, "1");
    loaded
}

/// Makes the first disks usable and gives their device nodes; `serials` are the names that they must have.
pub fn bind(serials: &[String]) -> Result<Vec<PathBuf>, Error> {
    let devices = wait_for(&format!("{} disks", serials.len()), || {
        let devices = block_devices();
        (devices.len() >= serials.len()).then_some(devices)
    })?;
    serials.iter().zip(devices).map(|(serial, device)| bind_one(serial, &device)).collect()
}

fn bind_one(serial: &str, device: &Path) -> Result<PathBuf, Error> {
    if !device.join("driver").exists() {
        let bind = Path::new(BUS).join("drivers").join(DRIVER).join("bind");
        let name = device.file_name().unwrap_or_default();
        fs::write(&bind, name.as_encoded_bytes()).at("give a disk to", &bind)?;
    }
    let disk = wait_for(&format!("disk `{serial}`"), || first_entry(&device.join("block")))?;
    let found = fs::read_to_string(disk.join("serial")).at("read", disk.join("serial"))?;
    if found.trim() != serial {
        let found = found.trim();
        return Err(Error::Configuration(format!("disk `{found}` is where `{serial}` should be")));
    }
    let node = Path::new("/dev").join(disk.file_name().unwrap_or_default());
    wait_for("disk's device node", || node.exists().then_some(()))?;
    Ok(node)
}

/// All of the bus, in the order in which it found them.
fn block_devices() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(Path::new(BUS).join("devices")) else { return Vec::new() };
    let mut found: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix("virtio")?.parse().ok()?;
            let kind = fs::read_to_string(entry.path().join("device")).ok()?;
            (kind.trim() == BLOCK).then(|| (number, entry.path()))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

fn first_entry(directory: &Path) -> Option<PathBuf> {
    Some(fs::read_dir(directory).ok()?.flatten().next()?.path())
}
