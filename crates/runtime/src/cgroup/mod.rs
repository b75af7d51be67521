//! Control groups, both versions behind one type.
//!
//! ```text
//!            create ──▶ Later ──join──▶ Joined ──▶ remove        v1, nothing limited
//!            create ─────────────────▶ Joined ──▶ remove        v2; v1 with a limit
//! ```
//!
//! A process joins a v2 cgroup as it is forked, for nothing. Moving a process into a v1 cgroup waits for an RCU
//! grace period (10 ms and more), so where nothing is limited that is put off (invariant 12).
//!
//! The cgroup is `/proa/<id>` in every hierarchy, or the spec's `cgroupsPath`.

mod below;
mod convert;
mod delegated;
mod devices;
mod enclosure;
mod leftovers;
mod oom;
mod systemd;
mod v1;
mod v2;

pub(crate) use below::Below;
pub use below::SubCgroup;
pub use enclosure::Enclosure;
pub use leftovers::{remove_leftovers, signal_leftovers};
pub use oom::OomWatch;
pub use systemd::update_scope;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use proa_oci::runtime::{Linux, Rdma, Resources, Spec};
use proa_protocol::message::Stats;
use proa_sys::userns;
use rustix::fs::Mode;
use rustix::io::Errno;

use crate::container::CgroupPolicy;
use crate::{Error, Result};

const MOUNT: &str = "/sys/fs/cgroup";
/// In which cgroups are made, where the spec names none.
const OURS: &str = "proa";
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// A container's cgroups.
#[derive(Debug)]
pub(crate) enum Cgroup {
    /// It has none.
    None,
    /// cgroup v1.
    V1(v1::Cgroup),
    /// cgroup v2.
    V2(v2::Cgroup),
    /// One of the two, once systemd has made it.
    Scope(Box<systemd::Scope>),
}

/// What the container sees of its cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum View {
    /// Nothing.
    Nothing,
    /// The v2 hierarchy from its own cgroup downwards.
    Unified,
    /// Its own directories of the v1 hierarchies, by the hierarchies' names.
    Hierarchies(Vec<(String, PathBuf)>),
}

impl View {
    /// Whether the cgroup namespace can be made at the start: the process is in its cgroup already.
    pub(crate) fn namespace_at_once(&self) -> bool {
        *self == Self::Unified
    }
}

/// What a cgroup is to be.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub id: &'a str,
    pub linux: &'a Linux,
    pub annotations: &'a BTreeMap<String, String>,
    pub policy: CgroupPolicy,
    /// The container must be in its cgroup before its program starts, though nothing is limited.
    pub at_once: bool,
}

impl Cgroup {
    /// Makes the cgroup, or plans to. Returns what could not be granted, too.
    pub(crate) fn create(wanted: &Wanted, warnings: &mut Vec<String>) -> Result<Self> {
        let none = Resources::default();
        let resources = wanted.linux.resources.as_ref().unwrap_or(&none);
        let limited = is_limited(resources);
        let needed = limited || wanted.policy == CgroupPolicy::Required;
        if wanted.policy == CgroupPolicy::Disabled {
            return if limited {
                Err(Error::unsupported("limits need cgroups, which are disabled"))
            } else {
                Ok(Self::None)
            };
        }
        if let CgroupPolicy::Systemd(address) = wanted.policy {
            return Ok(Self::Scope(Box::new(systemd::Scope::plan(wanted, address, resources)?)));
        }
        let path = relative_path(wanted.id, wanted.linux.cgroups_path.as_deref())?;
        if !userns::is_initial() {
            return Self::create_delegated(&path, resources, [limited, needed], warnings);
        }
        if is_unified(Path::new(MOUNT)) {
            return v2::Cgroup::create(Path::new(MOUNT), &path, resources, limited, warnings).map(Self::V2);
        }
        match v1::Cgroup::create(Path::new(MOUNT), &path, resources, needed || wanted.at_once, warnings)? {
            Some(cgroup) => Ok(Self::V1(cgroup)),
            None if needed => Err(Error::unsupported(format!("limits need cgroups, and {MOUNT} has none"))),
            None => Ok(Self::None),
        }
    }

    /// The cgroup of a container that another process has created with these wishes.
    pub(crate) fn reopen(wanted: &Wanted) -> Result<Self> {
        let none = Resources::default();
        let resources = wanted.linux.resources.as_ref().unwrap_or(&none);
        if wanted.policy == CgroupPolicy::Disabled {
            return Ok(Self::None);
        }
        if let CgroupPolicy::Systemd(address) = wanted.policy {
            return systemd::reopen(wanted, address, resources);
        }
        let path = relative_path(wanted.id, wanted.linux.cgroups_path.as_deref())?;
        if !userns::is_initial() {
            let known = delegated::find().ok().filter(|dir| dir.join(&path).is_dir());
            return Ok(known.map_or(Self::None, |dir| Self::V2(v2::Cgroup::reopen(&dir, &path))));
        }
        if is_unified(Path::new(MOUNT)) {
            return Ok(Self::V2(v2::Cgroup::reopen(Path::new(MOUNT), &path)));
        }
        let at_once = is_limited(resources) || wanted.at_once;
        Ok(v1::Cgroup::reopen(Path::new(MOUNT), &path, resources, at_once)?.map_or(Self::None, Self::V1))
    }

    /// Looks again whether somebody has made the cgroup that was put off.
    pub(crate) fn reopen_late(&mut self) -> Result<()> {
        match self {
            Self::V1(cgroup) => cgroup.reopen_late(),
            Self::None | Self::V2(_) | Self::Scope(_) => Ok(()),
        }
    }

    /// Has systemd make it around the first process, where that is who makes it.
    pub(crate) fn start_scope(&mut self, pid: u32, warnings: &mut Vec<String>) -> Result<()> {
        match std::mem::replace(self, Self::None) {
            Self::Scope(scope) => *self = scope.start(pid, warnings)?,
            other => *self = other,
        }
        Ok(())
    }

    /// Whether its rules are in force before the program starts.
    pub(crate) fn holds_at_start(&self) -> bool {
        !matches!(self, Self::None) && !self.joins_late()
    }

    /// Whether processes are put into it a moment after their start.
    pub(crate) fn joins_late(&self) -> bool {
        matches!(self, Self::V1(cgroup) if cgroup.joins_late())
    }

    /// The processes in it and in those that were made below it.
    pub(crate) fn all_processes(&self) -> Vec<u32> {
        // Any hierarchy has them all; the last is joined last.
        self.paths().last().map(|(_, dir)| all_pids(dir)).unwrap_or_default()
    }

    /// Its directories, by hierarchy.
    pub(crate) fn paths(&self) -> Vec<(String, PathBuf)> {
        match self {
            Self::None => Vec::new(),
            Self::V1(cgroup) => cgroup.paths(),
            Self::V2(cgroup) => vec![(String::new(), cgroup.dir())],
            Self::Scope(scope) => scope.cgroup.paths(),
        }
    }

    /// Whether its processes are frozen.
    pub(crate) fn is_frozen(&self) -> bool {
        self.paths().iter().any(|(_, dir)| {
            read(dir, "freezer.state").is_some_and(|state| state.trim() != "THAWED")
                || read(dir, "cgroup.events").is_some_and(|events| field(&events, "frozen") == Some(1))
        })
    }

    /// For an ordinary user: in what it has been given, or nowhere, as long as it is not needed.
    fn create_delegated(
        path: &Path,
        resources: &Resources,
        [limited, needed]: [bool; 2],
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let dir = match delegated::find() {
            Ok(dir) => dir,
            Err(why) if needed => return Err(Error::unsupported(why)),
            Err(_) => return Ok(Self::None),
        };
        if limited {
            delegated::check(&dir, resources)?;
        }
        // Device programs need root outside, and are not needed: a user namespace can make no nodes.
        let resources = Resources { devices: Vec::new(), ..resources.clone() };
        v2::Cgroup::create(&dir, path, &resources, limited, warnings).map(Self::V2)
    }

    /// What the container is to see.
    pub(crate) fn view(&self) -> View {
        match self {
            Self::None => View::Nothing,
            Self::V1(cgroup) => cgroup.view(),
            Self::V2(_) => View::Unified,
            Self::Scope(scope) => scope.cgroup.view(),
        }
    }

    /// The directory to fork into.
    pub(crate) fn fork_target(&self) -> Result<Option<OwnedFd>> {
        match self {
            Self::V2(cgroup) => cgroup.open().map(Some),
            Self::None | Self::V1(_) | Self::Scope(_) => Ok(None),
        }
    }

    /// Moves a process that has not started its program, where that cannot wait.
    pub(crate) fn attach(&self, pid: u32) -> Result<()> {
        match self {
            Self::V1(cgroup) => cgroup.attach(pid),
            Self::None | Self::V2(_) | Self::Scope(_) => Ok(()),
        }
    }

    /// Whether [`Cgroup::attach`] has something to do.
    pub(crate) fn attaches(&self) -> bool {
        matches!(self, Self::V1(_))
    }

    /// Makes the cgroup, if that was put off. Whether there are processes to be moved into it.
    pub(crate) fn make_late(&mut self) -> Result<bool> {
        match self {
            Self::V1(cgroup) => cgroup.make_late(),
            Self::None | Self::V2(_) | Self::Scope(_) => Ok(false),
        }
    }

    /// Moves into it whoever is not in it; `members` lists them anew at each call.
    pub(crate) fn move_in(&self, members: impl FnMut() -> Vec<u32>) -> Result<()> {
        match self {
            Self::V1(cgroup) => cgroup.move_in(members),
            Self::None | Self::V2(_) | Self::Scope(_) => Ok(()),
        }
    }

    /// Sets other limits, those that are named; `members` lists the container's processes, should it not be in
    /// its cgroup yet. Device rules stay as they are.
    pub(crate) fn update(
        &mut self,
        resources: &Resources,
        members: impl FnMut() -> Vec<u32>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        match self {
            Self::None | Self::Scope(_) => Err(Error::unsupported("limits need cgroups, and there are none")),
            Self::V1(cgroup) => cgroup.update(resources, members, warnings),
            Self::V2(cgroup) => cgroup.update(resources, warnings),
        }
    }

    /// The processes in it, ours numbers; `None` where there is no cgroup yet.
    pub(crate) fn processes(&self) -> Option<Vec<u32>> {
        match self {
            Self::None | Self::Scope(_) => None,
            Self::V1(cgroup) => cgroup.processes(),
            Self::V2(cgroup) => Some(cgroup.processes()),
        }
    }

    /// Fills in what it knows; `false` where it knows nothing yet.
    pub(crate) fn stats(&self, stats: &mut Stats) -> bool {
        match self {
            Self::None | Self::Scope(_) => false,
            Self::V1(cgroup) => cgroup.stats(stats),
            Self::V2(cgroup) => {
                cgroup.stats(stats);
                true
            }
        }
    }

    /// Whether the kernel killed something in it for memory.
    pub(crate) fn oom_killed(&self) -> bool {
        match self {
            Self::None | Self::Scope(_) => false,
            Self::V1(cgroup) => cgroup.oom_kills() > 0,
            Self::V2(cgroup) => cgroup.oom_kills() > 0,
        }
    }

    /// Tells when memory runs out, where it is limited.
    pub(crate) fn watch_oom(&self) -> Option<OomWatch> {
        match self {
            Self::None | Self::Scope(_) => None,
            Self::V1(cgroup) => cgroup.watch_oom(),
            Self::V2(cgroup) => cgroup.watch_oom(),
        }
    }

    /// Freezes or thaws all processes, and waits until that is so.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<()> {
        match self {
            Self::None | Self::Scope(_) => Err(Error::unsupported("pausing needs cgroups")),
            Self::V1(cgroup) => cgroup.freeze(frozen),
            Self::V2(cgroup) => cgroup.freeze(frozen),
        }
    }

    /// Kills everything in it at once, if the kernel can; `false` if it cannot.
    pub(crate) fn kill(&self) -> bool {
        match self {
            Self::V2(cgroup) => cgroup.kill(),
            Self::None | Self::V1(_) | Self::Scope(_) => false,
        }
    }

    /// Removes it, with what the container made below it. It must be empty of processes.
    pub(crate) fn remove(&self) -> Result<()> {
        match self {
            Self::None | Self::Scope(_) => Ok(()),
            Self::V1(cgroup) => cgroup.remove(),
            Self::V2(cgroup) => cgroup.remove(),
        }
    }
}

/// Where a container's cgroup is, below each hierarchy.
///
/// # Errors
/// The spec's path makes no sense.
pub fn cgroup_path(id: &str, spec: &Spec, policy: CgroupPolicy) -> Result<PathBuf> {
    let asked = spec.linux.as_ref().and_then(|linux| linux.cgroups_path.as_deref());
    match policy {
        CgroupPolicy::Systemd(address) => systemd::path(id, asked, address),
        CgroupPolicy::Auto | CgroupPolicy::Required | CgroupPolicy::Disabled => relative_path(id, asked),
    }
}

/// Makes the cgroup of a container, whose processes somebody else makes; [`remove_leftovers`] undoes it. Returns
/// what could not be granted.
///
/// # Errors
/// It cannot be made, or a limit not be set; nothing is left.
pub fn make_cgroup(id: &str, spec: &Spec) -> Result<Vec<String>> {
    let none = Linux::default();
    let linux = spec.linux.as_ref().unwrap_or(&none);
    let mut warnings = Vec::new();
    let (policy, annotations) = (CgroupPolicy::Auto, &spec.annotations);
    Cgroup::create(&Wanted { id, linux, annotations, policy, at_once: true }, &mut warnings)?;
    Ok(warnings)
}

/// Whether something in it must hold before the program starts. Device rules alone need not: all that a
/// container can make a node on is `nodev`.
fn is_limited(resources: &Resources) -> bool {
    let Resources { devices: _, memory, cpu, pids, block_io, hugepage_limits, network, rdma, unified } =
        resources;
    memory.as_ref().is_some_and(|memory| *memory != Default::default())
        || cpu.as_ref().is_some_and(|cpu| *cpu != Default::default())
        || pids.is_some_and(|pids| pids.limit > 0)
        || block_io.as_ref().is_some_and(|block| *block != Default::default())
        || !hugepage_limits.is_empty()
        || network.as_ref().is_some_and(|network| *network != Default::default())
        || !rdma.is_empty()
        || !unified.is_empty()
}

fn is_unified(mount: &Path) -> bool {
    rustix::fs::statfs(mount).is_ok_and(|stat| stat.f_type == CGROUP2_SUPER_MAGIC)
}

/// The path below a hierarchy's root.
fn relative_path(id: &str, asked: Option<&str>) -> Result<PathBuf> {
    let asked =
        asked.filter(|path| !path.is_empty()).map_or_else(|| format!("{OURS}/{id}"), ToOwned::to_owned);
    let path = Path::new(asked.trim_start_matches('/'));
    let is_plain = |part| matches!(part, std::path::Component::Normal(_));
    if asked.contains(':') {
        if Path::new("/run/systemd/system").is_dir() {
            return Err(Error::unsupported(format!(
                "cgroupsPath '{asked}': systemd owns that place: use --systemd-cgroup, or a plain path (cgroupfs)"
            )));
        }
        return systemd_path(&asked);
    }
    if path.as_os_str().is_empty() || !path.components().all(is_plain) {
        return Err(Error::invalid(format!("cgroupsPath '{asked}' is not a path below the root")));
    }
    Ok(path.to_owned())
}

/// Where systemd would put `slice:prefix:name`, if it ran: a slice's name holds the names of those above it.
fn systemd_path(asked: &str) -> Result<PathBuf> {
    let invalid = || Error::invalid(format!("cgroupsPath '{asked}' is not slice:prefix:name"));
    let parts: Vec<&str> = asked.split(':').collect();
    let [slice, prefix, name] = parts[..] else { return Err(invalid()) };
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    slice_path(slice, prefix, name).map_err(|_| invalid())
}

/// Where a unit of this slice is.
fn slice_path(slice: &str, prefix: &str, name: &str) -> Result<PathBuf> {
    let invalid = || Error::invalid(format!("'{slice}', '{name}': not a slice and a unit of systemd's"));
    let stem = slice.strip_suffix(".slice").ok_or_else(invalid)?;
    let mut path = PathBuf::new();
    // `-.slice` is the root.
    if stem != "-" {
        if stem.split('-').any(str::is_empty) || [slice, prefix, name].iter().any(|part| part.contains('/')) {
            return Err(invalid());
        }
        let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
        path.extend(ends.map(|end| format!("{}.slice", &stem[..end])));
    }
    if name.is_empty() || name == ".." || name == "." {
        return Err(invalid());
    }
    path.push(match (prefix, name.ends_with(".slice")) {
        (_, true) => name.to_owned(),
        ("", false) => format!("{name}.scope"),
        (prefix, false) => format!("{prefix}-{name}.scope"),
    });
    Ok(path)
}

/// Makes an empty cgroup directory with its parents. One that a crash left is made anew, so that it has no old
/// limits; one with processes in it is somebody's.
fn make_dir(root: &Path, path: &Path) -> Result<PathBuf> {
    let full = root.join(path);
    for _ in 0..16 {
        match rustix::fs::mkdir(&full, Mode::from_raw_mode(0o755)) {
            Ok(()) => return Ok(full),
            Err(Errno::NOENT) => make_parents(root, path)?,
            Err(Errno::EXIST) => rustix::fs::rmdir(&full).map_err(|errno| {
                Error::at(&full, errno).context("the cgroup exists and is in use: end what runs in it")
            })?,
            Err(errno) => return Err(Error::at(&full, errno)),
        }
    }
    Err(Error::at(&full, Errno::BUSY))
}

/// Parents may vanish meanwhile, as the last container in them goes: then `mkdir` of the child fails and all is
/// tried again.
fn make_parents(root: &Path, path: &Path) -> Result<()> {
    let mut parents: Vec<_> = path.ancestors().skip(1).filter(|part| !part.as_os_str().is_empty()).collect();
    parents.reverse();
    for parent in parents {
        let full = root.join(parent);
        match rustix::fs::mkdir(&full, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST | Errno::NOENT) => {}
            Err(errno) => return Err(Error::at(&full, errno)),
        }
    }
    Ok(())
}

/// Removes a cgroup directory and those below it, and our own parent where that is empty then. Another parent is
/// somebody's who may have set limits there.
fn remove_dir(root: &Path, path: &Path) -> Result<()> {
    remove_tree(&root.join(path)).map_err(|errno| Error::at(root.join(path), errno))?;
    if path.parent() == Some(Path::new(OURS)) {
        // Others may be in it.
        let _ = rustix::fs::rmdir(root.join(OURS));
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<(), Errno> {
    // The last process has ended, but the kernel may count it for a moment yet.
    for wait_ms in [0, 1, 2, 5, 10, 20, 50, 100, 200, 500] {
        if wait_ms > 0 {
            pause_ms(wait_ms);
        }
        match rustix::fs::rmdir(path) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno),
        }
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let _ = remove_tree(&entry.path());
            }
        }
    }
    Err(Errno::BUSY)
}

/// Gives the kernel time for what it does in the background and tells nobody of.
fn pause_ms(milliseconds: i64) {
    let time = rustix::fs::Timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 };
    let _ = rustix::event::poll(&mut [], Some(&time));
}

/// A line of `rdma.max`.
fn rdma_line(device: &str, limit: &Rdma) -> Result<String> {
    if device.is_empty() || device.contains(char::is_whitespace) {
        return Err(Error::invalid(format!("rdma: '{device}' is not a device")));
    }
    let part =
        |key: &str, value: Option<u32>| value.map_or_else(String::new, |value| format!(" {key}={value}"));
    let (handles, objects) = (part("hca_handle", limit.hca_handles), part("hca_object", limit.hca_objects));
    Ok(format!("{device}{handles}{objects}"))
}

/// Writes a file of the cgroup.
fn write(dir: &Path, file: &str, value: &str) -> Result<()> {
    try_write(dir, file, value)
        .map_err(|errno| Error::at(dir.join(file), errno).context(format!("cannot set {file} to '{value}'")))
}

fn try_write(dir: &Path, file: &str, value: &str) -> Result<(), Errno> {
    use rustix::fs::OFlags;
    let file = rustix::fs::open(dir.join(file), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.as_bytes()).map(drop)
}

fn read(dir: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(dir.join(file)).ok()
}

/// The number in a file that holds one; `None` for `max`.
fn read_number(dir: &Path, file: &str) -> Option<u64> {
    read(dir, file)?.trim().parse().ok()
}

/// The number behind a key in lines of `key number`.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The process ids in a file that lists them.
fn pids(dir: &Path, file: &str) -> Vec<u32> {
    read(dir, file).unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect()
}

/// Those of a cgroup and of all below it.
fn all_pids(dir: &Path) -> Vec<u32> {
    let mut found = pids(dir, "cgroup.procs");
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(all_pids(&entry.path()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_oci::runtime::{Cpu, Memory, Pids};

    #[test]
    fn only_real_limits_count() {
        let mut resources =
            Resources { devices: proa_oci::defaults::default_device_rules(), ..Resources::default() };
        resources.memory = Some(Memory::default());
        resources.cpu = Some(Cpu::default());
        resources.pids = Some(Pids { limit: 0 });
        assert!(!is_limited(&resources));
        resources.pids = Some(Pids { limit: 5 });
        assert!(is_limited(&resources));
        assert!(is_limited(&Resources {
            memory: Some(Memory { limit: Some(1), ..Memory::default() }),
            ..Resources::default()
        }));
    }

    #[test]
    fn paths_stay_below_the_root() {
        assert_eq!(relative_path("a", None).unwrap(), Path::new("proa/a"));
        assert_eq!(relative_path("a", Some("/x/y")).unwrap(), Path::new("x/y"));
        for path in ["/", "../x", "x/../../y"] {
            assert!(relative_path("a", Some(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn slices_are_where_systemd_would_put_them() {
        let path = |asked| systemd_path(asked).unwrap();
        assert_eq!(path("system.slice:docker:id"), Path::new("system.slice/docker-id.scope"));
        assert_eq!(path("a-b-c.slice:crio:x"), Path::new("a.slice/a-b.slice/a-b-c.slice/crio-x.scope"));
        assert_eq!(path(":p:x"), Path::new("system.slice/p-x.scope"));
        assert_eq!(path("-.slice::x"), Path::new("x.scope"));
        for bad in [
            "a:b",
            "a.slice:b:..",
            "a/b.slice:c:d",
            "a--b.slice:c:d",
            "x:y:z",
            "a.slice:b:c:d",
            "a.slice:../b:c",
        ] {
            assert!(systemd_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn fields_are_found_by_their_whole_key() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(field(text, "oom_kill"), Some(3));
        assert_eq!(field(text, "oom"), None);
    }
}
