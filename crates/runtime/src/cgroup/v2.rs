//! cgroup v2: one directory, whose controllers the parents hand down.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use proa_oci::runtime::{BlockIo, Cpu, Memory, Resources, ThrottleDevice};
use proa_protocol::message::Stats;
use rustix::fs::{Mode, OFlags};

use super::{
    devices, field, make_dir, pause_ms, pids, rdma_line, read, read_number, remove_dir, try_write, write,
};
use crate::{Error, Result};

/// What counts an instance's use, and can limit it.
const COUNTING: &[&str] = &["cpu", "memory", "pids", "io"];
/// What only limits it. Each controller makes each cgroup dearer.
const LIMITING: &[&str] = &["cpuset", "hugetlb", "rdma"];

/// The container's directory.
#[derive(Debug)]
pub(crate) struct Cgroup {
    mount: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    pub(super) fn create(
        mount: &Path,
        path: &Path,
        resources: &Resources,
        limited: bool,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let cgroup = Self { mount: mount.to_owned(), path: path.to_owned() };
        let dir = make_dir(mount, path)?;
        // Even where nothing is limited the controllers count.
        cgroup.hand_down(limited);
        let mut set_up = || {
            if limited {
                limit(&dir, resources, warnings)?;
            }
            devices::attach(cgroup.open()?.as_fd(), &resources.devices)
        };
        set_up().inspect_err(|_| {
            // Nothing is left behind; the error that counts is the first.
            let _ = cgroup.remove();
        })?;
        Ok(cgroup)
    }

    /// As it is after [`Cgroup::create`] in another process.
    pub(super) fn reopen(mount: &Path, path: &Path) -> Self {
        Self { mount: mount.to_owned(), path: path.to_owned() }
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.mount.join(&self.path)
    }

    /// Lets every level above the container's hand its controllers down. What cannot be had shows when a limit is
    /// set: its file is missing then.
    fn hand_down(&self, limited: bool) {
        let mut levels: Vec<_> = self.path.ancestors().skip(1).collect();
        levels.reverse();
        for level in levels {
            let dir = self.mount.join(level);
            let has = |file: &str| -> Vec<String> {
                read(&dir, file).unwrap_or_default().split_whitespace().map(ToOwned::to_owned).collect()
            };
            let (available, enabled) = (has("cgroup.controllers"), has("cgroup.subtree_control"));
            let wanted = COUNTING.iter().chain(LIMITING.iter().filter(|_| limited));
            let missing: Vec<String> = wanted
                .filter(|name| available.iter().any(|other| other == *name))
                .filter(|name| !enabled.iter().any(|other| other == *name))
                .map(|name| format!("+{name}"))
                .collect();
            if missing.is_empty() || try_write(&dir, "cgroup.subtree_control", &missing.join(" ")).is_ok() {
                continue;
            }
            // A single one that cannot be had spoils all.
            for controller in missing {
                let _ = try_write(&dir, "cgroup.subtree_control", &controller);
            }
        }
    }

    pub(super) fn open(&self) -> Result<OwnedFd> {
        let dir = self.dir();
        rustix::fs::open(&dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::at(dir, errno))
    }

    pub(super) fn processes(&self) -> Vec<u32> {
        pids(&self.dir(), "cgroup.procs")
    }

    pub(super) fn stats(&self, stats: &mut Stats) {
        let dir = self.dir();
        let cpu = read(&dir, "cpu.stat").unwrap_or_default();
        let nanoseconds = |key| field(&cpu, key).map(|microseconds| microseconds * 1000);
        stats.cpu_total_ns = nanoseconds("usage_usec").unwrap_or(0);
        stats.cpu_user_ns = nanoseconds("user_usec");
        stats.cpu_system_ns = nanoseconds("system_usec");
        stats.memory_usage = read_number(&dir, "memory.current");
        stats.memory_limit = read_number(&dir, "memory.max");
        stats.memory_inactive_file = field(&read(&dir, "memory.stat").unwrap_or_default(), "inactive_file");
        stats.pids = read_number(&dir, "pids.current");
        stats.pids_limit = read_number(&dir, "pids.max");
        if let Some(io) = read(&dir, "io.stat") {
            stats.io_read_bytes = Some(sum_io(&io, "rbytes="));
            stats.io_write_bytes = Some(sum_io(&io, "wbytes="));
        }
    }

    pub(super) fn oom_kills(&self) -> u64 {
        read(&self.dir(), "memory.events").and_then(|text| field(&text, "oom_kill")).unwrap_or(0)
    }

    pub(super) fn freeze(&self, frozen: bool) -> Result<()> {
        let dir = self.dir();
        let value = u64::from(frozen);
        write(&dir, "cgroup.freeze", &value.to_string())?;
        for _ in 0..2000 {
            if read(&dir, "cgroup.events").and_then(|text| field(&text, "frozen")) == Some(value) {
                return Ok(());
            }
            pause_ms(1);
        }
        if frozen {
            write(&dir, "cgroup.freeze", "0")?;
        }
        Err(Error::internal(format!("{}: the processes did not freeze within 2 s", dir.display())))
    }

    /// Since Linux 5.14.
    pub(super) fn kill(&self) -> bool {
        try_write(&self.dir(), "cgroup.kill", "1").is_ok()
    }

    pub(super) fn remove(&self) -> Result<()> {
        remove_dir(&self.mount, &self.path)
    }
}

fn limit(dir: &Path, resources: &Resources, warnings: &mut Vec<String>) -> Result<()> {
    if let Some(memory) = &resources.memory {
        limit_memory(dir, memory, warnings)?;
    }
    if let Some(cpu) = &resources.cpu {
        limit_cpu(dir, cpu)?;
    }
    if let Some(pids) = resources.pids.filter(|pids| pids.limit > 0) {
        write(dir, "pids.max", &pids.limit.to_string())?;
    }
    if let Some(block) = &resources.block_io {
        limit_io(dir, block)?;
    }
    if resources.network.as_ref().is_some_and(|network| *network != Default::default()) {
        return Err(Error::unsupported("network classes and priorities need cgroup v1; this host has v2"));
    }
    for (device, limit) in &resources.rdma {
        write(dir, "rdma.max", &rdma_line(device, limit)?)?;
    }
    for page in &resources.hugepage_limits {
        write(dir, &format!("hugetlb.{}.max", page.page_size), &page.limit.to_string())?;
    }
    for (file, value) in &resources.unified {
        if file.contains('/') || !file.contains('.') {
            return Err(Error::invalid(format!("unified: '{file}' is not a file of a cgroup")));
        }
        write(dir, file, value)?;
    }
    Ok(())
}

fn limit_memory(dir: &Path, memory: &Memory, warnings: &mut Vec<String>) -> Result<()> {
    let text = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    if let Some(limit) = memory.limit {
        write(dir, "memory.max", &text(limit))?;
    }
    if let Some(swap) = memory.swap
        && try_write(dir, "memory.swap.max", &swap_alone(memory.limit, swap)?).is_err()
    {
        warnings.push("swap is not limited: the host's kernel does not account for it".to_owned());
    }
    if let Some(reservation) = memory.reservation {
        write(dir, "memory.low", &text(reservation))?;
    }
    if memory.use_hierarchy == Some(false) {
        return Err(Error::unsupported("useHierarchy cannot be false: cgroup v2 always counts so"));
    }
    if memory.swappiness.is_some() || memory.disable_oom_killer == Some(true) {
        return Err(Error::unsupported(
            "swappiness and disabling the OOM killer need cgroup v1; this host has v2",
        ));
    }
    Ok(())
}

/// The specification counts memory and swap together, cgroup v2 swap alone.
fn swap_alone(limit: Option<i64>, swap: i64) -> Result<String> {
    match limit {
        _ if swap < 0 => Ok("max".to_owned()),
        Some(limit) if limit >= 0 && swap >= limit => Ok((swap - limit).to_string()),
        _ => Err(Error::invalid(format!("a swap limit of {swap} needs a memory limit that is not above it"))),
    }
}

fn limit_cpu(dir: &Path, cpu: &Cpu) -> Result<()> {
    if cpu.realtime_period.is_some() || cpu.realtime_runtime.is_some() {
        return Err(Error::unsupported("real-time limits need cgroup v1; this host has v2"));
    }
    if let Some(shares) = cpu.shares.filter(|shares| *shares > 0) {
        write(dir, "cpu.weight", &weight_of_shares(shares).to_string())?;
    }
    if cpu.quota.is_some() || cpu.period.is_some() {
        let quota =
            cpu.quota.filter(|quota| *quota > 0).map_or_else(|| "max".to_owned(), |quota| quota.to_string());
        let period = cpu.period.filter(|period| *period > 0).unwrap_or(100_000);
        write(dir, "cpu.max", &format!("{quota} {period}"))?;
    }
    let rest = [
        ("cpu.max.burst", cpu.burst.map(|value| value.to_string())),
        ("cpu.idle", cpu.idle.map(|value| value.to_string())),
        ("cpuset.cpus", cpu.cpus.clone()),
        ("cpuset.mems", cpu.mems.clone()),
    ];
    rest.iter().try_for_each(|(file, value)| value.as_ref().map_or(Ok(()), |value| write(dir, file, value)))
}

/// 2..=262144 to 1..=10000, linear, as the specification's own conversion.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn limit_io(dir: &Path, block: &BlockIo) -> Result<()> {
    if let Some(weight) = block.weight {
        // BFQ's scale is the specification's; the general one is ten times as fine.
        let general = || {
            write(dir, "io.weight", &format!("default {}", 1 + (u64::from(weight).max(10) - 10) * 9999 / 990))
        };
        try_write(dir, "io.bfq.weight", &weight.to_string()).or_else(|_| general())?;
    }
    let throttle = |key: &str, devices: &[ThrottleDevice]| {
        devices.iter().try_for_each(|device| {
            write(dir, "io.max", &format!("{}:{} {key}={}", device.major, device.minor, device.rate))
        })
    };
    throttle("rbps", &block.throttle_read_bps_device)?;
    throttle("wbps", &block.throttle_write_bps_device)?;
    throttle("riops", &block.throttle_read_iops_device)?;
    throttle("wiops", &block.throttle_write_iops_device)
}

/// Sum over devices in lines of `8:0 rbytes=1 wbytes=2 …`.
fn sum_io(text: &str, key: &str) -> u64 {
    text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_converted() {
        assert_eq!((weight_of_shares(2), weight_of_shares(1024), weight_of_shares(262_144)), (1, 39, 10000));
        assert_eq!(swap_alone(Some(100), 150).unwrap(), "50");
        assert_eq!(swap_alone(Some(100), -1).unwrap(), "max");
        assert!(swap_alone(Some(100), 50).is_err());
        assert_eq!(sum_io("8:0 rbytes=5 wbytes=1\n8:16 rbytes=7 wbytes=2\n", "rbytes="), 12);
    }

    /// The v2 hierarchy of a hybrid host has no controllers, but groups, devices, freezing and killing.
    #[test]
    fn a_cgroup_without_controllers_freezes_kills_and_goes() {
        let mount = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let mount = mount.into_iter().find(|path| super::super::is_unified(path)).expect("a cgroup v2 mount");
        let path = PathBuf::from(format!("proa-test/{}", std::process::id()));
        let resources =
            Resources { devices: proa_oci::defaults::default_device_rules(), ..Resources::default() };
        let cgroup =
            Cgroup::create(mount, &path, &resources, false, &mut Vec::new()).expect("this test needs root");
        let mut sleeper = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        write(&cgroup.dir(), "cgroup.procs", &sleeper.id().to_string()).unwrap();
        assert_eq!(cgroup.processes(), [sleeper.id()]);
        cgroup.freeze(true).unwrap();
        cgroup.freeze(false).unwrap();
        assert!(cgroup.kill());
        sleeper.wait().unwrap();
        cgroup.remove().unwrap();
        assert!(!mount.join("proa-test").exists());
    }
}
