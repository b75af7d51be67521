//! The process gets its root and its `/proc`: what all later steps need.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountAttrFlags, fsconfig_set_string};
use rustix::thread::move_into_link_name_space;

use super::{Job, Place, mounts, namespaces, root, sysctl};
use crate::channel::Channel;
use crate::plan::{Plan, namespaces as flags};
use crate::{Error, Result, rootfs, sources};

/// For a process that joins: the host's `/proc`, opened before the container's could be taken for it.
pub(super) fn host_proc(job: &Job) -> Result<Option<OwnedFd>> {
    match job.place {
        Place::New { .. } => Ok(None),
        Place::Existing { .. } => open_dir("/proc").map(Some),
    }
}

/// What is there to work with.
pub(super) struct Entered {
    /// The root directory.
    pub root: OwnedFd,
    /// A `/proc` to trust.
    pub proc: OwnedFd,
    /// Bind sources, if the parent has taken them.
    pub sources: Vec<OwnedFd>,
}

/// Waits for the root, makes a `/proc`.
pub(super) fn run(job: &Job, channel: &Channel, host_proc: Option<OwnedFd>) -> Result<Entered> {
    let Place::New { plan, rootfs, cgroups } = &job.place else {
        let proc = host_proc.ok_or_else(|| Error::internal("no /proc to join with"))?;
        return Ok(Entered { root: open_dir("/")?, proc, sources: Vec::new() });
    };
    // The parent has mounted it meanwhile.
    let (root, mut sources) = channel.receive_root()?;
    let root = match root {
        Some(root) => root,
        None => {
            // A mount among peers of the host's would appear on the host.
            if sources.is_empty() {
                sources = sources::take(plan)?;
            }
            root::leave_peers()?;
            rootfs::mount_in_child(rootfs, plan)?
        }
    };
    if plan.namespaces.new_cgroup() && cgroups.namespace_at_once() {
        namespaces::unshare(flags::CGROUP)?;
    }
    let attr = MountAttrFlags::from_bits_retain(mounts::PROC_ATTR.set as u32);
    let proc = make_proc(plan, attr).map_err(|error| error.context("mount proc"))?;
    if plan.namespaces.new_time() {
        time(&proc, plan)?;
    }
    // The parent has written the maps before it sent the root. The files of `/proc` above are those of the root
    // outside, so this comes after them.
    if plan.namespaces.has_user() {
        namespaces::become_root()?;
        namespaces::unshare(plan.namespaces.unshare_as_root())?;
    }
    Ok(Entered { root, proc, sources })
}

fn make_proc(plan: &Plan, attr: MountAttrFlags) -> Result<OwnedFd> {
    let context = rootfs::open_context("proc")?;
    if plan.as_written {
        fsconfig_set_string(context.as_fd(), "source", "proc")
            .map_err(|errno| rootfs::explain(&context, errno))?;
    }
    rootfs::finish(context, attr)
}

fn open_dir(path: &str) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::at(path, errno))
}

/// The offsets can only be set from outside the new time namespace, before anyone is in it.
fn time(proc: &OwnedFd, plan: &Plan) -> Result<()> {
    namespaces::unshare(flags::TIME)?;
    for (clock, offset) in &plan.linux.time_offsets {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(Error::invalid(format!("timeOffsets: clock '{clock}' is not known")));
        }
        let line = format!("{clock} {} {}", offset.secs, offset.nanosecs);
        sysctl::write(proc, "self/timens_offsets", &line)?;
    }
    let own = "self/ns/time_for_children";
    let fd = rustix::fs::openat(proc, own, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::at(own, errno))?;
    move_into_link_name_space(fd.as_fd(), None).map_err(|errno| Error::at(own, errno))
}
