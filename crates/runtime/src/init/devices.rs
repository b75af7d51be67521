//! Device nodes. They are made in a tmpfs of the container's, so that a `chmod` inside never reaches the host's,
//! and each is opened through a mount of its own: everything else a container can write to is `nodev`.
//!
//! ```text
//!   tmpfs ─ node "null" ─ clone of that one file ──▶ attached over /dev/null (may be opened)
//!      └──── mounted nodev at /dev (the same node, which cannot be opened there)
//! ```

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use proa_oci::runtime::Device;
use proa_sys::mount::{self, MountAttr, NOEXEC, NOSUID};
use proa_sys::userns;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, makedev};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree};

use super::{Init, mounts};
use crate::plan::Plan;
use crate::{Error, Result, inroot, rootfs};

/// The devices that every container has: name, major, minor.
const DEFAULT: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("/proc/kcore", "core"),
    ("pts/ptmx", "ptmx"),
];

/// Clones of the nodes, each with the path it belongs to.
pub(super) type Nodes = Vec<(String, OwnedFd)>;

/// Makes the nodes in a detached tmpfs and clones each as a mount of its own.
pub(super) fn make(tmpfs: BorrowedFd, plan: &Plan) -> Result<Nodes> {
    let asked =
        |name: &str| plan.linux.devices.iter().any(|device| device.path.strip_prefix("/dev/") == Some(name));
    let mut nodes = Vec::with_capacity(DEFAULT.len() + plan.linux.devices.len());
    for (name, major, minor) in DEFAULT.iter().filter(|(name, ..)| !asked(name)) {
        let made = node(tmpfs, name, FileType::CharacterDevice, 0o666, makedev(*major, *minor));
        let path = format!("/dev/{name}");
        if let Some(node) = clone(tmpfs, name, plan, made, &path, makedev(*major, *minor))? {
            nodes.push((path, node));
        }
    }
    for (at, device) in plan.linux.devices.iter().enumerate() {
        if let Some(node) = extra(tmpfs, at, device, plan)? {
            nodes.push((device.path.clone(), node));
        }
    }
    Ok(nodes)
}

/// Attaches the nodes that lie in the tmpfs itself, each over itself; returns those that belong elsewhere.
pub(super) fn attach_own(tmpfs: BorrowedFd, nodes: Nodes) -> Result<Nodes> {
    let mut elsewhere = Nodes::new();
    for (path, node) in nodes {
        match path.strip_prefix("/dev/") {
            // Nobody else is in it yet: names in it are safe.
            Some(name) if !name.contains('/') => {
                move_mount(&node, c"", tmpfs, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                    .map_err(|errno| Error::at(&path, errno))?;
            }
            _ => elsewhere.push((path, node)),
        }
    }
    links(tmpfs)?;
    Ok(elsewhere)
}

/// Attaches the nodes that are left; makes them first where `/dev` is not a tmpfs of the spec.
pub(super) fn run(init: &Init, nodes: Option<Nodes>) -> Result<()> {
    let nodes = match nodes {
        Some(nodes) => nodes,
        None => {
            let tmpfs = rootfs::finish(rootfs::open_context("tmpfs")?, MountAttrFlags::MOUNT_ATTR_NOSUID)?;
            let nodes = make_aside(init, tmpfs.as_fd())?;
            links(inroot::make_dir_all(init.root.as_fd(), "/dev", 0o755)?.as_fd())?;
            nodes
        }
    };
    let root = init.root.as_fd();
    for (path, node) in &nodes {
        let target = inroot::make_file_no_links(root, path)?;
        mounts::attach(node.as_fd(), target.as_fd()).map_err(|error| error.context(path))?;
    }
    Ok(())
}

/// Makes the nodes in a tmpfs that is only there for it, over `/dev`: before 6.15 the nodes of a mount that is in
/// no place could not be cloned.
fn make_aside(init: &Init, tmpfs: BorrowedFd) -> Result<Nodes> {
    let target = inroot::make_dir_all(init.root.as_fd(), "/dev", 0o755)?;
    mounts::attach(tmpfs, target.as_fd())?;
    let nodes = make(tmpfs, init.plan()?);
    let place = format!("/proc/self/fd/{}", tmpfs.as_raw_fd());
    rustix::mount::unmount(place.as_str(), UnmountFlags::DETACH)
        .map_err(|errno| Error::call("umount", errno))?;
    nodes
}

fn links(dev: BorrowedFd) -> Result<()> {
    for (target, link) in LINKS {
        match rustix::fs::symlinkat(*target, dev, *link) {
            // An image may bring its own; the root may be read-only.
            Ok(()) | Err(Errno::EXIST | Errno::ROFS) => {}
            Err(errno) => return Err(Error::at(link, errno)),
        }
    }
    Ok(())
}

/// A device of the spec, in a corner of the tmpfs that the container sees no name for but its own.
fn extra(tmpfs: BorrowedFd, at: usize, device: &Device, plan: &Plan) -> Result<Option<OwnedFd>> {
    let name = match device.path.strip_prefix("/dev/") {
        Some(name) if !name.contains('/') => name.to_owned(),
        _ => format!(".device{at}"),
    };
    let kind = match device.kind.as_str() {
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        _ => FileType::CharacterDevice,
    };
    let number =
        |value: i64| u32::try_from(value).map_err(|_| Error::invalid(format!("{}: bad number", device.path)));
    let number = makedev(number(device.major)?, number(device.minor)?);
    let made = node(tmpfs, &name, kind, device.file_mode.unwrap_or(0o666), number);
    if made.is_ok() && (device.uid, device.gid) != (None, None) {
        let uid = device.uid.map(rustix::fs::Uid::from_raw);
        let gid = device.gid.map(rustix::fs::Gid::from_raw);
        rustix::fs::chownat(tmpfs, name.as_str(), uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| Error::at(&device.path, errno))?;
    }
    clone(tmpfs, &name, plan, made, &device.path, number).map_err(|error| error.context(&device.path))
}

fn node(tmpfs: BorrowedFd, name: &str, kind: FileType, mode: u32, number: u64) -> Result<(), Errno> {
    rustix::fs::mknodat(tmpfs, name, kind, Mode::from_raw_mode(mode & 0o7777), number)
}

/// A mount of one node; none where the node itself may be opened. A user namespace may not make nodes: there it is the host's of the same path, whose mode and
/// owner an outer root's are.
fn clone(
    tmpfs: BorrowedFd,
    name: &str,
    plan: &Plan,
    made: Result<(), Errno>,
    path: &str,
    number: u64,
) -> Result<Option<OwnedFd>> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match made {
        Ok(()) if plan.opens_nodes() && path.strip_prefix("/dev/") == Some(name) => Ok(None),
        Ok(()) => open_tree(tmpfs, name, flags).map(Some).map_err(|errno| Error::at(name, errno)),
        Err(Errno::PERM) if plan.namespaces.has_user() || !userns::is_initial() => {
            let tree = open_tree(CWD, path, flags).map_err(|errno| Error::at(path, errno))?;
            let stat = inroot::stat(tree.as_fd()).map_err(|errno| Error::at(path, errno))?;
            if stat.st_rdev != number {
                return Err(Error::unsupported(
                    "in a user namespace a device must be one that the host has under the same name",
                ));
            }
            // Something to mount it on.
            let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(tmpfs, name, create, Mode::empty()).map_err(|errno| Error::at(path, errno))?;
            Ok(Some(tree))
        }
        Err(errno) => Err(Error::at(name, errno)),
    }
}

/// The container's null device, surely that and nothing else (CVE-2025-31133): a handle, for the masks.
pub(super) fn null(root: BorrowedFd) -> Result<OwnedFd> {
    let handle = inroot::handle_no_links(root, "/dev/null").map_err(|errno| Error::at("/dev/null", errno))?;
    check_null(handle.as_fd())?;
    Ok(handle)
}

/// A detached mount of the null device, to cover files with.
pub(super) fn null_mount(root: BorrowedFd) -> Result<OwnedFd> {
    let tree =
        rootfs::clone_handle(null(root)?.as_fd(), false).map_err(|errno| Error::at("/dev/null", errno))?;
    check_null(tree.as_fd())?;
    let attr = MountAttr { set: NOSUID | NOEXEC | mount::RDONLY, ..MountAttr::default() };
    mount::set(tree.as_fd(), false, &attr).map_err(|error| Error::call("mount_setattr", error))?;
    Ok(tree)
}

/// The null device, opened.
pub(super) fn open_null(root: BorrowedFd) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK;
    let null = inroot::open(root, "/dev/null", flags, rustix::fs::ResolveFlags::NO_SYMLINKS)
        .map_err(|errno| Error::at("/dev/null", errno))?;
    check_null(null.as_fd())?;
    Ok(null)
}

fn check_null(fd: BorrowedFd) -> Result<()> {
    let stat = inroot::stat(fd).map_err(|errno| Error::at("/dev/null", errno))?;
    if inroot::is(&stat, FileType::CharacterDevice) && stat.st_rdev == makedev(1, 3) {
        return Ok(());
    }
    Err(Error::internal("/dev/null is not the null device"))
}
