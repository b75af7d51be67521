//! The part of cgroup v2 that an ordinary user has been given.
//!
//! systemd gives a user `user.slice/user-UID.slice/user@UID.service` and hands down some controllers; a unit with
//! `Delegate=yes` gets its own cgroup. Containers' cgroups are made in the highest cgroup above us that is ours: a
//! process may only be moved between cgroups whose common parent its user may write to.

use std::path::{Path, PathBuf};

use proa_oci::runtime::Resources;
use rustix::fs::{Access, access};

use super::{MOUNT, is_unified, read};
use crate::{Error, Result};

const HOW: &str = "systemd-run --user --scope -p Delegate=yes proa …";

/// Where a user's cgroups may be, or the line that says why nowhere.
pub(super) fn find() -> Result<PathBuf, String> {
    let mount = Path::new(MOUNT);
    if !is_unified(mount) {
        return Err(
            "an ordinary user has cgroups, and with them limits, with cgroup v2 only, and this host has v1: run as root"
                .into()
        );
    }
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    highest(mount, Path::new(own), is_ours).ok_or_else(|| {
        format!("limits need a cgroup of your own, and /{own} is not delegated to you: start it by `{HOW}`")
    })
}

fn is_ours(dir: &Path) -> bool {
    ["", "cgroup.procs", "cgroup.subtree_control"]
        .iter()
        .all(|file| access(dir.join(file), Access::WRITE_OK).is_ok())
}

fn highest(mount: &Path, own: &Path, is_ours: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let mut levels: Vec<_> = own.ancestors().map(|level| mount.join(level)).collect();
    levels.reverse();
    levels.into_iter().find(|level| is_ours(level))
}

/// That what is to be limited can be.
pub(super) fn check(dir: &Path, resources: &Resources) -> Result<()> {
    let has = read(dir, "cgroup.controllers").unwrap_or_default();
    let has: Vec<&str> = has.split_whitespace().collect();
    let missing: Vec<&str> =
        needed(resources).into_iter().filter(|controller| !has.contains(controller)).collect();
    if !missing.is_empty() {
        return Err(Error::unsupported(format!(
            "these limits need the cgroup controllers {}, and you have been given {}: root can give them by \
             `systemctl edit user@.service` with [Service] Delegate=cpu cpuset io memory pids",
            missing.join(" "),
            if has.is_empty() { "none".to_owned() } else { has.join(" ") },
        )));
    }
    let is_busy = !read(dir, "cgroup.procs").unwrap_or_default().trim().is_empty();
    if is_busy && !needed(resources).is_empty() {
        return Err(Error::unsupported(format!(
            "no limit can be set below {}, which has processes of its own: start it by `{HOW}`",
            dir.display()
        )));
    }
    Ok(())
}

/// The controllers that limits belong to.
fn needed(resources: &Resources) -> Vec<&'static str> {
    let mut needed = Vec::new();
    let mut add = |name, is_needed| {
        if is_needed {
            needed.push(name);
        }
    };
    add("memory", resources.memory.as_ref().is_some_and(|memory| *memory != Default::default()));
    if let Some(cpu) = &resources.cpu {
        let sets = cpu.cpus.is_some() || cpu.mems.is_some();
        add("cpuset", sets);
        let rest = proa_oci::runtime::Cpu { cpus: None, mems: None, ..cpu.clone() };
        add("cpu", rest != Default::default());
    }
    add("pids", resources.pids.is_some_and(|pids| pids.limit > 0));
    add("io", resources.block_io.as_ref().is_some_and(|block| *block != Default::default()));
    add("hugetlb", !resources.hugepage_limits.is_empty());
    needed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_oci::runtime::{Cpu, Memory, Pids};

    #[test]
    fn the_highest_that_is_ours() {
        let ours = |paths: &'static [&str]| move |dir: &Path| paths.iter().any(|path| dir == Path::new(path));
        let find = |paths| highest("/c".as_ref(), "user.slice/u/x.scope".as_ref(), ours(paths));
        assert_eq!(find(&["/c/user.slice/u/x.scope", "/c/user.slice/u"]), Some("/c/user.slice/u".into()));
        assert_eq!(find(&["/c/user.slice/u/x.scope"]), Some("/c/user.slice/u/x.scope".into()));
        assert_eq!(find(&["/c/system.slice"]), None);
        assert_eq!(find(&["/c"]), Some("/c/".into()));
    }

    #[test]
    fn limits_name_their_controllers() {
        let resources = Resources {
            memory: Some(Memory { limit: Some(1), ..Memory::default() }),
            cpu: Some(Cpu { cpus: Some("0".into()), ..Cpu::default() }),
            pids: Some(Pids { limit: 3 }),
            ..Resources::default()
        };
        assert_eq!(needed(&resources), ["memory", "cpuset", "pids"]);
        let empty = tempfile::tempdir().unwrap();
        let refused = check(empty.path(), &resources).unwrap_err().to_string();
        assert!(refused.contains("memory cpuset pids") && refused.contains("Delegate="), "{refused}");
        std::fs::write(empty.path().join("cgroup.controllers"), "cpuset cpu memory pids\n").unwrap();
        assert!(check(empty.path(), &resources).is_ok());
        std::fs::write(empty.path().join("cgroup.procs"), "1\n").unwrap();
        let refused = check(empty.path(), &resources).unwrap_err().to_string();
        assert!(refused.contains("processes of its own"), "{refused}");
        assert!(check(empty.path(), &Resources::default()).is_ok());
    }
}
