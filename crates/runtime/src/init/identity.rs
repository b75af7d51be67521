//! User, groups, bounding set. From here on the process has no more rights than its program will have, but for
//! what the last steps need to take away the rest.

use std::os::fd::AsFd;

use proa_sys::userns;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use super::Init;
use crate::user::{self, Identity};
use crate::{Error, Result};

pub(super) fn run(init: &mut Init) -> Result<()> {
    let spec = init.job.process.spec;
    let want_home = !spec.env.iter().any(|entry| entry.starts_with("HOME="));
    let identity = user::resolve(init.root.as_fd(), init.job.user, &spec.user, want_home)?;
    init.streams.give_to(identity.uid, init.in_user_namespace() || !userns::is_initial())?;
    rustix::process::umask(Mode::from_raw_mode(spec.user.umask.unwrap_or(0o022)));
    warn_of_missing(init)?;
    become_user(init, &identity)?;
    init.identity = identity;
    Ok(())
}

fn warn_of_missing(init: &mut Init) -> Result<()> {
    let held = capabilities(None).map_err(|errno| Error::call("capget", errno))?.permitted.bits();
    let missing = init.job.process.capabilities.permitted & !held;
    for (number, name) in proa_oci::defaults::ALL_CAPABILITIES.iter().enumerate() {
        if missing & 1 << number != 0 {
            init.warnings.push(format!("{name} not granted: the host does not have it"));
        }
    }
    Ok(())
}

fn become_user(init: &Init, identity: &Identity) -> Result<()> {
    let fail = |what: &'static str| move |errno: Errno| Error::call(what, errno);
    let groups: Vec<_> = identity.groups.iter().map(|gid| rustix::process::Gid::from_raw(*gid)).collect();
    match set_thread_groups(&groups) {
        Ok(()) => {}
        // A user namespace whose groups are mapped without privilege denies it.
        Err(Errno::PERM) if groups.is_empty() || init.in_user_namespace() || !userns::is_initial() => {}
        Err(Errno::INVAL) => return Err(unmapped("one of the groups", &identity.groups)),
        Err(errno) => return Err(Error::call("setgroups", errno)),
    }
    let gid = rustix::process::Gid::from_raw(identity.gid);
    set_thread_res_gid(gid, gid, gid).map_err(|errno| match errno {
        Errno::INVAL => unmapped("group", &[identity.gid]),
        errno => Error::call("setgid", errno),
    })?;
    drop_bounding(init.job.process.capabilities.bounding)?;
    clear_ambient_capability_set().map_err(fail("ambient capabilities"))?;
    let uid = rustix::process::Uid::from_raw(identity.uid);
    // The last steps install the filter and set the final capabilities, by rights that setuid would take away.
    set_keep_capabilities(true).map_err(fail("keep capabilities"))?;
    set_thread_res_uid(uid, uid, uid).map_err(|errno| match errno {
        Errno::INVAL => unmapped("user", &[identity.uid]),
        errno => Error::call("setuid", errno),
    })?;
    set_keep_capabilities(false).map_err(fail("keep capabilities"))?;
    if identity.uid != 0 {
        let sets = capabilities(None).map_err(fail("capget"))?;
        let needed = (CapabilitySet::SYS_ADMIN | CapabilitySet::SETPCAP) & sets.permitted;
        set_capabilities(None, CapabilitySets { effective: needed, ..sets }).map_err(fail("capset"))?;
    }
    Ok(())
}

/// The kernel knows no such id in this user namespace.
fn unmapped(what: &str, ids: &[u32]) -> Error {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    Error::invalid(format!(
        "{what} {} has no id in this user namespace: an ordinary user gets more ids by newuidmap and ranges in \
         /etc/subuid and /etc/subgid, a container with ids of its own by its map (auto:size=COUNT, --uidmap)",
        ids.join(", ")
    ))
}

fn drop_bounding(keep: u64) -> Result<()> {
    for number in (0..64).filter(|number| keep & 1 << number == 0) {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The kernel knows no capability of this number, nor of a higher one.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(Error::call("bounding capabilities", errno)),
        }
    }
    Ok(())
}
