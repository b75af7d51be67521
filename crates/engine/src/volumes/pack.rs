//! A volume as a tar stream. What is in a volume was written by instances, which may go on to write: everything is
//! opened below a descriptor, and no link is followed.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

/// Levels of directories: each holds two descriptors.
const MAX_DEPTH: usize = 256;
/// Longest list of attributes, and longest value, that Linux has.
const MAX_ATTRIBUTE: usize = 64 * 1024;

/// Writes all that is in a directory. Sockets and devices are left out.
pub(super) fn pack(out: &mut dyn Write, directory: &OwnedFd) -> io::Result<()> {
    let mut packer = Packer { builder: Builder::new(out), links: HashMap::new() };
    let stat = rustix::fs::fstat(directory)?;
    packer.begin(directory.as_fd())?;
    packer.add(Path::new("./"), EntryType::Directory, &stat)?;
    packer.directory(directory.as_fd(), Path::new(""), 0)?;
    packer.builder.finish()
}

struct Packer<'a> {
    builder: Builder<&'a mut dyn Write>,
    /// The first name of files that have several.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Packer<'_> {
    fn directory(&mut self, directory: BorrowedFd, path: &Path, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(Errno::NAMETOOLONG.into());
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(directory)? {
            let name = entry?.file_name().to_owned();
            let ours = [c".", c"..", c"lost+found", c".proa-fill", c".proa-fill.new"];
            if !ours.contains(&name.as_c_str()) || (depth > 0 && name.as_c_str() == c"lost+found") {
                names.push(name);
            }
        }
        names.sort();
        for name in names {
            let child = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            match self.one(directory, &name, &child, depth) {
                // It was removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn one(&mut self, at: BorrowedFd, name: &CStr, path: &Path, depth: usize) -> io::Result<()> {
        let stat = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let has_names = kind != FileType::Directory && stat.st_nlink > 1;
        if has_names && let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
            let mut header = header(EntryType::Link, &stat);
            return self.builder.append_link(&mut header, path, first);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match kind {
            FileType::Directory => {
                let inner = rustix::fs::openat(at, name, flags | OFlags::DIRECTORY, Mode::empty())?;
                self.begin(inner.as_fd())?;
                self.add(path, EntryType::Directory, &stat)?;
                return self.directory(inner.as_fd(), path, depth + 1);
            }
            FileType::RegularFile => {
                let file = rustix::fs::openat(at, name, flags, Mode::empty())?;
                // It may have become something else since it was looked at.
                let stat = rustix::fs::fstat(&file)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Ok(());
                }
                self.begin(file.as_fd())?;
                let mut header = header(EntryType::Regular, &stat);
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                header.set_size(size);
                self.builder.append_data(&mut header, path, exactly(File::from(file), size))?;
            }
            FileType::Symlink => {
                let text = rustix::fs::readlinkat(at, name, Vec::new())?;
                let target = Path::new(std::ffi::OsStr::from_bytes(text.to_bytes())).to_owned();
                self.builder.append_link(&mut header(EntryType::Symlink, &stat), path, target)?;
            }
            FileType::Fifo => self.add(path, EntryType::Fifo, &stat)?,
            _ => return Ok(()),
        }
        if has_names {
            self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, kind: EntryType, stat: &Stat) -> io::Result<()> {
        self.builder.append_data(&mut header(kind, stat), path, io::empty())
    }

    /// The attributes of the entry that comes next.
    fn begin(&mut self, file: BorrowedFd) -> io::Result<()> {
        let mut names = vec![0; MAX_ATTRIBUTE];
        let length = match flistxattr(file, &mut names[..]) {
            Err(Errno::OPNOTSUPP) | Ok(0) => return Ok(()),
            other => other?,
        };
        let mut kept = Vec::new();
        for name in names[..length].split(|byte| *byte == 0) {
            let text = String::from_utf8_lossy(name).into_owned();
            if !text.starts_with("user.") && text != "security.capability" {
                continue;
            }
            let mut value = vec![0; MAX_ATTRIBUTE];
            let size = fgetxattr(file, name, &mut value[..])?;
            value.truncate(size);
            kept.push((format!("SCHILY.xattr.{text}"), value));
        }
        if kept.is_empty() {
            return Ok(());
        }
        self.builder.append_pax_extensions(kept.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
    }
}

fn header(kind: EntryType, stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header
}

/// As many bytes as the header says, whatever happens to the file meanwhile.
fn exactly(file: File, size: u64) -> impl Read {
    file.chain(io::repeat(0)).take(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_packed_as_links() {
        let bed = tempfile::tempdir().unwrap();
        fs::create_dir(bed.path().join("dir")).unwrap();
        fs::write(bed.path().join("dir/file"), "text").unwrap();
        fs::hard_link(bed.path().join("dir/file"), bed.path().join("hard")).unwrap();
        symlink("/etc/passwd", bed.path().join("soft")).unwrap();
        fs::write(bed.path().join("n".repeat(200)), "").unwrap();
        drop(std::os::unix::net::UnixListener::bind(bed.path().join("socket")).unwrap());
        let mut tar = Vec::new();
        pack(&mut tar, &OwnedFd::from(File::open(bed.path()).unwrap())).unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            (
                name,
                entry.header().entry_type(),
                entry.link_name().unwrap().map(|link| link.display().to_string()),
            )
        });
        let long = "n".repeat(200);
        let expected = [
            ("./", EntryType::Directory, None),
            ("dir", EntryType::Directory, None),
            ("dir/file", EntryType::Regular, None),
            ("hard", EntryType::Link, Some("dir/file")),
            (long.as_str(), EntryType::Regular, None),
            ("soft", EntryType::Symlink, Some("/etc/passwd")),
        ];
        let expected: Vec<_> =
            expected.map(|(name, kind, link)| (name.to_owned(), kind, link.map(str::to_owned))).into();
        assert_eq!(entries.collect::<Vec<_>>(), expected);
    }
}
