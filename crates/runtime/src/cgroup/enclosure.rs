//! The cgroup of processes that serve an instance from outside of it: a virtual machine's VMM, the servers of its shares.
//!
//! It is where a container's would be, so whoever clears up after an instance's owner ([`remove_leftovers`]) finds it, at
//! whichever line that was killed. The process joins a moment after its start, by a child that waits for the kernel in our
//! place: what it has charged until then stays where it was, and what it charges afterwards is bounded.
//!
//! [`remove_leftovers`]: super::remove_leftovers

use std::collections::BTreeMap;

use proa_oci::runtime::{Linux, Memory, Pids, Resources, Spec};

use rustix::io::Errno;

use super::{Cgroup, Wanted, remove_leftovers, try_write};
use crate::container::CgroupPolicy;
use crate::{Error, Result, processes};

/// Controllers that hold what is to hold.
const BOUNDING: &[&str] = &["memory", "pids"];

/// A cgroup with limits, for one process.
#[derive(Debug)]
pub struct Enclosure {
    id: String,
    cgroup: Cgroup,
}

impl Enclosure {
    /// Makes it for this instance, with at most so many bytes and tasks.
    ///
    /// # Errors
    /// There are no cgroups, or this user may make none; the message says which.
    pub fn make(id: &str, memory: u64, tasks: u32) -> Result<Self> {
        let linux = Linux { resources: Some(limits(memory, tasks)), ..Linux::default() };
        let annotations = BTreeMap::new();
        let policy = CgroupPolicy::Auto;
        let wanted = Wanted { id, linux: &linux, annotations: &annotations, policy, at_once: true };
        let cgroup = Cgroup::create(&wanted, &mut Vec::new())?;
        Ok(Self { id: id.to_owned(), cgroup })
    }

    /// Moves a process and its descendants with all their threads into it, which can take tens of milliseconds. Only where
    /// they are bounded they must be: the kernel keeps processes of real time out of v1's groups for CPU time.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn join(&self, pid: u32) -> Result<()> {
        processes::descendants(pid).into_iter().try_for_each(|pid| self.join_one(pid))
    }

    fn join_one(&self, pid: u32) -> Result<()> {
        let bounds = |name: &str| name.is_empty() || name.split(',').any(|part| BOUNDING.contains(&part));
        self.cgroup.paths().into_iter().try_for_each(|(name, dir)| {
            match try_write(&dir, "cgroup.procs", &pid.to_string()) {
                // It has ended meanwhile.
                Ok(()) | Err(Errno::SRCH) => Ok(()),
                Err(errno) if bounds(&name) => Err(Error::at(dir, errno)),
                Err(_) => Ok(()),
            }
        })
    }

    /// Sets another bound on memory.
    ///
    /// # Errors
    /// The kernel refuses: less than what is in use cannot be set everywhere.
    pub fn limit(&mut self, memory: u64, tasks: u32) -> Result<()> {
        self.cgroup.update(&limits(memory, tasks), Vec::new, &mut Vec::new())
    }

    /// Where it is, for people.
    #[must_use]
    pub fn place(&self) -> String {
        self.cgroup.paths().last().map(|(_, path)| path.display().to_string()).unwrap_or_default()
    }

    /// Removes it, when its process has ended.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(self) -> Result<()> {
        remove_leftovers(&self.id, &Spec::default(), CgroupPolicy::Auto)
    }
}

fn limits(memory: u64, tasks: u32) -> Resources {
    let bytes = i64::try_from(memory).unwrap_or(i64::MAX);
    Resources {
        memory: Some(Memory { limit: Some(bytes), ..Memory::default() }),
        pids: Some(Pids { limit: tasks.into() }),
        ..Resources::default()
    }
}
