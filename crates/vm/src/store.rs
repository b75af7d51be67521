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
//! ```
//!
//! Everything is made under another name and renamed when it is whole, so readers take no lock. What a killed
//! process left half-made is removed by the next one that makes something.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
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
        let _ = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            fs::remove_dir_all(entry.path())
        } else {
            fs::remove_file(entry.path())
        };
    }
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
