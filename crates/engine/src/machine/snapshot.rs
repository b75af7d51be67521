//! Snapshots: copies of what a machine has on its disks.
//!
//! ```text
//!   create:  machine/ ─ copied ─▶ snapshots/.new ─ renamed ─▶ snapshots/NAME
//!            by us; of one that runs by its VMM, as all disks are at one moment (the monitor's `machine::copy`)
//!   restore: snapshots/NAME ─ copied ─▶ snapshots/.new ─ exchanged with machine/ ─▶ what was there is removed
//!   rm:      snapshots/NAME ─ renamed ─▶ snapshots/.old ─ removed
//! ```
//!
//! The proof that it does not run, its monitor's lock, is held meanwhile where that matters ([`crate::shelf`] says how each
//! becomes true, and who removes what a killed command left). Files of one that does not run are copied with their holes,
//! and share blocks where the file system can do that.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use proa_protocol::instance::Status;
use proa_protocol::machine::{MEDIA, SNAPSHOTS};
use proa_protocol::message::Request;
use proa_sys::tree::{self, Devices};
use rustix::fs::{CWD, FlockOperation, RenameFlags, renameat_with};

use super::check_machine;
use crate::engine::{Engine, Instance};
use crate::error::{Error, Result};
use crate::monitor;
use crate::shelf::{self, Shelf};

/// A copy of a machine's disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub made: SystemTime,
    /// Bytes on disk; those that it shares with others count as well.
    pub bytes: u64,
}

impl Engine {
    /// The snapshots of a machine, the oldest first.
    ///
    /// # Errors
    /// It is no machine, or the directory cannot be read.
    pub fn snapshots(&self, instance: &Instance) -> Result<Vec<Snapshot>> {
        check_machine(instance)?;
        let directory = self.paths.instance(&instance.record.id).join(SNAPSHOTS);
        let mut found = shelf::list(&directory, describe)?;
        found.sort_by(|one, other| one.made.cmp(&other.made).then_with(|| one.name.cmp(&other.name)));
        Ok(found)
    }

    /// Makes one.
    ///
    /// # Errors
    /// The name is taken, or there is no room.
    pub fn make_snapshot(&self, instance: &Instance, name: &str) -> Result<()> {
        check_machine(instance)?;
        if instance.is_live() {
            let (snapshots, _lock) = open(self, instance)?;
            check_free(&snapshots, instance, name)?;
            snapshots.fill(|fresh| {
                self.connect(instance)?.command(Request::Snapshot { directory: fresh.to_owned() })?;
                let written = File::open(fresh).and_then(|fresh| Ok(rustix::fs::syncfs(fresh)?));
                written.map_err(|error| Error::io("write", fresh, error))
            })?;
            return snapshots.publish(name).map(drop);
        }
        let work = begin(self, instance)?;
        check_free(&work.snapshots, instance, name)?;
        work.copy(&work.media)?;
        work.snapshots.publish(name).map(drop)
    }

    /// Makes the machine's disks what they were.
    ///
    /// # Errors
    /// The machine runs, or there is no such snapshot.
    pub fn restore_snapshot(&self, instance: &Instance, name: &str) -> Result<()> {
        let work = begin(self, instance)?;
        work.copy(&existing(&work.snapshots, instance, name)?)?;
        let fresh = work.snapshots.filled();
        renameat_with(CWD, &fresh, CWD, &work.media, RenameFlags::EXCHANGE)
            .map_err(|errno| Error::io("restore", &work.media, errno))?;
        work.snapshots.clear()
    }

    /// Removes one.
    ///
    /// # Errors
    /// There is no such snapshot.
    pub fn remove_snapshot(&self, instance: &Instance, name: &str) -> Result<()> {
        check_machine(instance)?;
        let (snapshots, _lock) = open(self, instance)?;
        snapshots.remove(&existing(&snapshots, instance, name)?)
    }
}

/// The directory of a machine's snapshots, with its lock.
fn open(engine: &Engine, instance: &Instance) -> Result<(Shelf, File)> {
    let snapshots = Shelf::open(engine.paths.instance(&instance.record.id).join(SNAPSHOTS))?;
    let lock = snapshots.lock(FlockOperation::LockExclusive)?;
    Ok((snapshots, lock))
}

fn check_free(snapshots: &Shelf, instance: &Instance, name: &str) -> Result<()> {
    if !snapshots.place(name)?.exists() {
        return Ok(());
    }
    Err(Error::conflict(
        format!("machine {} has a snapshot {name} already", instance.record.name),
        "choose another name, or `proa machine snapshot rm` it first",
    ))
}

fn existing(snapshots: &Shelf, instance: &Instance, name: &str) -> Result<PathBuf> {
    let path = snapshots.place(name)?;
    if path.is_dir() {
        return Ok(path);
    }
    let machine = &instance.record.name;
    Err(Error::invalid_with_hint(
        format!("machine {machine} has no snapshot {name}"),
        format!("`proa machine snapshot ls {machine}` lists them"),
    ))
}

/// Keeps a machine from being started, and removes what a killed command left.
pub(super) fn begin(engine: &Engine, instance: &Instance) -> Result<Work> {
    check_machine(instance)?;
    let name = &instance.record.name;
    let runs = || {
        Error::conflict(
            format!("machine {name} is running, and its disks change"),
            format!("`proa stop {name}` first"),
        )
    };
    if instance.is_live() {
        return Err(runs());
    }
    // One that has just ended may still have its monitor for a moment.
    let lock = engine.settle(&instance.record.id)?;
    if engine.read_state(&instance.record.id)?.status == Status::Restarting {
        return Err(runs());
    }
    let media = engine.paths.instance(&instance.record.id).join(MEDIA);
    let (snapshots, shelf_lock) = open(engine, instance)?;
    Ok(Work { media, snapshots, _locks: (lock, shelf_lock) })
}

/// Work on the files of a machine that does not run.
pub(super) struct Work {
    pub(super) media: PathBuf,
    snapshots: Shelf,
    _locks: (monitor::Lock, File),
}

impl Work {
    /// Copies a directory of media, for it to get a name.
    fn copy(&self, from: &Path) -> Result<()> {
        self.snapshots.fill(|fresh| {
            let open = |path: &Path| File::open(path).map_err(|error| Error::io("open", path, error));
            let (source, target) = (open(from)?, open(fresh)?);
            let copied = tree::copy(source.as_fd(), target.as_fd(), Devices::Leave);
            copied.and_then(|()| rustix::fs::syncfs(&target)).map_err(|errno| Error::io("copy", from, errno))
        })
    }
}

fn describe(name: String, path: &Path) -> Option<Snapshot> {
    let made = fs::metadata(path).ok()?.modified().ok()?;
    let files = fs::read_dir(path).ok()?.flatten().filter_map(|entry| entry.metadata().ok());
    Some(Snapshot { name, made, bytes: files.map(|metadata| metadata.blocks() * 512).sum() })
}
