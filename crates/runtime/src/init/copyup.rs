//! `tmpcopyup`: a tmpfs begins with a copy of the directory that it covers. Both are read by descriptor, and no link in
//! them is followed: an image may hold anything.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, fgetxattr,
    flistxattr, fsetxattr,
};
use rustix::io::Errno;

use crate::{Error, Result, inroot};

/// Levels of directories: each holds two descriptors.
const MAX_DEPTH: usize = 256;

/// Copies what lies in `from`, a directory under a mount, into the mount.
pub(super) fn run(from: BorrowedFd, to: BorrowedFd) -> Result<()> {
    let copy = || {
        // A handle opened before the mount was attached still is what lies under it.
        let from = rustix::fs::openat(
            from,
            c".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let to = rustix::fs::openat(
            to,
            c".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        directory(from.as_fd(), to.as_fd(), 0)
    };
    copy().map_err(|errno| Error::call("tmpcopyup", errno))
}

fn directory(from: BorrowedFd, to: BorrowedFd, depth: usize) -> Result<(), Errno> {
    if depth > MAX_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        one(from, to, name, &stat, depth)?;
    }
    Ok(())
}

fn one(from: BorrowedFd, to: BorrowedFd, name: &CStr, stat: &Stat, depth: usize) -> Result<(), Errno> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match kind {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let source = rustix::fs::openat(from, name, flags | OFlags::DIRECTORY, Mode::empty())?;
            let target = rustix::fs::openat(to, name, flags | OFlags::DIRECTORY, Mode::empty())?;
            directory(source.as_fd(), target.as_fd(), depth + 1)?;
            attributes(source.as_fd(), target.as_fd())?;
        }
        FileType::RegularFile => {
            let source = rustix::fs::openat(from, name, flags | OFlags::NONBLOCK, Mode::empty())?;
            // It may have become something else since.
            if !inroot::is(&inroot::stat(source.as_fd())?, FileType::RegularFile) {
                return Ok(());
            }
            let create = flags | OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
            let target = rustix::fs::openat(to, name, create, Mode::RUSR | Mode::WUSR)?;
            contents(source.as_fd(), target.as_fd())?;
            attributes(source.as_fd(), target.as_fd())?;
        }
        FileType::Symlink => {
            let text = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(text.as_c_str(), to, name)?;
        }
        FileType::Socket | FileType::Unknown => return Ok(()),
        kind => rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?,
    }
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != FileType::Symlink {
        // After the owner, whose change takes set-user-id away.
        rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
    }
    let time = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as i64 };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn contents(source: BorrowedFd, target: BorrowedFd) -> Result<(), Errno> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = rustix::io::read(source, &mut buffer[..])?;
        if length == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            rest = &rest[rustix::io::write(target, rest)?..];
        }
    }
}

/// Extended attributes that the target can hold, file capabilities among them.
fn attributes(source: BorrowedFd, target: BorrowedFd) -> Result<(), Errno> {
    let mut names = vec![0; 64 * 1024];
    let length = match flistxattr(source, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 * 1024];
        let size = fgetxattr(source, name, &mut value[..])?;
        match fsetxattr(target, name, &value[..size], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
