//! `docker diff`: what a writable layer changes over the layers below it.
//!
//! ```text
//!   upper holds …                      below …            said
//!   a 0:0 device ("whiteout")          something          D
//!   a directory marked opaque          a directory        D for its entries that are not in upper
//!   anything                           nothing            A
//!   a directory                        a directory, same  C if anything in it changed
//!   anything else                      anything else      C
//! ```
//!
//! The upper directory is the container's to write, so it is read by descriptor and links are not followed.

use std::collections::BTreeSet;
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use proa_protocol::message::{Change, ChangeKind};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::container::Owners;
use crate::{Error, Result, inroot};

/// Levels of directories: each holds a descriptor for each layer.
const MAX_DEPTH: usize = 256;

/// What the writable layer `upper` changes over `lowers` (lowest first). `mountpoints` are the container's mount
/// destinations: what the runtime made there, and only that, is left out. `owners` is how owners below look from above.
/// The result is sorted by path.
///
/// # Errors
/// A layer cannot be read.
pub fn changes(
    upper: &Path,
    lowers: &[PathBuf],
    mountpoints: &[&str],
    owners: &Owners,
) -> Result<Vec<Change>> {
    let open = |path: &Path| {
        rustix::fs::open(path, directory_flags(), Mode::empty()).map_err(|errno| Error::at(path, errno))
    };
    let upper_fd = open(upper)?;
    let below = lowers.iter().rev().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
    let mut walk = Walk {
        mountpoints: mountpoints.iter().map(|path| inroot::absolute(path)).collect(),
        changes: vec![],
        owners,
    };
    walk.directory(&upper_fd, &below, Path::new("/"), 0)?;
    walk.changes.sort();
    Ok(walk.changes)
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

struct Walk<'a> {
    mountpoints: BTreeSet<PathBuf>,
    changes: Vec<Change>,
    owners: &'a Owners,
}

impl Walk<'_> {
    /// Compares a directory of the upper layer with those below it, the uppermost first. `true` if anything in it
    /// is said to have changed.
    fn directory(&mut self, upper: &OwnedFd, below: &[OwnedFd], path: &Path, depth: usize) -> Result<bool> {
        if depth > MAX_DEPTH {
            return Err(Error::invalid(format!(
                "{}: more than {MAX_DEPTH} levels of directories",
                path.display()
            )));
        }
        let mut changed = false;
        for entry in Dir::read_from(upper).map_err(|errno| Error::at(path, errno))? {
            let entry = entry.map_err(|errno| Error::at(path, errno))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = path.join(OsStr::from_bytes(name.to_bytes()));
            match rustix::fs::statat(upper, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => changed |= self.entry(upper, below, name, &path, &stat, depth)?,
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(Error::at(&path, errno)),
            }
        }
        if is_opaque(upper.as_fd()) {
            changed |= self.hidden(upper, below, path)?;
        }
        Ok(changed)
    }

    fn entry(
        &mut self,
        upper: &OwnedFd,
        below: &[OwnedFd],
        name: &CStr,
        path: &Path,
        stat: &Stat,
        depth: usize,
    ) -> Result<bool> {
        let visible: &[OwnedFd] = if is_opaque(upper.as_fd()) { &[] } else { below };
        let lower = find(visible, name, path)?;
        if inroot::is(stat, FileType::CharacterDevice) && stat.st_rdev == 0 {
            if lower.is_some() {
                self.say(path, ChangeKind::Deleted);
            }
            return Ok(lower.is_some());
        }
        if !inroot::is(stat, FileType::Directory) {
            let is_mountpoint = self.mountpoints.contains(path) && stat.st_size == 0;
            if is_mountpoint && lower.is_none() {
                return Ok(false);
            }
            self.say(path, kind_over(lower.as_ref()));
            return Ok(true);
        }
        let own = open_dir(upper, name).map_err(|errno| Error::at(path, errno))?;
        let was_dir = lower.as_ref().is_some_and(|lower| inroot::is(lower, FileType::Directory));
        let deeper = if was_dir { open_all(visible, name, path)? } else { Vec::new() };
        let at = self.changes.len();
        let changed = self.directory(&own, &deeper, path, depth + 1)?;
        let is_ours = self.holds_mountpoint(path) && !changed;
        match &lower {
            None if is_ours => return Ok(false),
            // Only what is in it, or what it is: its time alone changes with a mountpoint made in it.
            Some(lower) if was_dir && !changed && (is_ours || self.same(stat, lower)) => return Ok(false),
            _ => {}
        }
        self.changes.insert(at, Change { path: text(path), kind: kind_over(lower.as_ref()) });
        Ok(true)
    }

    /// Entries of the directories below that an opaque directory hides.
    fn hidden(&mut self, upper: &OwnedFd, below: &[OwnedFd], path: &Path) -> Result<bool> {
        let mut seen = BTreeSet::new();
        for dir in below {
            for entry in Dir::read_from(dir).map_err(|errno| Error::at(path, errno))? {
                let entry = entry.map_err(|errno| Error::at(path, errno))?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") || !seen.insert(name.to_owned()) {
                    continue;
                }
                let path = path.join(OsStr::from_bytes(name.to_bytes()));
                let is_above = rustix::fs::statat(upper, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
                if !is_above && find(below, name, &path)?.is_some() {
                    self.say(&path, ChangeKind::Deleted);
                }
            }
        }
        Ok(!seen.is_empty())
    }

    fn say(&mut self, path: &Path, kind: ChangeKind) {
        self.changes.push(Change { path: text(path), kind });
    }

    /// Whether two directories look the same to Docker.
    fn same(&self, upper: &Stat, lower: &Stat) -> bool {
        let owner = self.owners.outside(lower.st_uid, lower.st_gid);
        owner.is_none_or(|owner| owner == (upper.st_uid, upper.st_gid))
            && (upper.st_mode, upper.st_mtime) == (lower.st_mode, lower.st_mtime)
    }

    /// Whether a mountpoint is this path or below it.
    fn holds_mountpoint(&self, path: &Path) -> bool {
        self.mountpoints
            .range(path.to_owned()..)
            .next()
            .is_some_and(|mountpoint| mountpoint.starts_with(path))
    }
}

fn kind_over(lower: Option<&Stat>) -> ChangeKind {
    if lower.is_some() { ChangeKind::Modified } else { ChangeKind::Added }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn is_opaque(dir: BorrowedFd) -> bool {
    let has = |name: &str| {
        let mut value = [0_u8; 1];
        rustix::fs::fgetxattr(dir, name, &mut value[..]).is_ok_and(|length| length == 1) && value == *b"y"
    };
    has("trusted.overlay.opaque") || has("user.overlay.opaque")
}

/// What a name is in the layers below; a whiteout or a non-directory hides those further down.
fn find(below: &[OwnedFd], name: &CStr, path: &Path) -> Result<Option<Stat>> {
    for dir in below {
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if inroot::is(&stat, FileType::CharacterDevice) && stat.st_rdev == 0 => return Ok(None),
            Ok(stat) => return Ok(Some(stat)),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(Error::at(path, errno)),
        }
        if is_opaque(dir.as_fd()) {
            break;
        }
    }
    Ok(None)
}

/// The directory of this name in each layer below, as far down as it is visible.
fn open_all(below: &[OwnedFd], name: &CStr, path: &Path) -> Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for dir in below {
        match open_dir(dir, name) {
            Ok(own) => {
                let is_last = is_opaque(own.as_fd()) || is_opaque(dir.as_fd());
                found.push(own);
                if is_last {
                    break;
                }
            }
            Err(Errno::NOENT) => {}
            // A file or whiteout.
            Err(Errno::NOTDIR | Errno::LOOP) => break,
            Err(errno) => return Err(Error::at(path, errno)),
        }
    }
    Ok(found)
}

fn open_dir(dir: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, directory_flags(), Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Layers(tempfile::TempDir);

    impl Layers {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for layer in ["low", "high", "upper"] {
                fs::create_dir(dir.path().join(layer)).unwrap();
            }
            Self(dir)
        }

        fn file(&self, path: &str) {
            let full = self.0.path().join(path);
            fs::create_dir_all(full.parent().unwrap()).unwrap();
            fs::write(full, path).unwrap();
        }

        fn whiteout(&self, path: &str) {
            let full = self.0.path().join(path);
            fs::create_dir_all(full.parent().unwrap()).unwrap();
            rustix::fs::mknodat(rustix::fs::CWD, full, FileType::CharacterDevice, Mode::empty(), 0)
                .expect("this test needs root");
        }

        fn opaque(&self, path: &str) {
            let full = self.0.path().join(path);
            fs::create_dir_all(&full).unwrap();
            rustix::fs::setxattr(full, "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty())
                .expect("this test needs root");
        }

        fn changes(&self, mountpoints: &[&str]) -> Vec<String> {
            let at = |layer| self.0.path().join(layer);
            changes(&at("upper"), &[at("low"), at("high")], mountpoints, &Owners::default())
                .unwrap()
                .into_iter()
                .map(|change| format!("{} {}", ["C", "A", "D"][change.kind as usize], change.path))
                .collect()
        }
    }

    #[test]
    fn added_changed_and_deleted() {
        let layers = Layers::new();
        layers.file("low/etc/kept");
        layers.file("low/etc/changed");
        layers.file("high/etc/gone");
        layers.file("upper/etc/changed");
        layers.file("upper/etc/new/file");
        layers.whiteout("upper/etc/gone");
        layers.whiteout("upper/etc/never-was");
        assert_eq!(
            layers.changes(&[]),
            ["C /etc", "C /etc/changed", "D /etc/gone", "A /etc/new", "A /etc/new/file"]
        );
    }

    #[test]
    fn an_opaque_directory_hides_what_is_below() {
        let layers = Layers::new();
        layers.file("low/dir/a");
        layers.file("high/dir/b");
        layers.whiteout("high/dir/a");
        layers.file("low/dir/c");
        layers.opaque("upper/dir");
        layers.file("upper/dir/c");
        assert_eq!(layers.changes(&[]), ["C /dir", "D /dir/b", "A /dir/c"]);
    }

    #[test]
    fn what_the_runtime_made_to_mount_on_is_not_said() {
        let layers = Layers::new();
        layers.file("low/etc/passwd");
        for dir in ["upper/proc", "upper/etc", "upper/data/volume", "upper/mine"] {
            fs::create_dir_all(layers.0.path().join(dir)).unwrap();
        }
        fs::write(layers.0.path().join("upper/etc/hosts"), "").unwrap();
        let mountpoints = ["/proc", "/etc/hosts", "/data/volume"];
        assert_eq!(layers.changes(&mountpoints), ["A /mine"]);
        layers.file("upper/etc/hosts");
        layers.file("upper/data/volume/x");
        assert_eq!(
            layers.changes(&mountpoints),
            ["A /data", "A /data/volume", "A /data/volume/x", "C /etc", "A /etc/hosts", "A /mine"]
        );
    }
}
