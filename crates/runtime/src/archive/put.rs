//! A tar stream unpacked into a directory.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, makedev,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType, Header};

use super::failure;
use crate::{Error, Result, inroot};

const CAPABILITY: &str = "SCHILY.xattr.security.capability";

pub(super) fn tree(root: BorrowedFd, path: &str, tar: &mut dyn Read, no_overwrite_dir: bool) -> Result<()> {
    let directory = inroot::open(root, path, OFlags::PATH, ResolveFlags::empty())
        .map_err(|errno| failure(path, errno))?;
    let stat = inroot::stat(directory.as_fd()).map_err(|errno| failure(path, errno))?;
    if !inroot::is(&stat, FileType::Directory) {
        return Err(Error::invalid(format!("{path}: not a directory")));
    }
    let mut target = Target { root, base: inroot::absolute(path), no_overwrite_dir, times: Vec::new() };
    let mut archive = Archive::new(tar);
    for entry in archive.entries().map_err(|error| Error::call("archive", error))? {
        let mut entry = entry.map_err(|error| Error::invalid(format!("archive: {error}")))?;
        target.unpack(&mut entry)?;
    }
    target.set_directory_times();
    // What follows the end mark is padding.
    std::io::copy(&mut archive.into_inner(), &mut std::io::sink())
        .map_err(|error| Error::call("archive", error))?;
    Ok(())
}

struct Target<'a> {
    root: BorrowedFd<'a>,
    /// The directory, absolute inside the root.
    base: PathBuf,
    no_overwrite_dir: bool,
    /// Directories, whose times change as they are filled.
    times: Vec<(PathBuf, u64)>,
}

impl Target<'_> {
    fn unpack(&mut self, entry: &mut Entry<impl Read>) -> Result<()> {
        let name = PathBuf::from(OsString::from(std::ffi::OsStr::from_bytes(&entry.path_bytes())));
        let path = relative(&name)?;
        let kind = entry.header().entry_type();
        let Some(file) = path.file_name() else {
            // `./`: the directory itself, which keeps what it has.
            return Ok(());
        };
        let parent = self.parent(&path)?;
        let fail = |errno: Errno| Error::at(&name, errno);
        let existing = self.make_room(parent.as_fd(), Path::new(file), kind, &name)?;
        match kind {
            EntryType::Directory => {
                if !existing {
                    rustix::fs::mkdirat(&parent, file, Mode::from_raw_mode(0o700)).map_err(fail)?;
                }
                self.times.push((path.clone(), entry.header().mtime().unwrap_or(0)));
            }
            EntryType::Symlink | EntryType::Link => {
                let target = entry.link_name_bytes().map(std::borrow::Cow::into_owned);
                let target =
                    target.ok_or_else(|| Error::invalid(format!("{}: a link to nothing", name.display())))?;
                self.link(
                    parent.as_fd(),
                    Path::new(file),
                    kind,
                    Path::new(std::ffi::OsStr::from_bytes(&target)),
                )?;
                if kind == EntryType::Link {
                    return Ok(());
                }
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                special(parent.as_fd(), Path::new(file), kind, entry.header()).map_err(fail)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                regular(parent.as_fd(), Path::new(file), entry)?;
            }
            // Whatever else there is belongs to the archive, not into it.
            _ => return Ok(()),
        }
        attributes(parent.as_fd(), Path::new(file), kind, entry.header()).map_err(fail)
    }

    /// The directory that an entry goes into, made where it is missing; links are followed inside the root.
    fn parent(&self, path: &Path) -> Result<OwnedFd> {
        let full = path.parent().map_or_else(|| self.base.clone(), |parent| self.base.join(parent));
        let text = full.to_str().ok_or_else(|| Error::invalid(format!("{}: not UTF-8", full.display())))?;
        inroot::make_dir_all(self.root, text, 0o755)
    }

    /// Removes what is in the way. `true` if it is a directory that stays.
    fn make_room(&self, parent: BorrowedFd, file: &Path, kind: EntryType, name: &Path) -> Result<bool> {
        let stat = match rustix::fs::statat(parent, file, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(Error::at(name, errno)),
        };
        let (is_dir, wants_dir) = (inroot::is(&stat, FileType::Directory), kind == EntryType::Directory);
        if is_dir && wants_dir {
            return Ok(true);
        }
        if self.no_overwrite_dir && is_dir != wants_dir {
            let (old, new) =
                if is_dir { ("directory", "non-directory") } else { ("non-directory", "directory") };
            return Err(Error::invalid(format!("{}: cannot overwrite a {old} with a {new}", name.display())));
        }
        if is_dir {
            remove_tree(parent, file, 0)
        } else {
            rustix::fs::unlinkat(parent, file, AtFlags::empty())
        }
        .map_err(|errno| Error::at(name, errno))?;
        Ok(false)
    }

    fn link(&self, parent: BorrowedFd, file: &Path, kind: EntryType, target: &Path) -> Result<()> {
        let fail = |errno: Errno| Error::at(file, errno);
        if kind == EntryType::Symlink {
            return rustix::fs::symlinkat(target, parent, file).map_err(fail);
        }
        let path = relative(target)?;
        let name = path
            .file_name()
            .ok_or_else(|| Error::invalid(format!("{}: a link to nothing", file.display())))?;
        let from = self.parent(&path)?;
        rustix::fs::linkat(&from, name, parent, file, AtFlags::empty()).map_err(fail)
    }

    /// Best effort: a time is not worth failing for.
    fn set_directory_times(&self) {
        for (path, seconds) in self.times.iter().rev() {
            let Ok(parent) = self.parent(path) else { continue };
            if let Some(name) = path.file_name() {
                let _ = set_times(parent.as_fd(), Path::new(name), *seconds);
            }
        }
    }
}

/// An entry's path below the directory; what would lead out of it is refused.
fn relative(name: &Path) -> Result<PathBuf> {
    let mut path = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::invalid(format!("archive: entry {:?} leads out of it", name)));
            }
        }
    }
    Ok(path)
}

fn regular(parent: BorrowedFd, file: &Path, entry: &mut Entry<impl Read>) -> Result<()> {
    let fail = |error: std::io::Error| Error::at(file, error);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, file, flags, Mode::from_raw_mode(0o600))
        .map_err(|errno| fail(errno.into()))?;
    let capability = entry
        .pax_extensions()
        .map_err(fail)?
        .into_iter()
        .flatten()
        .flatten()
        .find(|extension| extension.key_bytes() == CAPABILITY.as_bytes())
        .map(|extension| extension.value_bytes().to_vec());
    let mut out = File::from(fd);
    std::io::copy(entry, &mut out).map_err(fail)?;
    if let Some(value) = capability {
        // The owner is set first: changing it takes capabilities away.
        own(parent, file, entry.header()).map_err(|errno| fail(errno.into()))?;
        rustix::fs::fsetxattr(&out, "security.capability", &value, XattrFlags::empty())
            .map_err(|errno| fail(errno.into()))?;
    }
    Ok(())
}

fn special(parent: BorrowedFd, file: &Path, kind: EntryType, header: &Header) -> Result<(), Errno> {
    let number = |number: std::io::Result<Option<u32>>| number.ok().flatten().unwrap_or(0);
    let device = makedev(number(header.device_major()), number(header.device_minor()));
    let kind = match kind {
        EntryType::Char => FileType::CharacterDevice,
        EntryType::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    rustix::fs::mknodat(parent, file, kind, Mode::from_raw_mode(0o600), device)
}

fn own(parent: BorrowedFd, file: &Path, header: &Header) -> Result<(), Errno> {
    // -1 would mean "leave it".
    let id = |id: std::io::Result<u64>| {
        id.ok().and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX).unwrap_or(0)
    };
    let (uid, gid) = (Uid::from_raw(id(header.uid())), Gid::from_raw(id(header.gid())));
    let stat = rustix::fs::statat(parent, file, AtFlags::SYMLINK_NOFOLLOW)?;
    if (stat.st_uid, stat.st_gid) == (uid.as_raw(), gid.as_raw()) {
        return Ok(());
    }
    rustix::fs::chownat(parent, file, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

/// Owner, mode and times, on the entry itself: a link that has taken its place gets none of them.
fn attributes(parent: BorrowedFd, file: &Path, kind: EntryType, header: &Header) -> Result<(), Errno> {
    own(parent, file, header)?;
    if kind != EntryType::Symlink {
        let mode = Mode::from_raw_mode(header.mode().unwrap_or(0o644) & 0o7777);
        // `fchmodat` follows links; a handle does not.
        let handle = rustix::fs::openat(
            parent,
            file,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        chmod_handle(&handle, mode)?;
    }
    set_times(parent, file, header.mtime().unwrap_or(0))
}

fn chmod_handle(handle: &OwnedFd, mode: Mode) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    if inroot::is(&inroot::stat(handle.as_fd())?, FileType::Symlink) {
        return Err(Errno::LOOP);
    }
    // Handles can be changed by this path alone on kernels before 6.6. It is our own /proc.
    rustix::fs::chmod(format!("/proc/self/fd/{}", handle.as_raw_fd()), mode)
}

fn set_times(parent: BorrowedFd, file: &Path, seconds: u64) -> Result<(), Errno> {
    let time = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(parent, file, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Removes a directory and what is in it, names one at a time, links not followed.
fn remove_tree(parent: BorrowedFd, name: &Path, depth: usize) -> Result<(), Errno> {
    const MAX_DEPTH: usize = 256;
    if depth > MAX_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let own = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    for child in Dir::read_from(&own)? {
        let child = child?;
        let file = child.file_name();
        if matches!(file.to_bytes(), b"." | b"..") {
            continue;
        }
        match rustix::fs::unlinkat(&own, file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                remove_tree(own.as_fd(), Path::new(std::ffi::OsStr::from_bytes(file.to_bytes())), depth + 1)?;
            }
            Err(errno) => return Err(errno),
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}
