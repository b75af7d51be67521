//! Making a container of a bundle: what `create` and `run` have in common.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use proa_oci::runtime::{Process, Spec};
use proa_runtime::{CgroupPolicy, Container, Create, Detach, Handles, Rootfs, Stdio, gate};

use crate::args::{Opt, Parsed, flag, value};
use crate::console;
use crate::error::{Failure, Result};
use crate::global::{Global, absolute};
use crate::store::{Entry, Lock, Saved};

/// Options that `create` and `run` share.
pub const OPTIONS: &[Opt] = &[
    value("bundle").or('b'),
    value("console-socket"),
    value("pid-file"),
    value("preserve-fds"),
    flag("no-pivot"),
    flag("no-new-keyring"),
    // Nobody's parent but its own children's: there is nothing to switch off.
    flag("no-subreaper"),
];

/// What is to be made.
#[derive(Debug)]
pub struct Wish<'a> {
    /// The container's id.
    pub id: &'a str,
    /// Let its first process wait for `start`.
    pub gated: bool,
    /// This process stays, and has its streams or its terminal.
    pub foreground: bool,
    bundle: PathBuf,
    console_socket: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    preserve_fds: Vec<u32>,
    no_pivot: bool,
    no_new_keyring: bool,
}

/// What was made.
pub struct Launched {
    /// Its directory.
    pub entry: Entry,
    /// Held while it is made.
    pub lock: Lock,
    /// The container, before its release.
    pub container: Container,
    /// Its terminal, if it is ours.
    pub handles: Handles,
    /// Its spec.
    pub spec: Spec,
    /// What was written down.
    pub saved: Saved,
}

impl<'a> Wish<'a> {
    /// Reads the options.
    ///
    /// # Errors
    /// One of them makes no sense.
    pub fn new(parsed: &'a Parsed, gated: bool, foreground: bool) -> Result<Self> {
        let path = |name| parsed.get(name).filter(|path| !path.is_empty()).map(absolute).transpose();
        Ok(Self {
            id: parsed.id()?,
            gated,
            foreground,
            bundle: path("bundle")?.map_or_else(|| absolute("."), Ok)?,
            console_socket: path("console-socket")?,
            pid_file: path("pid-file")?,
            preserve_fds: preserved(parsed)?,
            no_pivot: parsed.is("no-pivot"),
            no_new_keyring: parsed.is("no-new-keyring"),
        })
    }

    /// Makes the container. Its first process waits to be released.
    ///
    /// # Errors
    /// Says what failed; nothing is left.
    pub fn launch(&self, global: &Global) -> Result<Launched> {
        let text = read_config(&self.bundle)?;
        let mut spec: Spec = serde_json::from_slice(&text).map_err(|error| {
            Failure::new(format!("{}: {error}", self.bundle.join("config.json").display()))
        })?;
        check_version(&spec)?;
        pass_listeners(spec.process.as_mut());
        let stdio = self.stdio(&spec)?;
        let (entry, lock) = global.store.claim(self.id)?;
        let made = self.make(global, &entry, &spec, &text, stdio);
        match made {
            Ok((container, handles, saved)) => {
                global.warn(container.warnings());
                Ok(Launched { entry, lock, container, handles, spec, saved })
            }
            Err(failure) => {
                // What failed first is what counts.
                forget_scope(self.id, &spec, global.cgroup);
                let _ = entry.remove();
                Err(failure)
            }
        }
    }

    fn make(
        &self,
        global: &Global,
        entry: &Entry,
        spec: &Spec,
        text: &[u8],
        stdio: Stdio,
    ) -> Result<(Container, Handles, Saved)> {
        entry.save_spec(text)?;
        let root = spec.root.as_ref().ok_or_else(|| Failure::new("config.json has no root"))?;
        let rootfs = self.bundle.join(&root.path);
        let gate = if self.gated { Some(gate::listen(entry.dir())?) } else { None };
        let detach = Detach {
            gate,
            preserve_fds: self.preserve_fds.clone(),
            no_pivot: self.no_pivot,
            no_new_keyring: self.no_new_keyring,
            ..Detach::default()
        };
        let create = Create {
            id: self.id,
            spec,
            rootfs: Rootfs::Directory(rootfs.clone()),
            user: "",
            stdio,
            init: false,
            cgroup: global.cgroup,
            interfaces: None,
            bundle: &self.bundle,
            nodev: false,
            taken: &[],
            shares_memory: false,
        };
        // Paths in the spec are relative to the bundle.
        rustix::process::chdir(&self.bundle).map_err(|errno| Failure::at(&self.bundle, errno))?;
        let systemd = matches!(global.cgroup, CgroupPolicy::Systemd(_));
        let mount_before = proa_runtime::mount_before(spec, &rootfs)?;
        let mut saved = Saved { systemd, mount_before, ..Saved::new(self.id, spec, &self.bundle, rootfs) };
        let mut written = Ok(());
        let result = Container::create_detached(&create, &detach, |container| {
            saved.pid = container.pid();
            saved.start_ticks = container.start_ticks()?;
            written = entry.save(&saved);
            match &written {
                Ok(()) => Ok(()),
                Err(failure) => Err(proa_runtime::Error::new(
                    proa_protocol::message::ErrorKind::Internal,
                    failure.to_string(),
                )),
            }
        });
        let (container, handles) = result.inspect_err(|_| {
            // What failed first is what counts.
            let _ = saved.unmount();
        })?;
        match self.hand_over(&container, &handles) {
            Ok(()) => Ok((container, handles, saved)),
            Err(failure) => {
                let _ = container.delete();
                let _ = saved.unmount();
                Err(failure)
            }
        }
    }

    /// Gives the engine what it waits for: the terminal, the process id.
    fn hand_over(&self, container: &Container, handles: &Handles) -> Result<()> {
        if let (Some(socket), Some(master)) = (&self.console_socket, &handles.terminal) {
            console::send(socket, master.as_fd())?;
        }
        self.pid_file.as_deref().map_or(Ok(()), |path| write_pid_file(path, container.pid()))
    }

    fn stdio(&self, spec: &Spec) -> Result<Stdio> {
        let Some(process) = &spec.process else {
            return if self.gated { Ok(Stdio::Inherit) } else { Err(no_process()) };
        };
        terminal(process, self.console_socket.is_some(), self.foreground)
    }
}

/// What a container without a program to run is told by its start; created it can be.
pub fn no_process() -> Failure {
    Failure::new("config.json has no process: there is nothing to start")
}

/// What a process has for standard streams.
///
/// # Errors
/// A terminal that nobody would serve, or a socket without a terminal.
pub fn terminal(process: &Process, has_socket: bool, foreground: bool) -> Result<Stdio> {
    match (process.terminal, has_socket) {
        (true, false) if !foreground => {
            Err(Failure::new("a terminal in the background needs --console-socket"))
        }
        (true, _) => Ok(Stdio::Terminal(process.console_size.unwrap_or_default())),
        (false, true) => Err(Failure::new("--console-socket is only for a process with a terminal")),
        (false, false) => Ok(Stdio::Inherit),
    }
}

/// The text of a bundle's `config.json`.
///
/// # Errors
/// It cannot be read.
pub fn read_config(bundle: &Path) -> Result<Vec<u8>> {
    let path = bundle.join("config.json");
    std::fs::read(&path).map_err(|error| Failure::at(path, error))
}

/// Version 1 of the specification, whatever its minor number: unknown fields are ignored, as it asks.
///
/// # Errors
/// It is another.
pub fn check_version(spec: &Spec) -> Result<()> {
    let mut parts = spec.oci_version.splitn(3, '.');
    let is_number = |part: Option<&str>| part.is_some_and(|part| part.parse::<u32>().is_ok());
    let is_version_1 = parts.next() == Some("1") && is_number(parts.next());
    let patch = parts.next().and_then(|patch| patch.split(['-', '+']).next());
    if is_version_1 && is_number(patch) {
        return Ok(());
    }
    Err(Failure::new(format!("ociVersion '{}' is not supported: 1.0.0 and later 1.x are", spec.oci_version)))
}

/// Descriptors that the program gets: of socket activation, and of `--preserve-fds` those that we were started with.
/// Ours, which may get the other numbers, are close-on-exec.
///
/// # Errors
/// A socket is missing, or the number makes no sense.
pub fn preserved(parsed: &Parsed) -> Result<Vec<u32>> {
    let asked: u32 = parsed.number("preserve-fds")?.unwrap_or(0);
    let all = listeners().checked_add(asked).filter(|all| *all <= 1 << 16);
    let all = all.ok_or_else(|| Failure::usage("--preserve-fds: too many"))?;
    let open: Vec<u32> = (3..3 + all).filter(|number| proa_sys::inherited::is_there(*number)).collect();
    match (3..3 + listeners()).find(|number| !open.contains(number)) {
        Some(number) => Err(Failure::new(format!("LISTEN_FDS: descriptor {number} is not open"))),
        None => Ok(open),
    }
}

fn listeners() -> u32 {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let is_ours = number("LISTEN_PID").is_none_or(|pid| pid == std::process::id());
    number("LISTEN_FDS").filter(|_| is_ours).unwrap_or(0)
}

/// Tells the program of the sockets that it gets.
pub fn pass_listeners(process: Option<&mut Process>) {
    if let (Some(process), listeners @ 1..) = (process, listeners()) {
        process.env.push(format!("LISTEN_FDS={listeners}"));
        process.env.push("LISTEN_PID=1".to_owned());
    }
}

/// Writes a process id where an engine looks for it: all of it or nothing.
///
/// # Errors
/// The file cannot be written.
pub fn write_pid_file(path: &Path, pid: u32) -> Result<()> {
    let fresh = path.with_file_name(format!(".{}.new", path.file_name().unwrap_or_default().display()));
    std::fs::write(&fresh, pid.to_string())
        .and_then(|()| std::fs::rename(&fresh, path))
        .map_err(|error| Failure::at(path, error).context("--pid-file"))
}

/// Has systemd forget what it may have made for a container that failed.
fn forget_scope(id: &str, spec: &Spec, cgroup: CgroupPolicy) {
    if cgroup != CgroupPolicy::Auto {
        // What failed first is what counts.
        let _ = proa_runtime::remove_leftovers(id, spec, cgroup);
    }
}

impl Launched {
    /// Undoes all.
    pub fn abandon(self) {
        // What failed first is what counts.
        let _ = self.container.delete();
        forget_scope(&self.entry.id, &self.spec, self.saved.cgroup());
        let _ = self.saved.unmount();
        let _ = self.entry.remove();
    }
}

/// Puts a process and its container into the cgroup a moment from now, where that was put off.
///
/// # Errors
/// The process that is to do it cannot be made.
pub fn join_late(entry: &Entry, container: &mut Container, process: OwnedFd) -> Result<()> {
    if !container.joins_cgroup_late() {
        return Ok(());
    }
    debug_assert!(process.as_raw_fd() > 2, "standard streams are not descriptors of processes");
    Ok(container.join_cgroup_in_background(process.as_fd(), entry.cgroup_lock()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_the_specification() {
        let check = |version: &str| check_version(&Spec { oci_version: version.into(), ..Spec::default() });
        for version in ["1.0.0", "1.0.2-dev", "1.2.0", "1.3.0+x", "1.0.0-rc5"] {
            check(version).unwrap();
        }
        for version in ["", "1", "1.0", "2.0.0", "0.9.0", "x", "1.x.0", "1.0.y"] {
            assert!(check(version).is_err(), "{version}");
        }
    }

    #[test]
    fn a_terminal_needs_somebody_who_serves_it() {
        let with = |terminal| Process { terminal, ..Process::default() };
        assert!(terminal(&with(true), false, false).is_err());
        assert!(matches!(terminal(&with(true), true, false), Ok(Stdio::Terminal(_))));
        assert!(matches!(terminal(&with(true), false, true), Ok(Stdio::Terminal(_))));
        assert!(matches!(terminal(&with(false), false, false), Ok(Stdio::Inherit)));
        assert!(terminal(&with(false), true, false).is_err());
    }
}
