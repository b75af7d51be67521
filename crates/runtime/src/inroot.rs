//! Paths inside a container's root (invariant 9): every one is resolved by the kernel with
//! `openat2(RESOLVE_IN_ROOT)`, so neither `..`, nor a symbolic link, nor another process that exchanges
//! directories meanwhile leads outside. Magic links (`/proc/<pid>/fd/…`) are refused, since they lead anywhere.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::{Error, Result};

/// Opens `path` inside `root`. The kernel gives up with `EAGAIN` where a rename races with a `..`; then again.
pub(crate) fn open(
    root: BorrowedFd,
    path: &str,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o644) } else { Mode::empty() };
    for _ in 0..128 {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// A handle on what `path` is, symbolic links followed.
pub(crate) fn handle(root: BorrowedFd, path: &str) -> Result<OwnedFd, Errno> {
    open(root, path, OFlags::PATH, ResolveFlags::empty())
}

/// A handle on what `path` is; a symbolic link anywhere in it is an error (`ELOOP`).
pub(crate) fn handle_no_links(root: BorrowedFd, path: &str) -> Result<OwnedFd, Errno> {
    open(root, path, OFlags::PATH, ResolveFlags::NO_SYMLINKS)
}

/// Reads a text file, at most `limit` bytes of it.
pub(crate) fn read(root: BorrowedFd, path: &str, limit: usize) -> Result<String, Errno> {
    let file = open(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, ResolveFlags::empty())?;
    if !is(&stat(file.as_fd())?, FileType::RegularFile) {
        return Err(Errno::INVAL);
    }
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    while bytes.len() < limit {
        match rustix::io::read(&file, &mut buffer)? {
            0 => break,
            length => bytes.extend_from_slice(&buffer[..length]),
        }
    }
    bytes.truncate(limit);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What an open handle is.
pub(crate) fn stat(fd: BorrowedFd) -> Result<Stat, Errno> {
    rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH)
}

/// Whether it is of this type.
pub(crate) fn is(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

/// The path without empty and `.` components, absolute; `..` is left to the kernel.
pub(crate) fn absolute(path: &str) -> PathBuf {
    Path::new("/").join(path).components().filter(|part| *part != Component::CurDir).collect()
}

/// A handle on the directory `path`, made with its parents where it is missing.
pub(crate) fn make_dir_all(root: BorrowedFd, path: &str, mode: u32) -> Result<OwnedFd> {
    make_dir(root, path, mode, ResolveFlags::empty()).map_err(|errno| match errno {
        Errno::NOENT => Error::invalid(format!("{path}: a symbolic link that leads nowhere is in the way")),
        errno => Error::at(path, errno),
    })
}

/// The same, where a symbolic link anywhere in the path is an error (`ELOOP`).
pub(crate) fn make_dir_no_links(root: BorrowedFd, path: &str, mode: u32) -> Result<OwnedFd, Errno> {
    make_dir(root, path, mode, ResolveFlags::NO_SYMLINKS)
}

fn make_dir(root: BorrowedFd, path: &str, mode: u32, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    match open(root, path, OFlags::PATH, resolve) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let full = absolute(path);
    let (Some(parent), Some(name)) = (full.parent().and_then(Path::to_str), full.file_name()) else {
        return Err(Errno::NOENT);
    };
    let parent = make_dir(root, parent, 0o755, resolve)?;
    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(mode)) {
        Ok(()) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&parent, name, flags, Mode::empty())
        }
        // Another was faster, or it is a link that leads nowhere.
        Err(Errno::EXIST) => open(root, path, OFlags::PATH, resolve),
        Err(errno) => Err(errno),
    }
}

/// A handle on the regular file `path`, made empty with its parents where it is missing.
pub(crate) fn make_file(root: BorrowedFd, path: &str) -> Result<OwnedFd> {
    make(root, path, ResolveFlags::empty())
}

/// The same, where a symbolic link anywhere in the path is an error.
pub(crate) fn make_file_no_links(root: BorrowedFd, path: &str) -> Result<OwnedFd> {
    make(root, path, ResolveFlags::NO_SYMLINKS)
}

fn make(root: BorrowedFd, path: &str, resolve: ResolveFlags) -> Result<OwnedFd> {
    let open = || open(root, path, OFlags::PATH, resolve);
    match open() {
        Ok(fd) => return Ok(fd),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(Error::at(path, errno)),
    }
    let full = absolute(path);
    let (Some(parent), Some(name)) = (full.parent().and_then(Path::to_str), full.file_name()) else {
        return Err(Error::at(path, Errno::NOENT));
    };
    let parent = make_dir(root, parent, 0o755, resolve).map_err(|errno| Error::at(path, errno))?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(Error::at(path, errno)),
    }
    open().map_err(|errno| Error::at(path, errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn links_and_dots_stay_inside() {
        let (dir, fd) = root();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), "inside").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../../../etc/passwd", dir.path().join("etc/up")).unwrap();
        for path in ["/absolute", "etc/up", "../../etc/passwd", "/etc/../../etc/passwd"] {
            assert_eq!(read(fd.as_fd(), path, 100).unwrap(), "inside", "{path}");
        }
        assert_eq!(read(fd.as_fd(), "/etc/passwd", 3).unwrap(), "ins");
        assert_eq!(handle_no_links(fd.as_fd(), "/absolute").unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn what_is_made_is_made_inside() {
        let (dir, fd) = root();
        std::os::unix::fs::symlink("/data/real", dir.path().join("link")).unwrap();
        fs::create_dir_all(dir.path().join("data/real")).unwrap();
        make_dir_all(fd.as_fd(), "/link/a/b", 0o755).unwrap();
        make_file(fd.as_fd(), "/link/c/file").unwrap();
        assert!(dir.path().join("data/real/a/b").is_dir());
        assert!(dir.path().join("data/real/c/file").is_file());
        std::os::unix::fs::symlink("/nowhere", dir.path().join("dangling")).unwrap();
        let error = make_dir_all(fd.as_fd(), "/dangling/x", 0o755).unwrap_err();
        assert!(error.to_string().contains("leads nowhere"), "{error}");
    }
}
