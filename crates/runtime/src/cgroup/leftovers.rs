//! What a container leaves in its cgroups when its owner is killed.

use std::path::{Path, PathBuf};

use proa_oci::runtime::Spec;
use proa_sys::userns;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{MOUNT, cgroup_path, delegated, is_unified, pause_ms, pids, remove_dir, systemd, try_write};
use crate::Result;
use crate::container::CgroupPolicy;

/// How often processes are looked for again: one may fork while it is being killed.
const ROUNDS: usize = 50;

/// Kills what is still in the cgroups of a container whose owner is dead, and removes them. Does nothing where
/// there are none.
///
/// # Errors
/// A cgroup cannot be removed.
pub fn remove_leftovers(id: &str, spec: &Spec, policy: CgroupPolicy) -> Result<()> {
    let path = cgroup_path(id, spec, policy)?;
    let found = || roots(policy).into_iter().filter(|root| root.join(&path).is_dir());
    found().for_each(|root| kill_all(&root.join(&path)));
    if let CgroupPolicy::Systemd(address) = policy {
        // Where it cannot be reached, it has nothing to forget.
        let _ =
            systemd::stop(id, spec.linux.as_ref().and_then(|linux| linux.cgroups_path.as_deref()), address);
    }
    found().try_for_each(|root| {
        remove_dir(&root, &path).or_else(|_| {
            // A child of the owner that outlived it may have moved processes there meanwhile.
            kill_all(&root.join(&path));
            remove_dir(&root, &path)
        })
    })
}

/// Sends a signal to what is still in the cgroups of a container whose first process has ended.
///
/// # Errors
/// The cgroup's path makes no sense.
pub fn signal_leftovers(id: &str, spec: &Spec, policy: CgroupPolicy, signal: Signal) -> Result<()> {
    let path = cgroup_path(id, spec, policy)?;
    let mut members: Vec<(PathBuf, u32)> = Vec::new();
    for dir in roots(policy).into_iter().map(|root| root.join(&path)) {
        let new = pids(&dir, "cgroup.procs").into_iter();
        let new: Vec<_> = new.filter(|pid| members.iter().all(|(_, known)| known != pid)).collect();
        members.extend(new.into_iter().map(|pid| (dir.clone(), pid)));
    }
    members.iter().for_each(|(dir, pid)| signal_member(dir, *pid, signal));
    Ok(())
}

fn roots(policy: CgroupPolicy) -> Vec<PathBuf> {
    let mount = Path::new(MOUNT);
    if !userns::is_initial() && !matches!(policy, CgroupPolicy::Systemd(_)) {
        return delegated::find().into_iter().collect();
    }
    if is_unified(mount) {
        return vec![mount.to_owned()];
    }
    let entries = std::fs::read_dir(mount).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn kill_all(dir: &Path) {
    // The frozen do not die. Only one of these files exists.
    let _ = try_write(dir, "freezer.state", "THAWED");
    let _ = try_write(dir, "cgroup.freeze", "0");
    for _ in 0..ROUNDS {
        let members = pids(dir, "cgroup.procs");
        if members.is_empty() {
            break;
        }
        members.into_iter().for_each(|pid| signal_member(dir, pid, Signal::KILL));
        pause_ms(2);
    }
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_all(&entry.path());
        }
    }
}

/// Signals a process if it is a member still after its descriptor was opened: then the descriptor is its own, and
/// not that of another process that got its id.
fn signal_member(dir: &Path, pid: u32, signal: Signal) {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(pidfd) = pidfd_open(raw, PidfdFlags::empty()) else { return };
    if pids(dir, "cgroup.procs").contains(&pid) {
        let _ = pidfd_send_signal(&pidfd, signal);
    }
}
