//! Namespaces that are joined, and those that `clone3` has left to the child.

use std::os::fd::AsFd;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
    set_thread_res_gid, set_thread_res_uid,
};

use super::{Job, Place, pivot};
use crate::plan::{Namespaces, namespaces as flags};
use crate::{Error, Result};

/// How the kernel shows an id that is not mapped.
const OVERFLOW_ID: u32 = 65534;

pub(super) fn run(job: &Job) -> Result<()> {
    match &job.place {
        Place::New { plan, .. } => {
            if !plan.namespaces.join_between() {
                join(&plan.namespaces, false)?;
            }
            unshare(plan.namespaces.unshare_first())
        }
        Place::Existing { pidfd, namespaces, root, .. } => {
            if let Some(root) = root {
                pivot::enter(*root)?;
            }
            if *namespaces != 0 {
                let kinds = ThreadNameSpaceType::from_bits_retain(*namespaces as u32);
                move_into_thread_name_spaces(*pidfd, kinds).map_err(|errno| Error::call("setns", errno))?;
            }
            if namespaces & flags::USER == 0 { Ok(()) } else { become_root() }
        }
    }
}

/// Joins what has a path: the mount namespace late, since it changes what paths mean, and the user namespace last,
/// since the others may belong to the one we come from. The pid namespace is joined before the fork of who is to be in it.
pub(crate) fn join(namespaces: &Namespaces, with_pid: bool) -> Result<()> {
    let mut opened = Vec::new();
    for (path, flag) in namespaces.join.iter().filter(|(_, flag)| with_pid || *flag != flags::PID) {
        let fd = rustix::fs::open(*path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::at(path, errno))?;
        opened.push((*path, *flag, fd));
    }
    opened.sort_by_key(|(_, flag, _)| match *flag {
        flags::USER => 2,
        flags::MOUNT => 1,
        _ => 0,
    });
    for (path, flag, fd) in opened {
        move_into_link_name_space(fd.as_fd(), link_type(flag)).map_err(|errno| Error::at(path, errno))?;
    }
    Ok(())
}

fn link_type(flag: u64) -> Option<LinkNameSpaceType> {
    use LinkNameSpaceType::{
        ControlGroup, HostNameAndNISDomainName, InterProcessCommunication, Mount, Network, ProcessID, Time,
        User,
    };
    [ControlGroup, HostNameAndNISDomainName, InterProcessCommunication, Mount, Network, ProcessID, Time, User]
        .into_iter()
        .find(|kind| *kind as u64 == flag)
}

/// In a user namespace: be its root, so that what is made there has an owner inside. A map without 0 leaves us who
/// we are, if that is in it.
pub(super) fn become_root() -> Result<()> {
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    match set_thread_res_gid(gid, gid, gid).and_then(|()| set_thread_res_uid(uid, uid, uid)) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL) if rustix::process::getuid().as_raw() != OVERFLOW_ID => Ok(()),
        Err(errno) => Err(Error::call("become root of the user namespace (is 0 mapped?)", errno)),
    }
}

pub(super) fn unshare(flags: u64) -> Result<()> {
    if flags == 0 {
        return Ok(());
    }
    proa_sys::process::unshare_namespaces(flags).map_err(|error| Error::call("unshare", error))
}
