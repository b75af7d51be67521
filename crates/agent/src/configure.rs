//! Makes the guest what its configuration says: seeded, on time, with the instance's root and shares.
//!
//! A guest that is to become a template is prepared first: the disks it has then are places for those of its clones.
//! So nothing that was read of them may be kept, but for the writable disk where that is mounted: its clones get it
//! as it was saved.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use proa_protocol::message::GuestConfig;
use proa_runtime::{CgroupPolicy, Owners, Rootfs};
use proa_supervisor::{Supervisor, SupervisorConfig};
use rustix::mount::{MountFlags, mount};
use rustix::time::{ClockId, Timespec};

use crate::boot::{make, wait_for};
use crate::error::{At, Error};

/// Where the writable disk is mounted.
pub const WRITABLE: &str = "/run/proa/rw";
const LAYERS: &str = "/run/proa/layers";
const SHARES: &str = "/run/proa/shares";
const BLOCK_DEVICES: &str = "/sys/block";
const WRITABLE_DISK: &str = "rw";

/// Makes the guest ready to be saved.
pub fn prepare(mount: bool) -> Result<(), Error> {
    if mount {
        mount_writable()?;
    }
    // The kernel looked for partitions.
    for name in disks().filter(|name| !mount || serial_of(name).is_none_or(|serial| serial != WRITABLE_DISK)) {
        let node = Path::new("/dev").join(name);
        let disk = File::open(&node).at("open", &node)?;
        proa_sys::guest::forget_blocks(&disk).at("forget what was read of", &node)?;
    }
    rustix::fs::sync();
    Ok(())
}

/// Does all of it and gives the supervisor that serves the instance.
pub fn apply(config: GuestConfig) -> Result<Supervisor, Error> {
    seed(&config.entropy)?;
    set_clock(config.time_ns)?;
    let lowers = (0..config.layers).map(mount_layer).collect::<Result<Vec<_>, _>>()?;
    if !config.writable_mounted {
        mount_writable()?;
    }
    for tag in &config.shares {
        mount_share(tag)?;
    }
    let (upper, work) = (format!("{WRITABLE}/upper"), format!("{WRITABLE}/work"));
    make(&upper)?;
    make(&work)?;
    Ok(Supervisor::new(SupervisorConfig {
        id: config.id,
        spec: config.spec,
        launch: config.launch,
        rootfs: Rootfs::Overlay { lowers, upper: upper.into(), work: work.into(), owners: Owners::default() },
        scratch: PathBuf::from("/run/proa/files"),
        cgroup: CgroupPolicy::Auto,
    }))
}

fn seed(entropy: &[u8]) -> Result<(), Error> {
    let path = "/dev/urandom";
    let random = OpenOptions::new().write(true).open(path).at("open", path)?;
    proa_sys::guest::add_entropy(&random, entropy).at("seed", path)?;
    // Clones of a template have the same generator until it takes up what is new.
    proa_sys::guest::reseed(&random).at("seed", path)
}

fn set_clock(time_ns: i64) -> Result<(), Error> {
    let second = 1_000_000_000;
    let time = Timespec { tv_sec: time_ns.div_euclid(second), tv_nsec: time_ns.rem_euclid(second) };
    rustix::time::clock_settime(ClockId::Realtime, time).at("set", "CLOCK_REALTIME")
}

fn mount_layer(number: usize) -> Result<PathBuf, Error> {
    let device = disk(&format!("layer{number}"))?;
    let target = format!("{LAYERS}/{number}");
    make(&target)?;
    mount(&device, &target, "erofs", MountFlags::RDONLY | MountFlags::NODEV, None).at("mount", &device)?;
    Ok(target.into())
}

fn mount_writable() -> Result<(), Error> {
    let device = disk(WRITABLE_DISK)?;
    make(WRITABLE)?;
    // Tables of inodes that were never used need no zeros: on the host's disk they are holes.
    let options = c"errors=remount-ro,discard,noinit_itable";
    mount(&device, WRITABLE, "ext4", MountFlags::NODEV | MountFlags::NOATIME, Some(options))
        .at("mount", device)
}

fn mount_share(tag: &str) -> Result<(), Error> {
    if tag.is_empty() || tag.contains(['/', '.']) {
        return Err(Error::Configuration(format!("share {tag:?} has no usable name")));
    }
    let target = format!("{SHARES}/{tag}");
    make(&target)?;
    mount(tag, &target, "virtiofs", MountFlags::NODEV | MountFlags::NOSUID, None)
        .at("mount the share at", target)
}

/// The disk with this serial number, waiting until the kernel has found it.
fn disk(serial: &str) -> Result<PathBuf, Error> {
    let name = wait_for(&format!("disk `{serial}`"), || find_disk(serial))?;
    let node = Path::new("/dev").join(name);
    wait_for("disk's device node", || node.exists().then_some(()))?;
    Ok(node)
}

fn find_disk(serial: &str) -> Option<String> {
    disks().find(|name| serial_of(name).is_some_and(|found| found == serial))
}

fn disks() -> impl Iterator<Item = String> {
    let entries = fs::read_dir(BLOCK_DEVICES).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn serial_of(name: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new(BLOCK_DEVICES).join(name).join("serial")).ok()?;
    Some(text.trim().to_owned())
}
