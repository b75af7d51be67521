//! Namespaces that are joined, and those that `clone3` has left to the child.

use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

use super::{Job, Place};
use crate::plan::{Namespaces, namespaces as flags};
use crate::{Error, Result};

pub(super) fn run(job: &Job) -> Result<()> {
    match &job.place {
        Place::New { plan, .. } => {
            join(&plan.namespaces)?;
            unshare(plan.namespaces.unshare_first())
        }
        Place::Existing { pidfd, namespaces } => {
            let kinds = ThreadNameSpaceType::from_bits_retain(*namespaces as u32);
            move_into_thread_name_spaces(*pidfd, kinds).map_err(|errno| Error::call("setns", errno))
        }
    }
}

fn join(namespaces: &Namespaces) -> Result<()> {
    // The pid namespace was joined before the fork.
    for (path, flag) in namespaces.join.iter().filter(|(_, flag)| *flag != flags::PID) {
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

pub(super) fn unshare(flags: u64) -> Result<()> {
    if flags == 0 {
        return Ok(());
    }
    proa_sys::process::unshare_namespaces(flags).map_err(|error| Error::call("unshare", error))
}
