//! Which namespaces are made by `clone3`, which by the child itself, and which are joined.

use proa_oci::runtime::{Linux, Namespace, NamespaceKind};

use crate::{Error, Result};

const NEWTIME: u64 = 0x80;
const NEWNS: u64 = 0x2_0000;
const NEWCGROUP: u64 = 0x200_0000;
const NEWUTS: u64 = 0x400_0000;
const NEWIPC: u64 = 0x800_0000;
const NEWUSER: u64 = 0x1000_0000;
const NEWPID: u64 = 0x2000_0000;
const NEWNET: u64 = 0x4000_0000;

/// The namespaces of a container.
#[derive(Debug)]
pub(crate) struct Namespaces<'a> {
    /// Flags for `clone3`.
    pub at_clone: u64,
    /// Flags for `unshare` in the child. The network namespace is the dearest: making it there lets the parent
    /// mount the root meanwhile. A cgroup or time namespace can only be made from inside.
    pub in_child: u64,
    /// Namespaces to join.
    pub join: Vec<(&'a str, u64)>,
    /// Flags of all of the container's own, for `exec` to join.
    pub all: u64,
}

/// The kernel's flag for a kind.
pub(crate) fn flag(kind: NamespaceKind) -> u64 {
    match kind {
        NamespaceKind::Pid => NEWPID,
        NamespaceKind::Network => NEWNET,
        NamespaceKind::Mount => NEWNS,
        NamespaceKind::Ipc => NEWIPC,
        NamespaceKind::Uts => NEWUTS,
        NamespaceKind::User => NEWUSER,
        NamespaceKind::Cgroup => NEWCGROUP,
        NamespaceKind::Time => NEWTIME,
    }
}

impl<'a> Namespaces<'a> {
    pub(crate) fn new(linux: &'a Linux) -> Result<Self> {
        let has_user = linux.namespaces.iter().any(|namespace| namespace.kind == NamespaceKind::User);
        let mut result = Self { at_clone: 0, in_child: 0, join: Vec::new(), all: 0 };
        for Namespace { kind, path } in &linux.namespaces {
            if result.all & flag(*kind) != 0 {
                return Err(Error::invalid(format!("namespace {kind:?} stands twice in the spec")));
            }
            result.all |= flag(*kind);
            match (path.as_deref().filter(|path| !path.is_empty()), kind) {
                (Some(path), _) => result.join.push((path, flag(*kind))),
                (None, NamespaceKind::Network | NamespaceKind::Cgroup | NamespaceKind::Time) => {
                    result.in_child |= flag(*kind);
                }
                // Its message queues belong to who makes it: the root inside.
                (None, NamespaceKind::Ipc) if has_user => result.in_child |= NEWIPC,
                (None, _) => result.at_clone |= flag(*kind),
            }
        }
        if result.all & NEWUSER == 0 && !(linux.uid_mappings.is_empty() && linux.gid_mappings.is_empty()) {
            return Err(Error::invalid("uidMappings and gidMappings need a user namespace"));
        }
        if result.at_clone & NEWUSER != 0 && (linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty())
        {
            return Err(Error::invalid("a user namespace needs uidMappings and gidMappings"));
        }
        if !linux.time_offsets.is_empty() && result.in_child & NEWTIME == 0 {
            return Err(Error::invalid("timeOffsets need a new time namespace"));
        }
        Ok(result)
    }

    /// Has the network namespace made by `clone3`, so that the caller can make interfaces in it while the first
    /// process does other things.
    pub(crate) fn network_at_clone(&mut self) -> Result<()> {
        if self.in_child & NEWNET == 0 {
            return Err(Error::invalid("network interfaces need a new network namespace"));
        }
        self.in_child &= !NEWNET;
        self.at_clone |= NEWNET;
        Ok(())
    }

    /// Whether a network namespace is made.
    pub(crate) fn new_network(&self) -> bool {
        (self.at_clone | self.in_child) & NEWNET != 0
    }

    /// Whether the container has mounts of its own, and not the host's.
    pub(crate) fn has_mount(&self) -> bool {
        self.all & NEWNS != 0
    }

    /// Whether a new user namespace is made.
    pub(crate) fn new_user(&self) -> bool {
        self.at_clone & NEWUSER != 0
    }

    /// Whether the container has a user namespace other than ours, new or joined.
    pub(crate) fn has_user(&self) -> bool {
        self.all & NEWUSER != 0
    }

    /// Whether a process between us and the first one must join: what `clone3` makes has to belong to a joined user
    /// namespace, and out of a new one the host's namespaces cannot be joined.
    pub(crate) fn join_between(&self) -> bool {
        let joins_user = self.join.iter().any(|(_, flag)| *flag == NEWUSER);
        joins_user || self.new_user() && !self.join.is_empty()
    }

    /// Whether the container has a process table of its own, newly made: then killing its first process kills all.
    pub(crate) fn new_pid(&self) -> bool {
        self.at_clone & NEWPID != 0
    }

    /// The pid namespace to join: that must happen before the fork.
    pub(crate) fn join_pid(&self) -> Option<&'a str> {
        self.join.iter().find(|(_, flag)| *flag == NEWPID).map(|(path, _)| *path)
    }

    /// Whether a cgroup namespace is made.
    pub(crate) fn new_cgroup(&self) -> bool {
        self.in_child & NEWCGROUP != 0
    }

    /// Whether a time namespace is made.
    pub(crate) fn new_time(&self) -> bool {
        self.in_child & NEWTIME != 0
    }

    /// What the child makes as the root of its user namespace.
    pub(crate) fn unshare_as_root(&self) -> u64 {
        self.in_child & NEWIPC
    }

    /// What the child makes at its start.
    pub(crate) fn unshare_first(&self) -> u64 {
        self.in_child & NEWNET
    }
}

/// Flag of the cgroup namespace.
pub(crate) const CGROUP: u64 = NEWCGROUP;
/// Flag of the time namespace.
pub(crate) const TIME: u64 = NEWTIME;
/// Flag of the pid namespace.
pub(crate) const PID: u64 = NEWPID;
/// Flag of the user namespace.
pub(crate) const USER: u64 = NEWUSER;
/// Flag of the mount namespace.
pub(crate) const MOUNT: u64 = NEWNS;
/// `CLONE_NEWNET`
pub(crate) const NETWORK: u64 = NEWNET;

#[cfg(test)]
mod tests {
    use super::*;

    fn linux(namespaces: &[(NamespaceKind, Option<&str>)]) -> Linux {
        let namespace =
            |&(kind, path): &(_, Option<&str>)| Namespace { kind, path: path.map(ToOwned::to_owned) };
        Linux { namespaces: namespaces.iter().map(namespace).collect(), ..Linux::default() }
    }

    #[test]
    fn each_kind_has_its_moment() {
        use NamespaceKind::{Cgroup, Ipc, Mount, Network, Pid};
        let linux = linux(&[(Mount, None), (Pid, None), (Network, None), (Cgroup, None), (Ipc, Some("/x"))]);
        let namespaces = Namespaces::new(&linux).unwrap();
        assert_eq!(namespaces.at_clone, NEWNS | NEWPID);
        assert_eq!(namespaces.in_child, NEWNET | NEWCGROUP);
        assert_eq!(namespaces.join, [("/x", NEWIPC)]);
        assert!(namespaces.new_pid() && !namespaces.new_user());
    }

    #[test]
    fn nonsense_is_refused() {
        use NamespaceKind::{Mount, User};
        assert!(Namespaces::new(&linux(&[(Mount, None), (Mount, None)])).is_err());
        assert!(Namespaces::new(&linux(&[(Mount, None), (User, None)])).is_err());
        let mut mapped = linux(&[(Mount, None)]);
        mapped.uid_mappings = vec![proa_oci::runtime::IdMapping::default()];
        assert!(Namespaces::new(&mapped).is_err());
    }

    #[test]
    fn user_namespaces_and_paths_need_a_process_between() {
        use NamespaceKind::{Mount, Network, User};
        let between = |list| Namespaces::new(&linux(list)).unwrap().join_between();
        assert!(between(&[(Mount, None), (User, Some("/x"))]));
        assert!(!between(&[(Mount, None), (Network, Some("/x"))]));
    }
}
