//! Makes the guest what its configuration says: seeded, on time, with the instance's root and shares.

use std::fs::{self, OpenOptions};
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

/// Does all of it and gives the supervisor that serves the instance.
pub fn apply(config: GuestConfig) -> Result<Supervisor, Error> {
    seed(&config.entropy)?;
    set_clock(config.time_ns)?;
    let lowers = (0..config.layers).map(mount_layer).collect::<Result<Vec<_>, _>>()?;
    mount_writable()?;
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
    proa_sys::guest::add_entropy(&random, entropy).at("seed", path)
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
    let device = disk("rw")?;
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
    let disks = fs::read_dir(BLOCK_DEVICES).ok()?.flatten();
    let matches =
        |path: &Path| fs::read_to_string(path.join("serial")).is_ok_and(|found| found.trim() == serial);
    disks.filter(|disk| matches(&disk.path())).find_map(|disk| disk.file_name().into_string().ok())
}
