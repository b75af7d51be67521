//! Copies of directory trees, by descriptor: no link in them is followed and no path in them resolved, whatever the
//! tree holds and whoever changes it meanwhile.
//!
//! Kept are owners, modes, times, holes, hard links inside the tree, and the extended attributes that the target can
//! hold (file capabilities among them). Sockets are left out.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
    fgetxattr, flistxattr, fsetxattr,
};
use rustix::io::Errno;

/// Levels of directories: each holds two descriptors.
const MAX_DEPTH: usize = 256;
/// Bytes copied at once, and the shortest hole that is kept.
const CHUNK: usize = 64 * 1024;
/// Longest list of attributes, and longest value, that Linux has.
const MAX_ATTRIBUTE: usize = 64 * 1024;
/// What most lists fit.
const FEW_ATTRIBUTES: usize = 1024;

/// What becomes of device nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// They are made again.
    Keep,
    /// They are left out.
    Leave,
}

/// Copies what lies in the directory `from` into the directory `to`. Both may be handles without rights to read.
///
/// # Errors
/// Something cannot be read or made; what was copied until then stays.
pub fn copy(from: BorrowedFd, to: BorrowedFd, devices: Devices) -> Result<(), Errno> {
    let (from, to) = (open_directory(from, c".")?, open_directory(to, c".")?);
    let mut copier =
        Copier { root: to.as_fd(), links: HashMap::new(), at: PathBuf::new(), devices, clones: true };
    copier.directory(from.as_fd(), to.as_fd(), 0)
}

/// Gives a directory the owner, mode, attributes and times of another.
///
/// # Errors
/// One of them cannot be set.
pub fn copy_metadata(from: BorrowedFd, to: BorrowedFd) -> Result<(), Errno> {
    let (from, to) = (open_directory(from, c".")?, open_directory(to, c".")?);
    let stat = rustix::fs::fstat(&from)?;
    dress(from.as_fd(), to.as_fd(), &stat)
}

fn open_directory(at: BorrowedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

struct Copier<'a> {
    root: BorrowedFd<'a>,
    /// The first name in the copy of files that have several.
    links: HashMap<(u64, u64), PathBuf>,
    /// Where in the copy we are.
    at: PathBuf,
    devices: Devices,
    /// Whether the file system may share blocks between files.
    clones: bool,
}

impl Copier<'_> {
    fn directory(&mut self, from: BorrowedFd, to: BorrowedFd, depth: usize) -> Result<(), Errno> {
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
            self.at.push(as_path(name));
            self.one(from, to, name, &stat, depth)?;
            self.at.pop();
        }
        Ok(())
    }

    fn one(
        &mut self,
        from: BorrowedFd,
        to: BorrowedFd,
        name: &CStr,
        stat: &Stat,
        depth: usize,
    ) -> Result<(), Errno> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let key = (stat.st_dev, stat.st_ino);
        let has_names = kind != FileType::Directory && stat.st_nlink > 1;
        if has_names && let Some(first) = self.links.get(&key) {
            return link(self.root, first, to, name);
        }
        match kind {
            FileType::Directory => {
                let source = open_directory(from, name)?;
                rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                let target = open_directory(to, name)?;
                self.directory(source.as_fd(), target.as_fd(), depth + 1)?;
                dress(source.as_fd(), target.as_fd(), stat)?;
            }
            FileType::RegularFile => self.file(from, to, name)?,
            FileType::Symlink => {
                let text = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(text.as_c_str(), to, name)?;
                own(to, name, stat)?;
            }
            FileType::CharacterDevice | FileType::BlockDevice if self.devices == Devices::Leave => {
                return Ok(());
            }
            FileType::Socket | FileType::Unknown => return Ok(()),
            kind => {
                rustix::fs::mknodat(to, name, kind, Mode::empty(), stat.st_rdev)?;
                own(to, name, stat)?;
                change_mode(to, name, stat)?;
            }
        }
        if has_names {
            self.links.insert(key, self.at.clone());
        }
        Ok(())
    }

    fn file(&mut self, from: BorrowedFd, to: BorrowedFd, name: &CStr) -> Result<(), Errno> {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source = rustix::fs::openat(
            from,
            name,
            flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
            Mode::empty(),
        )?;
        // It may have become something else since it was looked at.
        let stat = rustix::fs::fstat(&source)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let create = flags | OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
        let target = rustix::fs::openat(to, name, create, Mode::RUSR | Mode::WUSR)?;
        if self.clones && stat.st_size > 0 {
            self.clones = rustix::fs::ioctl_ficlone(&target, &source).is_ok();
        }
        if !self.clones {
            contents(source.as_fd(), target.as_fd())?;
        }
        dress(source.as_fd(), target.as_fd(), &stat)
    }
}

fn as_path(name: &CStr) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

/// Another name for what has one in the copy already.
fn link(root: BorrowedFd, first: &Path, to: BorrowedFd, name: &CStr) -> Result<(), Errno> {
    let (Some(parent), Some(leaf)) = (first.parent(), first.file_name()) else { return Err(Errno::NOENT) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let parent = rustix::fs::openat2(root, parent, flags, Mode::empty(), resolve)?;
    rustix::fs::linkat(&parent, leaf, to, name, AtFlags::empty())
}

/// Owner and times of what is not opened.
fn own(to: BorrowedFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

/// By a handle, since a mode set by name would be set on what a link leads to.
fn change_mode(to: BorrowedFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(to, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode) == FileType::Symlink {
        return Err(Errno::LOOP);
    }
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    rustix::fs::chmod(path, Mode::from_raw_mode(stat.st_mode & 0o7777))
}

/// Owner first, whose change takes set-user-id and capabilities away; times last.
fn dress(source: BorrowedFd, target: BorrowedFd, stat: &Stat) -> Result<(), Errno> {
    rustix::fs::fchown(target, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(target, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    attributes(source, target)?;
    rustix::fs::futimens(target, &times(stat))
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as i64 };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// A file's bytes; stretches of zeros become holes, so that a sparse file cannot fill the disk.
fn contents(source: BorrowedFd, target: BorrowedFd) -> Result<(), Errno> {
    let mut buffer = vec![0; CHUNK];
    let (mut at, mut end) = (0u64, 0u64);
    loop {
        let length = rustix::io::read(source, &mut buffer[..])?;
        if length == 0 {
            break;
        }
        let mut rest = &buffer[..length];
        if rest.iter().any(|byte| *byte != 0) {
            let mut offset = at;
            while !rest.is_empty() {
                let written = rustix::io::pwrite(target, rest, offset)?;
                rest = &rest[written..];
                offset += written as u64;
            }
            end = offset;
        }
        at += length as u64;
    }
    if end < at { rustix::fs::ftruncate(target, at) } else { Ok(()) }
}

/// Extended attributes that the target can hold.
fn attributes(source: BorrowedFd, target: BorrowedFd) -> Result<(), Errno> {
    let mut names = vec![0; FEW_ATTRIBUTES];
    let length = match flistxattr(source, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(Errno::RANGE) => {
            names.resize(MAX_ATTRIBUTE, 0);
            flistxattr(source, &mut names[..])?
        }
        other => other?,
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // A label says where a file is, and a new one has that of its directory.
        if name == b"security.selinux" {
            continue;
        }
        let mut value = vec![0; MAX_ATTRIBUTE];
        let size = fgetxattr(source, name, &mut value[..])?;
        match fsetxattr(target, name, &value[..size], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("proa-tree-{name}-{}", std::process::id()));
            fs::create_dir_all(path.join("from")).unwrap();
            fs::create_dir(path.join("to")).unwrap();
            Self(path)
        }

        fn copy(&self, devices: Devices) {
            let open = |name: &str| fs::File::open(self.0.join(name)).unwrap();
            let (from, to) = (open("from"), open("to"));
            copy(from.as_fd(), to.as_fd(), devices).unwrap();
            copy_metadata(from.as_fd(), to.as_fd()).unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn all_that_a_file_is_stays() {
        let scratch = Scratch::new("whole");
        let (from, to) = (scratch.0.join("from"), scratch.0.join("to"));
        fs::create_dir(from.join("dir")).unwrap();
        fs::write(from.join("dir/tool"), "text").unwrap();
        std::os::unix::fs::chown(from.join("dir/tool"), Some(7), Some(8)).expect("this test needs root");
        fs::set_permissions(from.join("dir/tool"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(from.join("dir/tool"), from.join("again")).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        rustix::fs::setxattr(from.join("dir"), "user.note", b"x", XattrFlags::empty()).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            from.join("pipe"),
            FileType::Fifo,
            Mode::from_raw_mode(0o620),
            0,
        )
        .unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o1777)).unwrap();
        scratch.copy(Devices::Leave);
        let tool = fs::metadata(to.join("again")).unwrap();
        assert_eq!((tool.uid(), tool.gid(), tool.mode() & 0o7777, tool.nlink()), (7, 8, 0o4751, 2));
        assert_eq!(tool.ino(), fs::metadata(to.join("dir/tool")).unwrap().ino());
        assert_eq!(tool.mtime_nsec(), fs::metadata(from.join("again")).unwrap().mtime_nsec());
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        let mut value = [0; 8];
        assert_eq!(rustix::fs::getxattr(to.join("dir"), "user.note", &mut value[..]).unwrap(), 1);
        let pipe = fs::symlink_metadata(to.join("pipe")).unwrap();
        assert_eq!(pipe.mode() & 0o7777, fs::symlink_metadata(from.join("pipe")).unwrap().mode() & 0o7777);
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o1777);
    }

    #[test]
    fn holes_stay_holes_and_devices_stay_out() {
        let scratch = Scratch::new("holes");
        let (from, to) = (scratch.0.join("from"), scratch.0.join("to"));
        let file = fs::File::create(from.join("sparse")).unwrap();
        file.set_len(1 << 26).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"end", (1 << 25) + 5).unwrap();
        let device = rustix::fs::makedev(1, 3);
        let path = from.join("null");
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::CharacterDevice, Mode::RUSR, device).unwrap();
        scratch.copy(Devices::Leave);
        let copy = fs::metadata(to.join("sparse")).unwrap();
        assert_eq!(copy.len(), 1 << 26);
        assert!(copy.blocks() * 512 < 1 << 20, "{}", copy.blocks());
        let mut bytes = [0; 4];
        let copied = fs::File::open(to.join("sparse")).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&copied, &mut bytes, (1 << 25) + 4).unwrap();
        assert_eq!(&bytes, b"\0end");
        assert!(!to.join("null").exists());
    }
}
