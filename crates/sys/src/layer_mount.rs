//! Mounts layer images: EROFS, read-only, once for the whole host.
//!
//! ```text
//!   ensure_mounted ─ is it mounted? ─ yes ─▶ done (two system calls, no lock)
//!                        └ no ─▶ lock the parent directory ─▶ look again ─▶ mount the file itself
//!                                                                  └ the kernel can't ─▶ through a loop device
//! ```
//! Who mounts or unmounts holds an exclusive `flock` on the parent of the mount point, so two processes never
//! mount one layer twice. The directory is locked, not a file in it: nothing is left to clean up, and nobody
//! can hold a lock on a file that was replaced. A mount is complete when it appears, so looking needs no lock.
//!
//! A loop device goes away with the last mount that uses it, even if its maker is killed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags};

use crate::mount::context_log;

/// What `statfs(2)` says of EROFS.
const EROFS_MAGIC: u64 = 0xE0F5_E1E2;
/// How often a free loop device is asked for: another process may take the one we were told of.
const LOOP_TRIES: usize = 64;

/// Why a layer could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot {action}{}", path.display(), hint(said.as_deref(), source))]
pub struct LayerMountError {
    path: PathBuf,
    action: &'static str,
    /// What the kernel logged about it.
    said: Option<String>,
    #[source]
    source: io::Error,
}

fn hint(said: Option<&str>, source: &io::Error) -> String {
    match (said, source.raw_os_error().map(Errno::from_raw_os_error)) {
        (Some(said), _) => format!(" ({said})"),
        (None, Some(Errno::NODEV)) => {
            " (the kernel has no EROFS: load its module, or use one that has it)".into()
        }
        (None, Some(Errno::PERM)) => " (mounting needs root)".into(),
        _ => String::new(),
    }
}

impl LayerMountError {
    fn at(path: &Path, action: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self { path: path.to_owned(), action, said: None, source: errno.into() }
    }
}

type Result<T> = std::result::Result<T, LayerMountError>;

/// Makes sure that the EROFS image is mounted read-only at `dir`, which is made if it is missing.
///
/// Set-user-id programs in the layer keep working; device nodes do not. `label` is the SELinux context that all of
/// the layer's files get.
///
/// # Errors
/// The image or the directory can't be used, the image is no EROFS image, or the kernel can't mount it.
pub fn ensure_mounted(image: &Path, dir: &Path, label: Option<&str>) -> Result<()> {
    if is_mounted(dir) {
        return Ok(());
    }
    let parent = parent_of(dir);
    std::fs::create_dir_all(parent).map_err(|source| LayerMountError {
        path: parent.to_owned(),
        action: "create the directory of mount points",
        said: None,
        source,
    })?;
    let _lock = lock_parent(dir)?;
    if is_mounted(dir) {
        return Ok(());
    }
    // Only under the lock: whoever unmounts a layer takes its directory with it.
    match rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(LayerMountError::at(dir, "create the mount point")(errno)),
    }
    let mount = match mount_source(image, image, label) {
        Err(error) if needs_device(&error) => mount_loop(image, label)?,
        other => other?,
    };
    rustix::mount::move_mount(&mount, c"", CWD, dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(LayerMountError::at(dir, "attach the layer's mount"))
}

/// Whether `dir` is the root of an EROFS mount.
pub fn is_mounted(dir: &Path) -> bool {
    let is_erofs = || rustix::fs::statfs(dir).is_ok_and(|stat| stat.f_type as u64 == EROFS_MAGIC);
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let is_root = || {
        rustix::fs::statx(CWD, dir, flags, StatxFlags::empty())
            .is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
    };
    is_erofs() && is_root()
}

/// Unmounts the layer and removes the mount point; who still uses the layer keeps it until done.
///
/// # Errors
/// The mount or the directory can't be removed. That there is none is no error.
pub fn unmount(dir: &Path) -> Result<()> {
    let _lock = match lock_parent(dir) {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    while is_mounted(dir) {
        rustix::mount::unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(LayerMountError::at(dir, "unmount the layer"))?;
    }
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(LayerMountError::at(dir, "remove the mount point")(errno)),
    }
}

fn parent_of(dir: &Path) -> &Path {
    dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn lock_parent(dir: &Path) -> Result<OwnedFd> {
    let parent = parent_of(dir);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(parent, flags, Mode::empty()).map_err(LayerMountError::at(parent, "open"))?;
    loop {
        match rustix::fs::flock(&fd, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => {}
            other => return other.map(|()| fd).map_err(LayerMountError::at(parent, "lock")),
        }
    }
}

/// Whether a kernel that mounts block devices only (before 6.12, or built so) refused a file.
fn needs_device(error: &LayerMountError) -> bool {
    let errno = error.source.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOTBLK | Errno::NODEV | Errno::INVAL))
}

/// A mount of the file or device `source`, which holds `image`, not attached anywhere yet.
fn mount_source(source: &Path, image: &Path, label: Option<&str>) -> Result<OwnedFd> {
    let failed = |action| LayerMountError::at(image, action);
    let context = rustix::mount::fsopen(c"erofs", FsOpenFlags::FSOPEN_CLOEXEC);
    let context = context.map_err(failed("mount it as EROFS"))?;
    let made = rustix::mount::fsconfig_set_string(context.as_fd(), c"source", source)
        .and_then(|()| rustix::mount::fsconfig_set_flag(context.as_fd(), c"ro"))
        .and_then(|()| match label {
            Some(label) => rustix::mount::fsconfig_set_string(context.as_fd(), c"context", label),
            None => Ok(()),
        })
        .and_then(|()| rustix::mount::fsconfig_create(context.as_fd()));
    made.map_err(|errno| LayerMountError {
        said: context_log(&context),
        ..failed("mount it as EROFS")(errno)
    })?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(failed("mount it as EROFS"))
}

/// The same through a loop device, which the mount keeps and takes with it.
fn mount_loop(image: &Path, label: Option<&str>) -> Result<OwnedFd> {
    let failed = |source| LayerMountError {
        path: image.to_owned(),
        action: "set up a loop device for the layer",
        said: None,
        source,
    };
    let (device, _open) = attach_loop(image, LO_FLAGS_READ_ONLY).map_err(failed)?;
    mount_source(&device, image, label)
}

/// Gives the image a loop device of its own, to be written to unless `flags` forbid it; it is freed when it is closed
/// and not mounted.
pub(crate) fn attach_loop(image: &Path, flags: u32) -> io::Result<(PathBuf, File)> {
    let open = |path: &Path| File::options().read(true).write(flags & LO_FLAGS_READ_ONLY == 0).open(path);
    let backing = open(image)?;
    let control = File::open("/dev/loop-control")?;
    let config = LoopConfig::new(&backing, image, flags);
    for _ in 0..LOOP_TRIES {
        // SAFETY: the request takes no argument; the descriptor is open.
        let free = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if free < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{free}"));
        let device = open(&path)?;
        // SAFETY: the structure has the kernel's layout and lives across the call, which only reads it.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, std::ptr::from_ref(&config)) };
        if done == 0 {
            return Ok((path, device));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(error);
        }
    }
    Err(Errno::BUSY.into())
}

const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Keeps the image out of the page cache a second time; ignored where the file system can't.
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// The loop device that has this very file already, open, so that it stays as it is.
pub(crate) fn find_loop(image: &Path) -> io::Result<Option<(PathBuf, File)>> {
    use std::os::unix::fs::MetadataExt;
    let wanted = std::fs::metadata(image)?;
    for entry in std::fs::read_dir("/sys/block")?.flatten() {
        if !entry.path().join("loop").exists() {
            continue;
        }
        let path = Path::new("/dev").join(entry.file_name());
        let Ok(device) = File::options().read(true).write(true).open(&path) else { continue };
        let mut status = LoopInfo::default();
        // SAFETY: the structure has the kernel's layout and lives across the call, which fills it.
        let done =
            unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, std::ptr::from_mut(&mut status)) };
        if done == 0 && status.inode == wanted.ino() && kernel_device(wanted.dev()) == status.device {
            return Ok(Some((path, device)));
        }
    }
    Ok(None)
}

/// A device's number as the kernel tells it here.
fn kernel_device(device: u64) -> u64 {
    let (major, minor) = (u64::from(rustix::fs::major(device)), u64::from(rustix::fs::minor(device)));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// `struct loop_info64` of linux/loop.h.
#[derive(Default)]
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rest: [u64; 27],
}

/// `struct loop_config` of linux/loop.h, with `struct loop_info64` in it.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

impl LoopConfig {
    fn new(backing: &File, image: &Path, flags: u32) -> Self {
        let mut file_name = [0; 64];
        let name = image.as_os_str().as_bytes();
        // For `losetup` only; a longer name is cut, its last byte stays NUL.
        let length = name.len().min(63);
        file_name[..length].copy_from_slice(&name[..length]);
        Self {
            fd: backing.as_raw_fd() as u32,
            block_size: 4096,
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: flags | LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
            file_name,
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
            reserved: [0; 8],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A directory with an image of one file in it; all that is mounted in it goes away with it.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("proa-layer-mount-{name}-{}", std::process::id()));
            std::fs::create_dir_all(path.join("tree")).unwrap();
            std::fs::write(path.join("tree/hello"), "world").unwrap();
            let made = Command::new("mkfs.erofs").arg(path.join("image")).arg(path.join("tree")).output();
            let made = made.expect("mkfs.erofs of erofs-utils is needed");
            assert!(made.status.success(), "{made:?}");
            Self(path)
        }

        fn image(&self) -> PathBuf {
            self.0.join("image")
        }

        fn dir(&self) -> PathBuf {
            self.0.join("run/layers/abc")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            drop(unmount(&self.dir()));
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    fn mounts_at(dir: &Path) -> Vec<String> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let of_dir = |line: &&str| line.split(' ').nth(4) == dir.to_str();
        table.lines().filter(of_dir).map(str::to_owned).collect()
    }

    #[test]
    fn layout_of_the_loop_request() {
        assert_eq!(size_of::<LoopConfig>(), 304);
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(std::mem::offset_of!(LoopConfig, flags), 60);
        assert_eq!(std::mem::offset_of!(LoopConfig, reserved), 240);
    }

    #[test]
    fn mounts_once_for_many_callers_and_unmounts() {
        let scratch = Scratch::new("once");
        let (image, dir) = (scratch.image(), scratch.dir());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| ensure_mounted(&image, &dir, None).unwrap());
            }
        });
        let mounts = mounts_at(&dir);
        assert_eq!(mounts.len(), 1, "{mounts:?}");
        assert!(mounts[0].contains(" ro,nodev") && !mounts[0].contains("nosuid"), "{}", mounts[0]);
        assert_eq!(std::fs::read_to_string(dir.join("hello")).unwrap(), "world");
        unmount(&dir).unwrap();
        assert!(mounts_at(&dir).is_empty() && !dir.exists());
        unmount(&dir).unwrap();
    }

    #[test]
    fn mounting_and_unmounting_at_once_never_fails() {
        let scratch = Scratch::new("race");
        let (image, dir) = (scratch.image(), scratch.dir());
        std::thread::scope(|scope| {
            for i in 0..4 {
                let (image, dir) = (&image, &dir);
                scope.spawn(move || {
                    for _ in 0..50 {
                        if i % 2 == 0 {
                            ensure_mounted(image, dir, None).unwrap();
                        } else {
                            unmount(dir).unwrap();
                        }
                    }
                });
            }
        });
        unmount(&dir).unwrap();
        assert!(mounts_at(&dir).is_empty());
    }

    #[test]
    fn a_loop_device_serves_and_goes_away() {
        let scratch = Scratch::new("loop");
        let (device, open) = attach_loop(&scratch.image(), LO_FLAGS_READ_ONLY).unwrap();
        let mount = mount_source(&device, &scratch.image(), None).unwrap();
        drop(open);
        let name = device.file_name().unwrap().to_str().unwrap().to_owned();
        let backing = PathBuf::from(format!("/sys/block/{name}/loop/backing_file"));
        assert!(backing.exists());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&mount, "hello", flags, Mode::empty()).unwrap();
        assert_eq!(io::read_to_string(File::from(file)).unwrap(), "world");
        drop(mount);
        let mut tries = 0;
        while backing.exists()
            && std::fs::read_to_string(&backing).is_ok_and(|b| b.contains("layer-mount-loop"))
        {
            tries += 1;
            assert!(tries < 10_000, "{} is still in use", device.display());
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_is_no_image_is_an_error_that_names_it() {
        let scratch = Scratch::new("bad");
        std::fs::write(scratch.image(), vec![0; 8192]).unwrap();
        let error = ensure_mounted(&scratch.image(), &scratch.dir(), None).unwrap_err().to_string();
        assert!(error.contains("image"), "{error}");
        let missing = ensure_mounted(&scratch.0.join("none"), &scratch.dir(), None).unwrap_err().to_string();
        assert!(missing.contains("none"), "{missing}");
    }
}
