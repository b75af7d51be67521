//! Namespaces of other instances (`--network`, `--pid` and `--ipc container:NAME`).
//!
//! They are looked up at each start, since the other one may have been started anew meanwhile. What this instance has
//! joined stays what it was when the other one is: a process table ends with the other's first process, and with it
//! whoever is in it; a network and shared memory live on until the last who has them ends.

use std::fs;

use proa_oci::runtime::{Mount, NamespaceKind, Spec};
use proa_protocol::instance::{InstanceConfig, InstanceState, LOCK_FILE, STATE_FILE, Status, instance_dir};
use proa_runtime::{CgroupPolicy, Taken, mounted_in};
use proa_sys::lock;

use crate::args::{Args, Mode};
use crate::error::{Error, IoAt};

/// Where shared memory is found.
const SHARED_MEMORY: &str = "/dev/shm";

/// Puts the namespaces that the instance shares into its spec, and gives the mounts that come with them. What is only
/// held for work on its files shares nothing, and so needs nobody who runs.
///
/// # Errors
/// The other instance does not run.
pub fn join(args: &Args, config: &mut InstanceConfig) -> Result<Vec<Taken>, Error> {
    if args.mode == Mode::Maintenance {
        return Ok(Vec::new());
    }
    let shares = [
        (NamespaceKind::Network, &config.network_of),
        (NamespaceKind::Pid, &config.pid_of),
        (NamespaceKind::Ipc, &config.ipc_of),
    ];
    let mut taken = Vec::new();
    for (kind, other) in shares {
        let Some(other) = other else { continue };
        let pid = first_process(args, other, kind)?;
        for namespace in &mut config.spec.linux_mut().namespaces {
            if namespace.kind == kind {
                namespace.path = Some(format!("/proc/{pid}/ns/{}", file(kind)));
            }
        }
        // The user's own mount there, if there is one, stays.
        let is_there = |spec: &Spec| spec.mounts.iter().any(|mount| mount.destination == SHARED_MEMORY);
        if kind == NamespaceKind::Ipc && !is_there(&config.spec) {
            let mount = mounted_in(pid, SHARED_MEMORY)?;
            taken.push(Taken { destination: SHARED_MEMORY.to_owned(), mount });
            config.spec.mounts.push(shared_memory());
        }
    }
    Ok(taken)
}

/// Whether it must be in a cgroup from its start: its processes are found by nothing else, or its user has named the
/// cgroup's parent, which may have limits.
pub fn cgroup_policy(spec: &Spec) -> CgroupPolicy {
    let linux = spec.linux.as_ref();
    let is_named = linux.is_some_and(|linux| linux.cgroups_path.is_some());
    let mut namespaces = linux.into_iter().flat_map(|linux| &linux.namespaces);
    let own_pids =
        namespaces.any(|namespace| namespace.kind == NamespaceKind::Pid && namespace.path.is_none());
    if is_named || !own_pids { CgroupPolicy::Required } else { CgroupPolicy::Auto }
}

/// Its source is not looked up: the mount is given with it.
fn shared_memory() -> Mount {
    Mount {
        destination: SHARED_MEMORY.to_owned(),
        kind: Some("bind".to_owned()),
        source: Some(SHARED_MEMORY.to_owned()),
        options: ["rbind", "nosuid", "noexec", "nodev"].map(ToOwned::to_owned).to_vec(),
        ..Mount::default()
    }
}

fn file(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Pid => "pid",
        NamespaceKind::Ipc => "ipc",
        _ => "net",
    }
}

/// The first process of the instance with this id.
fn first_process(args: &Args, other: &str, kind: NamespaceKind) -> Result<u32, Error> {
    let path = instance_dir(&args.root, other).join(STATE_FILE);
    let state = match fs::read(&path) {
        Ok(bytes) => InstanceState::parse(&bytes).map_err(|error| Error::BadJson { path, error })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => InstanceState::default(),
        Err(error) => return Err(error).at(&path),
    };
    if matches!(state.status, Status::Running | Status::Paused) && is_held(args, other)? {
        return Ok(state.pid);
    }
    let what = match kind {
        NamespaceKind::Pid => "process ids",
        NamespaceKind::Ipc => "IPC",
        _ => "network",
    };
    Err(Error::OtherGone { instance: other.chars().take(12).collect(), what })
}

/// Whether an instance has a monitor: without one its process id may be anybody's.
fn is_held(args: &Args, instance: &str) -> Result<bool, Error> {
    let path = instance_dir(&args.run, instance).join(LOCK_FILE);
    lock::is_held(&path).at(&path)
}
