//! `docker cp`: what a path inside a container is, trees out of it and into it, as tar streams.
//!
//! The container is hostile and may run meanwhile, so no path is trusted twice (CVE-2018-15664): each is resolved
//! by the kernel inside the root, and below it names are opened one at a time, links not followed, relative to
//! a descriptor. Nothing in the container is ever run (CVE-2026-41567): streams are plain tar.
//!
//! Given the root of [`crate::Container::root`] all this sees the container's mounts, volumes among them, as the
//! container does; the kernel's own file systems (`/proc`, `/sys`, …) are not descended into.

mod get;
mod put;

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use proa_protocol::message::{ErrorKind, PathStat};
use rustix::fs::{FileType, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::{Error, Result, inroot};

/// What `path` is. Links on the way to it are followed, a link at its end is not.
///
/// # Errors
/// There is no such path.
pub fn stat(root: BorrowedFd, path: &str) -> Result<PathStat> {
    let place = Place::find(root, path)?;
    let is_link = inroot::is(&place.stat, FileType::Symlink);
    Ok(PathStat {
        name: place.name.clone(),
        size: place.stat.st_size as u64,
        mode: place.stat.st_mode,
        mtime_ns: place.stat.st_mtime * 1_000_000_000 + place.stat.st_mtime_nsec as i64,
        link_target: if is_link { resolve(root, path, &place.target) } else { String::new() },
    })
}

/// Writes a tar stream of the file or tree at `path`; the entries' names begin with its last component.
///
/// # Errors
/// There is no such path, it cannot be read, or `out` fails.
pub fn get(root: BorrowedFd, path: &str, out: &mut dyn Write) -> Result<()> {
    get::tree(&Place::find(root, path)?, path, out)
}

/// Unpacks a tar stream into the directory at `path`. What is in the way is replaced, a directory by a file only
/// where `no_overwrite_dir` is not set.
///
/// # Errors
/// There is no such directory, an entry leads out of it, or something cannot be written.
pub fn put(root: BorrowedFd, path: &str, tar: &mut dyn Read, no_overwrite_dir: bool) -> Result<()> {
    put::tree(root, path, tar, no_overwrite_dir)
}

/// A path that exists.
struct Place {
    /// The directory that holds it.
    parent: OwnedFd,
    /// Its name there; `.` for the directory itself.
    entry: String,
    /// Its last component, as it was asked for.
    name: String,
    stat: Stat,
    /// Where a link leads, as it says.
    target: String,
}

impl Place {
    fn find(root: BorrowedFd, path: &str) -> Result<Self> {
        let (dir, entry) = split(path);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let parent =
            inroot::open(root, &dir, flags, ResolveFlags::empty()).map_err(|errno| failure(path, errno))?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let handle = inroot::open(parent.as_fd(), &entry, flags, ResolveFlags::empty())
            .map_err(|errno| failure(path, errno))?;
        let stat = inroot::stat(handle.as_fd()).map_err(|errno| failure(path, errno))?;
        let target = match inroot::is(&stat, FileType::Symlink) {
            true => rustix::fs::readlinkat(&handle, c"", Vec::new())
                .map(|target| target.to_string_lossy().into_owned())
                .map_err(|errno| failure(path, errno))?,
            false => String::new(),
        };
        let name =
            path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/");
        Ok(Self { parent, entry, name: name.to_owned(), stat, target })
    }
}

/// Directory and entry of a path. A path that ends in `/`, `.` or `..` means the directory itself.
fn split(path: &str) -> (String, String) {
    let absolute = format!("/{path}");
    match absolute.rsplit_once('/') {
        Some((dir, entry)) if !matches!(entry, "" | "." | "..") => (format!("{dir}/"), entry.to_owned()),
        _ => (absolute, ".".to_owned()),
    }
}

/// Where a link leads inside the root: by its text, or by the kernel where the target exists.
fn resolve(root: BorrowedFd, path: &str, target: &str) -> String {
    let (dir, _) = split(path);
    let text = if target.starts_with('/') { target.to_owned() } else { format!("{dir}{target}") };
    let mut clean = PathBuf::from("/");
    for part in std::path::Path::new(&text).components() {
        match part {
            std::path::Component::Normal(name) => {
                clean.push(name);
                // A link inside the target: one level, as far as it can be read.
                let flags = OFlags::PATH | OFlags::NOFOLLOW;
                let next = clean
                    .to_str()
                    .and_then(|clean| inroot::open(root, clean, flags, ResolveFlags::empty()).ok())
                    .and_then(|handle| rustix::fs::readlinkat(&handle, c"", Vec::new()).ok());
                if let Some(next) = next.and_then(|next| next.into_string().ok()) {
                    clean.pop();
                    clean = normalized(&clean.join(next));
                }
            }
            std::path::Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean.to_string_lossy().into_owned()
}

/// Without `.` and `..`, absolute.
fn normalized(path: &std::path::Path) -> PathBuf {
    path.components().fold(PathBuf::from("/"), |mut clean, part| {
        match part {
            std::path::Component::Normal(name) => clean.push(name),
            std::path::Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
        clean
    })
}

fn failure(path: &str, errno: Errno) -> Error {
    match errno {
        Errno::NOENT | Errno::NOTDIR => {
            Error::new(ErrorKind::NoSuchPath, format!("{path}: no such file or directory in the container"))
        }
        Errno::LOOP => {
            Error::new(ErrorKind::NoSuchPath, format!("{path}: the links in this path lead nowhere"))
        }
        errno => Error::at(path, errno),
    }
}

#[cfg(test)]
mod tests;
