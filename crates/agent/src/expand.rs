//! Takes memory, CPUs and shares that come while the guest runs.
//!
//! ```text
//!   memory   kernel told what to do with it ─▶ bus looked at again ─▶ (without ACPI: line for interrupts written, again)
//!            ─▶ driver loaded, which plugs what the host wants by itself
//!   CPUs     those that ACPI has told of are switched on
//!   shares   bus looked at again, in the same way; of a guest that goes on from a template, before it mounts them
//! ```
//!
//! Without ACPI nobody tells the kernel by which line a device that came later interrupts: it would pick a free one. The
//! firmware has told the devices of the bridge's own slot, and the new one is wired to the first of those lines. The kernel
//! reads a device's line when it finds it; so it is found, gets its line, is forgotten, and is found again. Meanwhile no
//! driver but that of the bus may take it.
//!
//! What comes is used as memory that can be moved as far as the kernel holds that wise, so that it can go again.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::boot::wait_for;
use crate::error::{At, Error};

/// Modules that are loaded when they are needed; their directory is out of sight after the boot.
const LATE: &str = "/late";
const DEVICES: &str = "/sys/bus/pci/devices";
const RESCAN: &str = "/sys/bus/pci/rescan";
const PROBE: &str = "/sys/bus/virtio/drivers_autoprobe";
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_mem";
const ACPI: &str = "/sys/firmware/acpi/tables";
const ONLINE: &str = "/sys/devices/system/memory/auto_online_blocks";
const POLICY: &str = "/sys/module/memory_hotplug/parameters/online_policy";
const CPUS: &str = "/sys/devices/system/cpu";
/// Devices of virtio: with memory, with a share.
const VENDOR: &str = "0x1af4";
const MEMORY: &str = "0x1058";
const SHARE: &str = "0x105a";
/// Where a device's configuration has its line for interrupts.
const LINE: u64 = 0x3c;

/// Modules for what may come.
#[derive(Debug, Default)]
pub struct LateModules {
    directory: Option<OwnedFd>,
    names: Vec<OsString>,
}

impl LateModules {
    /// Those of the initramfs, while that can be seen.
    pub fn find() -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(LATE, flags, Mode::empty()).ok();
        let entries = fs::read_dir(LATE).into_iter().flatten().flatten();
        let mut names: Vec<OsString> = entries.map(|entry| entry.file_name()).collect();
        names.sort();
        Self { directory, names }
    }

    fn load(&self) -> Result<(), Error> {
        let Some(directory) = &self.directory else { return Ok(()) };
        for name in &self.names {
            let file = openat(directory.as_fd(), name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            match rustix::system::finit_module(file.at("open", name)?, c"", 0) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).at("load the module", name),
            }
        }
        Ok(())
    }
}

/// Takes what the host says has come.
pub fn expand(memory: bool, cpus: u32, late: &LateModules) -> Result<(), Error> {
    if memory {
        take_memory(late)?;
    }
    (0..cpus).try_for_each(take_cpu)
}

fn take_memory(late: &LateModules) -> Result<(), Error> {
    if is_driven() {
        // To lose its device is what the driver does not survive.
        return Ok(());
    }
    let has_driver = !late.names.is_empty() || Path::new(DRIVER).exists();
    if !has_driver || !Path::new(ONLINE).exists() {
        return Err(Error::NoGrowth);
    }
    // Where the kernel has no such policy, it has that of old: all is used for everything.
    let _ = fs::write(POLICY, "auto-movable");
    fs::write(ONLINE, "online").at("write", ONLINE)?;
    take_devices(MEMORY, 1)?;
    late.load()
}

/// Takes so many shares, each a device that has come.
pub fn take_shares(count: usize) -> Result<(), Error> {
    if count == 0 { Ok(()) } else { take_devices(SHARE, count) }
}

/// Takes devices of this kind that have come, so that there are so many.
fn take_devices(kind: &str, count: usize) -> Result<(), Error> {
    if Path::new(ACPI).exists() {
        return look_for(kind, count).map(drop);
    }
    fs::write(PROBE, "0").at("write", PROBE)?;
    let found = look_for(kind, count).and_then(|devices| devices.iter().try_for_each(|path| give_line(path)));
    fs::write(PROBE, "1").at("write", PROBE)?;
    found?;
    fs::write(RESCAN, "1").at("write", RESCAN)
}

fn look_for(kind: &str, count: usize) -> Result<Vec<PathBuf>, Error> {
    fs::write(RESCAN, "1").at("write", RESCAN)?;
    wait_for("device that has come", || Some(find(kind)).filter(|found| found.len() >= count))
}

/// Tells a device its line, and has the kernel forget it.
fn give_line(device: &Path) -> Result<(), Error> {
    let line = line_of(device).ok_or_else(|| Error::Missing("line for interrupts".to_owned()))?;
    let path = device.join("config");
    let config = OpenOptions::new().write(true).open(&path).at("open", &path)?;
    config.write_all_at(&[line], LINE).at("write", &path)?;
    let path = device.join("remove");
    fs::write(&path, "1").at("write", path)
}

/// Whether the driver has a device already.
fn is_driven() -> bool {
    let entries = fs::read_dir(DRIVER).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("virtio"))
}

/// Devices of a kind.
fn find(kind: &str) -> Vec<PathBuf> {
    let is = |path: &Path, name: &str, value: &str| read(&path.join(name)).is_some_and(|text| text == value);
    let entries = fs::read_dir(DEVICES).into_iter().flatten().flatten().map(|entry| entry.path());
    let found = entries.filter(|path| is(path, "device", kind) && is(path, "vendor", VENDOR));
    found.filter_map(|path| fs::canonicalize(path).ok()).collect()
}

/// The line of another device in the slot of the bridge that this one is behind: `…/0000:00:01.1/0000:01:04.0`.
fn line_of(device: &Path) -> Option<u8> {
    let bridge = device.parent()?;
    let slot = bridge.file_name()?.to_str()?.rsplit_once('.')?.0;
    let entries = fs::read_dir(bridge.parent()?).ok()?.flatten();
    let is_beside = |name: OsString| name.to_str().is_some_and(|name| name.starts_with(slot));
    let beside = entries.filter(|entry| is_beside(entry.file_name())).map(|entry| entry.path());
    let mut lines = beside.filter_map(|path| read(&path.join("irq"))?.parse().ok());
    lines.find(|line| *line != 0)
}

fn take_cpu(number: u32) -> Result<(), Error> {
    let path = Path::new(CPUS).join(format!("cpu{number}"));
    wait_for(&format!("CPU {number}"), || path.exists().then_some(()))?;
    let path = path.join("online");
    // The first cannot be switched off, and has no such file.
    match read(&path) {
        Some(text) if text == "0" => fs::write(&path, "1").at("write", path),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}
