//! The root file system as a detached mount, made by the parent while the child makes its network namespace.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use proa_sys::mount::{self, MountAttr, NODEV};
use proa_sys::userns;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};

use crate::container::Rootfs;
use crate::fork::made_aside;
use crate::plan::{Plan, namespaces};
use crate::{Error, Result, sources};

/// The longest value that the kernel takes for an option of a new mount.
pub(crate) const LONGEST_VALUE: usize = 255;

/// Mounts the root, in no place; `nodev` for invariant 11. The mount lives as long as the descriptor, or as the
/// mount namespace that it is moved into. `None` where the kernel cannot do that for an overlay of so many layers
/// (before 6.7): then [`mount_in_child`] must.
/// `pid` is the first process, whose user namespace has its maps.
pub(crate) fn mount(rootfs: &Rootfs, plan: &Plan, pid: u32) -> Result<Option<OwnedFd>> {
    match rootfs {
        Rootfs::Overlay { lowers, owners, .. } if !owners.are_same() => {
            mapped_overlay(rootfs, lowers, plan, pid).map(Some)
        }
        Rootfs::Overlay { lowers, upper, work, .. } => overlay(lowers, upper, work, plan),
        Rootfs::Directory(path) => directory(path, plan).map(Some),
    }
}

/// Mounts an overlay by `mount(2)` in the mount namespace of the child, and returns a detached clone of it; the
/// place it was mounted at goes away with the host's tree. Paths are given by descriptor, since all options
/// together must fit a page.
pub(crate) fn mount_in_child(rootfs: &Rootfs, plan: &Plan) -> Result<OwnedFd> {
    let Rootfs::Overlay { lowers, upper, work, .. } = rootfs else {
        return Err(Error::internal("only overlays are mounted in the child"));
    };
    let lowers = open_all(lowers)?;
    let (upper_fd, work_fd) = (open_directory(upper)?, open_directory(work)?);
    let lower = join_names(&lowers);
    let label = plan.label().map_or_else(String::new, |label| format!(",context=\"{label}\""));
    let confined = if userns::is_initial() { "" } else { ",userxattr" };
    let (upper_name, work_name) = (fd_name(&upper_fd), fd_name(&work_fd));
    let options = format!("lowerdir={lower},upperdir={upper_name},workdir={work_name}{confined}{label}");
    let options = CString::new(options).map_err(|error| Error::call("overlay", error))?;
    let flags = if plan.nodev { MountFlags::NODEV } else { MountFlags::empty() };
    rustix::mount::mount("overlay", upper, "overlay", flags, options.as_c_str()).map_err(|errno| {
        Error::at(upper, errno).context(format!("overlay of {} layers (Linux 6.7 takes more)", lowers.len()))
    })?;
    let root = open_directory(upper)?;
    clone_handle(root.as_fd(), false).map_err(|errno| Error::at(upper, errno))
}

/// An overlay of layers whose owners are mapped. Before 6.15 overlayfs takes no layer that is mounted in no place, and
/// the host is to see nothing of it: a process with mounts of its own covers each layer with its mapped clone, makes
/// the overlay, and hands it over. Its mounts go with it, however it ends.
fn mapped_overlay(rootfs: &Rootfs, lowers: &[PathBuf], plan: &Plan, pid: u32) -> Result<OwnedFd> {
    made_aside(namespaces::MOUNT, || {
        cover(lowers, pid)?;
        mount_covered(rootfs, plan)?.map_or_else(|| mount_in_child(rootfs, plan), Ok)
    })
}

fn mount_covered(rootfs: &Rootfs, plan: &Plan) -> Result<Option<OwnedFd>> {
    match rootfs {
        Rootfs::Overlay { lowers, upper, work, .. } => overlay(lowers, upper, work, plan),
        Rootfs::Directory(path) => directory(path, plan).map(Some),
    }
}

/// Mounts the mapped clone of each layer over it.
fn cover(lowers: &[PathBuf], pid: u32) -> Result<()> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).map_err(|errno| Error::call("make mounts private", errno))?;
    let namespace = sources::open(pid)?;
    for lower in lowers {
        let layer = sources::mapped_layer(lower, &namespace)?;
        rustix::mount::move_mount(&layer, c"", CWD, lower, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|errno| Error::at(lower, errno))?;
    }
    Ok(())
}

fn directory(path: &Path, plan: &Plan) -> Result<OwnedFd> {
    let tree = clone_tree(CWD, path).map_err(|errno| Error::at(path, errno).context("root file system"))?;
    let set = if plan.nodev { NODEV } else { 0 };
    // A slave must not have been private meanwhile; what is shared cannot be pivoted to, and becomes so later.
    let propagation = if plan.propagation.0 == mount::SLAVE { mount::SLAVE } else { mount::PRIVATE };
    let attr = MountAttr { set, propagation, ..MountAttr::default() };
    mount::set(tree.as_fd(), true, &attr).map_err(|error| Error::at(path, error))?;
    Ok(tree)
}

fn overlay(lowers: &[PathBuf], upper: &Path, work: &Path, plan: &Plan) -> Result<Option<OwnedFd>> {
    if lowers.is_empty() {
        // CVE-2026-24054: an image without layers must not become something else.
        return Err(Error::invalid("the image has no layers"));
    }
    let opened = if has_lowerdir_append() { None } else { Some(open_all(lowers)?) };
    let joined = opened.as_deref().map(join_names);
    if joined.as_ref().is_some_and(|names| names.len() > LONGEST_VALUE) {
        return Ok(None);
    }
    let context = open_context("overlay")?;
    let set = |key: &str, value: &Path| {
        fsconfig_set_string(context.as_fd(), key, value)
            .map_err(|errno| explain(&context, errno).context(format!("overlay {key} {}", value.display())))
    };
    match joined {
        Some(names) => set("lowerdir", Path::new(&names))?,
        // The kernel wants the uppermost first.
        None => lowers.iter().rev().try_for_each(|lower| set("lowerdir+", lower))?,
    }
    set("upperdir", upper)?;
    set("workdir", work)?;
    if !userns::is_initial() {
        // Root of a user namespace may not read the attributes `trusted.*` of a host's file system.
        fsconfig_set_flag(context.as_fd(), "userxattr").map_err(|errno| {
            explain(&context, errno).context("overlay in a user namespace needs Linux 5.11")
        })?;
    }
    if let Some(label) = plan.label() {
        fsconfig_set_string(context.as_fd(), "context", label)
            .map_err(|errno| explain(&context, errno).context("mountLabel"))?;
    }
    let attr = if plan.nodev { MountAttrFlags::MOUNT_ATTR_NODEV } else { MountAttrFlags::empty() };
    finish(context, attr).map(Some).map_err(|error| {
        error.context(format!("overlay of {} layers under {}", lowers.len(), upper.display()))
    })
}

/// Directories by descriptor, the uppermost first.
pub(crate) fn open_all(lowers: &[PathBuf]) -> Result<Vec<OwnedFd>> {
    lowers.iter().rev().map(|path| open_directory(path)).collect()
}

pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::at(path, errno))
}

/// A descriptor's short name: options of a mount have little room.
fn fd_name(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

pub(crate) fn join_names(fds: &[OwnedFd]) -> String {
    fds.iter().map(fd_name).collect::<Vec<_>>().join(":")
}

/// Whether overlayfs takes its layers one by one (6.7). Older kernels may learn it by a backport, but asking them
/// puts a complaint into their log at each start.
pub(crate) fn has_lowerdir_append() -> bool {
    let system = rustix::system::uname();
    let mut numbers = system.release().to_bytes().split(|byte| !byte.is_ascii_digit());
    let mut number = || std::str::from_utf8(numbers.next()?).ok()?.parse::<u32>().ok();
    (number().unwrap_or(0), number().unwrap_or(0)) >= (6, 7)
}

/// A context for a new file system.
pub(crate) fn open_context(kind: &str) -> Result<OwnedFd> {
    fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| match errno {
        Errno::NODEV => Error::unsupported(format!("the kernel has no file system '{kind}'")),
        errno => Error::call(&format!("fsopen {kind}"), errno),
    })
}

/// Makes the file system and a detached mount of it.
pub(crate) fn finish(context: OwnedFd, attr: MountAttrFlags) -> Result<OwnedFd> {
    fsconfig_create(context.as_fd()).map_err(|errno| explain(&context, errno))?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attr)
        .map_err(|errno| Error::call("fsmount", errno))
}

/// A file system's refusal, in its own words where it gave any.
pub(crate) fn explain(context: &OwnedFd, errno: Errno) -> Error {
    let error = crate::error::describe(&errno.into());
    match mount::context_log(context) {
        Some(log) if !log.is_empty() => Error::internal(format!("{error} ({log})")),
        _ => Error::internal(error),
    }
}

/// A detached clone of the mounts at and below `path`.
pub(crate) fn clone_tree(dir: BorrowedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(dir, path, flags)
}

/// A detached clone of the one mount that a handle is open on, from there downwards.
pub(crate) fn clone_handle(handle: BorrowedFd, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(handle, c"", flags)
}
