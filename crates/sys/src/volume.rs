//! Volumes on the host: who uses one at the moment, the file system of its own that one may have, and how one is filled.
//!
//! ```text
//!   <volume>/            locked (flock) for as long as a file system is mounted or unmounted, or the volume is filled
//!     users              locked shared by whoever uses the volume: who gets it exclusively knows that nobody does
//!     fs                 where the volume's file system is mounted while it is used, if it has one
//! ```
//!
//! Locks go with their holders, however these end, so nothing counts users that are no more.
//!
//! **An image is never mounted twice.** Its loop device lives as long as a mount of it does anywhere, which can be
//! longer than our own; so who mounts it looks for a device that has the file before it makes one.
//!
//! **A volume is filled all or nothing.** What goes into it is made beside its data ([`STAGING`]), gets the name
//! [`COMPLETE`] by one rename when it is whole, and then moves into the data, name by name. Whoever uses the volume
//! next first finishes the second half of that, or removes what is left of the first ([`settle`]). Where there is no
//! place beside the data, both are in it for that moment.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Gid, Mode, OFlags, RenameFlags, StatxAttributes, StatxFlags, Uid,
    flock, renameat_with,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::mount::context_log;
use crate::{layer_mount, tree, trees};

/// What is being made, to go into a volume.
pub const STAGING: &str = ".proa-fill.new";
/// What is whole, and on its way into a volume.
pub const COMPLETE: &str = ".proa-fill";
/// What every ext4 file system has.
const LOST: &str = "lost+found";
const USERS: &str = "users";

/// Keeps others from mounting, unmounting and filling a volume.
#[derive(Debug)]
pub struct Guard {
    _directory: OwnedFd,
}

/// A use of a volume, shared or not.
#[derive(Debug)]
pub struct Users {
    _file: File,
}

/// Waits until nobody else mounts, unmounts or fills the volume.
///
/// # Errors
/// There is no such directory.
pub fn lock(volume: &Path) -> io::Result<Guard> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(volume, flags, Mode::empty())?;
    rustix::io::retry_on_intr(|| flock(&directory, FlockOperation::LockExclusive))?;
    Ok(Guard { _directory: directory })
}

/// The same, but `None` where somebody does.
///
/// # Errors
/// There is no such directory.
pub fn try_lock(volume: &Path) -> io::Result<Option<Guard>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(volume, flags, Mode::empty())?;
    match rustix::io::retry_on_intr(|| flock(&directory, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok(Some(Guard { _directory: directory })),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn users(volume: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(volume.join(USERS))
}

/// Becomes one of the volume's users.
///
/// # Errors
/// The lock's file cannot be opened, or somebody has the volume alone.
pub fn join(volume: &Path, _guard: &Guard) -> io::Result<Users> {
    let file = users(volume)?;
    rustix::io::retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockShared))?;
    Ok(Users { _file: file })
}

/// Becomes the volume's only user; `None` where it has others.
///
/// # Errors
/// The lock's file cannot be opened.
pub fn alone(volume: &Path, _guard: &Guard) -> io::Result<Option<Users>> {
    let file = users(volume)?;
    match rustix::io::retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok(Some(Users { _file: file })),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether something is mounted at this very path.
pub fn is_mounted(at: &Path) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(CWD, at, flags, StatxFlags::empty())
        .is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Mounts the ext4 file system in a file, if that is not done, through a loop device that goes away with its last mount.
/// The volume's files are in the directory `data` of it.
///
/// # Errors
/// There is no loop device, or the kernel cannot mount the file.
pub fn ensure_image(image: &Path, at: &Path, data: &Path) -> io::Result<()> {
    if !is_mounted(at) {
        mount_image(image, at)?;
    }
    match rustix::fs::mkdir(data, Mode::RWXU) {
        // Whatever the mask of who calls us.
        Ok(()) => Ok(rustix::fs::chmod(data, Mode::from_raw_mode(0o755))?),
        Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn mount_image(image: &Path, at: &Path) -> io::Result<()> {
    let (device, _open) = match layer_mount::find_loop(image)? {
        Some(found) => found,
        None => layer_mount::attach_loop(image, 0)?,
    };
    let context = fsopen(c"ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let made = fsconfig_set_string(context.as_fd(), c"source", &device)
        .and_then(|()| fsconfig_create(context.as_fd()))
        .map_err(|errno| explained(&context, errno));
    made?;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)?;
    rustix::mount::move_mount(&mount, c"", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

fn explained(context: &OwnedFd, errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    match context_log(context).filter(|said| !said.is_empty()) {
        Some(said) => io::Error::other(format!("{error} ({said})")),
        None => error,
    }
}

/// Mounts a file system, if that is not done, by `mount(2)` and its options: words that are flags, and the rest for the
/// file system.
///
/// # Errors
/// The kernel refuses it.
pub fn ensure_mounted(kind: &str, device: &str, options: &str, at: &Path) -> io::Result<()> {
    if is_mounted(at) {
        return Ok(());
    }
    let mut flags = MountFlags::NODEV;
    let mut rest = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => flags |= MountFlags::RDONLY,
            "noexec" => flags |= MountFlags::NOEXEC,
            "nosuid" => flags |= MountFlags::NOSUID,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            // Device nodes open nowhere, whatever is asked for.
            "rw" | "defaults" | "exec" | "suid" | "dev" | "nodev" | "async" | "atime" | "diratime" => {}
            other => rest.push(other),
        }
    }
    let data = std::ffi::CString::new(rest.join(","))?;
    Ok(rustix::mount::mount(device, at, kind, flags, data.as_c_str())?)
}

/// Unmounts what is mounted at this path; nothing is fine. Who still uses it keeps it until done.
///
/// # Errors
/// The kernel refuses it.
pub fn unmount(at: &Path) -> io::Result<()> {
    while is_mounted(at) {
        rustix::mount::unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(())
}

/// Mounts the part of a volume that `path` leads to, resolved inside the volume whatever links are in it.
///
/// # Errors
/// There is no such directory or file, or it leads out.
pub fn mount_part(data: &Path, path: &str, at: &Path) -> io::Result<()> {
    use rustix::fs::ResolveFlags;
    use rustix::mount::{OpenTreeFlags, open_tree};
    let root = open_directory(CWD, data)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let part = rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve)?;
    let clone =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&part, c"", clone)?;
    if rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&part)?.st_mode)
        == rustix::fs::FileType::Directory
    {
        std::fs::create_dir_all(at)?;
    } else {
        drop(File::create(at)?);
    }
    rustix::mount::move_mount(&tree, c"", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

fn open_directory(at: impl AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

/// Whether a volume's data holds nothing.
///
/// # Errors
/// It cannot be listed.
pub fn is_empty(data: &Path) -> io::Result<bool> {
    for entry in Dir::read_from(open_directory(CWD, data)?)? {
        let entry = entry?;
        let own = [".", "..", LOST].map(str::as_bytes);
        if !own.contains(&entry.file_name().to_bytes()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Where what goes into a volume is to be made; `base` is its data or beside it, on the same file system.
pub fn staging(base: &Path) -> PathBuf {
    base.join(STAGING)
}

/// Moves what was made at [`staging`] into the volume. It is whole from here on.
///
/// # Errors
/// It was not made, or cannot be moved.
pub fn publish(base: &Path, data: &Path) -> io::Result<()> {
    std::fs::rename(staging(base), base.join(COMPLETE))?;
    settle(base, data)
}

/// Finishes or undoes what somebody who filled the volume left.
///
/// # Errors
/// It cannot be moved or removed.
pub fn settle(base: &Path, data: &Path) -> io::Result<()> {
    trees::remove(&staging(base))?;
    // What an archive is unpacked with.
    trees::remove(&base.join(format!("{STAGING}.files")))?;
    let complete = base.join(COMPLETE);
    let from = match open_directory(CWD, &complete) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let to = open_directory(CWD, data)?;
    for entry in Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match renameat_with(&from, name, &to, name, RenameFlags::NOREPLACE) {
            // Whoever uses the volume has made one meanwhile, which stays.
            Ok(()) | Err(Errno::EXIST | Errno::NOTEMPTY) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let stat = rustix::fs::fstat(&from)?;
    rustix::fs::fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    trees::remove(&complete)
}

/// Fills an empty volume with a copy of the directory `from`.
///
/// # Errors
/// Something cannot be read or written. Nothing of it is in the volume then.
pub fn fill(base: &Path, data: &Path, from: impl AsFd) -> io::Result<()> {
    let path = staging(base);
    rustix::fs::mkdir(&path, Mode::RWXU)?;
    let copied = open_directory(CWD, &path).and_then(|to| {
        tree::copy(from.as_fd(), to.as_fd(), tree::Devices::Leave)?;
        tree::copy_metadata(from.as_fd(), to.as_fd())
    });
    match copied {
        Ok(()) => publish(base, data),
        Err(errno) => {
            // A full disk needs the room; the failure is the one to tell.
            let _ = trees::remove(&path);
            Err(errno.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    struct Bed(tempfile::TempDir);

    impl Bed {
        fn new() -> Self {
            let bed = Self(tempfile::tempdir().unwrap());
            fs::create_dir(bed.data()).unwrap();
            fs::create_dir_all(bed.at("image/sub")).unwrap();
            fs::write(bed.at("image/sub/file"), "x").unwrap();
            fs::write(bed.at("image/other"), "y").unwrap();
            fs::set_permissions(bed.at("image"), fs::Permissions::from_mode(0o1770)).unwrap();
            bed
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn data(&self) -> PathBuf {
            self.at("_data")
        }

        fn assert_filled(&self) {
            assert_eq!(fs::read_to_string(self.data().join("sub/file")).unwrap(), "x");
            assert_eq!(fs::read_to_string(self.data().join("other")).unwrap(), "y");
            assert_eq!(fs::metadata(self.data()).unwrap().mode() & 0o7777, 0o1770);
            assert!(!self.at(STAGING).exists() && !self.at(COMPLETE).exists());
        }
    }

    #[test]
    fn a_volume_is_filled_and_what_was_interrupted_is_finished() {
        let bed = Bed::new();
        let image = fs::File::open(bed.at("image")).unwrap();
        assert!(is_empty(&bed.data()).unwrap());
        fill(bed.0.path(), &bed.data(), &image).unwrap();
        bed.assert_filled();
        assert!(!is_empty(&bed.data()).unwrap());
        // Cut short in the middle of the moves.
        fs::create_dir(bed.at(COMPLETE)).unwrap();
        fs::rename(bed.data().join("sub"), bed.at(COMPLETE).join("sub")).unwrap();
        fs::set_permissions(bed.at(COMPLETE), fs::Permissions::from_mode(0o1770)).unwrap();
        fs::set_permissions(bed.data(), fs::Permissions::from_mode(0o755)).unwrap();
        settle(bed.0.path(), &bed.data()).unwrap();
        bed.assert_filled();
    }

    #[test]
    fn half_a_copy_is_never_used() {
        let bed = Bed::new();
        fs::create_dir(bed.at(STAGING)).unwrap();
        fs::write(bed.at(STAGING).join("half"), "").unwrap();
        settle(bed.0.path(), &bed.data()).unwrap();
        assert!(is_empty(&bed.data()).unwrap() && !bed.at(STAGING).exists());
        let file = fs::File::open(bed.at("image/other")).unwrap();
        assert!(fill(bed.0.path(), &bed.data(), &file).is_err());
        assert!(is_empty(&bed.data()).unwrap() && !bed.at(STAGING).exists());
    }

    #[test]
    fn where_there_is_no_place_beside_the_data_it_is_made_inside() {
        let bed = Bed::new();
        let image = fs::File::open(bed.at("image")).unwrap();
        fill(&bed.data(), &bed.data(), &image).unwrap();
        bed.assert_filled();
        assert_eq!(fs::read_dir(bed.data()).unwrap().count(), 2);
    }

    #[test]
    fn users_are_known_by_their_locks() {
        let bed = Bed::new();
        let guard = lock(bed.0.path()).unwrap();
        let (one, two) = (join(bed.0.path(), &guard).unwrap(), join(bed.0.path(), &guard).unwrap());
        drop(one);
        assert!(alone(bed.0.path(), &guard).unwrap().is_none());
        drop(two);
        let only = alone(bed.0.path(), &guard).unwrap().unwrap();
        assert!(join(bed.0.path(), &guard).is_err());
        drop(only);
    }

    #[test]
    fn parts_are_resolved_inside() {
        let bed = Bed::new();
        std::os::unix::fs::symlink("/etc", bed.at("image/out")).unwrap();
        std::os::unix::fs::symlink("../..", bed.at("image/up")).unwrap();
        let at = bed.at("part");
        for path in ["out", "up", "../_data", "none"] {
            assert!(mount_part(&bed.at("image"), path, &at).is_err(), "{path}");
        }
        mount_part(&bed.at("image"), "sub", &at).expect("this test needs root");
        assert!(is_mounted(&at));
        assert_eq!(fs::read_to_string(at.join("file")).unwrap(), "x");
        unmount(&at).unwrap();
        assert!(!is_mounted(&at));
    }
}
