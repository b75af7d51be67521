//! A tree as a tar stream.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, major, minor};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::Place;
use crate::{Error, Result, inroot};

/// Levels of directories: each holds a descriptor.
const MAX_DEPTH: usize = 256;
/// Files with several names that are remembered; beyond that their names become files of their own.
const MAX_LINKS: usize = 100_000;
/// File systems whose files are no data: proc, sysfs, cgroup, cgroup2, devpts, mqueue, securityfs, debugfs,
/// tracefs, bpf.
const KERNEL_FILE_SYSTEMS: &[i64] = &[
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0x1980_0202,
    0x7363_6673,
    0x6462_6720,
    0x7472_6163,
    0xcafe_4a11,
];

pub(super) fn tree(place: &Place, path: &str, out: &mut dyn Write) -> Result<()> {
    let mut writer = Writer { tar: Builder::new(out), links: HashMap::new() };
    let name = if place.name == "/" { PathBuf::from(".") } else { PathBuf::from(&place.name) };
    let entry = CString::new(place.entry.as_str()).map_err(|error| Error::call(path, error))?;
    writer.add(place.parent.as_fd(), &entry, &name, place.stat, 0).map_err(|error| error.context(path))?;
    writer.tar.finish().map_err(|error| Error::call(path, error))
}

struct Writer<'a> {
    tar: Builder<&'a mut dyn Write>,
    /// Files with several names, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Writer<'_> {
    fn add(&mut self, dir: BorrowedFd, entry: &CString, name: &Path, stat: Stat, depth: usize) -> Result<()> {
        let written = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return self.directory(dir, entry, name, &stat, depth),
            FileType::RegularFile => self.file(dir, entry, name),
            FileType::Symlink => self.symlink(dir, entry, name, &stat),
            kind @ (FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo) => {
                self.special(kind, name, &stat)
            }
            // Tar has no sockets.
            _ => Ok(()),
        };
        match written {
            // It went away, or became something else, since it was listed.
            Err(Failure::Kernel(Errno::NOENT | Errno::LOOP | Errno::NXIO)) if depth > 0 => Ok(()),
            Err(Failure::Kernel(errno)) => Err(Error::at(name, errno)),
            Err(Failure::Output(error)) => Err(Error::at(name, error)),
            Ok(()) => Ok(()),
        }
    }

    fn directory(
        &mut self,
        dir: BorrowedFd,
        entry: &CString,
        name: &Path,
        stat: &Stat,
        depth: usize,
    ) -> Result<()> {
        if depth >= MAX_DEPTH {
            return Err(Error::invalid(format!(
                "{}: more than {MAX_DEPTH} levels of directories",
                name.display()
            )));
        }
        let fail = |errno: Errno| Error::at(name, errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let own = match rustix::fs::openat(dir, entry.as_c_str(), flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if depth > 0 => return Ok(()),
            other => other.map_err(fail)?,
        };
        let mut header = header(stat, EntryType::Directory);
        // A name that ends in a slash is a directory to every reader.
        let named = name.join("");
        self.tar.append_data(&mut header, named, std::io::empty()).map_err(|error| Error::at(name, error))?;
        let filesystem = rustix::fs::fstatfs(&own).map_err(fail)?.f_type;
        if KERNEL_FILE_SYSTEMS.contains(&filesystem) {
            return Ok(());
        }
        for child in Dir::read_from(&own).map_err(fail)? {
            let child = child.map_err(fail)?;
            let bytes = child.file_name();
            if matches!(bytes.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = name.join(OsStr::from_bytes(bytes.to_bytes()));
            match rustix::fs::statat(&own, bytes, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => self.add(own.as_fd(), &bytes.to_owned(), &path, stat, depth + 1)?,
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(Error::at(&path, errno)),
            }
        }
        Ok(())
    }

    fn file(&mut self, dir: BorrowedFd, entry: &CString, name: &Path) -> Result<(), Failure> {
        // Not blocking: it may have become a pipe.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, entry.as_c_str(), flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if !inroot::is(&stat, FileType::RegularFile) {
            return Err(Errno::NOENT.into());
        }
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key) {
                let mut header = header(&stat, EntryType::Link);
                return Ok(self.tar.append_link(&mut header, name, first)?);
            }
            if self.links.len() < MAX_LINKS {
                self.links.insert(key, name.to_owned());
            }
        }
        self.capability(&file)?;
        let mut header = header(&stat, EntryType::Regular);
        header.set_size(stat.st_size as u64);
        let exact = Exact { file: std::fs::File::from(file), left: stat.st_size as u64 };
        Ok(self.tar.append_data(&mut header, name, exact)?)
    }

    /// A file's capabilities are part of what it does.
    fn capability(&mut self, file: &OwnedFd) -> Result<(), Failure> {
        let mut value = [0_u8; 64];
        match rustix::fs::fgetxattr(file, "security.capability", &mut value[..]) {
            Ok(length) => {
                let length = length.min(value.len());
                Ok(self
                    .tar
                    .append_pax_extensions([("SCHILY.xattr.security.capability", &value[..length])])?)
            }
            Err(_) => Ok(()),
        }
    }

    fn symlink(&mut self, dir: BorrowedFd, entry: &CString, name: &Path, stat: &Stat) -> Result<(), Failure> {
        let target = rustix::fs::readlinkat(dir, entry.as_c_str(), Vec::new())?;
        let mut header = header(stat, EntryType::Symlink);
        Ok(self.tar.append_link(&mut header, name, OsStr::from_bytes(target.as_bytes()))?)
    }

    fn special(&mut self, kind: FileType, name: &Path, stat: &Stat) -> Result<(), Failure> {
        let kind = match kind {
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            _ => EntryType::Fifo,
        };
        let mut header = header(stat, kind);
        header.set_device_major(major(stat.st_rdev))?;
        header.set_device_minor(minor(stat.st_rdev))?;
        Ok(self.tar.append_data(&mut header, name, std::io::empty())?)
    }
}

enum Failure {
    Kernel(Errno),
    Output(std::io::Error),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error)
    }
}

fn header(stat: &Stat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(u64::from(stat.st_uid));
    header.set_gid(u64::from(stat.st_gid));
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

/// Exactly as many bytes as were announced, though the file grow or shrink meanwhile.
struct Exact {
    file: std::fs::File,
    left: u64,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..wanted];
        if buffer.is_empty() {
            return Ok(0);
        }
        let length = match self.file.read(buffer)? {
            0 => {
                buffer.fill(0);
                buffer.len()
            }
            length => length,
        };
        self.left -= length as u64;
        Ok(length)
    }
}
