//! The engine: one root's records and images, and what is known of its instances.

use std::cell::OnceCell;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use proa_image::{RemoveHooks, Store};
use proa_oci::reference::Digest;
use proa_protocol::instance::{
    CONFIG_FILE, InstanceConfig, InstanceState, STATE_FILE, Status, layer_mount_dir, removing_dir,
};
use proa_sys::trees;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::fs::{FlockOperation, flock};

use crate::channel::Channel;
use crate::create::Created;
use crate::db::{Database, Record};
use crate::error::{Error, Result};
use crate::monitor::{self, Mode, Programs, Waiting};
use crate::paths::Paths;
use crate::{names, rootless};

/// Held shared by whoever makes or starts an instance, exclusively by whoever judges what is litter.
const LOCK_FILE: &str = "lock";

/// Longest that a monitor may take to end after its instance has.
pub(crate) const MONITOR_END: Duration = Duration::from_secs(60);
/// After how long of waiting for a monitor it is looked whether it is not about to end at all.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Between attempts at the lock of a monitor that is about to let go of it.
const TRY_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000 };

/// One root, open.
#[derive(Debug)]
pub struct Engine {
    /// Where its state is.
    pub paths: Paths,
    /// Its records.
    pub db: Database,
    pub(crate) programs: Programs,
    pub(crate) notice: fn(&str),
    store: OnceCell<Store>,
}

/// One instance and what it is doing.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// What it was asked to be.
    pub record: Record,
    /// What it does.
    pub state: InstanceState,
}

impl Instance {
    /// Whether its first process is there, running or frozen, or about to be run again.
    pub fn is_live(&self) -> bool {
        self.state.status.is_live()
    }
}

/// Keeps litter collectors away from what is being made.
#[derive(Debug)]
pub struct Making {
    _file: File,
}

impl Engine {
    /// Opens a root. `notice` takes lines for the user that are neither data nor errors.
    ///
    /// # Errors
    /// The root cannot be used.
    pub fn open(paths: Paths, programs: Programs, notice: fn(&str)) -> Result<Self> {
        rootless::check_maps(&paths.root)?;
        let db = Database::open(&paths.root)?;
        Ok(Self { paths, db, programs, notice, store: OnceCell::new() })
    }

    /// The image store, opened when first needed.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn store(&self) -> Result<&Store> {
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let store = Store::open(&self.paths.root)?;
        Ok(self.store.get_or_init(|| store))
    }

    pub(crate) fn making(&self) -> Result<Making> {
        let file = self.lock_file()?;
        let path = self.paths.root.join(LOCK_FILE);
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockShared))
            .map_err(|errno| Error::io("lock", &path, errno))?;
        Ok(Making { _file: file })
    }

    /// Waits until nobody makes anything.
    pub(crate) fn exclusive(&self) -> Result<Making> {
        let file = self.lock_file()?;
        let path = self.paths.root.join(LOCK_FILE);
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
            .map_err(|errno| Error::io("lock", &path, errno))?;
        Ok(Making { _file: file })
    }

    /// Keeps others from changing the record of one instance; `None` where there is not even a directory of it.
    pub(crate) fn alone(&self, id: &str) -> Result<Option<File>> {
        let directory = self.paths.instance(id);
        let failed = |error: std::io::Error| Error::io("lock", &directory, error);
        match File::open(&directory) {
            Ok(file) => {
                rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
                    .map_err(|errno| failed(errno.into()))?;
                Ok(Some(file))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn lock_file(&self) -> Result<File> {
        let path = self.paths.root.join(LOCK_FILE);
        let mut options = OpenOptions::new();
        options
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Error::io("open", &path, error))
    }

    /// The instance with this name, id, or beginning of an id.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, text: &str) -> Result<Instance> {
        let record = self.db.find(text)?;
        self.observe(record)?.ok_or_else(|| Error::NoSuchInstance(text.to_owned()))
    }

    /// All instances, the newest first.
    ///
    /// # Errors
    /// The database failed.
    pub fn instances(&self) -> Result<Vec<Instance>> {
        let records = self.db.all()?;
        let mut instances = Vec::with_capacity(records.len());
        for record in records {
            instances.extend(self.observe(record)?);
        }
        Ok(instances)
    }

    /// Looks at what an instance does, and first finishes what a crash left: a state that says `running` with no
    /// monitor behind it, which may have to be started again, or an instance that was to go when it ended. `None` if it is gone.
    pub(crate) fn observe(&self, record: Record) -> Result<Option<Instance>> {
        let mut state = self.read_state(&record.id)?;
        if state.status.is_live() {
            if monitor::is_there(&self.paths, &record.id)? {
                return Ok(Some(Instance { record, state }));
            }
            match self.try_lock(&record.id) {
                Ok(None) => return Ok(Some(Instance { record, state })),
                Ok(Some(lock)) => drop(lock),
                Err(Error::NoSuchInstance(_)) => return Ok(None),
                Err(error) => return Err(error),
            }
            self.repair(&record.id)?;
            state = self.read_state(&record.id)?;
            if state.status == Status::Restarting {
                let resumed = self.resume(&record);
                state = self.read_state(&record.id)?;
                if !resumed && state.status == Status::Restarting {
                    // Without a monitor it is down for all purposes; whoever looks next tries again.
                    state.status = Status::Exited;
                }
            }
        }
        if record.auto_remove && state.status == Status::Exited {
            match self.try_lock(&record.id) {
                Ok(Some(lock)) => self.remove_locked(&record.id, lock, false)?,
                Ok(None) | Err(Error::NoSuchInstance(_)) => {}
                Err(error) => return Err(error),
            }
            return Ok(None);
        }
        Ok(Some(Instance { record, state }))
    }

    /// The proof that an instance has no monitor, if it has none.
    ///
    /// # Errors
    /// [`Error::NoSuchInstance`]: it was removed meanwhile.
    pub(crate) fn try_lock(&self, id: &str) -> Result<Option<monitor::Lock>> {
        monitor::try_lock(&self.paths, id)?.map(|lock| self.of_a_known(id, lock)).transpose()
    }

    /// Opening a lock makes its directory: where the instance is gone, that must go as well.
    fn of_a_known(&self, id: &str, lock: monitor::Lock) -> Result<monitor::Lock> {
        if self.db.knows(id)? {
            return Ok(lock);
        }
        self.remove_run_directory(id)?;
        Err(Error::NoSuchInstance(names::short(id).to_owned()))
    }

    pub(crate) fn remove_run_directory(&self, id: &str) -> Result<()> {
        let directory = self.paths.instance_run(id);
        loop {
            match trees::remove(&directory) {
                // Somebody has just opened the lock's file anew.
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
                other => return other.map_err(|error| Error::io("remove", &directory, error)),
            }
        }
    }

    fn repair(&self, id: &str) -> Result<()> {
        match monitor::repair(&self.programs, &self.paths, id) {
            Ok(()) => Ok(()),
            // Another command repairs it at this moment, or it was started again.
            Err(_) if self.read_state(id).is_ok_and(|state| is_repaired(state.status)) => Ok(()),
            Err(error) => match self.try_lock(id) {
                Ok(None) => match self.settle(id) {
                    Ok(_) | Err(Error::NoSuchInstance(_) | Error::Conflict { .. }) => Ok(()),
                    Err(error) => Err(error),
                },
                Err(Error::NoSuchInstance(_)) => Ok(()),
                Ok(Some(_)) | Err(_) => Err(error),
            },
        }
    }

    /// What the monitor wrote last; that of an instance never started where it wrote nothing.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_state(&self, id: &str) -> Result<InstanceState> {
        let path = self.paths.instance(id).join(STATE_FILE);
        match read_short(&path) {
            Ok(bytes) => InstanceState::parse(&bytes)
                .map_err(|error| Error::io("read", &path, std::io::Error::other(error))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(InstanceState::default()),
            Err(error) => Err(Error::io("read", &path, error)),
        }
    }

    /// What the engine wrote for the monitor.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_config(&self, id: &str) -> Result<InstanceConfig> {
        let path = self.paths.instance(id).join(CONFIG_FILE);
        match std::fs::read(&path) {
            Ok(bytes) => parse_json(&bytes, &path),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::conflict(
                format!("instance {} was never completed", names::short(id)),
                format!("`proa rm {}` removes what there is of it", names::short(id)),
            )),
            Err(error) => Err(Error::io("read", &path, error)),
        }
    }

    /// Connects to the monitor of a live instance.
    ///
    /// # Errors
    /// It has none.
    pub fn connect(&self, instance: &Instance) -> Result<Channel> {
        if instance.is_live()
            && let Some(channel) = monitor::connect(&self.paths, &instance.record.id, self.notice)?
        {
            return Ok(channel);
        }
        Err(not_running(&instance.record))
    }

    /// Starts a monitor that is to run the instance, and sees to it that names are answered in its networks. Nothing
    /// runs before it is asked to.
    ///
    /// # Errors
    /// A program of ours cannot be run.
    pub fn spawn_monitor(&self, record: &Record) -> Result<Channel> {
        self.spawn_monitor_with(record, self.notice)
    }

    /// The same, where lines for the user go elsewhere.
    pub(crate) fn spawn_monitor_with(&self, record: &Record, notice: fn(&str)) -> Result<Channel> {
        let _switch = self.prepare_switch(&record.host_config)?;
        let channel = monitor::spawn(&self.programs, &self.paths, &record.id, Mode::Run, notice)?;
        self.ensure_resolver(&record.host_config)?;
        Ok(channel)
    }

    /// Gives an instance that was just made its monitor, and sees to it that names are answered in its networks.
    /// Nothing runs before the monitor is asked to.
    ///
    /// # Errors
    /// The monitor is gone, or a program of ours cannot be run.
    pub fn give_monitor(&self, monitor: Waiting, created: &Created) -> Result<Channel> {
        let record = &created.record;
        let _switch = self.prepare_switch(&record.host_config)?;
        let instance = (&*record.id, created.standby.as_ref());
        let channel = monitor.serve(&self.programs, &self.paths, instance, self.notice)?;
        self.ensure_resolver(&record.host_config)?;
        Ok(channel)
    }

    /// A conversation about an instance's files, whether it runs or not.
    ///
    /// # Errors
    /// The monitor's program cannot be run.
    pub fn open_files(&self, instance: &Instance) -> Result<Channel> {
        if instance.is_live()
            && let Some(channel) = monitor::connect(&self.paths, &instance.record.id, self.notice)?
        {
            return Ok(channel);
        }
        self.read_config(&instance.record.id)?;
        drop(self.settle(&instance.record.id)?);
        monitor::spawn(&self.programs, &self.paths, &instance.record.id, Mode::Maintenance, self.notice)
    }

    /// Waits for a monitor that is ending, and returns the proof that there is none.
    ///
    /// # Errors
    /// There is one that does not end, since the instance was started meanwhile or for no good reason;
    /// [`Error::NoSuchInstance`] where the instance was removed meanwhile.
    pub(crate) fn settle(&self, id: &str) -> Result<monitor::Lock> {
        let deadline = Instant::now() + MONITOR_END;
        loop {
            if let Some(lock) = self.try_lock(id)? {
                return Ok(lock);
            }
            let connected = monitor::connect(&self.paths, id, self.notice)?;
            let closed = connected.map(|mut channel| channel.wait_close(LOOK_AGAIN)).transpose()?;
            if closed == Some(false) && self.runs(id)? {
                return Err(Error::conflict(format!("instance {} is running", names::short(id)), ""));
            }
            if Instant::now() >= deadline {
                return Err(does_not_end(id));
            }
            // Without a connection it does not listen any more, or not yet.
            pause();
        }
    }

    /// Whether an instance that has a monitor runs.
    fn runs(&self, id: &str) -> Result<bool> {
        Ok(self.read_state(id)?.status.is_live())
    }

    /// Whether an instance has a monitor: it runs, starts, ends, or its files are being worked on.
    ///
    /// # Errors
    /// The lock's file cannot be opened.
    pub fn has_monitor(&self, id: &str) -> Result<bool> {
        match self.try_lock(id) {
            Err(Error::NoSuchInstance(_)) => Ok(false),
            other => other.map(|lock| lock.is_none()),
        }
    }

    /// Waits until the monitor at the other end has ended.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_monitor(&self, channel: &mut Channel) -> Result<()> {
        if channel.wait_close(MONITOR_END)? {
            return Ok(());
        }
        Err(does_not_end(channel.instance()))
    }

    /// Removes an instance that does not run; with `volumes` those as well that nobody named.
    ///
    /// # Errors
    /// It has a monitor.
    pub fn remove_ended(&self, id: &str, volumes: bool) -> Result<()> {
        match self.settle(id) {
            Ok(lock) => self.remove_locked(id, lock, volumes),
            Err(Error::NoSuchInstance(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Files first, then the record: whoever is interrupted leaves something that can be removed again. The lock
    /// goes last, so that whoever takes it after us finds that there is no record. The files are out of the way, and
    /// gone when all is told. An instance that was to go when it ended takes its anonymous volumes along in any case.
    pub(crate) fn remove_locked(&self, id: &str, lock: monitor::Lock, volumes: bool) -> Result<()> {
        self.set_aside(id)?;
        let record = self.db.by_id(id)?;
        let volumes = volumes || record.as_ref().is_some_and(|record| record.auto_remove);
        let deleted = self.forget(id, volumes)?;
        self.remove_run_directory(id)?;
        drop(lock);
        if let (true, Some(record)) = (deleted, record) {
            self.tell(&record, "destroy", &[]);
        }
        self.clear_aside()
    }

    /// Moves an instance's files to where they are removed.
    fn set_aside(&self, id: &str) -> Result<()> {
        let (directory, aside) = (self.paths.instance(id), removing_dir(&self.paths.root));
        let target = aside.join(id);
        let rename = || std::fs::rename(&directory, &target);
        let moved = match rename() {
            Err(error) if error.kind() == ErrorKind::NotFound && directory.exists() => {
                let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&aside);
                made.and_then(|()| rename())
            }
            other => other,
        };
        match moved {
            // There was none.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other.map_err(|error| Error::io("move aside", &directory, error)),
        }
    }

    /// Removes what was set aside, but for what its monitor or another command is about to remove.
    pub(crate) fn clear_aside(&self) -> Result<()> {
        let aside = removing_dir(&self.paths.root);
        let failed = |error| Error::io("remove what is in", &aside, error);
        let entries = match std::fs::read_dir(&aside) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed)?,
        };
        for entry in entries {
            trees::remove_unless_held(&entry.map_err(failed)?.path()).map_err(failed)?;
        }
        Ok(())
    }
}

/// Whether somebody has finished the state of an instance whose monitor was killed.
fn is_repaired(status: Status) -> bool {
    matches!(status, Status::Exited | Status::Restarting)
}

/// A file's lock has no event to wait for beside others, so it is asked for again.
fn pause() {
    let _ = rustix::event::poll(&mut [], Some(&TRY_AGAIN));
}

/// A monitor that ought to end.
pub(crate) fn does_not_end(id: &str) -> Error {
    Error::conflict(
        format!("the monitor of instance {} does not end", names::short(id)),
        "`proa system stop` ends everything of this root",
    )
}

/// An instance that must run does not.
pub(crate) fn not_running(record: &Record) -> Error {
    Error::conflict(
        format!("instance {} is not running", record.name),
        format!("`proa start {}` starts it", record.name),
    )
}

/// Reads a file that fits in one read, as a listing does for each instance.
fn read_short(path: &Path) -> std::io::Result<Vec<u8>> {
    const SHORT: usize = 1024;
    let file = File::open(path)?;
    let mut bytes = Vec::with_capacity(SHORT);
    // Only the end of a file makes a read shorter than what was asked for.
    loop {
        let room = bytes.capacity() - bytes.len();
        if rustix::io::retry_on_intr(|| rustix::io::read(&file, spare_capacity(&mut bytes)))? < room {
            return Ok(bytes);
        }
        bytes.reserve(SHORT);
    }
}

fn parse_json<T: serde::de::DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::io("read", path, std::io::Error::other(error)))
}

/// Which images are in use, and how to let go of their layers.
impl RemoveHooks for Engine {
    fn in_use(&self, id: &Digest) -> Vec<String> {
        match self.db.all() {
            Ok(records) => records
                .into_iter()
                .filter(|record| record.image_id == id.as_str())
                .map(|record| record.name)
                .collect(),
            // A database that cannot be read must not make an image look unused.
            Err(error) => vec![error.to_string()],
        }
    }

    fn before_layer_delete(&self, diff_id: &Digest) -> std::io::Result<()> {
        let mounted = layer_mount_dir(&self.paths.run, diff_id.as_str());
        proa_sys::layer_mount::unmount(&mounted).map_err(std::io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_any_length_are_read_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for length in [0, 1, 1023, 1024, 1025, 5000] {
            let bytes: Vec<u8> = (0..length).map(|index| index as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(read_short(&path).unwrap(), bytes, "{length}");
        }
        assert!(read_short(&directory.path().join("none")).is_err());
    }
}
