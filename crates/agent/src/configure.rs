//! Makes the guest what its configuration says: seeded, on time, with the instance's root and shares.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use proa_protocol::message::GuestConfig;
use proa_runtime::{CgroupPolicy, Owners, Rootfs};
use proa_supervisor::{Supervisor, SupervisorConfig};
use rustix::mount::{MountFlags, mount};
use rustix::time::{ClockId, Timespec};

use crate::boot::make;
use crate::disks;
use crate::error::{At, Error};

/// Where the writable disk is mounted.
pub const WRITABLE: &str = "/run/proa/rw";
const LAYERS: &str = "/run/proa/layers";
const SHARES: &str = "/run/proa/shares";

/// Does all of it and gives the supervisor that serves the instance.
pub fn apply(config: GuestConfig) -> Result<Supervisor, Error> {
    seed(&config.entropy)?;
    set_clock(config.time_ns)?;
    let (writable, layers) = disks(config.layers)?;
    let mount_numbered = |(number, device): (usize, &PathBuf)| mount_layer(number, device);
    let lowers = layers.iter().enumerate().map(mount_numbered).collect::<Result<Vec<_>, _>>()?;
    mount_writable(&writable)?;
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

/// The nodes of the writable disk and of the layers, lowest first.
fn disks(layers: usize) -> Result<(PathBuf, Vec<PathBuf>), Error> {
    let mut serials = vec!["rw".to_owned()];
    serials.extend((0..layers).map(|number| format!("layer{number}")));
    let mut nodes = disks::bind(&serials)?;
    Ok((nodes.remove(0), nodes))
}

fn mount_layer(number: usize, device: &Path) -> Result<PathBuf, Error> {
    let target = format!("{LAYERS}/{number}");
    make(&target)?;
    mount(device, &target, "erofs", MountFlags::RDONLY | MountFlags::NODEV, None).at("mount", device)?;
    Ok(target.into())
}

fn mount_writable(device: &Path) -> Result<(), Error> {
    make(WRITABLE)?;
    // Tables of inodes that were never used need no zeros: on the host's disk they are holes.
    let options = c"errors=remount-ro,discard,noinit_itable";
    mount(device, WRITABLE, "ext4", MountFlags::NODEV | MountFlags::NOATIME, Some(options))
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
