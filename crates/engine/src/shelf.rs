//! A directory of an instance's snapshots, of whichever kind.
//!
//! ```text
//!   .new ─ filled ─ renamed ─▶ NAME ─ renamed ─▶ .old ─ removed
//! ```
//!
//! Each becomes true by one rename. Whoever makes or removes one has the directory's lock, and removes first what a killed
//! command left: names that begin with a dot. Who uses one shares that lock.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use proa_sys::trees;
use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};
use crate::names;

const NEW: &str = ".new";
const OLD: &str = ".old";

/// Such a directory.
#[derive(Debug)]
pub(crate) struct Shelf {
    directory: PathBuf,
}

impl Shelf {
    /// The directory, made where it does not exist.
    pub fn open(directory: PathBuf) -> Result<Self> {
        make_directory(&directory)?;
        Ok(Self { directory })
    }

    /// Waits for the directory's lock; whoever has it alone clears first what others left.
    pub fn lock(&self, lock: FlockOperation) -> Result<File> {
        let path = &self.directory;
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        rustix::io::retry_on_intr(|| flock(&file, lock)).map_err(|errno| Error::io("lock", path, errno))?;
        if lock == FlockOperation::LockExclusive {
            self.clear()?;
        }
        Ok(file)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Removes what has no name.
    pub fn clear(&self) -> Result<()> {
        let failed = |error| Error::io("list", &self.directory, error);
        let entries = fs::read_dir(&self.directory).map_err(failed)?.flatten();
        let hidden = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with('.'));
        hidden.map(|entry| entry.path()).try_for_each(|path| remove(&path))
    }

    /// Fills what is to be a snapshot; where that fails nothing is left of it.
    pub fn fill(&self, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let fresh = self.directory.join(NEW);
        make_directory(&fresh)?;
        fill(&fresh).inspect_err(|_| {
            // What is there of it is of no use, and a full host needs the room.
            let _ = trees::remove(&fresh);
        })
    }

    /// What has been filled, without a name yet.
    pub fn filled(&self) -> PathBuf {
        self.directory.join(NEW)
    }

    /// Gives that its name.
    pub fn publish(&self, name: &str) -> Result<PathBuf> {
        let target = self.directory.join(name);
        fs::rename(self.filled(), &target).map_err(|error| Error::io("make", &target, error))?;
        Ok(target)
    }

    /// Where the snapshot of this name is, if there is one.
    ///
    /// # Errors
    /// It is none that one can have.
    pub fn place(&self, name: &str) -> Result<PathBuf> {
        names::check("snapshot", name)?;
        Ok(self.directory.join(name))
    }

    /// Removes a snapshot.
    pub fn remove(&self, snapshot: &Path) -> Result<()> {
        fs::rename(snapshot, self.directory.join(OLD))
            .map_err(|error| Error::io("remove", snapshot, error))?;
        self.clear()
    }
}

/// What is on the shelf at a path, where there is one, as far as it can be described by its name and path.
pub(crate) fn list<T>(directory: &Path, describe: impl Fn(String, &Path) -> Option<T>) -> Result<Vec<T>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| Error::io("list", directory, error))?,
    };
    let named = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok().filter(|name| !name.starts_with('.'))?;
        describe(name, &entry.path())
    });
    Ok(named.collect())
}

fn remove(path: &Path) -> Result<()> {
    trees::remove(path).map_err(|error| Error::io("remove", path, error))
}

fn make_directory(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| Error::io("make directory", path, error))
}
