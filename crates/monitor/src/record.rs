//! An instance's directories and files, as `proa_protocol::instance` describes them.
//!
//! Beside those, the monitor keeps `processes.json` in the runtime directory: which processes it started,
//! each with its start time, so that whoever repairs after a dead monitor kills them and nobody else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proa_protocol::health::{HEALTH_FILE, Health};
use proa_protocol::instance::{
    CONFIG_FILE, InstanceConfig, InstanceState, LOCK_FILE, SOCKET_FILE, STATE_FILE, instance_dir,
    removing_dir,
};
use proa_sys::trees;
use rustix::event::Timespec;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Error, IoAt};

const PROCESSES_FILE: &str = "processes.json";
/// How long a monitor that has told of the end may take to end itself.
const ENDING: Duration = Duration::from_secs(2);

/// An instance's record, locked for this process.
pub struct Record {
    /// `<root>/instances/<id>`.
    pub dir: PathBuf,
    /// `<run>/instances/<id>`.
    pub run_dir: PathBuf,
    lock: Option<File>,
    /// Keeps others from removing the files.
    held: Option<OwnedFd>,
}

/// A process that a monitor started, told from others that get its id later by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedProcess {
    /// Its process id.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`.
    pub start_ticks: u64,
}

impl Record {
    /// Takes the monitor's lock. One that has told its clients of the end may still hold it for a moment, and is
    /// waited for.
    ///
    /// # Errors
    /// The instance has a monitor.
    pub fn lock(root: &Path, run: &Path, id: &str) -> Result<Self, Error> {
        let dir = instance_dir(root, id);
        let run_dir = instance_dir(run, id);
        let mut record = Self { dir, run_dir, lock: None, held: None };
        let deadline = Instant::now() + ENDING;
        loop {
            let lock = record.open_lock()?;
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                // The instance was removed, and this file with it.
                Ok(()) if proa_sys::lock::is_unlinked(&lock) => {}
                Ok(()) => {
                    record.lock = Some(lock);
                    break;
                }
                Err(Errno::WOULDBLOCK) if record.is_ending() && Instant::now() < deadline => pause(),
                Err(Errno::WOULDBLOCK) => return Err(Error::HasMonitor),
                Err(error) => return Err(error).at(&record.run_dir.join(LOCK_FILE)),
            }
        }
        Ok(record)
    }

    fn open_lock(&self) -> Result<File, Error> {
        let path = self.run_dir.join(LOCK_FILE);
        loop {
            match OpenOptions::new().create(true).append(true).mode(0o600).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let mut builder = fs::DirBuilder::new();
                    builder.recursive(true).mode(0o700).create(&self.run_dir).at(&self.run_dir)?;
                }
                other => return other.at(&path),
            }
        }
    }

    /// Where the instance is gone, the directory that the lock made for itself goes too.
    ///
    /// # Errors
    /// The instance is gone.
    pub fn check_dir(&self) -> Result<(), Error> {
        let gone = fs::metadata(&self.dir).err().filter(|error| error.kind() == io::ErrorKind::NotFound);
        let Some(error) = gone else { return Ok(()) };
        // Others may have opened the file anew: it is theirs to remove then.
        let _ = fs::remove_file(self.run_dir.join(LOCK_FILE)).and_then(|()| fs::remove_dir(&self.run_dir));
        Err(error).at(&self.dir)
    }

    /// Whether the monitor that holds the lock has written down the end of its instance.
    fn is_ending(&self) -> bool {
        !self.socket().exists() && self.state().is_ok_and(|state| state.monitor_pid == 0)
    }

    /// Lets others have the instance. Nothing of the record may be written from then on.
    pub fn unlock(&mut self) {
        self.lock = None;
    }

    /// From now on others who forget the instance leave its files to [`Record::remove_files`].
    pub fn hold_files(&mut self) {
        // Whoever works on them at this moment can remove them too.
        self.held = trees::hold(&self.dir).ok();
    }

    /// Removes the files that [`Record::hold_files`] has kept, if the instance has been forgotten; otherwise whoever
    /// forgets it does that.
    pub fn remove_files(&mut self, root: &Path) {
        if self.held.take().is_some()
            && let Some(id) = self.dir.file_name()
        {
            // What is left the next who removes an instance removes.
            let _ = trees::remove_unless_held(&removing_dir(root).join(id));
        }
    }

    /// Reads the configuration.
    pub fn config(&self) -> Result<InstanceConfig, Error> {
        let path = self.dir.join(CONFIG_FILE);
        let bytes = fs::read(&path).at(&path)?;
        serde_json::from_slice(&bytes).map_err(|error| Error::BadJson { path, error })
    }

    /// Tells one version of the configuration from the next.
    pub fn config_stamp(&self) -> Stamp {
        stamp(&self.dir.join(CONFIG_FILE))
    }

    /// The configuration, if it is another than that of the stamp, which becomes its. One that cannot be read has
    /// not changed yet.
    pub fn changed_config(&self, known: &mut Stamp) -> Option<InstanceConfig> {
        let now = self.config_stamp();
        let config = (now != *known).then(|| self.config().ok()).flatten()?;
        *known = now;
        Some(config)
    }

    /// Whether a monitor has run the instance since the host was booted: the runtime directory does not survive that.
    pub fn ran_since_boot(&self) -> bool {
        self.run_dir.join(PROCESSES_FILE).exists()
    }

    /// Reads the state; one that is missing is that of an instance never started.
    pub fn state(&self) -> Result<InstanceState, Error> {
        let path = self.dir.join(STATE_FILE);
        match fs::read(&path) {
            Ok(bytes) => InstanceState::parse(&bytes).map_err(|error| Error::BadJson { path, error }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(InstanceState::default()),
            Err(error) => Err(error).at(&path),
        }
    }

    /// Replaces the state, at once for whoever reads it. Not synced: after a power cut the instance is not
    /// running whatever the file says.
    pub fn write_state(&self, state: &InstanceState) -> Result<(), Error> {
        let fresh = self.dir.join("state.json.new");
        let path = self.dir.join(STATE_FILE);
        let json = serde_json::to_vec(state).unwrap_or_default();
        // What a crash left there would be truncated, which makes ext4 write through at close.
        let _ = fs::remove_file(&fresh);
        let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&fresh);
        file.and_then(|mut file| file.write_all(&json)).at(&fresh)?;
        // Exchanged and not replaced: ext4 writes a file's data to the disk before it lets it replace another,
        // which takes milliseconds on a busy disk.
        match renameat_with(CWD, &fresh, CWD, &path, RenameFlags::EXCHANGE) {
            Ok(()) => fs::remove_file(&fresh).at(&fresh),
            // There was none, or the file system cannot.
            Err(_) => fs::rename(&fresh, &path).at(&path),
        }
    }

    /// Notes the processes to be killed should this one die.
    pub fn write_processes(&self, pids: &[u32]) -> Result<(), Error> {
        let path = self.run_dir.join(PROCESSES_FILE);
        let started: Vec<StartedProcess> = pids.iter().filter_map(|&pid| StartedProcess::of(pid)).collect();
        fs::write(&path, serde_json::to_vec(&started).unwrap_or_default()).at(&path)
    }

    /// What was found of the instance's health. What cannot be read was never found.
    pub fn health(&self) -> Health {
        let bytes = fs::read(self.dir.join(HEALTH_FILE)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Replaces that, at once for whoever reads it. Where the disk is full, say, the last that was found stands.
    pub fn write_health(&self, health: &Health) {
        let fresh = self.dir.join("health.json.new");
        let written = fs::write(&fresh, serde_json::to_vec(health).unwrap_or_default());
        let _ = written.and_then(|()| fs::rename(&fresh, self.dir.join(HEALTH_FILE)));
    }

    /// The processes that the last monitor noted.
    pub fn processes(&self) -> Vec<StartedProcess> {
        let bytes = fs::read(self.run_dir.join(PROCESSES_FILE)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Where clients connect.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join(SOCKET_FILE)
    }

    /// Removes what clients of a monitor that died would connect to.
    pub fn remove_socket(&self) {
        // What is missing was never made.
        let _ = fs::remove_file(self.socket());
    }

    /// Removes what only a living monitor needs.
    pub fn remove_run_files(&self) {
        self.remove_socket();
        let _ = fs::remove_file(self.run_dir.join(PROCESSES_FILE));
    }
}

/// One version of a file: inode and time of its last change.
pub type Stamp = (u64, i64);

/// That of the file now.
pub fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map_or((0, 0), |metadata| (metadata.ino(), metadata.mtime_nsec()))
}

fn pause() {
    let moment = Timespec { tv_sec: 0, tv_nsec: 500_000 };
    let _ = rustix::event::poll(&mut [], Some(&moment));
}

impl StartedProcess {
    /// The process that has this id now.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything; the fields after it are numbers.
        let fields = stat.rsplit_once(')')?.1;
        let start_ticks = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, start_ticks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_protocol::instance::Status;

    fn record(name: &str) -> (PathBuf, Record) {
        let base = std::env::temp_dir().join(format!("proa-record-{}-{name}", std::process::id()));
        fs::create_dir_all(instance_dir(&base, "a1")).unwrap();
        let record = Record::lock(&base, &base, "a1").unwrap();
        (base, record)
    }

    #[test]
    fn one_monitor_at_a_time() {
        let (base, mut record) = record("lock");
        let state = InstanceState { status: Status::Running, monitor_pid: 1, ..InstanceState::default() };
        record.write_state(&state).unwrap();
        assert!(matches!(Record::lock(&base, &base, "a1"), Err(Error::HasMonitor)));
        record.unlock();
        assert!(Record::lock(&base, &base, "a1").is_ok());
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn state_is_replaced() {
        let (base, record) = record("state");
        assert_eq!(record.state().unwrap(), InstanceState::default());
        let state = InstanceState { status: Status::Exited, exit_code: 3, ..InstanceState::default() };
        record.write_state(&state).unwrap();
        assert_eq!(record.state().unwrap(), state);
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn processes_are_known_by_their_start() {
        let (base, record) = record("processes");
        record.write_processes(&[std::process::id(), u32::MAX]).unwrap();
        let noted = record.processes();
        assert_eq!(noted, [StartedProcess::of(std::process::id()).unwrap()]);
        assert!(noted[0].start_ticks > 0);
        fs::remove_dir_all(base).unwrap();
    }
}
