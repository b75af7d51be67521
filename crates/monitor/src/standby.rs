//! A monitor that has a virtual machine before it has an instance.
//!
//! ```text
//!   monitor of an instance ─ start ─▶ --standby JSON detach ─ starts, ends ─▶ --standby JSON:
//!     its place is free ─▶ a clone that has rehearsed, and stands still ─▶ listens
//!         ─ who comes first tells it an instance ─▶ this is the instance's monitor
//!         ─ closes the connection; nobody comes for LIFETIME; the VMM has ended ─▶ end, nothing is left
//! ```
//!
//! There is one for a kind at most, and as many as the configuration says of all kinds: a new one puts the oldest out.
//! None is made where the host has little memory left, or where the last one of the kind could not be made since the host's boot.
//!
//! Invariants:
//! 1. Who holds the lock of a place owns all that is at it; a place whose lock is free is nobody's, and whoever makes another
//!    one clears it.
//! 2. It is an instance's from the moment that it has told so who came ([`WELCOME`]); nobody else has been or will be told.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime};

use proa_network::{Switch, Tap};
use proa_protocol::network::link_name;
use proa_protocol::standby::{
    ARGUMENT, DIRECTORY, FAILED, LOCK_FILE, SOCKET_FILE, Standby as Wish, VIEW, WELCOME, directory, disk, key,
};
use proa_sys::lock;
use proa_sys::sockets::in_directory;
use proa_vm::{Standby, StandbySpec, TemplateRequest, VmSpec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::args::Args;
use crate::error::{Error, IoAt};

/// After the request: have it done by another process.
const DETACH: &str = "detach";
/// For how long it is there for nobody.
const LIFETIME: Timespec = Timespec { tv_sec: 300, tv_nsec: 0 };
/// How long who has it may take to be told so.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is to be made, for the process that makes it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Wanted {
    root: PathBuf,
    run: PathBuf,
    agent: Option<PathBuf>,
    key: String,
    networks: usize,
    request: TemplateRequest,
}

/// A virtual machine that an instance can have.
pub struct Ready {
    pub machine: Standby,
    /// What it is wired to.
    pub taps: Vec<Tap>,
    /// Cleared when it is dropped: the machine must have been taken by then.
    pub place: Place,
}

impl Ready {
    /// Whether it can be had by an instance with so many networks; then its taps are the instance's.
    pub fn fits(&self, spec: &mut VmSpec, networks: usize) -> bool {
        spec.taps = self.taps.iter().map(Tap::cable).collect();
        networks == self.taps.len() && self.machine.fits(spec)
    }
}

/// Has one made for the next instance of this kind, if there should be one, and does not wait for it.
pub fn start(args: &Args, wish: &Wish, networks: usize, request: &TemplateRequest) {
    let wanted = Wanted {
        root: args.root.clone(),
        run: args.run.clone(),
        agent: args.agent.clone(),
        key: key(&wish.kind),
        networks,
        request: request.clone(),
    };
    if !wanted.is_possible() || !make_room(&args.run, &wanted.key, wish.most as usize) {
        return;
    }
    let Ok(text) = serde_json::to_string(&wanted) else { return };
    // Without one the next instance starts as this one did.
    let _ = own_command(text.as_ref()).arg(DETACH).status();
}

/// The whole of such a process: `serve` is given the client that has come, and what it has come for.
pub fn run(
    mut arguments: impl Iterator<Item = OsString>,
    serve: impl FnOnce(Args, UnixStream, Ready) -> ExitCode,
) -> ExitCode {
    let text = arguments.next().unwrap_or_default();
    let Ok(wanted) = serde_json::from_slice::<Wanted>(text.as_encoded_bytes()) else {
        return ExitCode::from(125);
    };
    if arguments.next().is_some_and(|last| last == DETACH) {
        let _ = rustix::process::setsid();
        return if own_command(&text).spawn().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let _ = rustix::thread::set_name(c"proa-standby");
    let _ = rustix::process::chdir("/");
    proa_sys::signals::default_library_signals();
    match wanted.stand_by() {
        Ok(Some((client, ready))) => {
            let Wanted { root, run, agent, .. } = wanted;
            serve(Args { root, run, agent, ..Args::default() }, client, ready)
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// It keeps the seal of the program that it gets as standard input, as every monitor does.
fn own_command(text: &std::ffi::OsStr) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("proa-monitor").arg(ARGUMENT).arg(text);
    command.stdin(Stdio::inherit()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Wanted {
    fn is_possible(&self) -> bool {
        let is_there = lock::is_held(&directory(&self.run, &self.key).join(LOCK_FILE)).unwrap_or(true);
        !is_there && !self.failure().exists() && has_memory_for(self.request.guest_memory())
    }

    /// Where it is told why it could not be made.
    fn failure(&self) -> PathBuf {
        self.run.join(DIRECTORY).join(format!("{}{FAILED}", self.key))
    }

    /// Makes it and waits for who wants it.
    fn stand_by(&self) -> Result<Option<(UnixStream, Ready)>, Error> {
        let Some(place) = Place::take(self)? else { return Ok(None) };
        clear_others(&self.root, &self.run);
        let ready = match self.make(place) {
            Ok(Some(ready)) => ready,
            Ok(None) => return Ok(None),
            Err(error) => {
                // The next instance of the kind is not to try the same again.
                let _ = fs::write(self.failure(), format!("{error}\n"));
                return Err(error);
            }
        };
        let listener = ready.place.listen()?;
        Ok(wait(listener, &ready.machine)?.map(|client| (client, ready)))
    }

    fn make(&self, place: Place) -> Result<Option<Ready>, Error> {
        // One that was taken goes on under its name, and as its user, when the next one is there.
        let name = random_name()?;
        let switch = if self.networks == 0 { Switch::Gone } else { Switch::of(&self.run) };
        let tap = |number| Tap::make(&switch, link_name(&name, number));
        let taps: Vec<Tap> = (0..self.networks).map(tap).collect::<Result<_, _>>()?;
        let spec = StandbySpec {
            id: format!("standby-{name}"),
            view: place.directory.join(VIEW),
            disk: place.disk.clone(),
            taps: taps.iter().map(Tap::cable).collect(),
        };
        let Some(mut machine) = Standby::start(&self.request, spec)? else { return Ok(None) };
        machine.get_ready()?;
        Ok(Some(Ready { machine, taps, place }))
    }
}

/// Of as many digits as make the name of a link.
fn random_name() -> Result<String, Error> {
    let mut bytes = [0; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).at("/dev/urandom".as_ref())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Waits for the first who comes, and tells that one so.
fn wait(listener: UnixListener, machine: &Standby) -> Result<Option<UnixStream>, Error> {
    let at = Path::new(SOCKET_FILE);
    loop {
        let mut fds =
            [PollFd::new(&listener, PollFlags::IN), PollFd::from_borrowed_fd(machine.pidfd(), PollFlags::IN)];
        match poll(&mut fds, Some(&LIFETIME)) {
            Ok(0) => return Ok(None),
            Err(Errno::INTR) => continue,
            other => other.at(at)?,
        };
        if !fds[1].revents().is_empty() {
            return Ok(None);
        }
        let (mut client, _) = listener.accept().at(at)?;
        client.set_write_timeout(Some(PATIENCE)).at(at)?;
        // Who has gone again wanted its end.
        let is_told = client.write_all(&[WELCOME]).is_ok();
        client.set_write_timeout(None).at(at)?;
        return Ok(is_told.then_some(client));
    }
}

/// The place of one, with its lock.
pub struct Place {
    directory: PathBuf,
    disk: PathBuf,
    _lock: File,
}

impl Place {
    /// Nothing where somebody else has it.
    fn take(wanted: &Wanted) -> Result<Option<Self>, Error> {
        let (directory, disk) = (directory(&wanted.run, &wanted.key), disk(&wanted.root, &wanted.key));
        let make = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path).at(path);
        let path = directory.join(LOCK_FILE);
        loop {
            make(&directory)?;
            let file = match File::options().create(true).append(true).open(&path) {
                // Somebody is clearing it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.at(&path)?,
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if lock::is_unlinked(&file) => continue,
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error).at(&path),
            }
            file.set_len(0)
                .and_then(|()| (&file).write_all(std::process::id().to_string().as_bytes()))
                .at(&path)?;
            // What one that died has left.
            let _ = fs::remove_file(directory.join(SOCKET_FILE));
            make(&directory.join(VIEW))?;
            if let Some(parent) = disk.parent() {
                make(parent)?;
            }
            return Ok(Some(Self { directory, disk, _lock: file }));
        }
    }

    fn listen(&self) -> Result<UnixListener, Error> {
        let path = self.directory.join(SOCKET_FILE);
        in_directory(&self.directory, SOCKET_FILE, |path| UnixListener::bind(path)).at(&path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What cannot be removed is found by who makes the next one. A disk that an instance has got is not there any more.
        let _ = fs::remove_file(&self.disk);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Removes what those have left that died.
fn clear_others(root: &Path, run: &Path) {
    for (directory, _) in places(run).into_iter().filter(|(path, _)| !is_held(path)) {
        let Ok(file) = File::open(directory.join(LOCK_FILE)) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && !lock::is_unlinked(&file) {
            let _ = fs::remove_dir_all(&directory);
        }
    }
    let disks = fs::read_dir(root.join(DIRECTORY)).into_iter().flatten().flatten();
    for disk in disks.map(|entry| entry.path()) {
        let owner = disk.file_stem().map(|key| run.join(DIRECTORY).join(key));
        if owner.is_some_and(|owner| !owner.exists()) {
            let _ = fs::remove_file(disk);
        }
    }
}

/// Whether one more may be: where there are as many as may be, the oldest is put out, if it can be had.
fn make_room(run: &Path, key: &str, most: usize) -> bool {
    let mut others = places(run);
    others.retain(|(path, _)| !path.ends_with(key) && is_held(path));
    if most == 0 || others.len() < most {
        return most > 0;
    }
    others.sort_by_key(|(_, since)| *since);
    let connect = |path: &Path| UnixStream::connect(path).map(drop);
    others.first().is_some_and(|(path, _)| in_directory(path, SOCKET_FILE, connect).is_ok())
}

/// All places, and since when they are.
fn places(run: &Path) -> Vec<(PathBuf, SystemTime)> {
    let entries = fs::read_dir(run.join(DIRECTORY)).into_iter().flatten().flatten();
    let since = |path: PathBuf| Some((fs::metadata(path.join(LOCK_FILE)).ok()?.modified().ok()?, path));
    entries.filter_map(|entry| since(entry.path())).map(|(since, path)| (path, since)).collect()
}

fn is_held(place: &Path) -> bool {
    lock::is_held(&place.join(LOCK_FILE)).unwrap_or(true)
}

/// Whether the host can do without it: it has as much as the guest may use, and an eighth of all beside.
fn has_memory_for(guest: u64) -> bool {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    let (total, available) = (bytes("MemTotal:"), bytes("MemAvailable:"));
    total.zip(available).is_some_and(|(total, available)| available > guest.saturating_add(total / 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_one_owner_and_what_the_dead_have_left_is_cleared() {
        let base = tempfile::tempdir().unwrap();
        let wanted = |key: &str| Wanted {
            root: base.path().join("root"),
            run: base.path().join("run"),
            agent: None,
            key: key.to_owned(),
            networks: 0,
            request: serde_json::from_str(
                r#"{"kernel":null,"agent":"","store":"","memory":0,"cpus":0,"layers":0,"mounted":true}"#,
            )
            .unwrap(),
        };
        let (one, two) = (wanted("one"), wanted("two"));
        let place = Place::take(&one).unwrap().unwrap();
        assert!(Place::take(&one).unwrap().is_none());
        // The other one died.
        let dead = Place::take(&two).unwrap().unwrap();
        fs::write(&dead.disk, "").unwrap();
        let (left, disk) = (dead.directory.clone(), dead.disk.clone());
        let Place { _lock, .. } = &*std::mem::ManuallyDrop::new(dead);
        flock(_lock, FlockOperation::Unlock).unwrap();
        clear_others(&one.root, &one.run);
        assert!(!left.exists() && !disk.exists() && place.directory.exists());
        assert!(make_room(&one.run, "three", 2) && !make_room(&one.run, "three", 0));
        // The only one that may be does not listen yet.
        assert!(!make_room(&one.run, "three", 1));
        let _listener = place.listen().unwrap();
        assert!(make_room(&one.run, "three", 1));
        let directory = place.directory.clone();
        drop(place);
        assert!(!directory.exists());
    }
}
