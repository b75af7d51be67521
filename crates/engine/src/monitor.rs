//! Starting monitors, finding them, and knowing whether they live.
//!
//! A monitor holds `monitor.lock` for as long as it lives; whoever gets that lock knows that there is none.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use proa_image::{Event, Progress};
use proa_protocol::instance::{IsolationLevel, LOCK_FILE, SOCKET_FILE};
use proa_protocol::kernel::{ADD_ARGUMENT, AddKernel, PRUNE_ARGUMENT, PruneKernels, Pruned};
use proa_protocol::machine::{DiskImport, DiskImported, IMPORT_ARGUMENT};
use proa_protocol::snapshot::{CHECK_ARGUMENT, Check, PACK_ARGUMENT, Pack};
use proa_protocol::standby::Standby;
use proa_sys::seal::Sealed;
use proa_sys::sockets::in_directory;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;

use crate::channel::Channel;
use crate::error::{Error, Result};
use crate::paths::Paths;
use crate::{names, standby};

/// How often it is looked how far a long work has come.
const LOOK: Duration = Duration::from_millis(200);

/// The programs that belong to us.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `proa-monitor`.
    pub monitor: PathBuf,
    /// `proa-agent`, which monitors put into guests.
    pub agent: PathBuf,
    /// `proa-resolver`, which answers names in networks.
    pub resolver: PathBuf,
    /// This program, to which monitors leave the removal of instances.
    pub own: PathBuf,
}

/// What a monitor is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// To run the instance.
    Run,
    /// To run it again by itself, if it is due.
    Again,
    /// To work on the files of an instance that does not run.
    Maintenance,
}

/// The monitor gets its own seal as standard input, and so keeps it open for as long as it lives. It reads nothing
/// there; but closing the last descriptor of a cloned mount waits for the kernel to let go of it, which takes
/// milliseconds that nobody but the ended monitor ought to wait.
///
/// It goes to `/` by itself: with a directory to go to, the standard library forks, which copies this process's page
/// tables, where it can otherwise run the program from shared memory.
fn command(programs: &Programs, paths: &Paths, sealed: &Sealed) -> std::io::Result<Command> {
    let mut command = Command::new(sealed.path());
    command.arg0("proa-monitor").arg("--root").arg(&paths.root).arg("--run").arg(&paths.run);
    command.arg("--agent").arg(&programs.agent);
    command.stdin(sealed.as_fd().try_clone_to_owned()?).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command)
}

fn seal(programs: &Programs) -> Result<Sealed> {
    Sealed::open(&programs.monitor).map_err(|error| Error::io("run", &programs.monitor, error))
}

/// A monitor that was started before it is known for which instance: it ends where nobody tells it. Or one that will be
/// started when that is known.
#[derive(Debug)]
pub struct Waiting {
    socket: Option<UnixStream>,
}

impl Waiting {
    /// Tells it the instance, and returns the conversation with it. One that has not been started yet is one that stands
    /// by for such an instance, or is started now.
    ///
    /// # Errors
    /// It is gone, or the program cannot be run.
    pub(crate) fn serve(
        self,
        programs: &Programs,
        paths: &Paths,
        (id, wish): (&str, Option<&Standby>),
        notice: fn(&str),
    ) -> Result<Channel> {
        let socket = self.socket.or_else(|| standby::claim(paths, wish?));
        let Some(mut socket) = socket else { return spawn(programs, paths, id, Mode::Run, notice) };
        let sent = socket.write_all(id.as_bytes());
        sent.map_err(|_| Error::MonitorGone(names::short(id).to_owned()))?;
        Ok(Channel::new(socket, id, notice))
    }
}

/// Starts a monitor that is to run an instance: it gets ready while the instance is made. Where it may be that none is needed,
/// since a virtual machine stands by that has one, that is left for later.
///
/// # Errors
/// The program cannot be run.
pub fn spawn_waiting(programs: &Programs, paths: &Paths, level: IsolationLevel) -> Result<Waiting> {
    if level == IsolationLevel::Vm && standby::is_any(paths) {
        return Ok(Waiting { socket: None });
    }
    spawn_with(programs, paths, |_| {}).map(|socket| Waiting { socket: Some(socket) })
}

/// Starts a monitor and returns the conversation with it.
///
/// # Errors
/// The program cannot be run.
pub fn spawn(programs: &Programs, paths: &Paths, id: &str, mode: Mode, notice: fn(&str)) -> Result<Channel> {
    let socket = spawn_with(programs, paths, |command| {
        command.args(["--id", id]);
        match mode {
            Mode::Run => {}
            Mode::Again => _ = command.arg("--again"),
            Mode::Maintenance => _ = command.arg("--maintenance"),
        }
    })?;
    Ok(Channel::new(socket, id, notice))
}

fn spawn_with(programs: &Programs, paths: &Paths, complete: impl FnOnce(&mut Command)) -> Result<UnixStream> {
    let failed = |error: std::io::Error| Error::io("run", &programs.monitor, error);
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let sealed = seal(programs)?;
    let mut command = command(programs, paths, &sealed).map_err(failed)?;
    command.arg("--client").stdout(OwnedFd::from(theirs));
    complete(&mut command);
    command.spawn().map_err(failed)?;
    Ok(ours)
}

/// Lets a monitor finish what one that died has left.
///
/// # Errors
/// It does not manage.
pub fn repair(programs: &Programs, paths: &Paths, id: &str) -> Result<()> {
    let failed = |error| Error::io("run", &programs.monitor, error);
    let sealed = seal(programs)?;
    let mut command = command(programs, paths, &sealed).map_err(failed)?;
    let output = command.args(["--id", id, "--repair"]).stderr(Stdio::piped()).output().map_err(failed)?;
    answer(output).map(drop).map_err(|complaint| {
        Error::conflict(format!("cannot repair instance {}: {complaint}", names::short(id)), "")
    })
}

/// Has a disk image made a disk of ours, and waits for that.
///
/// # Errors
/// The image cannot be read, or is refused.
pub fn import_disk(
    programs: &Programs,
    import: &DiskImport,
    progress: &dyn Progress,
) -> Result<DiskImported> {
    let imported = watched(import, progress, || errand(programs, IMPORT_ARGUMENT, import))?
        .map_err(|complaint| Error::invalid(format!("cannot use the disk {complaint}")))?;
    serde_json::from_slice(&imported)
        .map_err(|error| Error::io("run", &programs.monitor, std::io::Error::other(error)))
}

/// Tells how far an import has come, as long as the work lasts.
fn watched<T>(import: &DiskImport, progress: &dyn Progress, work: impl FnOnce() -> T) -> T {
    let bytes = |path: &Path| path.metadata().map_or(0, |metadata| metadata.blocks() * 512);
    let (total, partial) = (bytes(&import.source), import.partial());
    std::thread::scope(|scope| {
        let (lasts, ended) = mpsc::channel::<()>();
        scope.spawn(move || {
            while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let done = bytes(&partial);
                // What is packed in the image takes more room in the disk.
                progress.event(Event::DiskBytes { work: "import", done, total: total.max(done) });
            }
        });
        let result = work();
        drop(lasts);
        let done = bytes(&import.target);
        progress.event(Event::DiskBytes { work: "import", done, total: done });
        result
    })
}

/// Has a kernel kept under a name, and waits for that.
///
/// # Errors
/// The name is taken, or it is no kernel that guests can boot.
pub fn add_kernel(programs: &Programs, kernel: &AddKernel) -> Result<()> {
    errand(programs, ADD_ARGUMENT, kernel)?.map(drop).map_err(Error::invalid)
}

/// Has kernels removed that nothing needs, and waits for that; what it was.
///
/// # Errors
/// One cannot be removed.
pub fn prune_kernels(programs: &Programs, wanted: &PruneKernels) -> Result<Vec<Pruned>> {
    let said = errand(programs, PRUNE_ARGUMENT, wanted)?;
    let said =
        said.map_err(|complaint| Error::conflict(format!("cannot remove kernels: {complaint}"), ""))?;
    let failed = |error: serde_json::Error| {
        Error::io("read what was said by", &programs.monitor, std::io::Error::from(error))
    };
    serde_json::from_slice(&said).map_err(failed)
}

/// Has raw copies of a virtual machine made a snapshot, and waits for that.
///
/// # Errors
/// They cannot be read, or the snapshot cannot be written.
pub fn pack_snapshot(programs: &Programs, pack: &Pack) -> Result<()> {
    errand(programs, PACK_ARGUMENT, pack)?
        .map(drop)
        .map_err(|complaint| Error::conflict(format!("cannot make the snapshot: {complaint}"), ""))
}

/// Has it looked whether a virtual machine can go on from a snapshot, and waits for that.
///
/// # Errors
/// It cannot.
pub fn check_snapshot(programs: &Programs, check: &Check) -> Result<()> {
    errand(programs, CHECK_ARGUMENT, check)?.map(drop).map_err(|complaint| Error::conflict(complaint, ""))
}

/// Runs the monitor's program for what the engine links no hypervisor for; what it printed, or its complaint.
fn errand(
    programs: &Programs,
    argument: &str,
    wanted: &impl Serialize,
) -> Result<std::result::Result<Vec<u8>, String>> {
    let failed = |error| Error::io("run", &programs.monitor, error);
    let sealed = seal(programs)?;
    let json = serde_json::to_string(wanted).map_err(|error| failed(std::io::Error::other(error)))?;
    let mut command = Command::new(sealed.path());
    command.arg0("proa-monitor").args([argument, &json]).stdin(Stdio::null());
    Ok(answer(command.output().map_err(failed)?))
}

fn answer(output: Output) -> std::result::Result<Vec<u8>, String> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// Connects to the monitor of an instance; `None` where there is none.
///
/// # Errors
/// The socket is there but cannot be used.
pub fn connect(paths: &Paths, id: &str, notice: fn(&str)) -> Result<Option<Channel>> {
    let directory = paths.instance_run(id);
    let path = directory.join(SOCKET_FILE);
    match in_directory(&directory, SOCKET_FILE, |path| UnixStream::connect(path)) {
        Ok(socket) => Ok(Some(Channel::new(socket, id, notice))),
        Err(error) => match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => Ok(None),
            _ => Err(Error::io("connect to", &path, error)),
        },
    }
}

/// Proof that an instance has no monitor, for as long as it is held.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes the monitor's lock if it is free.
///
/// # Errors
/// The lock's file cannot be opened.
pub fn try_lock(paths: &Paths, id: &str) -> Result<Option<Lock>> {
    let directory = paths.instance_run(id);
    loop {
        let file = open_lock(&directory)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Whoever held it may have removed the instance, and this file with it.
            Ok(()) if proa_sys::lock::is_unlinked(&file) => {}
            Ok(()) => return Ok(Some(Lock { _file: file })),
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io("lock", &directory.join(LOCK_FILE), errno)),
        }
    }
}

/// Whether an instance has a monitor. Makes no file, and is quick where there is one.
///
/// # Errors
/// The lock's file cannot be opened.
pub fn is_there(paths: &Paths, id: &str) -> Result<bool> {
    let path = paths.instance_run(id).join(LOCK_FILE);
    proa_sys::lock::is_held(&path).map_err(|error| Error::io("lock", &path, error))
}

fn open_lock(directory: &Path) -> Result<File> {
    let path = directory.join(LOCK_FILE);
    loop {
        match OpenOptions::new().create(true).append(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
                made.map_err(|error| Error::io("make directory", directory, error))?;
            }
            other => return other.map_err(|error| Error::io("open", &path, error)),
        }
    }
}
