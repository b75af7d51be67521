//! Writing limits into cgroup v1, at the start and later.

use std::path::Path;

use proa_oci::runtime::{BlockIo, Cpu, DeviceRule, Memory, Resources, ThrottleDevice};
use rustix::io::Errno;

use super::Cgroup;
use crate::cgroup::convert::{given, names_leaf_weight, or_max};
use crate::cgroup::{devices, rdma_line, read, read_number, try_write, write};
use crate::{Error, Result};

impl Cgroup {
    /// Sets the device rules of a new cgroup.
    pub(super) fn limit_devices(&self, rules: &[DeviceRule]) -> Result<()> {
        if let (false, Some(dir)) = (rules.is_empty(), self.dir("devices")) {
            for (file, line) in devices::lines(rules)? {
                write(&dir, file, &line)?;
            }
        }
        Ok(())
    }

    /// Sets what is named; what is not stays as it is.
    pub(super) fn limit(&self, resources: &Resources, warnings: &mut Vec<String>) -> Result<()> {
        if let Some(memory) = resources.memory.as_ref().filter(|memory| **memory != Memory::default()) {
            limit_memory(&self.need("memory")?, memory, warnings)?;
        }
        if let Some(cpu) = resources.cpu.as_ref().filter(|cpu| **cpu != Cpu::default()) {
            self.limit_cpu(cpu)?;
        }
        if let Some(limit) = given(resources.pids.map(|pids| pids.limit)) {
            write(&self.need("pids")?, "pids.max", &or_max(limit))?;
        }
        if let Some(block) = resources.block_io.as_ref().filter(|block| **block != BlockIo::default()) {
            limit_block(&self.need("blkio")?, block, warnings)?;
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
        let text = |value: Option<u64>| given(value).map(|value| value.to_string());
        let signed = |value: Option<i64>| given(value).map(|value| value.to_string());
        self.limit_quota(cpu)?;
        let rest = [
            ("cpu.shares", text(cpu.shares)),
            ("cpu.cfs_burst_us", cpu.burst.map(|value| value.to_string())),
            ("cpu.rt_period_us", text(cpu.realtime_period)),
            ("cpu.rt_runtime_us", signed(cpu.realtime_runtime)),
            ("cpu.idle", cpu.idle.map(|value| value.to_string())),
        ];
        for (file, value) in rest {
            if let Some(value) = value {
                let dir = self.need("cpu")?;
                if file.starts_with("cpu.rt_") && !dir.join(file).exists() {
                    return Err(Error::unsupported(
                        "real-time limits: the host's kernel has no real-time group scheduling",
                    ));
                }
                write(&dir, file, &value)?;
            }
        }
        let named = |set: &Option<String>| set.clone().filter(|set| !set.is_empty());
        let sets = [("cpuset.cpus", named(&cpu.cpus)), ("cpuset.mems", named(&cpu.mems))];
        if sets.iter().all(|(_, value)| value.is_none()) {
            return Ok(());
        }
        let dir = self.need("cpuset")?;
        for (file, value) in sets {
            self.inherit_cpuset(file)?;
            if let Some(value) = value {
                write(&dir, file, &value)?;
            }
        }
        Ok(())
    }

    /// The kernel checks each of the two against the other as it is then: what is refused is tried again after it.
    fn limit_quota(&self, cpu: &Cpu) -> Result<()> {
        let (period, quota) = (given(cpu.period), given(cpu.quota));
        if period.is_none() && quota.is_none() {
            return Ok(());
        }
        let dir = self.need("cpu")?;
        let set_period = || match period {
            Some(period) => try_write(&dir, "cpu.cfs_period_us", &period.to_string()),
            None => Ok(()),
        };
        let first = set_period();
        if let Some(quota) = quota {
            write(&dir, "cpu.cfs_quota_us", &quota.to_string())?;
        }
        first.or_else(|_| set_period()).map_err(|errno| {
            Error::at(dir.join("cpu.cfs_period_us"), errno).context("cannot set the CPU period")
        })
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
}

/// Since Linux 5.11 there is no other way than to count what children use.
fn count_children(dir: &Path, wanted: bool) -> Result<()> {
    match try_write(dir, "memory.use_hierarchy", if wanted { "1" } else { "0" }) {
        Err(Errno::INVAL | Errno::NOENT) if !wanted => {
            Err(Error::unsupported("useHierarchy cannot be false: the kernel always counts so"))
        }
        Err(Errno::BUSY | Errno::NOENT) if wanted => Ok(()),
        other => other.map_err(|errno| Error::at(dir.join("memory.use_hierarchy"), errno)),
    }
}

fn limit_memory(dir: &Path, memory: &Memory, warnings: &mut Vec<String>) -> Result<()> {
    let limit = given(memory.limit);
    // Without a limit on memory there is none on swap either.
    let swap = given(memory.swap).or_else(|| (limit == Some(-1)).then_some(-1));
    // Both are never less than memory alone, at no moment.
    let now = read_number(dir, "memory.limit_in_bytes").unwrap_or(u64::MAX);
    let swap_first = swap.is_some_and(|swap| swap < 0 || now < swap.unsigned_abs());
    if swap_first {
        limit_swap(dir, swap, warnings)?;
    }
    if let Some(limit) = limit {
        limit_usage(dir, limit)?;
    }
    if !swap_first {
        limit_swap(dir, swap, warnings)?;
    }
    if let Some(reservation) = given(memory.reservation) {
        write(dir, "memory.soft_limit_in_bytes", &reservation.to_string())?;
    }
    if let Some(limit) = given(memory.kernel_tcp) {
        write(dir, "memory.kmem.tcp.limit_in_bytes", &limit.to_string())?;
    }
    if given(memory.kernel).is_some() {
        warnings.push("kernel memory is not limited: Linux has no such limit any more".to_owned());
    }
    if let Some(swappiness) = memory.swappiness {
        write(dir, "memory.swappiness", &swappiness.to_string())?;
    }
    if let Some(wanted) = memory.use_hierarchy {
        count_children(dir, wanted)?;
    }
    if let Some(disable) = memory.disable_oom_killer {
        write(dir, "memory.oom_control", if disable { "1" } else { "0" })?;
    }
    Ok(())
}

fn limit_usage(dir: &Path, limit: i64) -> Result<()> {
    let file = "memory.limit_in_bytes";
    match try_write(dir, file, &limit.to_string()) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(Error::invalid(format!(
            "a memory limit of {limit} bytes cannot be set: {} are in use and cannot be freed",
            read_number(dir, "memory.usage_in_bytes").unwrap_or(0)
        ))),
        Err(Errno::INVAL) => Err(Error::invalid(format!(
            "a memory limit of {limit} bytes is more than the limit on memory and swap together: set that too"
        ))),
        Err(errno) => Err(Error::at(dir.join(file), errno)),
    }
}

fn limit_swap(dir: &Path, swap: Option<i64>, warnings: &mut Vec<String>) -> Result<()> {
    let Some(swap) = swap else { return Ok(()) };
    match try_write(dir, "memory.memsw.limit_in_bytes", &swap.to_string()) {
        Ok(()) => Ok(()),
        // No limit is what there is.
        Err(Errno::NOENT) if swap < 0 => Ok(()),
        Err(Errno::NOENT | Errno::ACCESS | Errno::OPNOTSUPP) => {
            warnings.push("swap is not limited: the host's kernel does not account for it".to_owned());
            Ok(())
        }
        Err(errno) => Err(Error::at(dir.join("memory.memsw.limit_in_bytes"), errno)),
    }
}

fn limit_block(dir: &Path, block: &BlockIo, warnings: &mut Vec<String>) -> Result<()> {
    weigh_block(dir, block, warnings)?;
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

/// The names depend on the I/O scheduler; a kernel whose schedulers know no weights has none of them.
fn weigh_block(dir: &Path, block: &BlockIo, warnings: &mut Vec<String>) -> Result<()> {
    if names_leaf_weight(block) {
        warnings.push("leafWeight is not set: it went with the CFQ scheduler".to_owned());
    }
    let prefix =
        ["blkio", "blkio.bfq"].into_iter().find(|prefix| dir.join(format!("{prefix}.weight")).exists());
    let Some(prefix) = prefix else {
        if given(block.weight).is_some() || !block.weight_device.is_empty() {
            warnings.push("block I/O is not weighed: the host's kernel has no weights".to_owned());
        }
        return Ok(());
    };
    if let Some(weight) = given(block.weight) {
        write(dir, &format!("{prefix}.weight"), &weight.to_string())?;
    }
    for device in &block.weight_device {
        if let Some(weight) = given(device.weight) {
            let line = format!("{}:{} {weight}", device.major, device.minor);
            write(dir, &format!("{prefix}.weight_device"), &line)?;
        }
    }
    Ok(())
}
