//! Where kernels, initramfs images, disk templates and probe results are kept.
//!
//! ```text
//!   <root>/vm/                       locked (flock) by whoever makes something in it
//!     kernels/<format>-<key>/        image, modules/, kernel.json; or only `unfit`, with the reason
//!     kernels/<format>-distribution  key of the kernel that was fetched from the distribution
//!     kernels/named/                 names that users gave, see `proa_protocol::kernel`
//!     initramfs/<hash>.cpio
//!     disks/<format>-ext4-<size>.img an empty file system, copied for each instance
//!     blank/<size>                   zeros, as many as a guest has memory; takes no room
//!     accelerator.json
//!     templates/<key>/               memory, state, template.json; under a lock of their own, templates.lock
//!     use.lock                       shared (flock) by whoever starts a guest, until its VMM has what it needs
//! ```
//!
//! Everything is made under another name and renamed when it is whole, so readers do not wait for who makes something. What
//! a killed process left half-made is removed by the next one that makes something, and so is what has an older format than
//! what it makes. What nothing needs any more is removed by who has `use.lock` alone (`prune`).

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use proa_protocol::template::DIRECTORY;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::VmError;

/// Names of what is not whole yet begin so.
const PARTIAL: &str = ".new-";
/// Where memory of guests that boot comes from.
const BLANK: &str = "blank";

/// The store's directory.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

/// Held by whoever starts a guest, or removes what guests may start from.
const USE_LOCK: &str = "use.lock";

/// Held while something is made.
pub(crate) struct StoreLock {
    _fd: OwnedFd,
}

impl Store {
    pub fn open(root: &Path) -> Result<Self, VmError> {
        for part in ["kernels", "initramfs", "disks", BLANK, DIRECTORY] {
            let path = root.join(part);
            if !path.is_dir() {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&path)
                    .map_err(VmError::io(&path))?;
            }
        }
        Ok(Self { root: root.to_owned() })
    }

    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// Keeps what is in the store there until the file is closed.
    pub fn share(&self) -> Result<File, VmError> {
        self.hold(FlockOperation::LockShared)
    }

    /// Waits until nobody is about to start from what is in the store.
    pub fn alone(&self) -> Result<File, VmError> {
        self.hold(FlockOperation::LockExclusive)
    }

    fn hold(&self, operation: FlockOperation) -> Result<File, VmError> {
        let path = self.path(USE_LOCK);
        let file = File::options().create(true).append(true).mode(0o600).open(&path);
        let file = file.map_err(VmError::io(&path))?;
        let locked = rustix::io::retry_on_intr(|| rustix::fs::flock(&file, operation));
        locked.map(|()| file).map_err(|errno| VmError::io(&path)(errno.into()))
    }

    /// Waits for the lock and clears what others left half-made.
    pub fn lock(&self) -> Result<StoreLock, VmError> {
        let failed = |errno: rustix::io::Errno| VmError::io(&self.root)(errno.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&self.root, flags, Mode::empty()).map_err(failed)?;
        while let Err(errno) = rustix::fs::flock(&fd, FlockOperation::LockExclusive) {
            if errno != rustix::io::Errno::INTR {
                return Err(failed(errno));
            }
        }
        for part in ["", "kernels", "initramfs", "disks", BLANK] {
            remove_partial(&self.root.join(part));
        }
        Ok(StoreLock { _fd: fd })
    }

    /// A name beside `target` to make it under; see [`publish`].
    pub fn partial(&self, _lock: &StoreLock, target: &Path) -> PathBuf {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        target.with_file_name(format!("{PARTIAL}{name}"))
    }

    /// Names in one of its directories, in their order, without those of what is not whole.
    pub fn names(&self, part: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.path(part)).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort_unstable();
        names
    }

    /// Names in one of its directories of what has an older format, but for those that are kept.
    pub fn older(&self, part: &str, format: &str, kept: &[String]) -> Vec<String> {
        let ours = format.parse().unwrap_or(0);
        let is_older = |name: &String| format_of(name).is_some_and(|format| format < ours);
        self.names(part).into_iter().filter(|name| is_older(name) && !kept.contains(name)).collect()
    }

    /// Removes these, for whoever has made something of this format.
    pub fn clear_older(&self, lock: &StoreLock, part: &str, format: &str, kept: &[String]) {
        for name in self.older(part, format, kept) {
            // What cannot be removed now will be met again.
            let _ = self.remove(lock, &self.path(part).join(name));
        }
    }

    /// Removes a thing that is whole.
    pub fn remove(&self, lock: &StoreLock, path: &Path) -> Result<(), VmError> {
        let partial = self.partial(lock, path);
        publish(path, &partial)?;
        remove_any(&partial).map_err(VmError::io(path))
    }

    /// A file of so many zeros, open for reading.
    pub fn blank(&self, size: u64) -> Result<File, VmError> {
        let path = self.path(BLANK).join(size.to_string());
        if !path.exists() {
            let lock = self.lock()?;
            let partial = self.partial(&lock, &path);
            File::create(&partial).and_then(|file| file.set_len(size)).map_err(VmError::io(&partial))?;
            publish(&partial, &path)?;
        }
        File::open(&path).map_err(VmError::io(&path))
    }

    /// A small JSON document; `None` where there is none, or one of another version.
    pub fn read_json<T: DeserializeOwned>(&self, relative: impl AsRef<Path>) -> Option<T> {
        serde_json::from_slice(&fs::read(self.path(relative)).ok()?).ok()
    }

    /// Replaces a small JSON document.
    pub fn write_json(&self, lock: &StoreLock, target: &Path, value: &impl Serialize) -> Result<(), VmError> {
        let bytes = serde_json::to_vec_pretty(value)
            .map_err(|error| VmError::Io { path: target.to_owned(), source: error.into() })?;
        self.write(lock, target, &bytes)
    }

    /// Replaces a file.
    pub fn write(&self, lock: &StoreLock, target: &Path, bytes: &[u8]) -> Result<(), VmError> {
        let partial = self.partial(lock, target);
        fs::write(&partial, bytes).map_err(VmError::io(&partial))?;
        publish(&partial, target)
    }
}

/// Gives a thing that is whole its name.
pub(crate) fn publish(partial: &Path, target: &Path) -> Result<(), VmError> {
    fs::rename(partial, target).map_err(VmError::io(target))
}

fn remove_partial(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PARTIAL)) {
        // What cannot be removed now will be met again.
        let _ = remove_any(&entry.path());
    }
}

fn remove_any(path: &Path) -> std::io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// The format in a name, if it begins with one.
pub(crate) fn format_of(name: &str) -> Option<u32> {
    name.split_once('-')?.0.parse().ok()
}

/// Sixteen hexadecimal digits that change when a file is changed or replaced.
pub(crate) fn identity(path: &Path, metadata: &fs::Metadata) -> String {
    let mut hash = Sha256::new();
    hash.update(path.as_os_str().as_encoded_bytes());
    hash_content(&mut hash, metadata);
    hash_numbers(&mut hash, &[metadata.ctime(), metadata.ctime_nsec()]);
    short_hex(hash)
}

/// The same of a file that has several names, or gets more. Not the time of its last change as an inode: that is changed by
/// another name.
pub(crate) fn base_identity(metadata: &fs::Metadata) -> String {
    let mut hash = Sha256::new();
    hash_content(&mut hash, metadata);
    short_hex(hash)
}

/// Which file it is, and what changes with what is in it.
fn hash_content(hash: &mut Sha256, metadata: &fs::Metadata) {
    for number in [metadata.dev(), metadata.ino(), metadata.size()] {
        hash.update(number.to_le_bytes());
    }
    hash_numbers(hash, &[metadata.mtime(), metadata.mtime_nsec()]);
}

fn hash_numbers(hash: &mut Sha256, numbers: &[i64]) {
    numbers.iter().for_each(|number| hash.update(number.to_le_bytes()));
}

/// A name for what is made of these parts.
pub(crate) fn key_of(parts: &[String]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update([0]);
    }
    short_hex(hash)
}

/// The first sixteen hexadecimal digits.
pub(crate) fn short_hex(hash: Sha256) -> String {
    hex(&hash.finalize()[..8])
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_made_things_are_cleared_and_whole_ones_stay() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        let whole = store.path("initramfs/a.cpio");
        let lock = store.lock().unwrap();
        store.write(&lock, &whole, b"x").unwrap();
        let partial = store.partial(&lock, &store.path("kernels/k"));
        fs::create_dir(&partial).unwrap();
        fs::write(partial.join("image"), "half").unwrap();
        drop(lock);
        let _lock = store.lock().unwrap();
        assert!(whole.exists() && !partial.exists());
    }

    #[test]
    fn older_formats_go_and_nothing_goes_while_somebody_starts_from_it() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        let lock = store.lock().unwrap();
        for name in ["1-a", "2-a", "2-kept", "10-a", "a-1"] {
            store.write(&lock, &store.path("disks").join(name), b"x").unwrap();
        }
        store.clear_older(&lock, "disks", "3", &["2-kept".to_owned()]);
        assert_eq!(store.names("disks"), ["10-a", "2-kept", "a-1"]);
        let starts = [store.share().unwrap(), store.share().unwrap()];
        let other = File::open(store.path(USE_LOCK)).unwrap();
        let alone = || rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(alone(), Err(rustix::io::Errno::WOULDBLOCK));
        drop(starts);
        assert_eq!(alone(), Ok(()));
    }

    #[test]
    fn an_identity_follows_the_file() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("f");
        fs::write(&path, "1").unwrap();
        let first = identity(&path, &fs::metadata(&path).unwrap());
        fs::write(&path, "22").unwrap();
        assert_ne!(first, identity(&path, &fs::metadata(&path).unwrap()));
        assert_eq!(first.len(), 16);
    }
}
