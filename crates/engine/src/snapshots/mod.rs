//! Snapshots of virtual machines that run, and instances that go on from them.
//!
//! ```text
//!   create:  monitor copies ─▶ snapshots/.new ─ packed ─ renamed ─▶ snapshots/NAME
//!   restore: checked ─ ended ─ resume.json ─ started ─▶ what it was then
//!   fork:    instances made like it, each with resume.json ─ started ─▶ as many that go on
//!   rm:      snapshots/NAME ─ renamed ─▶ snapshots/.old ─ removed
//! ```
//!
//! Who makes or removes one has the directory's lock, and removes first what a killed command left ([`crate::shelf`]). Who
//! uses one shares that lock until all that go on from it have it open.

mod fork;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use proa_protocol::instance::IsolationLevel;
use proa_protocol::message::Request;
use proa_protocol::snapshot::{
    BASE_FILE, Check, INFO_FILE, Pack, RESUME_FILE, Resume, SNAPSHOTS, SnapshotInfo,
};
use proa_protocol::template::STORE;
use rustix::fs::{FlockOperation, flock};

use crate::engine::{Engine, Instance};
use crate::error::{Error, Result};
use crate::life::StopOptions;
use crate::shelf::{self, Shelf};
use crate::{monitor, names};

pub use fork::ForkRequest;

/// The name where the user gives none, before a number.
const NAME: &str = "snap";

/// A snapshot of a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSnapshot {
    /// Its name.
    pub name: String,
    /// What it says of itself.
    pub info: SnapshotInfo,
    /// Bytes on disk; pages that it shares with others count as well, what it shares with the template does not.
    pub bytes: u64,
}

impl Engine {
    /// The snapshots of a virtual machine, the oldest first.
    ///
    /// # Errors
    /// It is none, or the directory cannot be read.
    pub fn vm_snapshots(&self, instance: &Instance) -> Result<Vec<VmSnapshot>> {
        check_vm(instance)?;
        list(&self.snapshots_of(instance))
    }

    /// The snapshots of all virtual machines, by the names of these; each one's oldest first.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn all_vm_snapshots(&self) -> Result<Vec<(String, VmSnapshot)>> {
        let mut found = Vec::new();
        for instance in self.instances()?.iter().filter(|instance| check_vm(instance).is_ok()) {
            let name = &instance.record.name;
            let snapshots = list(&self.snapshots_of(instance))?;
            found.extend(snapshots.into_iter().map(|snapshot| (name.clone(), snapshot)));
        }
        // Stable: those of one instance stay in their order.
        found.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(found)
    }

    /// Makes one of a virtual machine that runs; its name, which is made up where none is given.
    ///
    /// # Errors
    /// It does not run or cannot be copied, or the name is taken.
    pub fn make_vm_snapshot(&self, instance: &Instance, name: Option<&str>) -> Result<String> {
        check_vm(instance)?;
        if let Some(name) = name {
            names::check("snapshot", name)?;
        }
        let work = Work::begin(self.snapshots_of(instance), FlockOperation::LockExclusive)?;
        let known = list(work.shelf.path())?;
        let is_taken = |name: &str| known.iter().any(|snapshot| snapshot.name == name);
        let name = match name {
            Some(name) if is_taken(name) => {
                let message = format!("instance {} has a snapshot {name} already", instance.record.name);
                return Err(Error::conflict(message, "choose another name, or `proa snapshot rm` it first"));
            }
            Some(name) => name.to_owned(),
            None => (0..=known.len())
                .map(|number| format!("{NAME}{number}"))
                .find(|name| !is_taken(name))
                .unwrap_or_default(),
        };
        self.fill(instance, &work, known.last().map(|last| work.shelf.path().join(&last.name)))?;
        work.shelf.publish(&name)?;
        self.tell(&instance.record, "snapshot", &[("snapshot", &name)]);
        Ok(name)
    }

    /// Makes a snapshot that only lacks its name.
    fn fill(&self, instance: &Instance, work: &Work, parent: Option<PathBuf>) -> Result<()> {
        work.shelf.fill(|fresh| {
            self.connect(instance)?.command(Request::Snapshot { directory: fresh.to_owned() })?;
            monitor::pack_snapshot(&self.programs, &Pack { directory: fresh.to_owned(), parent })
        })
    }

    /// Makes an instance what it was, and has it run. What it has become since is lost.
    ///
    /// # Errors
    /// There is no such snapshot, or this host cannot carry it on.
    pub fn restore_vm_snapshot(&self, instance: &Instance, name: &str) -> Result<()> {
        check_vm(instance)?;
        let record = &instance.record;
        let work = Work::begin(self.snapshots_of(instance), FlockOperation::LockShared)?;
        let snapshot = work.existing(instance, name)?;
        if record.auto_remove {
            return Err(Error::conflict(
                format!("instance {} is removed when it ends, and to restore it ends it", record.name),
                format!("`proa snapshot fork {} {name}` makes another that goes on from there", record.name),
            ));
        }
        // Before anything is lost.
        let store = self.paths.root.join(STORE);
        monitor::check_snapshot(&self.programs, &Check { snapshot: snapshot.clone(), store })?;
        if instance.is_live() {
            self.connect(instance)?.command(Request::Discard)?;
        }
        let kill = StopOptions { timeout: Some(0), signal: Some("KILL".into()), until_boot: false };
        self.stop(instance, &kill)?;
        self.write_resume(&record.id, &Resume { snapshot, is_fork: false })?;
        let started = self.find(&record.id).and_then(|instance| self.start(&instance));
        started.map(|()| self.tell(record, "restore", &[("snapshot", name)]))
    }

    /// Removes one.
    ///
    /// # Errors
    /// There is no such snapshot.
    pub fn remove_vm_snapshot(&self, instance: &Instance, name: &str) -> Result<()> {
        check_vm(instance)?;
        let work = Work::begin(self.snapshots_of(instance), FlockOperation::LockExclusive)?;
        work.shelf.remove(&work.existing(instance, name)?)
    }

    fn snapshots_of(&self, instance: &Instance) -> PathBuf {
        self.paths.instance(&instance.record.id).join(SNAPSHOTS)
    }

    /// Says what the next start of an instance goes on from.
    fn write_resume(&self, id: &str, resume: &Resume) -> Result<()> {
        let path = self.paths.instance(id).join(RESUME_FILE);
        let json = serde_json::to_vec(resume).unwrap_or_default();
        fs::write(&path, json).map_err(|error| Error::io("write", &path, error))
    }
}

/// Work with the snapshots of an instance.
struct Work {
    shelf: Shelf,
    _lock: File,
}

impl Work {
    fn begin(directory: PathBuf, lock: FlockOperation) -> Result<Self> {
        let shelf = Shelf::open(directory)?;
        let path = shelf.path();
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        rustix::io::retry_on_intr(|| flock(&file, lock)).map_err(|errno| Error::io("lock", path, errno))?;
        if lock == FlockOperation::LockExclusive {
            shelf.clear()?;
        }
        Ok(Self { shelf, _lock: file })
    }

    fn existing(&self, instance: &Instance, name: &str) -> Result<PathBuf> {
        let path = self.shelf.place(name)?;
        if path.join(INFO_FILE).is_file() {
            return Ok(path);
        }
        let instance = &instance.record.name;
        Err(Error::invalid_with_hint(
            format!("instance {instance} has no snapshot {name}"),
            format!("`proa snapshot ls {instance}` lists them"),
        ))
    }
}

/// Only virtual machines of images have snapshots of this kind.
fn check_vm(instance: &Instance) -> Result<()> {
    let record = &instance.record;
    if record.host_config.machine.is_some() {
        return Err(Error::unsupported(
            format!("{} is a machine: what runs of it cannot be copied", record.name),
            "`proa machine snapshot` keeps the disks of one that does not run",
        ));
    }
    if record.level != IsolationLevel::Vm {
        return Err(Error::unsupported(
            format!("{} is a container: snapshots are of virtual machines", record.name),
            "run it with --isolation vm",
        ));
    }
    Ok(())
}

fn list(directory: &Path) -> Result<Vec<VmSnapshot>> {
    let mut found = shelf::list(directory, describe)?;
    found.sort_by(|one, other| {
        one.info.made_ns.cmp(&other.info.made_ns).then_with(|| one.name.cmp(&other.name))
    });
    Ok(found)
}

fn describe(name: String, path: &Path) -> Option<VmSnapshot> {
    let info = serde_json::from_slice(&fs::read(path.join(INFO_FILE)).ok()?).ok()?;
    let own = fs::read_dir(path).ok()?.flatten().filter(|entry| entry.file_name() != BASE_FILE);
    let bytes = own.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum();
    Some(VmSnapshot { name, info, bytes })
}
