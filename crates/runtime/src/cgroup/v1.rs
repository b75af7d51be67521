//! cgroup v1: one directory in each hierarchy.

use std::path::{Path, PathBuf};

use proa_oci::runtime::{BlockIo, Cpu, Memory, Resources, ThrottleDevice};
use proa_protocol::message::Stats;
use rustix::io::Errno;

use super::{
    View, devices, field, make_dir, pause_ms, pids, rdma_line, read, read_number, remove_dir, try_write,
    write,
};
use crate::{Error, Result};

/// Controllers that every container joins: they count, freeze or guard. Those that only limit (`cpuset`,
/// `hugetlb`) are joined where they are asked for.
const ALWAYS: &[&str] = &["cpu", "cpuacct", "memory", "devices", "freezer", "blkio", "pids"];
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
        made.and_then(|()| self.limit(resources, warnings)).inspect_err(|_| {
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

    fn limit(&self, resources: &Resources, warnings: &mut Vec<String>) -> Result<()> {
        if let (false, Some(dir)) = (resources.devices.is_empty(), self.dir("devices")) {
            for (file, line) in devices::lines(&resources.devices)? {
                write(&dir, file, &line)?;
            }
        }
        if let Some(memory) = resources.memory.as_ref().filter(|memory| **memory != Memory::default()) {
            limit_memory(&self.need("memory")?, memory, warnings)?;
        }
        if let Some(cpu) = resources.cpu.as_ref().filter(|cpu| **cpu != Cpu::default()) {
            self.limit_cpu(cpu)?;
        }
        if let Some(pids) = resources.pids.filter(|pids| pids.limit > 0) {
            write(&self.need("pids")?, "pids.max", &pids.limit.to_string())?;
        }
        if let Some(block) = resources.block_io.as_ref().filter(|block| **block != BlockIo::default()) {
            limit_block(&self.need("blkio")?, block)?;
        }
        self.limit_network(resources)?;
        for (device, limit) in &resources.rdma {
            write(&self.need("rdma")?, "rdma.max", &rdma_line(device, limit)?)?;
        }
        for page in &resources.hugepage_limits {
            let file = format!("hugetlb.{}.limit_in_bytes", page.page_size);
            write(&self.need("hugetlb")?, &file, &page.limit.to_string())?;
        }
        Ok(())
    }

    fn limit_network(&self, resources: &Resources) -> Result<()> {
        let Some(network) = &resources.network else { return Ok(()) };
        if let Some(class) = network.class_id.filter(|class| *class != 0) {
            write(&self.need("net_cls")?, "net_cls.classid", &class.to_string())?;
        }
        for interface in &network.priorities {
            let line = format!("{} {}", interface.name, interface.priority);
            write(&self.need("net_prio")?, "net_prio.ifpriomap", &line)?;
        }
        Ok(())
    }

    fn limit_cpu(&self, cpu: &Cpu) -> Result<()> {
        let time = [
            ("cpu.shares", cpu.shares.map(|value| value.to_string())),
            ("cpu.cfs_period_us", cpu.period.filter(|period| *period > 0).map(|value| value.to_string())),
            ("cpu.cfs_quota_us", cpu.quota.filter(|quota| *quota != 0).map(|value| value.to_string())),
            ("cpu.cfs_burst_us", cpu.burst.map(|value| value.to_string())),
            ("cpu.rt_period_us", cpu.realtime_period.map(|value| value.to_string())),
            ("cpu.rt_runtime_us", cpu.realtime_runtime.map(|value| value.to_string())),
            ("cpu.idle", cpu.idle.map(|value| value.to_string())),
        ];
        for (file, value) in time {
            if let Some(value) = value {
                write(&self.need("cpu")?, file, &value)?;
            }
        }
        if cpu.cpus.is_none() && cpu.mems.is_none() {
            return Ok(());
        }
        let dir = self.need("cpuset")?;
        for (file, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
            self.inherit_cpuset(file)?;
            if let Some(value) = value {
                write(&dir, file, value)?;
            }
        }
        Ok(())
    }

    /// A new cpuset is empty and takes nobody: each level takes its parent's, from the top.
    fn inherit_cpuset(&self, file: &str) -> Result<()> {
        let root = self
            .mount
            .join(self.hierarchies.iter().find(|name| name.contains("cpuset")).map_or("cpuset", |name| name));
        let mut value = read(&root, file).unwrap_or_default();
        let mut levels: Vec<_> = self.path.ancestors().filter(|part| !part.as_os_str().is_empty()).collect();
        levels.reverse();
        for level in levels {
            let dir = root.join(level);
            match read(&dir, file) {
                Some(own) if !own.trim().is_empty() => value = own,
                _ => write(&dir, file, value.trim())?,
            }
        }
        Ok(())
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
            let inside = self.processes().unwrap_or_default();
            let outside: Vec<_> = members().into_iter().filter(|pid| !inside.contains(pid)).collect();
            if outside.is_empty() {
                break;
            }
            outside.into_iter().try_for_each(|pid| self.attach_to_all(pid))?;
        }
        Ok(())
    }

    pub(super) fn processes(&self) -> Option<Vec<u32>> {
        match self.state {
            State::Later(_) => None,
            // The hierarchy that is joined last.
            State::Joined { .. } => self
                .hierarchies
                .last()
                .map(|name| pids(&self.mount.join(name).join(&self.path), "cgroup.procs")),
        }
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

fn limit_memory(dir: &Path, memory: &Memory, warnings: &mut Vec<String>) -> Result<()> {
    if let Some(limit) = memory.limit {
        write(dir, "memory.limit_in_bytes", &limit.to_string())?;
    }
    if let Some(swap) = memory.swap {
        match try_write(dir, "memory.memsw.limit_in_bytes", &swap.to_string()) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::ACCESS | Errno::OPNOTSUPP) => {
                warnings.push("swap is not limited: the host's kernel does not account for it".to_owned());
            }
            Err(errno) => return Err(Error::at(dir.join("memory.memsw.limit_in_bytes"), errno)),
        }
    }
    if let Some(reservation) = memory.reservation {
        write(dir, "memory.soft_limit_in_bytes", &reservation.to_string())?;
    }
    if let Some(swappiness) = memory.swappiness {
        write(dir, "memory.swappiness", &swappiness.to_string())?;
    }
    if let Some(wanted) = memory.use_hierarchy {
        // Since Linux 5.11 there is no other way than to count what children use.
        match try_write(dir, "memory.use_hierarchy", if wanted { "1" } else { "0" }) {
            Err(Errno::INVAL | Errno::NOENT) if !wanted => {
                return Err(Error::unsupported("useHierarchy cannot be false: the kernel always counts so"));
            }
            Ok(()) | Err(Errno::BUSY | Errno::NOENT) if wanted => {}
            other => other.map_err(|errno| Error::at(dir.join("memory.use_hierarchy"), errno))?,
        }
    }
    if memory.disable_oom_killer == Some(true) {
        write(dir, "memory.oom_control", "1")?;
    }
    Ok(())
}

fn limit_block(dir: &Path, block: &BlockIo) -> Result<()> {
    if let Some(weight) = block.weight {
        let weight = weight.to_string();
        // The name depends on the I/O scheduler.
        try_write(dir, "blkio.weight", &weight).or_else(|_| write(dir, "blkio.bfq.weight", &weight))?;
    }
    let throttle = |file: &str, devices: &[ThrottleDevice]| {
        devices.iter().try_for_each(|device| {
            write(dir, file, &format!("{}:{} {}", device.major, device.minor, device.rate))
        })
    };
    throttle("blkio.throttle.read_bps_device", &block.throttle_read_bps_device)?;
    throttle("blkio.throttle.write_bps_device", &block.throttle_write_bps_device)?;
    throttle("blkio.throttle.read_iops_device", &block.throttle_read_iops_device)?;
    throttle("blkio.throttle.write_iops_device", &block.throttle_write_iops_device)
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
