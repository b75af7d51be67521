//! cgroup v1: one directory in each hierarchy.

mod limits;

use std::path::{Path, PathBuf};

use proa_oci::runtime::Resources;
use proa_protocol::message::Stats;
use rustix::io::Errno;

use super::{
    OomWatch, View, all_pids, field, make_dir, pause_ms, pids, read, read_number, remove_dir, try_write,
    write,
};
use crate::{Error, Result};

/// Controllers that every container joins: they count, freeze or guard. Those that only limit (`cpuset`,
/// `hugetlb`) are joined where they are asked for.
const ALWAYS: &[&str] = &["cpu", "cpuacct", "memory", "devices", "freezer", "blkio", "pids"];
/// systemd's own hierarchies, on a host with v1 or with both.
const SYSTEMD: &[&str] = &["systemd", "unified"];
/// A limit beyond any machine: what the kernel reports for none.
const UNLIMITED: u64 = 1 << 62;

/// The container's directories.
#[derive(Debug)]
pub(crate) struct Cgroup {
    mount: PathBuf,
    path: PathBuf,
    /// Names of the hierarchies used: a controller, or several joined by commas. Looked for when they are needed.
    hierarchies: Vec<String>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Made and joined once the container has started.
    Later(Box<Resources>),
    /// The directories exist. Processes that start are moved in at once, where that was asked for.
    Joined { at_once: bool },
}

impl Cgroup {
    /// `None` where no hierarchy is mounted.
    pub(super) fn create(
        mount: &Path,
        path: &Path,
        resources: &Resources,
        at_once: bool,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Self>> {
        if !resources.unified.is_empty() {
            return Err(Error::unsupported("'unified' limits need cgroup v2; this host has v1"));
        }
        let (mount, path) = (mount.to_owned(), path.to_owned());
        if !at_once {
            let devices = Resources { devices: resources.devices.clone(), ..Resources::default() };
            return Ok(Some(Self {
                mount,
                path,
                hierarchies: Vec::new(),
                state: State::Later(Box::new(devices)),
            }));
        }
        let hierarchies = find_hierarchies(&mount, resources)?;
        if hierarchies.is_empty() {
            return Ok(None);
        }
        let cgroup = Self { mount, path, hierarchies, state: State::Joined { at_once } };
        cgroup.make(resources, warnings)?;
        Ok(Some(cgroup))
    }

    /// As it is after [`Cgroup::create`] in another process. `None` where no hierarchy is mounted.
    pub(super) fn reopen(
        mount: &Path,
        path: &Path,
        resources: &Resources,
        at_once: bool,
    ) -> Result<Option<Self>> {
        let devices = Resources { devices: resources.devices.clone(), ..Resources::default() };
        let state = if at_once { State::Joined { at_once } } else { State::Later(Box::new(devices)) };
        let (mount, path) = (mount.to_owned(), path.to_owned());
        let mut cgroup = Self { mount, path, hierarchies: Vec::new(), state };
        if at_once {
            cgroup.hierarchies = find_hierarchies(&cgroup.mount, resources)?;
            return Ok(if cgroup.hierarchies.is_empty() { None } else { Some(cgroup) });
        }
        cgroup.reopen_late()?;
        Ok(Some(cgroup))
    }

    /// A scope of systemd's, which knows its processes by hierarchies without controllers.
    pub(super) fn reopen_scope(mount: &Path, path: &Path, resources: &Resources) -> Result<Self> {
        let mut hierarchies = find_hierarchies(mount, resources)?;
        hierarchies.extend(
            SYSTEMD
                .iter()
                .filter(|name| mount.join(name).join("cgroup.procs").exists())
                .map(ToString::to_string),
        );
        if hierarchies.is_empty() {
            return Err(Error::unsupported(format!("limits need cgroups, and {} has none", mount.display())));
        }
        let state = State::Joined { at_once: true };
        Ok(Self { mount: mount.to_owned(), path: path.to_owned(), hierarchies, state })
    }

    /// Makes what systemd has not made, and sets what is to hold.
    pub(super) fn adopt(&self, resources: &Resources, warnings: &mut Vec<String>) -> Result<()> {
        for name in &self.hierarchies {
            let mount = self.mount.join(name);
            if !mount.join(&self.path).is_dir() {
                make_dir(&mount, &self.path)?;
            }
        }
        self.limit_devices(&resources.devices)?;
        self.limit(resources, warnings)
    }

    pub(super) fn reopen_late(&mut self) -> Result<()> {
        if let State::Later(resources) = &self.state {
            let hierarchies = find_hierarchies(&self.mount, resources)?;
            // The last is made last.
            if hierarchies.last().is_some_and(|name| self.mount.join(name).join(&self.path).is_dir()) {
                self.hierarchies = hierarchies;
                self.state = State::Joined { at_once: false };
            }
        }
        Ok(())
    }

    pub(super) fn joins_late(&self) -> bool {
        !matches!(self.state, State::Joined { at_once: true })
    }

    pub(super) fn paths(&self) -> Vec<(String, PathBuf)> {
        let own = |name: &String| (name.clone(), self.mount.join(name).join(&self.path));
        self.hierarchies.iter().map(own).collect()
    }

    fn make(&self, resources: &Resources, warnings: &mut Vec<String>) -> Result<()> {
        let made = self
            .hierarchies
            .iter()
            .try_for_each(|name| make_dir(&self.mount.join(name), &self.path).map(drop));
        let devices = made.and_then(|()| self.limit_devices(&resources.devices));
        devices.and_then(|()| self.limit(resources, warnings)).inspect_err(|_| {
            // Nothing is left behind; the error that counts is the first.
            let _ = self.remove();
        })
    }

    /// The directory with this controller.
    fn dir(&self, controller: &str) -> Option<PathBuf> {
        let has = |name: &&String| name.split(',').any(|part| part == controller);
        self.hierarchies.iter().find(has).map(|name| self.mount.join(name).join(&self.path))
    }

    fn need(&self, controller: &str) -> Result<PathBuf> {
        self.dir(controller)
            .ok_or_else(|| Error::unsupported(format!("the host has no cgroup controller '{controller}'")))
    }

    pub(super) fn view(&self) -> View {
        match self.state {
            State::Later(_) => View::Nothing,
            State::Joined { .. } => {
                let own = |name: &String| (name.clone(), self.mount.join(name).join(&self.path));
                View::Hierarchies(self.hierarchies.iter().map(own).collect())
            }
        }
    }

    pub(super) fn attach(&self, pid: u32) -> Result<()> {
        match self.state {
            State::Joined { at_once: true } => self.attach_to_all(pid),
            State::Joined { at_once: false } | State::Later(_) => Ok(()),
        }
    }

    fn attach_to_all(&self, pid: u32) -> Result<()> {
        for name in &self.hierarchies {
            let dir = self.mount.join(name).join(&self.path);
            match try_write(&dir, "cgroup.procs", &pid.to_string()) {
                // It has ended meanwhile.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => {
                    return Err(Error::at(&dir, errno).context(format!("cannot move process {pid}")));
                }
            }
        }
        Ok(())
    }

    pub(super) fn make_late(&mut self) -> Result<bool> {
        if let State::Later(resources) = &self.state {
            self.hierarchies = find_hierarchies(&self.mount, resources)?;
            self.make(resources, &mut Vec::new())?;
            self.state = State::Joined { at_once: false };
        }
        Ok(matches!(self.state, State::Joined { at_once: false }))
    }

    pub(super) fn move_in(&self, mut members: impl FnMut() -> Vec<u32>) -> Result<()> {
        // Whoever is moved has its children in the cgroup from then on: until nobody new is outside.
        for _ in 0..64 {
            let inside = self.inside_all();
            let outside: Vec<_> = members().into_iter().filter(|pid| !inside.contains(pid)).collect();
            if outside.is_empty() {
                break;
            }
            outside.into_iter().try_for_each(|pid| self.attach_to_all(pid))?;
        }
        Ok(())
    }

    /// Sets other limits. From then on processes that start are moved in at once.
    pub(super) fn update(
        &mut self,
        resources: &Resources,
        mut members: impl FnMut() -> Vec<u32>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        if !resources.unified.is_empty() {
            return Err(Error::unsupported("'unified' limits need cgroup v2; this host has v1"));
        }
        let joined = self.last_dir();
        match &self.state {
            State::Later(devices) => {
                let all = Resources { devices: devices.devices.clone(), ..resources.clone() };
                self.hierarchies = find_hierarchies(&self.mount, &all)?;
                self.make(&all, warnings)?;
            }
            State::Joined { .. } => {
                self.add_hierarchies(resources)?;
                self.limit(resources, warnings)?;
            }
        }
        self.state = State::Joined { at_once: true };
        self.move_in(|| {
            let mut all = members();
            all.extend(joined.iter().flat_map(|dir| pids(dir, "cgroup.procs")));
            all
        })
    }

    /// Its directory in the hierarchy that is joined last.
    fn last_dir(&self) -> Option<PathBuf> {
        self.hierarchies.last().map(|name| self.mount.join(name).join(&self.path))
    }

    /// Makes the directories of controllers that were not asked for before.
    fn add_hierarchies(&mut self, resources: &Resources) -> Result<()> {
        for name in find_hierarchies(&self.mount, resources)? {
            if !self.hierarchies.contains(&name) {
                make_dir(&self.mount.join(&name), &self.path)?;
                self.hierarchies.push(name);
            }
        }
        self.hierarchies.sort();
        Ok(())
    }

    pub(super) fn processes(&self) -> Option<Vec<u32>> {
        match self.state {
            State::Later(_) => None,
            State::Joined { .. } => self.last_dir().map(|dir| pids(&dir, "cgroup.procs")),
        }
    }

    /// The processes that are in every hierarchy, in whatever cgroup below the container's.
    fn inside_all(&self) -> Vec<u32> {
        let mut lists = self.hierarchies.iter().map(|name| all_pids(&self.mount.join(name).join(&self.path)));
        let first = lists.next().unwrap_or_default();
        lists.fold(first, |inside, list| inside.into_iter().filter(|pid| list.contains(pid)).collect())
    }

    pub(super) fn stats(&self, stats: &mut Stats) -> bool {
        if matches!(self.state, State::Later(_)) {
            return false;
        }
        // `cpuacct.stat` counts in clock ticks, of which Linux has 100 a second on every architecture we know.
        const NS_PER_TICK: u64 = 10_000_000;
        let limit = |value: u64| Some(value).filter(|value| *value < UNLIMITED);
        if let Some(dir) = self.dir("cpuacct") {
            stats.cpu_total_ns = read_number(&dir, "cpuacct.usage").unwrap_or(0);
            let ticks = read(&dir, "cpuacct.stat").unwrap_or_default();
            stats.cpu_user_ns = field(&ticks, "user").map(|ticks| ticks * NS_PER_TICK);
            stats.cpu_system_ns = field(&ticks, "system").map(|ticks| ticks * NS_PER_TICK);
        }
        if let Some(dir) = self.dir("memory") {
            stats.memory_usage = read_number(&dir, "memory.usage_in_bytes");
            stats.memory_limit = read_number(&dir, "memory.limit_in_bytes").and_then(limit);
            stats.memory_inactive_file =
                field(&read(&dir, "memory.stat").unwrap_or_default(), "total_inactive_file");
        }
        if let Some(dir) = self.dir("pids") {
            stats.pids = read_number(&dir, "pids.current");
            stats.pids_limit = read_number(&dir, "pids.max");
        }
        if let Some(dir) = self.dir("blkio") {
            let text = read(&dir, "blkio.throttle.io_service_bytes_recursive").unwrap_or_default();
            stats.io_read_bytes = Some(sum_blocks(&text, "Read"));
            stats.io_write_bytes = Some(sum_blocks(&text, "Write"));
        }
        true
    }

    pub(super) fn oom_kills(&self) -> u64 {
        self.dir("memory").and_then(|dir| field(&read(&dir, "memory.oom_control")?, "oom_kill")).unwrap_or(0)
    }

    pub(super) fn watch_oom(&self) -> Option<OomWatch> {
        let dir = self.dir("memory")?;
        let limit = read_number(&dir, "memory.limit_in_bytes")?;
        if limit < UNLIMITED { OomWatch::v1(&dir) } else { None }
    }

    pub(super) fn freeze(&self, frozen: bool) -> Result<()> {
        let dir = self.need("freezer")?;
        let wanted = if frozen { "FROZEN" } else { "THAWED" };
        for _ in 0..2000 {
            // Written again each time: a process forked meanwhile may have escaped the first.
            write(&dir, "freezer.state", wanted)?;
            if read(&dir, "freezer.state").is_some_and(|state| state.trim() == wanted) {
                return Ok(());
            }
            pause_ms(1);
        }
        if frozen {
            write(&dir, "freezer.state", "THAWED")?;
        }
        Err(Error::internal(format!("{}: the processes did not freeze within 2 s", dir.display())))
    }

    pub(super) fn remove(&self) -> Result<()> {
        // Each is tried, whatever becomes of the others.
        let results: Vec<_> =
            self.hierarchies.iter().map(|name| remove_dir(&self.mount.join(name), &self.path)).collect();
        results.into_iter().collect()
    }
}

/// The mounted hierarchies that are wanted; `cpu,cpuacct` may be one directory, with links beside it.
fn find_hierarchies(mount: &Path, resources: &Resources) -> Result<Vec<String>> {
    let wants_cpuset = resources.cpu.as_ref().is_some_and(|cpu| cpu.cpus.is_some() || cpu.mems.is_some());
    let wants = |part: &str| {
        let network = resources.network.as_ref();
        ALWAYS.contains(&part)
            || part == "net_cls" && network.is_some_and(|network| network.class_id.is_some())
            || part == "net_prio" && network.is_some_and(|network| !network.priorities.is_empty())
            || part == "rdma" && !resources.rdma.is_empty()
            || part == "cpuset" && wants_cpuset
            || part == "hugetlb" && !resources.hugepage_limits.is_empty()
    };
    let entries = match std::fs::read_dir(mount) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::at(mount, error)),
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.split(',').any(wants) && mount.join(name).join("cgroup.procs").exists())
        .collect();
    names.sort();
    Ok(names)
}

/// Sum over devices in lines of `8:0 Read 4096`.
fn sum_blocks(text: &str, operation: &str) -> u64 {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            (words.next()? == operation).then(|| words.next()?.parse::<u64>().ok()).flatten()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_bytes_are_summed_over_devices() {
        let text = "8:0 Read 10\n8:0 Write 5\n8:16 Read 7\nTotal 22\n";
        assert_eq!((sum_blocks(text, "Read"), sum_blocks(text, "Write")), (17, 5));
    }
}
