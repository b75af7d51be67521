//! The process gets its namespaces, its root and its `/proc`: what all steps need.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

use super::{Job, Place};
use crate::channel::Channel;
use crate::plan::{Namespaces, namespaces};
use crate::{Error, Result, rootfs};

/// Enters, and returns the root directory and a `/proc` to trust.
pub(super) fn run(job: &Job, channel: &Channel) -> Result<(OwnedFd, OwnedFd)> {
    match &job.place {
        Place::New { plan, rootfs, cgroups } => {
            join(&plan.namespaces)?;
            unshare(plan.namespaces.unshare_first())?;
            // The parent has mounted it meanwhile, and has written the id maps before that.
            let root = match channel.receive_root()? {
                Some(root) => root,
                None => rootfs::mount_in_child(rootfs)?,
            };
            if plan.namespaces.new_cgroup() && cgroups.namespace_at_once() {
                unshare(namespaces::CGROUP)?;
            }
            let proc = rootfs::open_context("proc")
                .and_then(|context| {
                    let attr = MountAttrFlags::MOUNT_ATTR_NOSUID
                        | MountAttrFlags::MOUNT_ATTR_NODEV
                        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
                    rootfs::finish(context, attr)
                })
                .map_err(|error| error.context("mount proc"))?;
            if plan.namespaces.new_time() {
                time(&proc, plan)?;
            }
            Ok((root, proc))
        }
        Place::Existing { pidfd, namespaces } => {
            // The host's, opened before the container's could be taken for it.
            let proc = open_dir("/proc")?;
            let kinds = ThreadNameSpaceType::from_bits_retain(*namespaces as u32);
            move_into_thread_name_spaces(*pidfd, kinds).map_err(|errno| Error::call("setns", errno))?;
            Ok((open_dir("/")?, proc))
        }
    }
}

fn open_dir(path: &str) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::at(path, errno))
}

fn join(namespaces: &Namespaces) -> Result<()> {
    // The pid namespace was joined before the fork.
    for (path, flag) in namespaces.join.iter().filter(|(_, flag)| *flag != namespaces::PID) {
        let fd = rustix::fs::open(*path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::at(path, errno))?;
        move_into_link_name_space(fd.as_fd(), link_type(*flag)).map_err(|errno| Error::at(path, errno))?;
    }
    Ok(())
}

fn link_type(flag: u64) -> Option<LinkNameSpaceType> {
    use LinkNameSpaceType::{
        ControlGroup, HostNameAndNISDomainName, InterProcessCommunication, Network, Time,
    };
    [ControlGroup, HostNameAndNISDomainName, InterProcessCommunication, Network, Time]
        .into_iter()
        .find(|kind| *kind as u64 == flag)
}

fn unshare(flags: u64) -> Result<()> {
    if flags == 0 {
        return Ok(());
    }
    proa_sys::process::unshare_namespaces(flags).map_err(|error| Error::call("unshare", error))
}

/// The offsets can only be set from outside the new time namespace, before anyone is in it.
fn time(proc: &OwnedFd, plan: &crate::plan::Plan) -> Result<()> {
    unshare(namespaces::TIME)?;
    for (clock, offset) in &plan.linux.time_offsets {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(Error::invalid(format!("timeOffsets: clock '{clock}' is not known")));
        }
        let line = format!("{clock} {} {}", offset.secs, offset.nanosecs);
        super::sysctl::write(proc, "self/timens_offsets", &line)?;
    }
    let own = "self/ns/time_for_children";
    let fd = rustix::fs::openat(proc, own, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::at(own, errno))?;
    move_into_link_name_space(fd.as_fd(), None).map_err(|errno| Error::at(own, errno))
}
