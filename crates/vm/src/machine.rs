//! A running virtual machine, and the boundary behind which hypervisors differ.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, fs, io};

use proa_protocol::snapshot::GuestShape;
use proa_sys::bounded_log::BoundedLog;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::accelerator::Accelerator;
use crate::initramfs;
use crate::kernel::Kernel;
use crate::qemu::{MAX_DEVICES, OWN_DEVICES, Qemu};
use crate::qmp::Qmp;
use crate::resize::{MOST_SHARES, Size};
use crate::share::Share;
use crate::snapshot::Ground;
use crate::store::Store;
use crate::template::{self, Shape, Template, TemplateRequest};
use crate::{DEFAULT_DISK, DEFAULT_MEMORY, Extras, SPARE_DEVICES, VmError, VmSpec, disk, virtiofsd};

/// How long a guest may take until its first answer: many times what software emulation needs.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The same for a clone of a template, after which it is given up; it answers within a fraction of a second.
const CLONE_TIMEOUT: Duration = Duration::from_secs(15);
/// What a guest's kernel, its first files and the agent need beside the program.
const KERNEL_MEMORY: u64 = 128 * 1024 * 1024;
/// What is kept of the console, and of what the VMM and its helpers say.
const LOG_SIZE: u64 = 256 * 1024;
/// What an error quotes of each.
const QUOTED_LINES: usize = 6;
const QUOTED_WIDTH: usize = 200;
const QUOTED_BYTES: usize = 16 * 1024;
/// With these begins what is worth quoting.
const TELLING: &[&str] = &["Kernel panic - ", "BUG: ", "proa-agent: "];

/// What QEMU says of each spare network device, which is not what is wrong.
const USUAL: &str = "is not connected to host network";

/// A virtual machine to be started, with everything it uses open.
pub(crate) struct Machine {
    /// Instance id.
    pub id: String,
    /// The instance's runtime directory.
    pub run_dir: PathBuf,
    /// Kernel image and first files of what boots.
    pub boots: Option<(PathBuf, PathBuf)>,
    /// Bytes.
    pub memory: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Further words for the kernel's command line.
    pub words: Vec<String>,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// Raw disks.
    pub disks: Vec<Disk>,
    /// virtio-fs servers.
    pub shares: Vec<SharePort>,
    /// What network devices are wired to.
    pub taps: Vec<Arc<OwnedFd>>,
    /// The VMM's end of the connection to the agent.
    pub agent: OwnedFd,
    /// The VMM's end of its control socket.
    pub control: OwnedFd,
    /// Where the guest's serial port goes.
    pub console: OwnedFd,
    /// Standard error of the VMM.
    pub errors: OwnedFd,
    /// How it comes to life.
    pub origin: Origin,
}

impl Machine {
    /// Emulated guests of one CPU do without.
    pub fn has_acpi(&self) -> bool {
        self.cpus > 1 || matches!(self.accelerator, Accelerator::Kvm { .. })
    }

    /// CPUs that it can have one day: it hears of new ones by ACPI, and each takes memory of it before it is there.
    pub fn possible_cpus(&self) -> u32 {
        if self.has_acpi() { self.cpus * 2 } else { self.cpus }
    }
}

/// How a machine comes to life.
pub(crate) enum Origin {
    /// Its kernel boots.
    Boot,
    /// The same, with the memory of a file that is full of zeros, which can only be read.
    Blank { memory: OwnedFd },
    /// The same, with its memory in a file.
    Template { memory: PathBuf },
    /// It goes on where a template was saved. The memory's descriptor can only be read.
    Clone { memory: OwnedFd, state: OwnedFd },
    /// The same with memory of its own, which the servers of its shares have as well: a copy of the template's.
    Copy { memory: fs::File, template: fs::File, state: OwnedFd },
    /// It goes on where it was captured, when it has been given what that was. The same of the memory.
    Resume { memory: OwnedFd },
}

impl Origin {
    /// The state of a clone.
    pub fn state(&self) -> Option<&OwnedFd> {
        match self {
            Self::Clone { state, .. } | Self::Copy { state, .. } => Some(state),
            Self::Boot | Self::Blank { .. } | Self::Template { .. } | Self::Resume { .. } => None,
        }
    }
}

/// A raw disk of a guest, named by its serial number.
pub(crate) struct Disk {
    /// Where there is none, it is a place for one: larger than any and full of zeros.
    pub file: Option<OwnedFd>,
    pub serial: String,
    pub readonly: bool,
}

impl Disk {
    /// The writable disk, or a place for it.
    pub fn writable(file: Option<OwnedFd>) -> Self {
        Self { file, serial: "rw".to_owned(), readonly: false }
    }

    /// A layer, from the lowest upwards.
    pub fn layer(number: usize, path: &Path) -> Result<Self, VmError> {
        let file = fs::File::open(path).map_err(VmError::io(path))?;
        Ok(Self { file: Some(file.into()), serial: format!("layer{number}"), readonly: true })
    }

    /// A place for a layer.
    pub fn place(number: usize) -> Self {
        Self { file: None, serial: format!("none{number}"), readonly: true }
    }
}

/// A virtio-fs server of a guest.
pub(crate) struct SharePort {
    pub tag: String,
    pub socket: OwnedFd,
}

/// What differs between hypervisors: how a machine is brought to life. The rest of a guest's life is frames to
/// its agent and the end of the process.
pub(crate) trait Hypervisor {
    /// Starts the machine as a process that ends when the guest restarts or powers off.
    fn launch(&self, machine: &Machine) -> Result<Helper, VmError>;
}

/// A child process that is killed when it is dropped.
pub(crate) struct Helper {
    child: Child,
    pidfd: OwnedFd,
}

impl Helper {
    pub fn new(mut child: Child) -> io::Result<Self> {
        let pid = Pid::from_child(&child);
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, pidfd }),
            Err(errno) => {
                child.kill()?;
                child.wait()?;
                Err(errno.into())
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> Result<Option<VmExit>, VmError> {
        let status = self.child.try_wait().map_err(VmError::io("waiting for the VMM"))?;
        Ok(status.map(VmExit::from))
    }

    /// It fails for a process that has ended, which is what is wanted.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> Result<VmExit, VmError> {
        self.child.wait().map(VmExit::from).map_err(VmError::io("waiting for the VMM"))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Both fail only for a process that was reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a VMM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmExit {
    /// With this code; 0 after the guest powered itself off.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl fmt::Display for VmExit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(out, "exit code {code}"),
            Self::Signal(signal) => write!(out, "killed by signal {signal}"),
        }
    }
}

impl From<ExitStatus> for VmExit {
    fn from(status: ExitStatus) -> Self {
        match status.code() {
            Some(code) => Self::Code(code),
            None => Self::Signal(status.signal().unwrap_or_default()),
        }
    }
}

/// What the guest's console, and the VMM and its helpers, say.
pub(crate) struct Logs {
    console: BoundedLog,
    errors: BoundedLog,
}

impl Logs {
    pub fn new() -> Result<Self, VmError> {
        let log = || BoundedLog::new(LOG_SIZE).map_err(VmError::io("memfd"));
        Ok(Self { console: log()?, errors: log()? })
    }

    pub fn console(&self) -> Result<OwnedFd, VmError> {
        self.console.writer().try_clone().map_err(VmError::io("memfd"))
    }

    pub fn errors(&self) -> Result<OwnedFd, VmError> {
        self.errors.writer().try_clone().map_err(VmError::io("memfd"))
    }

    /// The error for a guest that did not come to life.
    pub fn explain(&self, why: String) -> VmError {
        VmError::Died { status: why, detail: self.detail() }
    }

    /// What a VMM that could not be started said of it, if anything.
    fn add_to(&self, error: VmError) -> VmError {
        match self.detail() {
            detail if detail.is_empty() => error,
            detail => VmError::Died { status: error.to_string(), detail },
        }
    }

    /// What the VMM said last, in one line.
    pub fn said(&self) -> Option<String> {
        let text = last_lines(&self.errors);
        text.lines().last().map(|line| line.trim_start_matches("qemu-system-x86_64: ").to_owned())
    }

    fn detail(&self) -> String {
        let parts = [("VMM", last_lines(&self.errors)), ("console", last_lines(&self.console))];
        let said = parts.into_iter().filter(|(_, text)| !text.is_empty());
        said.map(|(who, text)| format!("\n{who}: {}", text.replace('\n', &format!("\n{who}: ")))).collect()
    }
}

/// A virtual machine and the processes that carry it; dropping it kills them.
pub struct Vm {
    stream: UnixStream,
    // The servers outlive the VMM, which would complain of their end: fields are dropped in order.
    vmm: Helper,
    servers: Vec<Helper>,
    logs: Logs,
    /// Of which template it is a clone.
    clone: Option<CloneOf>,
    /// What would make a template that fits it better than what it has come from.
    wanted: Option<TemplateRequest>,
    pub(crate) control: Qmp,
    /// Network devices that it was started with; what follows them is spare.
    wired: usize,
    /// Memory and CPUs, those that came while it runs among them.
    pub(crate) size: Size,
    /// What it can be captured against.
    pub(crate) ground: Option<Ground>,
}

/// Where a clone has come from.
pub(crate) struct CloneOf {
    /// The template's.
    directory: PathBuf,
    /// Its writable disk, where that is the template's copy.
    disk: Option<PathBuf>,
    /// The container of its instance is made already.
    of_kind: bool,
}

impl Vm {
    /// Starts a virtual machine, from a template where there is one that fits, making first what it needs and the
    /// store lacks: kernel, initramfs, probe result, writable disk. Lines for the user's standard error go to
    /// `notice`. Does not wait for the guest.
    ///
    /// # Errors
    /// A part is missing or cannot be started; the message says what to do.
    pub fn start(spec: &VmSpec, notice: &mut dyn FnMut(String)) -> Result<Self, VmError> {
        check_shape(spec)?;
        virtiofsd::check(&spec.shares)?;
        let parts = Parts::find(spec, spec.is_sharing(), notice)?;
        if !may_be_cloned(spec) {
            return parts.boot(spec);
        }
        let mut wanted = None;
        for request in TemplateRequest::fitting(spec) {
            let shape = Shape::new(&parts, &request)?;
            if let Some(template) = Template::find(&shape, notice) {
                let (directory, mounted) = (template.directory.clone(), template.disk.is_some());
                let started = parts.restore(spec, template, request.kind.is_some()).or_else(|error| {
                    give_up_clone(&error, &directory, mounted.then_some(&*spec.rw_disk), notice)?;
                    parts.boot(spec)
                })?;
                return Ok(Self { wanted, ..started });
            }
            if shape.is_worth_it() && template::is_wanted(&shape) {
                wanted = Some(request);
            }
        }
        Ok(Self { wanted, ..parts.boot(spec)? })
    }

    /// Ends a clone that failed, removes its template, and boots a machine in its place. `notice` is told why.
    ///
    /// # Errors
    /// As for [`Vm::start`].
    pub fn boot_instead(
        &mut self,
        why: &VmError,
        spec: &VmSpec,
        notice: &mut dyn FnMut(String),
    ) -> Result<(), VmError> {
        self.kill();
        self.wait()?;
        if let Some(CloneOf { directory, disk, .. }) = &self.clone {
            give_up_clone(why, directory, disk.as_deref(), notice)?;
        }
        *self = Parts::find(spec, spec.is_sharing(), &mut |_| {})?.boot(spec)?;
        Ok(())
    }

    /// The error for a guest that does not do what it is asked.
    pub(crate) fn explain(&self, why: String) -> VmError {
        self.logs.explain(why)
    }

    /// Its writable disk is at another place than when it was started.
    pub(crate) fn belongs_to(&mut self, disk: PathBuf) {
        if let Some(clone) = &mut self.clone {
            clone.disk = Some(disk);
        }
    }

    /// Whether it goes on from a template; then [`Vm::boot_instead`] is the answer to its failure.
    pub fn is_clone(&self) -> bool {
        self.clone.is_some()
    }

    /// Whether its container is made already: then its agent is to be told [`GuestConfig::part`] alone.
    ///
    /// [`GuestConfig::part`]: proa_protocol::message::GuestConfig::part
    pub fn has_container(&self) -> bool {
        self.clone.as_ref().is_some_and(|clone| clone.of_kind)
    }

    /// What would make a template for the next one of this kind; given once.
    pub fn take_template_request(&mut self) -> Option<TemplateRequest> {
        self.wanted.take()
    }

    /// The connection to the guest's agent, non-blocking; carries frames.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Wires a spare network device to a tap.
    ///
    /// # Errors
    /// The VMM refuses, or does not answer within some seconds.
    pub fn plug(&mut self, device: usize, tap: BorrowedFd) -> Result<(), VmError> {
        self.control.plug(device, tap)
    }

    /// Cuts a network device off, and closes its tap. One that the guest was started with stays so.
    ///
    /// # Errors
    /// As for [`Vm::plug`].
    pub fn unplug(&mut self, device: usize) -> Result<(), VmError> {
        if device < self.wired { self.control.cut(device) } else { self.control.unplug(device) }
    }

    /// Process id of the VMM.
    pub fn pid(&self) -> u32 {
        self.vmm.pid()
    }

    /// Process ids of what serves its shares.
    pub fn helper_pids(&self) -> Vec<u32> {
        self.servers.iter().map(Helper::pid).collect()
    }

    /// Readable when the VMM has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.vmm.pidfd()
    }

    /// How the VMM ended, if it has.
    ///
    /// # Errors
    /// Waiting failed.
    pub fn try_wait(&mut self) -> Result<Option<VmExit>, VmError> {
        self.vmm.try_wait()
    }

    /// Kills the VMM and its helpers; `try_wait` and `wait` tell when the VMM is gone.
    pub fn kill(&mut self) {
        self.vmm.kill();
        self.servers.clear();
    }

    /// Waits until the VMM has ended.
    ///
    /// # Errors
    /// Waiting failed.
    pub fn wait(&mut self) -> Result<VmExit, VmError> {
        self.vmm.wait()
    }

    /// What the guest's kernel wrote to its console last: some lines, without control characters.
    pub fn console(&self) -> String {
        last_lines(&self.logs.console)
    }

    /// The error to report for a VMM that ended before its guest was asked to.
    pub fn died(&self, exit: VmExit) -> VmError {
        let status = match exit {
            VmExit::Code(0) => "the guest restarted or powered off".to_owned(),
            exit => exit.to_string(),
        };
        VmError::Died { status, detail: self.logs.detail() }
    }

    /// The error to report for a guest that has not answered within [`Vm::answer_timeout`].
    pub fn silent(&self) -> VmError {
        VmError::Silent { seconds: self.answer_timeout().as_secs(), detail: self.logs.detail() }
    }

    /// How long the guest may take until its first answer: one that has booted already answers soon or never.
    pub fn answer_timeout(&self) -> Duration {
        if self.is_clone() { CLONE_TIMEOUT } else { ANSWER_TIMEOUT }
    }
}

/// Removes a template that did not work, and the writable disk that came from it.
fn give_up_clone(
    why: &VmError,
    directory: &Path,
    disk: Option<&Path>,
    notice: &mut dyn FnMut(String),
) -> Result<(), VmError> {
    let why = why.to_string().lines().take(2).collect::<Vec<_>>().join("; ");
    notice(format!(
        "a virtual machine's template did not work ({why}); it was removed, and the machine boots instead"
    ));
    template::discard(directory);
    match disk.map(|disk| (disk, fs::remove_file(disk))) {
        // Nothing has been written to it that anybody could want.
        Some((disk, Err(error))) if error.kind() != io::ErrorKind::NotFound => Err(VmError::io(disk)(error)),
        _ => Ok(()),
    }
}

/// What a test adds to a guest, no template has; and there is room for so many shares.
pub(crate) fn may_be_cloned(spec: &VmSpec) -> bool {
    spec.templates && spec.extras == Extras::default() && spec.shares.len() <= MOST_SHARES
}

/// Memory for a guest that its VMM and the servers of its shares have in common. Nobody can take any of it away from the
/// others.
fn common_memory(bytes: u64) -> Result<fs::File, VmError> {
    let make = || {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create(c"memory", flags)?;
        rustix::fs::ftruncate(&file, bytes)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(file.into())
    };
    make().map_err(|errno: Errno| VmError::io("memory")(errno.into()))
}

/// What machines are made of, found or made.
pub(crate) struct Parts {
    pub qemu: Qemu,
    pub store: Store,
    pub kernel: Kernel,
    pub initramfs: PathBuf,
    pub accelerator: Accelerator,
    /// They stay where they are until this is closed.
    _share: fs::File,
}

impl Parts {
    /// Those of a guest that has shares, or has none.
    pub fn find(spec: &VmSpec, sharing: bool, notice: &mut dyn FnMut(String)) -> Result<Self, VmError> {
        let qemu = Qemu::find()?;
        let store = Store::open(&spec.store)?;
        let share = store.share()?;
        let kernel = Kernel::find(&store, spec.kernel.as_deref(), &spec.extras.modules, notice)?;
        let initramfs = initramfs::find(&store, &kernel, spec, sharing)?;
        let accelerator = Accelerator::find(&store, notice)?;
        Ok(Self { qemu, store, kernel, initramfs, accelerator, _share: share })
    }

    fn boot(&self, spec: &VmSpec) -> Result<Vm, VmError> {
        let size = or_default(spec.rw_size, DEFAULT_DISK);
        let writable = disk::open(&self.store, &spec.rw_disk, size)?;
        let launch = Launch {
            boots: Some((self.kernel.image(), self.initramfs.clone())),
            ..Launch::new(spec, Origin::Boot, open_disks(spec, writable)?)
        };
        let launch =
            if may_be_cloned(spec) && !spec.is_sharing() { self.captured_later(launch)? } else { launch };
        launch.run(&self.qemu, &self.accelerator)
    }

    /// The same with memory that is a change of nothing, so that it can be captured as a clone can.
    fn captured_later<'spec>(&self, launch: Launch<'spec>) -> Result<Launch<'spec>, VmError> {
        let blank = self.store.blank(launch.memory)?;
        let memory = blank.try_clone().map_err(VmError::io("memory"))?.into();
        let ground = self.ground(launch.spec, blank, launch.spec.layers.len());
        Ok(Launch { origin: Origin::Blank { memory }, ground: Some(ground), ..launch })
    }

    fn ground(&self, spec: &VmSpec, base: fs::File, places: usize) -> Ground {
        let shape = GuestShape {
            memory: guest_memory(spec.memory),
            cpus: spec.cpus.max(1),
            places,
            interfaces: spec.taps.len(),
            ..GuestShape::default()
        };
        Ground { base: base.into(), shape, accelerator: self.accelerator.clone() }
    }

    pub fn restore(&self, spec: &VmSpec, template: Template, of_kind: bool) -> Result<Vm, VmError> {
        let writable = match &template.disk {
            Some(disk) => disk::open_copy(disk, &spec.rw_disk)?,
            None => disk::open(&self.store, &spec.rw_disk, or_default(spec.rw_size, DEFAULT_DISK))?,
        };
        let mut disks = open_disks(spec, writable)?;
        disks.extend((disks.len()..=template.places).map(Disk::place));
        let state = template.state.into();
        let (origin, ground) = if spec.is_sharing() {
            let memory = common_memory(guest_memory(spec.memory))?;
            (Origin::Copy { memory, template: template.memory, state }, None)
        } else {
            let base = template.memory.try_clone().map_err(VmError::io(&template.directory))?;
            let ground = self.ground(spec, base, template.places);
            (Origin::Clone { memory: template.memory.into(), state }, Some(ground))
        };
        let disk = template.disk.map(|_| spec.rw_disk.clone());
        let launch = Launch {
            clone: Some(CloneOf { directory: template.directory, disk, of_kind }),
            ground,
            ..Launch::new(spec, origin, disks)
        };
        let mut vm = launch.run(&self.qemu, &self.accelerator)?;
        if spec.is_sharing() {
            vm.add_shares(&spec.shares).map_err(|error| vm.explain(error.to_string()))?;
        }
        Ok(vm)
    }
}

/// A machine that is about to be started.
pub(crate) struct Launch<'spec> {
    pub spec: &'spec VmSpec,
    /// Bytes.
    pub memory: u64,
    pub cpus: u32,
    /// As in [`Machine`].
    pub boots: Option<(PathBuf, PathBuf)>,
    pub origin: Origin,
    pub disks: Vec<Disk>,
    /// As in [`Vm`].
    pub clone: Option<CloneOf>,
    pub ground: Option<Ground>,
}

impl<'spec> Launch<'spec> {
    fn new(spec: &'spec VmSpec, origin: Origin, disks: Vec<Disk>) -> Self {
        Self {
            spec,
            memory: guest_memory(spec.memory),
            cpus: spec.cpus.max(1),
            boots: None,
            origin,
            disks,
            clone: None,
            ground: None,
        }
    }

    /// Starts it.
    pub fn run(self, qemu: &Qemu, accelerator: &Accelerator) -> Result<Vm, VmError> {
        let Self { spec, memory, cpus, boots, origin, disks, clone, ground } = self;
        let logs = Logs::new()?;
        let (shares, servers) = start_servers(spec, &logs.errors)?;
        let (stream, agent) = UnixStream::pair().map_err(VmError::io("socketpair"))?;
        stream.set_nonblocking(true).map_err(VmError::io("socketpair"))?;
        let (mut control, control_end) = Qmp::pair()?;
        if let Some(state) = origin.state() {
            control.order_restore(state.as_raw_fd())?;
        }
        let machine = Machine {
            id: spec.id.clone(),
            run_dir: spec.run_dir.clone(),
            boots,
            memory,
            cpus,
            words: spec.extras.words.clone(),
            accelerator: accelerator.clone(),
            disks,
            shares,
            taps: spec.taps.clone(),
            agent: agent.into(),
            control: control_end.into(),
            console: logs.console()?,
            errors: logs.errors()?,
            origin,
        };
        let vmm = qemu.launch(&machine).map_err(|error| logs.add_to(error))?;
        let (wired, size) = (spec.taps.len(), Size::of(&machine));
        Ok(Vm { stream, vmm, servers, logs, clone, wanted: None, control, wired, size, ground })
    }
}

/// What the guest gets for what its program may use.
pub(crate) fn guest_memory(limit: u64) -> u64 {
    match limit {
        0 => DEFAULT_MEMORY,
        limit => limit.saturating_add(KERNEL_MEMORY).next_multiple_of(1 << 20),
    }
}

/// A guest that the host cannot hold would start where the host overcommits, and end it later.
pub(crate) fn check_memory(bytes: u64) -> Result<(), VmError> {
    let host = rustix::system::sysinfo();
    let has = (host.totalram as u64).saturating_add(host.totalswap as u64) * u64::from(host.mem_unit);
    if bytes <= has {
        return Ok(());
    }
    let (bytes, has) = (bytes >> 20, has >> 20);
    Err(VmError::BadShape(format!(
        "a guest of {bytes} MiB does not fit a host of {has} MiB: give it less with -m"
    )))
}

fn check_shape(spec: &VmSpec) -> Result<(), VmError> {
    check_memory(guest_memory(spec.memory))?;
    if spec.layers.is_empty() {
        // CVE-2026-24054: an image without layers must not become something else.
        return Err(VmError::BadShape("the image has no layers".to_owned()));
    }
    let others = spec.taps.len() + SPARE_DEVICES + OWN_DEVICES;
    let devices = spec.layers.len() + spec.shares.len() + others;
    if devices > MAX_DEVICES {
        return Err(VmError::BadShape(format!(
            "{} layers and {} shares are more than the {} that a virtual machine can have",
            spec.layers.len(),
            spec.shares.len(),
            MAX_DEVICES - others
        )));
    }
    Ok(())
}

pub(crate) fn open_disks(spec: &VmSpec, writable: fs::File) -> Result<Vec<Disk>, VmError> {
    let mut disks = vec![Disk::writable(Some(writable.into()))];
    for (number, path) in spec.layers.iter().enumerate() {
        disks.push(Disk::layer(number, path)?);
    }
    Ok(disks)
}

fn start_servers(spec: &VmSpec, errors: &BoundedLog) -> Result<(Vec<SharePort>, Vec<Helper>), VmError> {
    let start = |share: &Share| {
        let (server, socket) = virtiofsd::start(share, &spec.run_dir, errors.writer())?;
        Ok((SharePort { tag: share.tag.clone(), socket }, server))
    };
    spec.shares.iter().map(start).collect()
}

fn or_default(value: u64, default: u64) -> u64 {
    if value == 0 { default } else { value }
}

/// The end of a log as text that cannot harm a terminal.
fn last_lines(log: &BoundedLog) -> String {
    plain_tail(&log.tail(QUOTED_BYTES))
}

fn plain_tail(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes)
        .chars()
        .map(|each| if each == '\n' || (' '..='~').contains(&each) { each } else { ' ' })
        .collect();
    let says = |line: &&str| !line.is_empty() && !line.contains(USUAL);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(says).collect();
    let last = lines.len().saturating_sub(QUOTED_LINES);
    // A panic is followed by pages of registers.
    let start =
        lines.iter().rposition(|line| TELLING.iter().any(|words| line.contains(words))).unwrap_or(last);
    let quoted: Vec<&str> = lines[start..].iter().take(QUOTED_LINES).map(|line| shorten(line)).collect();
    quoted.join("\n")
}

/// The text is ASCII by now.
fn shorten(line: &str) -> &str {
    &line[..line.len().min(QUOTED_WIDTH)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_said_cannot_harm_a_terminal() {
        let said = b"one\r\n\x1b[2J\x1b]0;title\x07two\n\n  three \xff\n";
        assert_eq!(plain_tail(said), "one\n[2J ]0;title two\nthree");
        let many: String = (0..100).map(|n| format!("{n}\n")).collect();
        assert_eq!(plain_tail(many.as_bytes()), "94\n95\n96\n97\n98\n99");
        let panic = format!("{many}[1.0] Kernel panic - not syncing: x\n{many}");
        assert_eq!(plain_tail(panic.as_bytes()), "[1.0] Kernel panic - not syncing: x\n0\n1\n2\n3\n4");
        assert_eq!(plain_tail("y".repeat(9000).as_bytes()).len(), QUOTED_WIDTH);
    }

    #[test]
    fn shapes_that_cannot_be_are_refused_before_anything_is_made() {
        let refusal = |change: &dyn Fn(&mut VmSpec)| {
            let mut spec = VmSpec { layers: vec!["/l".into()], ..VmSpec::default() };
            change(&mut spec);
            check_shape(&spec).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(refusal(&|_| {}), "");
        assert!(refusal(&|spec| spec.layers.clear()).contains("no layers"));
        assert!(refusal(&|spec| spec.layers = vec!["/l".into(); 300]).contains("300 layers"));
        assert!(refusal(&|spec| spec.memory = 1 << 50).contains("give it less with -m"));
    }
}
