//! A tar stream from an instance, unpacked on the host. The stream is hostile.
//!
//! Each entry's place is resolved below the destination's descriptor with `openat2`, with no symbolic link on the
//! way and no way out, so whatever the names or links of earlier entries are, nothing outside is touched.
//! Devices are left out: the host makes no device nodes on a guest's word.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use crate::error::{Error, Result};

/// Whose the copies are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// Whoever copies.
    Ours,
    /// Who the archive says.
    AsInArchive,
}

/// How the names of entries become places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names<'a> {
    /// Take the first part away.
    pub(super) strip: bool,
    /// Put this before the rest.
    pub(super) first: Option<&'a str>,
}

struct Extractor {
    base: OwnedFd,
    base_path: PathBuf,
    owners: Ownership,
    /// Directories get their time and mode when nothing is written into them any more. A million entries for one
    /// directory are one.
    directories: BTreeMap<PathBuf, (Mode, u64)>,
    left_out: Vec<String>,
    left_out_unnamed: u64,
}

/// What is left out is told by name so often, and then counted.
const MOST_NAMED: usize = 20;

/// Unpacks below `base`.
pub(super) fn extract(
    stream: &mut dyn Read,
    base: &Path,
    names: Names<'_>,
    owners: Ownership,
) -> Result<Vec<String>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened =
        rustix::fs::open(base, flags, Mode::empty()).map_err(|errno| Error::io("open", base, errno))?;
    let mut extractor = Extractor {
        base: opened,
        base_path: base.to_owned(),
        owners,
        directories: BTreeMap::new(),
        left_out: Vec::new(),
        left_out_unnamed: 0,
    };
    let mut archive = Archive::new(stream);
    let unreadable = |error| Error::io("read the archive for", base, error);
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let path = entry.path().map_err(unreadable)?.into_owned();
        let Some(place) = place(&path, names) else {
            return Err(Error::invalid(format!("the instance sent an entry with the name {path:?}")));
        };
        extractor
            .unpack(&mut entry, &place, names)
            .map_err(|error| Error::io("write", &base.join(&place), error))?;
    }
    extractor.finish_directories();
    if extractor.left_out_unnamed > 0 {
        extractor.left_out.push(format!("left out {} more devices", extractor.left_out_unnamed));
    }
    Ok(extractor.left_out)
}

/// Where an entry goes; `None` for a name that leads out.
fn place(path: &Path, names: Names<'_>) -> Option<PathBuf> {
    let mut parts: Vec<&OsStr> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    let rest = parts.into_iter().skip(usize::from(names.strip));
    Some(names.first.map(OsStr::new).into_iter().chain(rest).collect())
}

impl Extractor {
    fn unpack(&mut self, entry: &mut Entry<'_, impl Read>, place: &Path, names: Names<'_>) -> io::Result<()> {
        let header = entry.header();
        let mode = Mode::from_raw_mode(header.mode()? & 0o7777);
        let mtime = header.mtime()?;
        let owner = (header.uid()?, header.gid()?);
        let kind = header.entry_type();
        let Some(leaf) = place.file_name() else {
            // The destination itself, when contents alone are copied.
            return Ok(());
        };
        let parent = self.open_parent(place)?;
        match kind {
            EntryType::Directory => {
                make_directory(&parent, leaf)?;
                self.directories.insert(place.to_owned(), (mode, mtime));
                return self.own(&parent, leaf, owner);
            }
            EntryType::Symlink => {
                let target = link_name(entry)?;
                remove_file(&parent, leaf)?;
                rustix::fs::symlinkat(&target, &parent, leaf)?;
            }
            EntryType::Link => {
                let target = place_of_link(&link_name(entry)?, names)?;
                let from = self.open_parent(&target)?;
                let source = target.file_name().ok_or(io::ErrorKind::InvalidData)?;
                remove_file(&parent, leaf)?;
                rustix::fs::linkat(&from, source, &parent, leaf, AtFlags::empty())?;
                return Ok(());
            }
            EntryType::Fifo => {
                remove_file(&parent, leaf)?;
                rustix::fs::mknodat(&parent, leaf, FileType::Fifo, mode, 0)?;
            }
            EntryType::Char | EntryType::Block => {
                self.leave_out(place);
                return Ok(());
            }
            _ => return self.write_file(entry, &parent, leaf, (mode, mtime, owner)),
        }
        self.own(&parent, leaf, owner)?;
        set_time(&parent, leaf, mtime)
    }

    fn leave_out(&mut self, device: &Path) {
        if self.left_out.len() < MOST_NAMED {
            self.left_out.push(format!("left out the device {}", self.base_path.join(device).display()));
        } else {
            self.left_out_unnamed += 1;
        }
    }

    fn write_file(
        &self,
        entry: &mut Entry<'_, impl Read>,
        parent: &OwnedFd,
        leaf: &OsStr,
        (mode, mtime, owner): (Mode, u64, (u64, u64)),
    ) -> io::Result<()> {
        remove_file(parent, leaf)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(parent, leaf, flags, Mode::RUSR | Mode::WUSR)?);
        io::copy(entry, &mut file)?;
        // The owner first: changing it takes set-uid bits away.
        self.own(parent, leaf, owner)?;
        rustix::fs::fchmod(&file, self.allowed(mode))?;
        set_time(parent, leaf, mtime)
    }

    /// Set-uid programs are only copied together with their owner.
    fn allowed(&self, mode: Mode) -> Mode {
        match self.owners {
            Ownership::AsInArchive => mode,
            Ownership::Ours => mode & !(Mode::SUID | Mode::SGID),
        }
    }

    fn own(&self, parent: &OwnedFd, leaf: &OsStr, (uid, gid): (u64, u64)) -> io::Result<()> {
        if self.owners == Ownership::Ours {
            return Ok(());
        }
        let id = |number: u64| u32::try_from(number).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        let (uid, gid) = (Uid::from_raw(id(uid)?), Gid::from_raw(id(gid)?));
        Ok(rustix::fs::chownat(parent, leaf, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn open_parent(&self, place: &Path) -> io::Result<OwnedFd> {
        let parent = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(self.open_below(parent)?)
    }

    fn open_below(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.base, path, flags, Mode::empty(), resolve)
    }

    /// What has been replaced since is not a directory any more, and needs nothing.
    fn finish_directories(&mut self) {
        // What is in a directory comes after it.
        for (place, (mode, mtime)) in std::mem::take(&mut self.directories).into_iter().rev() {
            if let Ok(directory) = self.open_below(&place) {
                let _ = rustix::fs::fchmod(&directory, self.allowed(mode));
                let _ = rustix::fs::futimens(&directory, &timestamps(mtime));
            }
        }
    }
}

fn link_name(entry: &Entry<'_, impl Read>) -> io::Result<PathBuf> {
    Ok(entry.link_name()?.ok_or(io::ErrorKind::InvalidData)?.into_owned())
}

fn place_of_link(target: &Path, names: Names<'_>) -> io::Result<PathBuf> {
    place(target, names)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a hard link that leads out"))
}

fn make_directory(parent: &OwnedFd, leaf: &OsStr) -> io::Result<()> {
    match rustix::fs::mkdirat(parent, leaf, Mode::RWXU) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => {
            let found = rustix::fs::statat(parent, leaf, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => Ok(()),
                _ => Err(io::ErrorKind::NotADirectory.into()),
            }
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Makes room; a directory is in the way and stays.
fn remove_file(parent: &OwnedFd, leaf: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, leaf, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn timestamps(mtime: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(mtime).unwrap_or(0), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn set_time(parent: impl AsFd, leaf: &OsStr, mtime: u64) -> io::Result<()> {
    Ok(rustix::fs::utimensat(parent, leaf, &timestamps(mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use tar::{Builder, Header};

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (name, kind, text) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o4755);
            header.set_mtime(1000);
            header.set_uid(0);
            header.set_gid(0);
            let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
            header.set_size(if is_link { 0 } else { text.len() as u64 });
            // Written raw: the builder would refuse what an attacker writes.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            if is_link {
                header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
            }
            header.set_cksum();
            builder.append(&header, if is_link { &b""[..] } else { text.as_bytes() }).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpack(base: &Path, name: Option<&str>, entries: &[(&str, EntryType, &str)]) -> Result<Vec<String>> {
        extract(&mut archive(entries).as_slice(), base, Names { strip: true, first: name }, Ownership::Ours)
    }

    #[test]
    fn trees_are_renamed() {
        let base = tempfile::tempdir().unwrap();
        let entries = [
            ("src/", EntryType::Directory, ""),
            ("src/file", EntryType::Regular, "text"),
            ("src/link", EntryType::Symlink, "file"),
            ("src/hard", EntryType::Link, "src/file"),
            ("src/pipe", EntryType::Fifo, ""),
        ];
        unpack(base.path(), Some("new"), &entries).unwrap();
        let at = |name: &str| base.path().join("new").join(name);
        assert_eq!(fs::read_to_string(at("link")).unwrap(), "text");
        let file = fs::metadata(at("file")).unwrap();
        assert_eq!((file.nlink(), file.mtime(), file.mode() & 0o7777), (2, 1000, 0o755));
        assert_eq!(fs::metadata(base.path().join("new")).unwrap().mtime(), 1000);
        unpack(base.path(), None, &entries).unwrap();
        assert_eq!(fs::read_to_string(base.path().join("hard")).unwrap(), "text");
        // Again, over what is there.
        unpack(base.path(), Some("new"), &entries).unwrap();
    }

    #[test]
    fn nothing_gets_out() {
        let outer = tempfile::tempdir().unwrap();
        let base = outer.path().join("base");
        fs::create_dir(&base).unwrap();
        fs::write(outer.path().join("victim"), "whole").unwrap();
        let attacks: [&[(&str, EntryType, &str)]; 7] = [
            &[("x/../../victim", EntryType::Regular, "broken")],
            &[
                ("x/", EntryType::Directory, ""),
                ("x/out", EntryType::Symlink, "../.."),
                ("x/out/victim", EntryType::Regular, "broken"),
            ],
            &[("x", EntryType::Symlink, ".."), ("x/victim", EntryType::Regular, "broken")],
            &[
                ("x/", EntryType::Directory, ""),
                ("x/h", EntryType::Link, "x/../../victim"),
                ("x/h", EntryType::Regular, "broken"),
            ],
            &[
                ("x/", EntryType::Directory, ""),
                ("x/s", EntryType::Symlink, "../../victim"),
                ("x/h", EntryType::Link, "x/s"),
                ("x/h", EntryType::Regular, "broken"),
            ],
            &[
                ("x/", EntryType::Directory, ""),
                ("x/s", EntryType::Symlink, ".."),
                ("x/h", EntryType::Link, "x/s/../victim"),
            ],
            &[("/../victim", EntryType::Regular, "broken")],
        ];
        for attack in attacks {
            // Whether it is refused or ends up below the base does not matter.
            let _ = unpack(&base, Some("x"), attack);
            let _ = unpack(&base, None, attack);
            assert_eq!(fs::read_to_string(outer.path().join("victim")).unwrap(), "whole", "{attack:?}");
            assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2, "{attack:?}");
            fs::remove_dir_all(&base).unwrap();
            fs::create_dir(&base).unwrap();
        }
    }

    #[test]
    fn a_root_has_no_name_to_strip() {
        let base = tempfile::tempdir().unwrap();
        let entries = [
            ("./", EntryType::Directory, ""),
            ("bin/sh", EntryType::Regular, "x"),
            ("./bin/ls", EntryType::Link, "bin/sh"),
        ];
        let mut with_parent = vec![("./", EntryType::Directory, ""), ("bin/", EntryType::Directory, "")];
        with_parent.extend(&entries[1..]);
        for first in [None, Some("copy")] {
            let names = Names { strip: false, first };
            extract(&mut archive(&with_parent).as_slice(), base.path(), names, Ownership::Ours).unwrap();
            let at = base.path().join(first.unwrap_or("")).join("bin/ls");
            assert_eq!(fs::read_to_string(at).unwrap(), "x");
        }
    }

    #[test]
    fn devices_are_left_out() {
        let base = tempfile::tempdir().unwrap();
        let left = unpack(base.path(), Some("x"), &[("x", EntryType::Block, "")]).unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    /// The same header over and over, which costs whoever sends it nothing.
    struct Endless {
        header: Header,
        left: usize,
        at: usize,
    }

    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let mut done = 0;
            while self.left > 0 && done < buffer.len() {
                let bytes = &self.header.as_bytes()[self.at..];
                let count = bytes.len().min(buffer.len() - done);
                buffer[done..done + count].copy_from_slice(&bytes[..count]);
                done += count;
                self.at += count;
                if self.at == 512 {
                    (self.at, self.left) = (0, self.left - 1);
                }
            }
            Ok(done)
        }
    }

    #[test]
    fn a_million_entries_take_no_room() {
        let base = tempfile::tempdir().unwrap();
        for (kind, most) in [(EntryType::Char, MOST_NAMED + 1), (EntryType::Directory, 0)] {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_path("x/same").unwrap();
            header.set_size(0);
            header.set_mode(0o755);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_cksum();
            fs::create_dir_all(base.path().join("x")).unwrap();
            let names = Names { strip: false, first: None };
            let mut stream = Endless { header, left: 500_000, at: 0 };
            let left = extract(&mut stream, base.path(), names, Ownership::Ours).unwrap();
            assert_eq!(left.len(), most);
            if most > 0 {
                assert_eq!(left[most - 1], format!("left out {} more devices", 500_000 - MOST_NAMED));
            }
        }
    }

    #[test]
    fn a_cut_off_archive_is_an_error() {
        let base = tempfile::tempdir().unwrap();
        let whole = archive(&[("x", EntryType::Regular, "some text")]);
        let error = extract(
            &mut &whole[..515],
            base.path(),
            Names { strip: true, first: Some("x") },
            Ownership::Ours,
        );
        assert!(error.is_err());
    }
}
