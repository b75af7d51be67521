//! Virtual machines that have booted already: saved once, and started from again and again.
//!
//! ```text
//!   absent ─ make: boot without disks, until the agent waits ─▶ stop, save ─▶ partial ─ synced, renamed ─▶ there
//!   there ─ find: what it was made of and its files are as they were ─▶ a clone of it runs
//!   there ─ files differ, its clone does not answer, room is needed, unused for a month ─▶ absent
//! ```
//!
//! A template is a file with the guest's memory and one with the state of its devices. Clones map the memory
//! privately: what none of them has changed is in the host's page cache, once for all. In the saved guest the
//! agent waits for its configuration, and no random number has been given to anybody; entropy, time, names and the
//! program come with the configuration, as after a boot.
//!
//! The guest knows its disks already. What it had in their places were large empty ones, of which it has kept
//! nothing; it reads what is there when it mounts them. The writable disk of a new instance is mounted already: the
//! disk was saved with the memory, and the instance gets a copy. An instance that is started again has its own, and
//! a template of another kind, in which that place is empty too.
//!
//! Servers of shares work in their guest's memory, so a guest with shares has a copy of the template's instead of what it
//! has in common with other clones, and its shares are devices that come when it runs.
//!
//! There are two sorts. One fits all images. One is for a kind of instances: those of one image, that differ in nothing
//! but what [`GuestConfig::kind`] leaves out. It has the image's layers as its disks, and in its guest the container is
//! made already, but for what runs in it. It starts in half of the time, and is made when the second instance of its
//! kind starts.
//!
//! Its name is made of all that it depends on: kernel, first files (the agent among them), QEMU, accelerator, the
//! host's CPU, memory, CPUs and places for disks, or kind and layers. So a change of any of these makes another template.
//!
//! Invariants:
//! 1. A clone cannot change the template: it never has a descriptor that its memory could be written by.
//! 2. A template that has a name is whole and on disk.
//! 3. Templates are made one at a time, by a process that nobody waits for and that waits for nobody; what a killed
//!    one left half-made is removed by the next.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use proa_protocol::frame::{Decoder, Frame, Kind};
use proa_protocol::message::{GuestConfig, Request, Response};
use proa_protocol::template::{DIRECTORY, INFO_FILE, LOCK_FILE, TemplateInfo};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::accelerator::{Accelerator, boot_id};
use crate::machine::{Disk, Hypervisor, Logs, Machine, Origin, Parts, guest_memory};
use crate::qemu::{MAX_DEVICES, OWN_DEVICES};
use crate::qmp::Qmp;
use crate::store::{Store, base_identity, hex, identity, key_of, publish};
use crate::{DEFAULT_DISK, SPARE_DEVICES, VmError, VmSpec, disk, user};

/// Changes when templates made before shall not be used any more.
const FORMAT: &str = "9";
const MEMORY: &str = "memory";
const STATE: &str = "state";
const DISK: &str = "disk";
/// Beside the templates: why one could not be made, on this boot of the host.
const FAILED: &str = ".failed";
/// Beside the templates: an instance of this kind has started.
const SEEN: &str = ".seen";
/// Templates kept, and for how long one is kept that nobody uses.
const KEPT: usize = 12;
const UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);
/// The state of devices is some hundred KiB.
const MOST_STATE: u64 = 64 << 20;
/// Clocks of two boots of one host are measured as different as this, in parts of a million.
const CLOCK_TOLERANCE: u64 = 500;
/// How long a guest is left alone before it is saved, to come to rest: two seconds after its drivers have come, its kernel
/// tells what memory is free, which no clone should have to do again.
const REST: Duration = Duration::from_secs(3);
/// The fewest places for layers.
const FEWEST_PLACES: usize = 4;
/// How long its boot may take: nobody waits for it, and it gets what others leave of the CPU.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// What a template is made for; plain data, to be handed to the process that makes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TemplateRequest {
    /// As in [`VmSpec`].
    pub kernel: Option<PathBuf>,
    /// As in [`VmSpec`].
    pub agent: PathBuf,
    /// As in [`VmSpec`].
    pub store: PathBuf,
    /// As in [`VmSpec`].
    pub memory: u64,
    /// As in [`VmSpec`].
    pub cpus: u32,
    /// Number of layers that it shall have places for.
    pub layers: usize,
    /// For instances of this kind alone.
    #[serde(default)]
    pub kind: Option<Box<InstanceKind>>,
    /// Whether its guest has the writable disk mounted.
    pub mounted: bool,
    /// Number of network devices.
    #[serde(default)]
    pub interfaces: usize,
    /// For guests with shares, which come when it runs.
    #[serde(default)]
    pub sharing: bool,
}

/// What instances of a kind have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceKind {
    /// As from [`GuestConfig::kind`].
    pub config: GuestConfig,
    /// As in [`VmSpec`].
    pub layers: Vec<PathBuf>,
    /// As in [`VmSpec`]; the kind is the same with others.
    pub programs: Vec<String>,
}

/// A template that is there and fits, ready to be cloned.
pub(crate) struct Template {
    pub memory: File,
    pub state: File,
    pub places: usize,
    /// The writable disk as it was when the guest was saved, where that had it mounted.
    pub disk: Option<PathBuf>,
    /// For [`discard`].
    pub directory: PathBuf,
}

/// All that a template depends on.
pub(crate) struct Shape<'a> {
    parts: &'a Parts,
    /// The template's name.
    key: String,
    /// Bytes.
    memory: u64,
    cpus: u32,
    places: usize,
    mounted: bool,
    interfaces: usize,
    kind: Option<&'a InstanceKind>,
}

/// Whether a guest of this kind wants its writable disk mounted already: that is a new one of the usual size.
pub(crate) fn mounts(spec: &VmSpec) -> bool {
    spec.rw_size == 0 && !spec.rw_disk.exists()
}

/// Places for layers in a template that fits so many, beside so many network devices; few kinds of templates fit all
/// images.
pub(crate) fn places(layers: usize, interfaces: usize) -> usize {
    let others = OWN_DEVICES + SPARE_DEVICES + interfaces;
    layers.next_power_of_two().min(MAX_DEVICES.saturating_sub(others)).max(FEWEST_PLACES).max(layers)
}

impl<'a> Shape<'a> {
    /// What a guest needs for which this is wanted, made of these parts.
    pub fn new(parts: &'a Parts, wanted: &'a TemplateRequest) -> Result<Self, VmError> {
        let TemplateRequest { mounted, interfaces, .. } = *wanted;
        let (memory, cpus, kind) = (guest_memory(wanted.memory), wanted.cpus.max(1), wanted.kind.as_deref());
        let places = if kind.is_some() { wanted.layers } else { places(wanted.layers, interfaces) };
        let program = parts.qemu.program();
        let qemu = fs::metadata(program).map(|metadata| identity(program, &metadata));
        let key = key_of(&[
            FORMAT.to_owned(),
            parts.kernel.name(),
            // Its name is a checksum; where the store is does not matter.
            parts.initramfs.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            qemu.map_err(VmError::io(program))?,
            parts.accelerator.name().to_owned(),
            describe_cpu().to_owned(),
            format!("{memory} {cpus} {places} {mounted} {interfaces}"),
            kind.map(InstanceKind::describe).transpose()?.unwrap_or_default(),
        ]);
        Ok(Self { parts, key, memory, cpus, places, mounted, interfaces, kind })
    }

    /// Name of the template.
    pub fn key(&self) -> &str {
        &self.key
    }

    fn directory(&self) -> PathBuf {
        self.parts.store.path(DIRECTORY).join(&self.key)
    }

    /// Where it is told why the template could not be made.
    fn failure(&self) -> PathBuf {
        self.parts.store.path(DIRECTORY).join(format!("{}{FAILED}", self.key))
    }

    /// Whether a template is worth its making: one for all images always; that of a kind when this is not the first
    /// of its instances.
    pub fn is_worth_it(&self) -> bool {
        let seen = self.parts.store.path(DIRECTORY).join(format!("{}{SEEN}", self.key));
        // Where that cannot be noted, all are as the first.
        self.kind.is_none()
            || File::options().write(true).create_new(true).open(&seen).is_err() && seen.exists()
    }

    fn tsc_khz(&self) -> u64 {
        match self.parts.accelerator {
            Accelerator::Kvm { .. } => 0,
            Accelerator::Emulation { tsc_khz } => tsc_khz,
        }
    }
}

impl InstanceKind {
    fn describe(&self) -> Result<String, VmError> {
        let mut text =
            serde_json::to_string(&self.config).map_err(|error| VmError::io("kind")(error.into()))?;
        for layer in &self.layers {
            let metadata = fs::metadata(layer).map_err(VmError::io(layer))?;
            text.push_str(&identity(layer, &metadata));
        }
        Ok(text)
    }
}

/// Model, microcode and features of the host's first CPU, looked up once.
pub(crate) fn describe_cpu() -> &'static str {
    static CPU: OnceLock<String> = OnceLock::new();
    CPU.get_or_init(|| {
        // The kernel writes as much of it as is read; on a host with many CPUs all of it would take long.
        let mut bytes = Vec::new();
        if let Ok(file) = File::open("/proc/cpuinfo") {
            let _ = file.take(8192).read_to_end(&mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        let first = text.split("\n\n").next().unwrap_or_default();
        let wanted = ["vendor_id", "cpu family", "model", "stepping", "microcode", "flags"];
        let fixed = |line: &&str| wanted.iter().any(|name| line.starts_with(name));
        first.lines().filter(fixed).collect::<Vec<_>>().join("\n")
    })
}

impl Template {
    /// The template for this shape. One whose files are not what was saved is removed, with a line to `notice`.
    pub fn find(shape: &Shape, notice: &mut dyn FnMut(String)) -> Option<Self> {
        let directory = shape.directory();
        let info: TemplateInfo = shape.parts.store.read_json(directory.join(INFO_FILE))?;
        if info.tsc_khz.abs_diff(shape.tsc_khz()) > shape.tsc_khz() * CLOCK_TOLERANCE / 1_000_000 {
            return None;
        }
        match Self::open(&directory, &info) {
            Ok(template) => {
                template.mark_used();
                Some(template)
            }
            Err(error) => {
                notice(format!("a virtual machine's template cannot be used: {error}; booting instead"));
                discard(&directory);
                None
            }
        }
    }

    fn open(directory: &Path, info: &TemplateInfo) -> io::Result<Self> {
        let memory = File::open(directory.join(MEMORY))?;
        if base_identity(&memory.metadata()?) != info.memory_identity {
            return Err(io::Error::other("its memory was changed or replaced"));
        }
        let disk = info.disk_identity.as_ref().map(|_| directory.join(DISK));
        let found = disk.as_ref().map(|path| fs::metadata(path).map(|data| identity(Path::new(DISK), &data)));
        if found.transpose()? != info.disk_identity {
            return Err(io::Error::other("its disk was changed or replaced"));
        }
        let mut state = File::open(directory.join(STATE))?;
        let mut bytes = Vec::new();
        (&state).take(MOST_STATE).read_to_end(&mut bytes)?;
        if hex(&Sha256::digest(&bytes)) != info.state_sha256 {
            return Err(io::Error::other("its state was changed or replaced"));
        }
        state.rewind()?;
        Ok(Self { memory, state, places: info.places, disk, directory: directory.to_owned() })
    }

    /// The time of its description is the time of its last use.
    fn mark_used(&self) {
        let description = File::options().write(true).open(self.directory.join(INFO_FILE));
        // Where it fails, the template is taken to be older than it is.
        let _ = description.and_then(|file| file.set_modified(SystemTime::now()));
    }
}

/// Removes a template; clones that run keep what they have of it.
pub(crate) fn discard(directory: &Path) {
    // Without its description it is none any more, whatever becomes of the rest.
    let _ = fs::remove_file(directory.join(INFO_FILE));
    let _ = fs::remove_dir_all(directory);
}

/// Whether one should be made for this shape: not if that has failed since the host's boot.
pub(crate) fn is_wanted(shape: &Shape) -> bool {
    !is_of_this_boot(&shape.failure())
}

fn is_of_this_boot(failure: &Path) -> bool {
    fs::read_to_string(failure).is_ok_and(|text| text.starts_with(&boot_id()))
}

impl TemplateRequest {
    /// One for instances of this guest's kind alone, if there can be one.
    pub fn of_kind(spec: &VmSpec) -> Option<Self> {
        Self::fitting(spec).into_iter().find(|request| request.kind.is_some())
    }

    /// Memory of its guest, bytes.
    pub fn guest_memory(&self) -> u64 {
        guest_memory(self.memory)
    }

    /// What would fit this guest, the closest first.
    pub(crate) fn fitting(spec: &VmSpec) -> Vec<Self> {
        let for_all = Self::for_all(spec);
        // A container that is made already has no mounts of shares that come later.
        let has_kind = for_all.mounted && !for_all.sharing;
        let config = spec.kind.as_ref().filter(|_| has_kind).map(|config| (**config).clone());
        let layers =
            || spec.layers.iter().map(|path| fs::canonicalize(path).unwrap_or_else(|_| path.clone()));
        let kind = config.map(|config| {
            Box::new(InstanceKind { config, layers: layers().collect(), programs: spec.programs.clone() })
        });
        let of_kind = kind.map(|kind| Self { kind: Some(kind), ..for_all.clone() });
        of_kind.into_iter().chain([for_all]).collect()
    }

    fn for_all(spec: &VmSpec) -> Self {
        Self {
            kind: None,
            kernel: spec.kernel.clone(),
            agent: spec.agent.clone(),
            store: fs::canonicalize(&spec.store).unwrap_or_else(|_| spec.store.clone()),
            memory: spec.memory,
            cpus: spec.cpus,
            layers: spec.layers.len(),
            mounted: mounts(spec),
            interfaces: spec.taps.len(),
            sharing: spec.is_sharing(),
        }
    }

    /// Makes the template, unless it is there, or another is being made: then the next instance that boots asks for
    /// it again. Takes as long as a boot.
    ///
    /// # Errors
    /// A part is missing, or the guest did not boot; that is remembered, so that the next instance does not try it
    /// again.
    pub fn make(&self) -> Result<(), VmError> {
        let store = Store::open(&self.store)?;
        let Some(_lock) = lock(&store)? else { return Ok(()) };
        let spec = VmSpec {
            kernel: self.kernel.clone(),
            agent: self.agent.clone(),
            store: self.store.clone(),
            ..VmSpec::default()
        };
        let mut quiet = |_| {};
        let parts = Parts::find(&spec, self.sharing, &mut quiet)?;
        let shape = Shape::new(&parts, self)?;
        if Template::find(&shape, &mut quiet).is_some() {
            return Ok(());
        }
        let made = make(&shape);
        match &made {
            Ok(()) => drop(fs::remove_file(shape.failure())),
            Err(error) => drop(fs::write(shape.failure(), format!("{}\n{error}\n", boot_id()))),
        }
        remove_surplus(&store);
        made
    }
}

/// Nothing where somebody else has it.
fn lock(store: &Store) -> Result<Option<File>, VmError> {
    let path = store.path(LOCK_FILE);
    let file =
        File::options().create(true).append(true).mode(0o600).open(&path).map_err(VmError::io(&path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(errno) => return Err(VmError::io(&path)(errno.into())),
    }
    let id = std::process::id().to_string();
    file.set_len(0).and_then(|()| (&file).write_all(id.as_bytes())).map_err(VmError::io(&path))?;
    Ok(Some(file))
}

/// Under the lock: everything that is half-made is nobody's.
fn make(shape: &Shape) -> Result<(), VmError> {
    let partial = shape.parts.store.path(DIRECTORY).join(".new");
    let _ = fs::remove_dir_all(&partial);
    fs::DirBuilder::new().mode(0o700).create(&partial).map_err(VmError::io(&partial))?;
    let state = save(shape, &partial).inspect_err(|_| {
        // The room is wanted back; what stays is removed by the next.
        let _ = fs::remove_dir_all(&partial);
    })?;
    let memory_identity = base_identity(&settle(&partial, MEMORY)?);
    let disk = shape.mounted.then(|| settle(&partial, DISK)).transpose()?;
    let disk_identity = disk.map(|metadata| identity(Path::new(DISK), &metadata));
    let info = TemplateInfo {
        kernel: shape.parts.kernel.name(),
        memory: shape.memory,
        cpus: shape.cpus,
        places: shape.places,
        tsc_khz: shape.tsc_khz(),
        memory_identity,
        disk_identity,
        state_sha256: state,
    };
    let description = partial.join(INFO_FILE);
    let text = serde_json::to_vec_pretty(&info).map_err(|error| VmError::io(&description)(error.into()))?;
    fs::write(&description, text).map_err(VmError::io(&description))?;
    File::open(&description).and_then(|file| file.sync_all()).map_err(VmError::io(&description))?;
    let target = shape.directory();
    discard(&target);
    publish(&partial, &target)
}

/// Takes a file back from the VMM's user and sees it to the disk; what it is from now on.
fn settle(directory: &Path, name: &str) -> Result<fs::Metadata, VmError> {
    let path = directory.join(name);
    let failed = VmError::io(&path);
    let settle = || {
        let file = File::open(&path)?;
        rustix::fs::fchown(&file, Some(rustix::process::geteuid()), Some(rustix::process::getegid()))?;
        file.sync_all()?;
        file.metadata()
    };
    settle().map_err(failed)
}

/// Boots the guest with its memory in `directory`, stops it and saves its state there; the state's checksum.
fn save(shape: &Shape, directory: &Path) -> Result<String, VmError> {
    let (parts, id) = (shape.parts, format!("template-{}", shape.key));
    let disk = directory.join(DISK);
    let disk = shape.mounted.then(|| disk::open(&parts.store, &disk, DEFAULT_DISK)).transpose()?;
    let memory = directory.join(MEMORY);
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&memory)
        .map_err(VmError::io(&memory))?;
    file.set_len(shape.memory).map_err(VmError::io(&memory))?;
    let identity = user::identity(&id, &parts.accelerator).map_err(VmError::io(&memory))?;
    let user = rustix::process::Uid::from_raw(identity.id);
    rustix::fs::fchown(&file, Some(user), None).map_err(|errno| VmError::io(&memory)(errno.into()))?;
    let run_dir = directory.join("view");
    fs::create_dir(&run_dir).map_err(VmError::io(&run_dir))?;

    let (agent, agent_end) = UnixStream::pair().map_err(VmError::io("socketpair"))?;
    let (mut control, control_end) = Qmp::pair()?;
    let logs = Logs::new()?;
    let mut disks = vec![Disk::writable(disk.map(OwnedFd::from))];
    match shape.kind {
        Some(kind) => {
            for layer in kind.layers.iter().enumerate().map(|(number, path)| Disk::layer(number, path)) {
                disks.push(layer?);
            }
        }
        None => disks.extend((1..=shape.places).map(Disk::place)),
    }
    // What a device of the guest can do depends on what it is wired to.
    let taps = (0..shape.interfaces).map(|_| proa_sys::tap::open_detached().map(Arc::new));
    let origin = Origin::Template { memory };
    let machine = Machine {
        id,
        run_dir: run_dir.clone(),
        boots: Some((parts.kernel.image(), parts.initramfs.clone())),
        memory: shape.memory,
        cpus: shape.cpus,
        words: Vec::new(),
        accelerator: parts.accelerator.clone(),
        disks,
        shares: Vec::new(),
        taps: taps.collect::<io::Result<_>>().map_err(VmError::io("/dev/net/tun"))?,
        agent: agent_end.into(),
        control: control_end.into(),
        console: logs.console()?,
        errors: logs.errors()?,
        origin,
    };
    let vmm = parts.qemu.launch(&machine)?;
    drop(machine);
    prepare(&agent, shape).map_err(|why| logs.explain(why))?;
    rest(&agent, REST);
    let path = directory.join(STATE);
    let state = File::create_new(&path).map_err(VmError::io(&path))?;
    control.save(state.as_fd())?;
    drop(vmm);
    fs::remove_dir(&run_dir).map_err(VmError::io(&run_dir))?;
    state.sync_all().map_err(VmError::io(&path))?;
    let bytes = fs::read(&path).map_err(VmError::io(&path))?;
    Ok(hex(&Sha256::digest(&bytes)))
}

/// Until the agent of a guest that boots has answered that it is prepared; else why it has not.
fn prepare(stream: &UnixStream, shape: &Shape) -> Result<(), String> {
    let kind = shape.kind.map(|kind| Box::new(kind.config.clone()));
    let programs = shape.kind.map(|kind| kind.programs.clone()).unwrap_or_default();
    let wanted = Request::Prepare { mount: shape.mounted, interfaces: shape.interfaces, kind, programs };
    ask(stream, &wanted, BOOT_LIMIT)
}

/// Asks an agent, and waits until it has answered that it is done; else why it is not.
pub(crate) fn ask(mut stream: &UnixStream, wanted: &Request, limit: Duration) -> Result<(), String> {
    let told = |error: io::Error| error.to_string();
    wanted.frame(0).write_to(&mut stream).map_err(told)?;
    let deadline = Instant::now() + limit;
    let mut decoder = Decoder::new();
    let mut bytes = [0; 4096];
    loop {
        match decoder.next_frame() {
            Ok(Some(frame)) => return understand(&frame),
            Ok(None) => {}
            Err(error) => return Err(error.to_string()),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(format!("no answer within {} s", limit.as_secs())),
            Ok(_) => {}
            Err(errno) => return Err(errno.to_string()),
        }
        match stream.read(&mut bytes).map_err(told)? {
            0 => return Err("the virtual machine ended".to_owned()),
            count => decoder.push(&bytes[..count]),
        }
    }
}

/// Leaves the guest alone for a moment; its agent has nothing to say.
pub(crate) fn rest(stream: &UnixStream, moment: Duration) {
    let moment = Timespec::try_from(moment).unwrap_or_default();
    let _ = poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&moment));
}

fn understand(frame: &Frame) -> Result<(), String> {
    match (frame.kind, Response::parse(&frame.payload)) {
        (Kind::Response, Ok(Response::Ok)) => Ok(()),
        (Kind::Response, Ok(Response::Error { message, .. })) => Err(message),
        _ => Err("the agent gave another answer than was asked for".to_owned()),
    }
}

/// Removes what is too old or too much, the longest unused first, and failures that no longer count.
fn remove_surplus(store: &Store) {
    let Ok(entries) = fs::read_dir(store.path(DIRECTORY)) else { return };
    let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let is_failure = |path: &&PathBuf| path.to_string_lossy().ends_with(FAILED);
    let is_old = |path: &&PathBuf| {
        let changed = fs::metadata(path).and_then(|metadata| metadata.modified());
        changed.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > UNUSED))
    };
    let marks = paths.iter().filter(|path| path.to_string_lossy().ends_with(SEEN));
    marks.filter(is_old).for_each(|mark| _ = fs::remove_file(mark));
    for failure in paths.iter().filter(is_failure).filter(|path| !is_of_this_boot(path)) {
        // What cannot be removed now is tried again with the next template.
        let _ = fs::remove_file(failure);
    }
    let mut templates: Vec<(SystemTime, PathBuf)> = paths
        .into_iter()
        .filter_map(|path| Some((fs::metadata(path.join(INFO_FILE)).ok()?.modified().ok()?, path)))
        .collect();
    templates.sort();
    let surplus = templates.len().saturating_sub(KEPT);
    for (number, (used, path)) in templates.iter().enumerate() {
        if number < surplus || used.elapsed().is_ok_and(|unused| unused > UNUSED) {
            discard(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_kinds_of_templates_have_places_for_all_images() {
        let found = [1, 4, 5, 8, 9, 100, 129, 235].map(|layers| places(layers, 0));
        assert_eq!(found, [4, 4, 8, 8, 16, 128, 234, 235]);
        assert_eq!(places(129, 3), 231);
    }

    #[test]
    fn the_longest_unused_go_first_and_those_of_a_month_ago_all() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        let _lock = lock(&store).unwrap();
        let now = SystemTime::now();
        let make = |name: &str, age: Duration| {
            let directory = store.path(DIRECTORY).join(name);
            fs::create_dir(&directory).unwrap();
            let description = File::create(directory.join(INFO_FILE)).unwrap();
            description.set_modified(now - age).unwrap();
        };
        for number in 0..KEPT + 2 {
            make(&format!("t{number}"), Duration::from_secs(60 * number as u64));
        }
        make("ancient", UNUSED + Duration::from_secs(60));
        fs::write(store.path(DIRECTORY).join("u1.failed"), format!("{}\nwhy\n", boot_id())).unwrap();
        fs::write(store.path(DIRECTORY).join("u2.failed"), "another boot\nwhy\n").unwrap();
        remove_surplus(&store);
        let mut left: Vec<String> = fs::read_dir(store.path(DIRECTORY))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let kept = (0..KEPT).map(|number| format!("t{number}")).chain(["u1.failed".to_owned()]);
        let mut kept: Vec<String> = kept.collect();
        kept.sort();
        assert_eq!(left, kept);
    }
}
