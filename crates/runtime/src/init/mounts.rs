//! The spec's mounts, made detached and then moved to where the kernel finds their destination inside the root.
//! No path is looked up twice, and none outside the root (CVE-2021-30465, CVE-2024-45310).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use proa_sys::mount::{self, MountAttr, NODEV, NOEXEC, NOSUID, RDONLY};
use proa_sys::userns;
use rustix::fs::{FileType, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsPickFlags, MountAttrFlags, MoveMountFlags, fsconfig_reconfigure, fsconfig_set_flag,
    fsconfig_set_string, fspick, move_mount,
};

use super::{Init, cgroup, copyup, devices};
use crate::plan::{Bind, Filesystem, FsOption, MountPlan, MountSource, change};
use crate::{Error, Result, inroot, rootfs};

/// Files of `/proc` that may be covered by a bind mount: views of resources, as LXCFS gives.
const PROC_VIEWS: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];
const PROC_SUPER_MAGIC: i64 = 0x9fa0;
/// What our `/proc` has from the start.
pub(super) const PROC_ATTR: MountAttr =
    MountAttr { set: NOSUID | NODEV | NOEXEC, clear: 0, propagation: 0, userns_fd: 0 };

pub(super) fn run(init: &mut Init) -> Result<()> {
    let job = init.job;
    let super::Place::New { plan, cgroups, .. } = &job.place else { return Ok(()) };
    let mut sources = std::mem::take(&mut *init.sources).into_iter();
    let mut nodes = None;
    let mut has_proc = false;
    let anew = plan.as_written && !plan.takes_sources();
    for plan in &plan.mounts {
        let made = match &plan.source {
            MountSource::Bind(_) => {
                sources.next().map_or(Ok(()), |source| bind(init.root.as_fd(), plan, source, anew))
            }
            MountSource::Cgroup => cgroup::mount(init.root.as_fd(), plan, cgroups),
            MountSource::New(new) if new.kind == "proc" && !has_proc => {
                has_proc = true;
                place_proc(init.root.as_fd(), plan, init.proc.as_fd())
            }
            MountSource::New(new) if plan.destination == "/dev" && new.kind == "tmpfs" => {
                dev(init, plan, new).map(|made| nodes = Some(made))
            }
            MountSource::New(new) => filesystem(init, plan, new),
            MountSource::Remount(options) => remount(init.root.as_fd(), plan, options),
        };
        made.map_err(|error| error.context(plan.destination))?;
    }
    devices::run(init, nodes).map_err(|error| error.context("/dev"))
}

/// `/dev` and the nodes in it, which are opened through mounts of their own where it is `nodev` (invariant 11).
/// Returns the nodes that belong elsewhere.
fn dev(init: &Init, plan: &MountPlan, new: &Filesystem) -> Result<devices::Nodes> {
    let target = target_dir(init.root.as_fd(), plan)?;
    let last = plan.attr.set & (NODEV | RDONLY);
    let tree = instance(init, new, plan.attr.set & !last, None)?;
    // Attached first: before 6.15 the nodes of a mount that is in no place could not be cloned.
    attach(tree.as_fd(), target.as_fd())?;
    if new.copy_up {
        copyup::run(target.as_fd(), tree.as_fd())?;
    }
    let nodes = devices::make(tree.as_fd(), init.plan()?)?;
    let nodes = devices::attach_own(tree.as_fd(), nodes)?;
    if last != 0 {
        set(&tree, false, &MountAttr { set: last, ..MountAttr::default() })?;
    }
    afterwards(&tree, plan, new, init.plan()?.label()).map(|()| nodes)
}

fn filesystem(init: &Init, plan: &MountPlan, new: &Filesystem) -> Result<()> {
    let target = target_dir(init.root.as_fd(), plan)?;
    if !plan.must_be_real() || plan.destination.contains("proc/") {
        refuse_in_proc(target.as_fd(), plan.destination)?;
    }
    let tree = match instance(init, new, plan.attr.set & !late(new), Some(target.as_fd())) {
        Ok(tree) => tree,
        // A user namespace without a network namespace of its own may not make a new sysfs.
        Err(_)
            if new.kind == "sysfs"
                && rustix::fs::access("/sys/kernel", rustix::fs::Access::EXISTS).is_ok() =>
        {
            let tree = rootfs::clone_tree(rustix::fs::CWD, "/sys".as_ref())
                .map_err(|errno| Error::at("/sys", errno))?;
            set(&tree, true, &plan.attr)?;
            tree
        }
        Err(error) => return Err(error),
    };
    attach(tree.as_fd(), target.as_fd())?;
    if new.copy_up {
        copyup::run(target.as_fd(), tree.as_fd())?;
        set(&tree, false, &MountAttr { set: plan.attr.set & late(new), ..MountAttr::default() })?;
    }
    afterwards(&tree, plan, new, init.plan()?.label())
}

/// What must wait until all is copied.
fn late(new: &Filesystem) -> u64 {
    if new.copy_up { RDONLY } else { 0 }
}

/// What can only be said of a mount that exists.
fn afterwards(tree: &OwnedFd, plan: &MountPlan, new: &Filesystem, label: Option<&str>) -> Result<()> {
    // It takes no `context`.
    if let (Some(label), "mqueue") = (label, new.kind) {
        let path = format!("/proc/self/fd/{}", tree.as_raw_fd());
        rustix::fs::setxattr(&path, "security.selinux", label.as_bytes(), XattrFlags::empty())
            .map_err(|errno| Error::call("mountLabel", errno))?;
    }
    set(tree, true, &plan.recursive)?;
    // A new mount is private.
    let propagation = new.propagation.filter(|kind| *kind != mount::PRIVATE).unwrap_or(0);
    set(tree, false, &MountAttr { propagation, ..MountAttr::default() })
}

/// A new instance of a file system. A tmpfs without a mode takes the mode of the directory that it covers.
fn instance(init: &Init, new: &Filesystem, attr: u64, covers: Option<BorrowedFd>) -> Result<OwnedFd> {
    let context = rootfs::open_context(new.kind)?;
    // A name that is only the type again costs a call, and is not missed in the engine's specs.
    if let Some(source) =
        new.source.filter(|source| init.plan().is_ok_and(|plan| plan.shows_source(new.kind, source)))
    {
        option(&context, &("source", Some(source)))?;
    }
    if let Some(label) = init.plan()?.label_of(new) {
        option(&context, &("context", Some(label)))?;
    }
    let usable = |(name, value): &&FsOption| new.kind != "devpts" || *name != "gid" || has_group(*value);
    new.options.iter().filter(usable).try_for_each(|pair| option(&context, pair))?;
    let has_mode = new.options.iter().any(|(name, _)| *name == "mode");
    if let (Some(covers), "tmpfs", false) = (covers, new.kind, has_mode) {
        let stat = inroot::stat(covers).map_err(|errno| Error::call("stat", errno))?;
        let mode = format!("{:o}", stat.st_mode & 0o7777);
        option(&context, &("mode", Some(&mode)))?;
    }
    rootfs::finish(context, MountAttrFlags::from_bits_retain(attr as u32))
}

fn option(context: &OwnedFd, (name, value): &FsOption) -> Result<()> {
    let done = match value {
        Some(value) => fsconfig_set_string(context.as_fd(), *name, *value),
        None => fsconfig_set_flag(context.as_fd(), *name),
    };
    done.map_err(|errno| rootfs::explain(context, errno).context(format!("option {name}")))
}

/// Other attributes and options for what is mounted at a path.
fn remount(root: BorrowedFd, plan: &MountPlan, options: &[FsOption]) -> Result<()> {
    let target = inroot::handle(root, plan.destination).map_err(|errno| Error::call("open", errno))?;
    set(&target, false, &plan.attr)?;
    set(&target, true, &plan.recursive)?;
    if options.is_empty() {
        return Ok(());
    }
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    let context = fspick(target.as_fd(), c"", flags).map_err(|errno| Error::call("fspick", errno))?;
    options.iter().try_for_each(|pair| option(&context, pair))?;
    fsconfig_reconfigure(context.as_fd()).map_err(|errno| rootfs::explain(&context, errno))
}

/// Whether the terminals' group is there. In a user namespace of a single id it is not: then they are their
/// user's alone.
fn has_group(gid: Option<&str>) -> bool {
    userns::is_initial() || gid.and_then(|gid| gid.parse().ok()).is_none_or(userns::maps_group)
}

/// A clone of a host path over a file or directory of the container. Since Linux 6.8 mounts are listed in the order in
/// which they were made, and who reads the list takes the last of a place for the one on top: so one that was taken
/// before the others is made `anew`, where the kernel can (6.15).
fn bind(root: BorrowedFd, plan: &MountPlan, taken: OwnedFd, anew: bool) -> Result<()> {
    let MountSource::Bind(Bind { recursive, propagation, .. }) = plan.source else { return Ok(()) };
    let again = if anew { rootfs::clone_handle(taken.as_fd(), recursive).ok() } else { None };
    let source = &again.unwrap_or(taken);
    // Propagation holds for all that comes with it; attributes for the mount alone, unless they begin with `r`.
    if recursive {
        set(source, true, &MountAttr { propagation, ..plan.recursive })?;
    }
    let mut own = MountAttr { propagation, ..plan.recursive };
    change(&mut own, plan.attr.set, plan.attr.clear);
    set(source, false, &own)?;
    let is_dir = inroot::stat(source.as_fd()).is_ok_and(|stat| inroot::is(&stat, FileType::Directory));
    let target = if is_dir {
        inroot::make_dir_all(root, plan.destination, 0o755)?
    } else {
        inroot::make_file(root, plan.destination)?
    };
    refuse_in_proc(target.as_fd(), plan.destination)?;
    attach(source.as_fd(), target.as_fd()).map_err(|error| match is_dir {
        true => error.context("a directory is mounted here"),
        false => error.context("a file is mounted here"),
    })
}

/// What stands in `/proc` must be the kernel's own (CVE-2019-16884), however the destination led there.
fn refuse_in_proc(target: BorrowedFd, destination: &str) -> Result<()> {
    let filesystem = rustix::fs::fstatfs(target).map_err(|errno| Error::call("fstatfs", errno))?;
    if filesystem.f_type == PROC_SUPER_MAGIC && !PROC_VIEWS.contains(&destination) {
        return Err(Error::invalid("this part of /proc cannot be covered by a mount"));
    }
    Ok(())
}

/// Moves our `/proc` to its destination and gives it the attributes that are asked for.
fn place_proc(root: BorrowedFd, plan: &MountPlan, tree: BorrowedFd) -> Result<()> {
    let target = target_dir(root, plan)?;
    if plan.attr != PROC_ATTR {
        mount::set(tree, false, &plan.attr).map_err(|error| Error::call("mount_setattr", error))?;
    }
    attach(tree, target.as_fd())
}

/// The directory to mount on, made where it is missing.
pub(super) fn target_dir(root: BorrowedFd, plan: &MountPlan) -> Result<OwnedFd> {
    if !plan.must_be_real() {
        return inroot::make_dir_all(root, plan.destination, 0o755);
    }
    inroot::make_dir_no_links(root, plan.destination, 0o755).map_err(|errno| match errno {
        Errno::LOOP => {
            Error::invalid("must be mounted on ordinary directory, and a symbolic link stands there")
        }
        errno => Error::call("open", errno),
    })
}

/// Moves a detached mount onto what a handle is open on.
pub(super) fn attach(tree: BorrowedFd, target: BorrowedFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", target, c"", flags).map_err(|errno| Error::call("move_mount", errno))
}

fn set(tree: &OwnedFd, recursive: bool, attr: &MountAttr) -> Result<()> {
    if *attr == MountAttr::default() {
        return Ok(());
    }
    mount::set(tree.as_fd(), recursive, attr).map_err(|error| Error::call("mount_setattr", error))
}
