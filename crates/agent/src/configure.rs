//! Makes the guest what its configuration says: seeded, on time, with the instance's root and shares.
//!
//! A guest that is to become a template is prepared first: the disks it has then are places for those of its clones.
//! So nothing that was read of them may be kept, but for the writable disk where that is mounted: its clones get it
//! as it was saved.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use proa_network::link::Links;
use proa_oci::runtime::{NamespaceKind, Spec};
use proa_protocol::message::GuestConfig;
use proa_protocol::network::Interface;
use proa_runtime::{CgroupPolicy, Owners, Rootfs, Taken};
use proa_supervisor::{Supervisor, SupervisorConfig};
use rustix::mount::{MountFlags, mount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use rustix::time::{ClockId, Timespec};

use crate::boot::{make, wait_for};
use crate::error::{At, Error};
use crate::expand::take_shares;

/// Where the writable disk is mounted.
pub const WRITABLE: &str = "/run/proa/rw";
const LAYERS: &str = "/run/proa/layers";
const FILES: &str = "/run/proa/files";
const SHARES: &str = "/run/proa/shares";
const BLOCK_DEVICES: &str = "/sys/block";
const WRITABLE_DISK: &str = "rw";
/// Serial numbers of the places for layers begin so; a number follows.
const PLACE: &str = "none";
const OWN_NETWORK: &str = "/proc/self/ns/net";
const NETWORK: &str = "/run/network";
const RANDOM: &str = "/dev/urandom";
const NETWORK_DEVICES: &str = "/sys/class/net";
/// Names of spare network devices begin so; their place on the bus follows.
const SPARE: &str = "eth";
/// The same of devices in the instance's namespace, until each has the name that the instance is to see: which may be
/// the spare name of another.
const MOVED: &str = "moved";

/// What a guest that was saved as a template has ready.
pub struct Prepared {
    /// Nodes of the writable disk and of the places for layers.
    writable: PathBuf,
    places: Vec<PathBuf>,
    /// The writable disk is mounted.
    mounted: bool,
    /// The random device, to be seeded.
    random: File,
    /// Serves the instance, whose container is made but for what runs in it.
    supervisor: Option<Supervisor>,
    /// Network devices of the instance's.
    pub interfaces: usize,
}

/// Makes the guest ready to be saved.
pub fn prepare(
    mount: bool,
    interfaces: usize,
    kind: Option<(GuestConfig, &[String])>,
) -> Result<Prepared, Error> {
    let writable = disk(WRITABLE_DISK)?;
    let mut names: Vec<(usize, String)> = disks()
        .filter_map(|name| Some((serial_of(&name)?.strip_prefix(PLACE)?.parse().ok()?, name)))
        .collect();
    names.sort();
    let places: Vec<PathBuf> = names.into_iter().map(|(_, name)| Path::new("/dev").join(name)).collect();
    if mount {
        mount_writable(&writable)?;
    } else {
        forget(&writable)?;
    }
    places.iter().try_for_each(|place| forget(place))?;
    make_network().at("make a network namespace at", NETWORK)?;
    move_devices(interfaces)?;
    let supervisor = kind.map(|(kind, programs)| prepare_container(kind, programs)).transpose()?;
    rustix::fs::sync();
    Ok(Prepared { writable, places, mounted: mount, random: random()?, supervisor, interfaces })
}

/// Makes the container of instances of this kind, whose layers are there and whose writable disk is mounted.
fn prepare_container(mut kind: GuestConfig, programs: &[String]) -> Result<Supervisor, Error> {
    // Names a cgroup that nobody sees.
    kind.id = "instance".to_owned();
    // Nothing of it is run: another comes before that.
    if let Some(process) = &mut kind.spec.process {
        process.args.push("/".to_owned());
    }
    let (_, layers) = find_disks(kind.layers)?;
    let lowers = mount_layers(&layers)?;
    let mut supervisor = supervise(kind, lowers)?;
    supervisor.prepare(programs)?;
    Ok(supervisor)
}

/// Drops what the kernel has read of a disk when it looked for partitions.
fn forget(node: &Path) -> Result<(), Error> {
    let disk = File::open(node).at("open", node)?;
    proa_sys::guest::forget_blocks(&disk).at("forget what was read of", node)
}

/// A network namespace with a loopback interface for the instance: to make one takes an emulated guest as long as
/// to start a program in it.
fn make_network() -> io::Result<()> {
    let own = File::open(OWN_NETWORK)?;
    File::create(NETWORK)?;
    proa_sys::process::unshare_namespaces(UnshareFlags::NEWNET.bits().into())?;
    let made =
        proa_sys::net::loopback_up().and_then(|()| Ok(rustix::mount::mount_bind(OWN_NETWORK, NETWORK)?));
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Network))?;
    made
}

/// Waits until the guest has so many network devices. The kernel numbers them in the order of their places on the bus.
fn await_devices(count: usize) -> Result<(), Error> {
    let Some(last) = count.checked_sub(1) else { return Ok(()) };
    let last = Path::new(NETWORK_DEVICES).join(format!("{SPARE}{last}"));
    wait_for("network device", || last.exists().then_some(()))
}

/// Moves so many devices to the instance's network namespace.
fn move_devices(count: usize) -> Result<(), Error> {
    await_devices(count)?;
    let target = File::open(NETWORK).at("open", NETWORK)?;
    let mut links = Links::here()?;
    (0..count).try_for_each(|device| move_device(&mut links, device, &target))
}

fn move_device(links: &mut Links, device: usize, target: &File) -> Result<(), Error> {
    let name = format!("{SPARE}{device}");
    let index = links.index(&name)?.ok_or(Error::Missing(name))?;
    Ok(links.move_to(index, target.as_fd(), &format!("{MOVED}{device}"))?)
}

/// Makes of the devices what the instance is to have.
fn make_interfaces(interfaces: &[Interface], is_prepared: bool) -> Result<(), Error> {
    if !is_prepared {
        make_network().at("make a network namespace at", NETWORK)?;
        move_devices(interfaces.len())?;
    }
    if interfaces.is_empty() {
        return Ok(());
    }
    let namespace = File::open(NETWORK).at("open", NETWORK)?;
    let mut links = Links::of(namespace.as_fd())?;
    let configure = |(device, interface)| make_interface(&mut links, device, interface);
    interfaces.iter().enumerate().try_for_each(configure)
}

/// Makes a device that has been moved what the instance is to have.
fn make_interface(links: &mut Links, device: usize, interface: &Interface) -> Result<(), Error> {
    let name = format!("{MOVED}{device}");
    let index = links.index(&name)?.ok_or(Error::Missing(name))?;
    Ok(links.configure(index, interface)?)
}

/// Makes a device of the instance's an interface once, and a device of no name again.
pub fn try_out(device: usize, interface: &Interface) -> Result<(), Error> {
    let namespace = File::open(NETWORK).at("open", NETWORK)?;
    make_interface(&mut Links::of(namespace.as_fd())?, device, interface)?;
    unplug(device, &interface.name)?;
    move_device(&mut Links::here()?, device, &namespace)
}

/// Makes a spare device an interface of the instance's; where that fails it is spare again.
pub fn plug(device: usize, interface: &Interface) -> Result<(), Error> {
    await_devices(device + 1)?;
    let namespace = File::open(NETWORK).at("open", NETWORK)?;
    let mut inside = Links::of(namespace.as_fd())?;
    move_device(&mut Links::here()?, device, &namespace)?;
    make_interface(&mut inside, device, interface).inspect_err(|_| {
        // Under which name it is depends on how far that came; the first failure is the one to tell.
        let _ = unplug(device, &format!("{MOVED}{device}")).or_else(|_| unplug(device, &interface.name));
    })
}

/// Makes an interface of the instance's a spare device again.
pub fn unplug(device: usize, interface: &str) -> Result<(), Error> {
    let namespace = File::open(NETWORK).at("open", NETWORK)?;
    let mut inside = Links::of(namespace.as_fd())?;
    let index = inside.index(interface)?.ok_or_else(|| Error::Missing(interface.to_owned()))?;
    let own = File::open(OWN_NETWORK).at("open", OWN_NETWORK)?;
    Ok(inside.move_to(index, own.as_fd(), &format!("{SPARE}{device}"))?)
}

/// Gives the instance the network namespace that was made for it, if it wants a new one that is the guest's own.
fn use_network(spec: &mut Spec) {
    let Some(linux) = &mut spec.linux else { return };
    if linux.namespaces.iter().any(|namespace| namespace.kind == NamespaceKind::User) {
        return;
    }
    for namespace in linux.namespaces.iter_mut().filter(|namespace| namespace.kind == NamespaceKind::Network)
    {
        namespace.path.get_or_insert_with(|| NETWORK.into());
    }
}

/// Does all of it and gives the supervisor that serves the instance.
pub fn apply(config: GuestConfig, prepared: Option<Prepared>) -> Result<Supervisor, Error> {
    match &prepared {
        Some(prepared) => seed(&prepared.random, &config.entropy)?,
        None => seed(&random()?, &config.entropy)?,
    }
    set_clock(config.time_ns)?;
    make_interfaces(&config.interfaces, prepared.is_some())?;
    let has_come = prepared.is_some();
    let (writable, layers) = match prepared {
        Some(Prepared { supervisor: Some(mut supervisor), .. }) => {
            supervisor.cast(config.id, config.spec, config.launch);
            return Ok(supervisor);
        }
        Some(prepared) => {
            let (writable, layers) = prepared.disks(config.layers)?;
            ((!prepared.mounted).then_some(writable), layers)
        }
        None => find_disks(config.layers).map(|(writable, layers)| (Some(writable), layers))?,
    };
    let lowers = mount_layers(&layers)?;
    writable.map_or(Ok(()), |writable| mount_writable(&writable))?;
    if has_come {
        take_shares(config.shares.len())?;
    }
    config.shares.iter().try_for_each(|tag| mount_share(tag))?;
    supervise(config, lowers)
}

/// The supervisor of an instance whose layers and writable disk are mounted.
fn supervise(config: GuestConfig, lowers: Vec<PathBuf>) -> Result<Supervisor, Error> {
    supervise_at(WRITABLE, FILES, config, lowers, Vec::new())
}

/// The same with its writable layer in the directory `writable`, and files of its own in `scratch`.
pub fn supervise_at(
    writable: &str,
    scratch: &str,
    mut config: GuestConfig,
    lowers: Vec<PathBuf>,
    taken: Vec<Taken>,
) -> Result<Supervisor, Error> {
    use_network(&mut config.spec);
    let (upper, work) = (format!("{writable}/upper"), format!("{writable}/work"));
    make(&upper)?;
    make(&work)?;
    Ok(Supervisor::new(SupervisorConfig {
        id: config.id,
        spec: config.spec,
        launch: config.launch,
        rootfs: Rootfs::Overlay { lowers, upper: upper.into(), work: work.into(), owners: Owners::default() },
        scratch: scratch.into(),
        cgroup: CgroupPolicy::Auto,
        taken,
        interfaces: None,
        shares_memory: true,
    }))
}

fn mount_layers(layers: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    layers.iter().enumerate().map(|(number, node)| mount_layer(number, node)).collect()
}

/// The random device, to be seeded.
pub fn random() -> Result<File, Error> {
    OpenOptions::new().write(true).open(RANDOM).at("open", RANDOM)
}

pub fn seed(random: &File, entropy: &[u8]) -> Result<(), Error> {
    proa_sys::guest::add_entropy(random, entropy).at("seed", RANDOM)?;
    // Clones of a template have the same generator until it takes up what is new.
    proa_sys::guest::reseed(random).at("seed", RANDOM)
}

pub fn set_clock(time_ns: i64) -> Result<(), Error> {
    let second = 1_000_000_000;
    let time = Timespec { tv_sec: time_ns.div_euclid(second), tv_nsec: time_ns.rem_euclid(second) };
    rustix::time::clock_settime(ClockId::Realtime, time).at("set", "CLOCK_REALTIME")
}

impl Prepared {
    /// The node of the writable disk, and those of so many layers.
    fn disks(&self, layers: usize) -> Result<(PathBuf, Vec<PathBuf>), Error> {
        let places = self.places.get(..layers).ok_or_else(|| {
            Error::Configuration(format!("{layers} layers are more than {} places", self.places.len()))
        })?;
        Ok((self.writable.clone(), places.to_vec()))
    }
}

/// The same of a guest that has just booted.
fn find_disks(layers: usize) -> Result<(PathBuf, Vec<PathBuf>), Error> {
    let layers = (0..layers).map(|number| disk(&format!("layer{number}"))).collect::<Result<_, _>>()?;
    Ok((disk(WRITABLE_DISK)?, layers))
}

fn mount_layer(number: usize, device: &Path) -> Result<PathBuf, Error> {
    let target = layer(number);
    make(&target)?;
    mount(device, &target, "erofs", MountFlags::RDONLY | MountFlags::NODEV, None).at("mount", device)?;
    Ok(target)
}

/// Where a layer is mounted.
pub fn layer(number: usize) -> PathBuf {
    Path::new(LAYERS).join(number.to_string())
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
