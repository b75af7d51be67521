//! Containers on disk: a directory for each, named by its id, below `--root`.
//!
//! ```text
//!   <root>/<id>/            made first, by one mkdir: it claims the id
//!     config.json           the spec, as the container was created with it
//!     state.json            the first process and what else is to be known; written once, by rename
//!     gate                  the socket at which the first process waits (proa_runtime::gate)
//!     lock                  held by create, start and delete while they work
//!     cgroup.lock           held by whoever puts processes into the cgroup
//! ```
//!
//! What a container is doing is never written down, so it cannot be wrong. It is asked of the kernel:
//!
//! | first process | else | status |
//! | --- | --- | --- |
//! | not known | `lock` is held | `creating` |
//! | not known, or has ended | | `stopped` |
//! | lives | somebody listens at `gate` | `created` |
//! | lives | its cgroup is frozen | `paused` |
//! | lives | | `running` |
//!
//! A create that is killed at any point leaves a container that is `stopped` (its process ends with it) or, once
//! it has released the process, `created`. Either can be deleted: `config.json` names the cgroups.
//!
//! Locks are of processes (`fcntl`), so a fork does not carry them along.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use proa_oci::runtime::Spec;
use proa_runtime::{CgroupPolicy, Container, Existing, gate};
use rustix::fs::{FlockOperation, Mode, OFlags, fcntl_lock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::error::{Failure, Result};
use crate::global::systemd;

/// The format of `state.json`.
const VERSION: u32 = 1;
/// Longest id: it names a directory.
const MAX_ID: usize = 255;

/// `state.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// Format of this file.
    pub version: u32,
    /// As in the spec.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Its first process.
    pub pid: u32,
    /// When that was started, in clock ticks since the boot.
    pub start_ticks: u64,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root file system.
    pub rootfs: PathBuf,
    /// When it was created.
    pub created: String,
    /// Who created it.
    pub owner: u32,
    /// As in the spec.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Of a container with the host's mounts, the one that was at its root before it was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_before: Option<u64>,
    /// systemd has made its cgroup.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub systemd: bool,
}

impl Saved {
    /// Of a container that has no process yet.
    pub fn new(id: &str, spec: &Spec, bundle: &Path, rootfs: PathBuf) -> Self {
        Self {
            oci_version: spec.oci_version.clone(),
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            rootfs,
            created: clock::now(),
            owner: rustix::process::getuid().as_raw(),
            annotations: spec.annotations.clone(),
            ..Self::default()
        }
    }

    /// Undoes its mounts, where it has made them among the host's.
    ///
    /// # Errors
    /// They cannot be undone.
    pub fn unmount(&self) -> Result<()> {
        let Some(before) = self.mount_before else { return Ok(()) };
        Ok(proa_runtime::unmount_root(&self.rootfs, before)?)
    }

    /// How its cgroup was made.
    pub fn cgroup(&self) -> CgroupPolicy {
        if self.systemd { systemd() } else { CgroupPolicy::Auto }
    }

    /// The same of a container of which nothing may have been saved yet.
    pub fn cgroup_of(saved: Option<&Self>) -> CgroupPolicy {
        saved.map_or(CgroupPolicy::Auto, Self::cgroup)
    }
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` is at work.
    Creating,
    /// Its first process waits for `start`.
    Created,
    /// Its program runs.
    Running,
    /// All its processes are frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl Status {
    /// As the specification writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The directory of all containers.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

/// The directory of one.
#[derive(Debug)]
pub struct Entry {
    /// Its path.
    path: PathBuf,
    dir: OwnedFd,
    /// The container's id.
    pub id: String,
}

/// The lock on a container, until it is dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not used")] OwnedFd);

impl Store {
    /// The containers below `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Claims an id, and locks it.
    ///
    /// # Errors
    /// It cannot name a container, or does already.
    pub fn claim(&self, id: &str) -> Result<(Entry, Lock)> {
        check_id(id)?;
        let make = |path: &Path| rustix::fs::mkdir(path, Mode::from_raw_mode(0o700));
        let path = self.root.join(id);
        let made = match make(&path) {
            Err(Errno::NOENT) => {
                fs::create_dir_all(&self.root).map_err(|error| Failure::at(&self.root, error))?;
                let _ = rustix::fs::chmod(&self.root, Mode::from_raw_mode(0o700));
                make(&path)
            }
            other => other,
        };
        made.map_err(|errno| match errno {
            Errno::EXIST => {
                Failure::new(format!("container '{id}' exists already: delete it, or use another id"))
            }
            errno => Failure::at(&path, errno),
        })?;
        let entry = self.entry(id)?;
        let lock = entry.lock()?;
        Ok((entry, lock))
    }

    /// A container that exists.
    ///
    /// # Errors
    /// It does not.
    pub fn open(&self, id: &str) -> Result<Entry> {
        check_id(id)?;
        self.entry(id)
    }

    fn entry(&self, id: &str) -> Result<Entry> {
        let path = self.root.join(id);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(dir) => Ok(Entry { path, dir, id: id.to_owned() }),
            Err(Errno::NOENT) => Err(Failure::new(format!("container '{id}' does not exist"))),
            Err(errno) => Err(Failure::at(path, errno)),
        }
    }

    /// All ids, in their order.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn ids(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Failure::at(&self.root, error)),
        };
        let mut ids: Vec<String> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| check_id(name).is_ok())
            .collect();
        ids.sort();
        Ok(ids)
    }
}

impl Entry {
    /// Its directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Waits for the lock.
    ///
    /// # Errors
    /// The container has been deleted meanwhile.
    pub fn lock(&self) -> Result<Lock> {
        self.lock_as(FlockOperation::LockExclusive)
    }

    /// Keeps everybody out who would put processes into the cgroup.
    ///
    /// # Errors
    /// The file cannot be locked.
    pub fn lock_cgroup(&self) -> Result<OwnedFd> {
        let file = self.cgroup_lock()?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)
            .map_err(|errno| Failure::at(self.path.join("cgroup.lock"), errno))?;
        Ok(file)
    }

    /// The file that [`Entry::lock_cgroup`] locks.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn cgroup_lock(&self) -> Result<OwnedFd> {
        self.file("cgroup.lock")
    }

    fn lock_as(&self, operation: FlockOperation) -> Result<Lock> {
        let file = self.file("lock")?;
        fcntl_lock(&file, operation).map_err(|errno| Failure::at(self.path.join("lock"), errno))?;
        if rustix::fs::fstat(&file).is_ok_and(|stat| stat.st_nlink == 0) {
            return Err(Failure::new(format!("container '{}' does not exist", self.id)));
        }
        Ok(Lock(file))
    }

    fn is_locked(&self) -> bool {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.dir, "lock", flags, Mode::empty());
        file.is_ok_and(|file| fcntl_lock(&file, FlockOperation::NonBlockingLockShared).is_err())
    }

    fn file(&self, name: &str) -> Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.dir, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| Failure::at(self.path.join(name), errno))
    }

    /// Keeps the spec.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_spec(&self, text: &[u8]) -> Result<()> {
        self.write("config.json", text)
    }

    /// Keeps the state.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, saved: &Saved) -> Result<()> {
        let saved = Saved { version: VERSION, ..saved.clone() };
        let text = serde_json::to_vec(&saved).map_err(|error| Failure::new(error.to_string()))?;
        self.write("state.json", &text)
    }

    /// All of it or nothing is there, whenever we are killed.
    fn write(&self, name: &str, text: &[u8]) -> Result<()> {
        let fresh = format!("{name}.new");
        let path = || self.path.join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.dir, fresh.as_str(), flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| Failure::at(path(), errno))?;
        std::io::Write::write_all(&mut fs::File::from(file), text)
            .map_err(|error| Failure::at(path(), error))?;
        rustix::fs::renameat(&self.dir, fresh.as_str(), &self.dir, name)
            .map_err(|errno| Failure::at(path(), errno))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match fs::read(self.path.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::at(self.path.join(name), error)),
        }
    }

    /// The state; `None` if the container was not created to the end.
    ///
    /// # Errors
    /// The file cannot be read, or is of a newer version.
    pub fn saved(&self) -> Result<Option<Saved>> {
        let Some(text) = self.read("state.json")? else { return Ok(None) };
        let path = self.path.join("state.json");
        let saved: Saved = serde_json::from_slice(&text)
            .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
        if saved.version != VERSION {
            let text = format!("{}: format {} is of another proa-runtime", path.display(), saved.version);
            return Err(Failure::new(text));
        }
        Ok(Some(saved))
    }

    /// The spec that it was created with.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn spec(&self) -> Result<Option<Spec>> {
        let Some(text) = self.read("config.json")? else { return Ok(None) };
        let spec = serde_json::from_slice(&text);
        spec.map(Some)
            .map_err(|error| Failure::new(format!("{}: {error}", self.path.join("config.json").display())))
    }

    /// The container, if its first process lives, and its spec.
    ///
    /// # Errors
    /// What is on disk cannot be read.
    pub fn container(&self, saved: Option<&Saved>) -> Result<(Option<Container>, Spec)> {
        let spec = self.spec()?.unwrap_or_default();
        let Some(saved) = saved else { return Ok((None, spec)) };
        let existing = Existing {
            id: &self.id,
            spec: &spec,
            pid: saved.pid,
            start_ticks: saved.start_ticks,
            bundle: &saved.bundle,
            cgroup: saved.cgroup(),
        };
        Ok((Container::open(&existing)?, spec))
    }

    /// Where it is in its life; `lock` if we hold it, which asking for it again would give up.
    ///
    /// # Errors
    /// What is on disk cannot be read.
    pub fn status(&self, saved: Option<&Saved>, lock: Option<&Lock>) -> Result<Status> {
        let in_work = || lock.is_none() && self.is_locked();
        let Some(saved) = saved else {
            return Ok(if in_work() { Status::Creating } else { Status::Stopped });
        };
        if !Container::is_alive(saved.pid, saved.start_ticks) {
            return Ok(Status::Stopped);
        }
        if gate::is_shut(self.dir())? {
            return Ok(if in_work() { Status::Creating } else { Status::Created });
        }
        let (container, _) = self.container(Some(saved))?;
        Ok(match container {
            None => Status::Stopped,
            Some(container) if container.is_paused() => Status::Paused,
            Some(_) => Status::Running,
        })
    }

    /// Removes the directory: the id is free again.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self) -> Result<()> {
        // The id is free at one moment, whatever is killed when.
        for name in
            ["config.json", "config.json.new", "state.json.new", "gate", "cgroup.lock", "lock", "state.json"]
        {
            match rustix::fs::unlinkat(&self.dir, name, rustix::fs::AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(Failure::at(self.path.join(name), errno)),
            }
        }
        match rustix::fs::rmdir(&self.path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Failure::at(&self.path, errno)),
        }
    }
}

fn check_id(id: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if id.is_empty() || id.len() > MAX_ID || id == "." || id == ".." || !id.bytes().all(plain) {
        let text = format!(
            "'{id}' cannot be a container id: use letters, digits, '_', '+', '-', '.', at most {MAX_ID}"
        );
        return Err(Failure::new(text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().join("root"));
        (dir, store)
    }

    #[test]
    fn an_id_is_claimed_once_and_free_again_after_its_removal() {
        let (_dir, store) = store();
        let (entry, _lock) = store.claim("a.b-c_d+e").unwrap();
        assert!(store.claim("a.b-c_d+e").unwrap_err().to_string().contains("exists"));
        assert_eq!(store.ids().unwrap(), ["a.b-c_d+e"]);
        entry.save_spec(b"{}").unwrap();
        entry.save(&Saved { pid: 7, ..Saved::default() }).unwrap();
        assert_eq!(entry.saved().unwrap().unwrap().pid, 7);
        entry.remove().unwrap();
        assert!(store.open("a.b-c_d+e").unwrap_err().to_string().contains("does not exist"));
        store.claim("a.b-c_d+e").unwrap();
    }

    #[test]
    fn ids_are_names_of_directories() {
        for id in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(256)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }

    #[test]
    fn a_create_that_died_is_stopped() {
        let (_dir, store) = store();
        let (entry, lock) = store.claim("x").unwrap();
        drop(lock);
        assert_eq!(entry.status(None, None).unwrap(), Status::Stopped);
        let dead = Saved { version: VERSION, pid: 1, start_ticks: u64::MAX, ..Saved::default() };
        assert_eq!(entry.status(Some(&dead), None).unwrap(), Status::Stopped);
    }

    #[test]
    fn the_state_file_is_frozen() {
        let text = concat!(
            r#"{"version":1,"ociVersion":"1.2.0","id":"x","pid":7,"startTicks":9,"bundle":"/b","#,
            r#""rootfs":"/b/rootfs","created":"2026-01-01T00:00:00.000000000Z","owner":0,"#,
            r#""annotations":{"a":"b"}}"#
        );
        let saved: Saved = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&saved).unwrap(), text);
        assert_eq!((saved.pid, saved.start_ticks, saved.systemd), (7, 9, false));
        let text = serde_json::to_string(&Saved { systemd: true, ..saved }).unwrap();
        assert!(text.ends_with(r#","systemd":true}"#), "{text}");
    }
}
