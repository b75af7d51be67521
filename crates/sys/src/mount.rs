//! `mount_setattr(2)`, which rustix lacks, and the kernel's own words about a failed `fsconfig(2)`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// A mount's attributes and propagation.
pub const RDONLY: u64 = 0x1;
/// No set-user-id.
pub const NOSUID: u64 = 0x2;
/// No device nodes.
pub const NODEV: u64 = 0x4;
/// No programs.
pub const NOEXEC: u64 = 0x8;
/// The field of access-time attributes; 0 in it is `relatime`.
pub const ATIME: u64 = 0x70;
/// Never update access times.
pub const NOATIME: u64 = 0x10;
/// Always update access times.
pub const STRICTATIME: u64 = 0x20;
/// Never update directories' access times.
pub const NODIRATIME: u64 = 0x80;
/// Map ids by a user namespace.
pub const IDMAP: u64 = 0x0010_0000;
/// Do not follow symbolic links.
pub const NOSYMFOLLOW: u64 = 0x0020_0000;

/// What [`set`] changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MountAttr {
    /// Attributes to set.
    pub set: u64,
    /// Attributes to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` or `MS_UNBINDABLE`; 0 for no change.
    pub propagation: u64,
    /// User namespace for [`IDMAP`].
    pub userns_fd: u64,
}

/// Propagation: neither way.
pub const PRIVATE: u64 = libc::MS_PRIVATE;
/// Propagation: from the peer group only.
pub const SLAVE: u64 = libc::MS_SLAVE;
/// Propagation: both ways.
pub const SHARED: u64 = libc::MS_SHARED;
/// Private, and cannot be bound.
pub const UNBINDABLE: u64 = libc::MS_UNBINDABLE;

/// Changes the mount that `mount` is open on, and those below it where `recursive`.
///
/// # Errors
/// `mount_setattr(2)` failed.
pub fn set(mount: BorrowedFd, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a constant, and the structure has the kernel's layout and lives across the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the kernel logged on a file system context, its last line.
pub fn context_log(context: impl AsFd) -> Option<String> {
    let mut last = None;
    let mut buffer = [0; 512];
    while let Ok(length) = rustix::io::read(&context, &mut buffer) {
        if length == 0 {
            break;
        }
        let line = String::from_utf8_lossy(&buffer[..length]);
        // Lines begin with "e ", "w " or "i " by their weight.
        last = Some(line.trim_end().get(2..).unwrap_or_default().to_owned());
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::OwnedFd;
    use rustix::fs::{CWD, fstatvfs};
    use rustix::mount::{OpenTreeFlags, open_tree};

    #[test]
    fn a_clone_becomes_read_only_and_its_origin_does_not() {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let clone: OwnedFd = open_tree(CWD, "/tmp", flags).expect("this test needs root");
        set(clone.as_fd(), false, &MountAttr { set: RDONLY | NODEV, ..MountAttr::default() }).unwrap();
        let is_read_only =
            |fd: BorrowedFd| fstatvfs(fd).unwrap().f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
        assert!(is_read_only(clone.as_fd()));
        assert!(!is_read_only(std::fs::File::open("/tmp").unwrap().as_fd()));
    }
}
