//! Writing limits into cgroup v2, at the start and later.

use std::path::Path;

use proa_oci::runtime::{BlockIo, Cpu, Memory, Resources, ThrottleDevice};
use rustix::io::Errno;

use crate::cgroup::convert::{given, io_weight, names_leaf_weight, or_max, swap_alone, weight_of_shares};
use crate::cgroup::{rdma_line, read, read_number, try_write, write};
use crate::{Error, Result};

/// The kernel's own period, microseconds.
const PERIOD: u64 = 100_000;

/// Sets what is named; what is not stays as it is.
pub(super) fn set(dir: &Path, resources: &Resources, warnings: &mut Vec<String>) -> Result<()> {
    if let Some(memory) = &resources.memory {
        limit_memory(dir, memory, warnings)?;
    }
    if let Some(cpu) = &resources.cpu {
        limit_cpu(dir, cpu)?;
    }
    if let Some(limit) = given(resources.pids.map(|pids| pids.limit)) {
        write(dir, "pids.max", &or_max(limit))?;
    }
    if let Some(block) = &resources.block_io {
        limit_io(dir, block, warnings)?;
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
    let limit = given(memory.limit);
    if let (Some(true), Some(limit)) = (memory.check_before_update, limit.filter(|limit| *limit > 0)) {
        let used = read_number(dir, "memory.current").unwrap_or(0);
        if used > limit.unsigned_abs() {
            return Err(Error::invalid(format!(
                "a memory limit of {limit} bytes cannot be set: {used} are in use"
            )));
        }
    }
    // Without a limit on memory there is none on swap either.
    let swap = given(memory.swap).or_else(|| (limit == Some(-1)).then_some(-1));
    if let Some(swap) = swap {
        let holds = limit.or_else(|| read_number(dir, "memory.max").and_then(|now| i64::try_from(now).ok()));
        limit_swap(dir, &swap_alone(holds, swap)?, warnings)?;
    }
    if let Some(limit) = limit {
        write(dir, "memory.max", &or_max(limit))?;
    }
    if let Some(reservation) = given(memory.reservation) {
        write(dir, "memory.low", &or_max(reservation))?;
    }
    if memory.use_hierarchy == Some(false) {
        return Err(Error::unsupported("useHierarchy cannot be false: cgroup v2 always counts so"));
    }
    let gone = [
        (memory.swappiness.is_some(), "swappiness is not set: cgroup v2 has none"),
        (memory.disable_oom_killer == Some(true), "the OOM killer stays on: cgroup v2 cannot turn it off"),
        (given(memory.kernel).is_some(), "kernel memory is not limited: Linux has no such limit any more"),
        (given(memory.kernel_tcp).is_some(), "TCP buffers are not limited apart: cgroup v2 cannot"),
    ];
    warnings.extend(gone.iter().filter(|(asked, _)| *asked).map(|(_, line)| (*line).to_owned()));
    Ok(())
}

fn limit_swap(dir: &Path, value: &str, warnings: &mut Vec<String>) -> Result<()> {
    match try_write(dir, "memory.swap.max", value) {
        Ok(()) => Ok(()),
        // No limit is what there is.
        Err(Errno::NOENT) if value == "max" => Ok(()),
        Err(Errno::NOENT | Errno::OPNOTSUPP) if dir.join("memory.max").exists() => {
            warnings.push("swap is not limited: the host's kernel does not account for it".to_owned());
            Ok(())
        }
        Err(errno) => Err(Error::at(dir.join("memory.swap.max"), errno)),
    }
}

fn limit_cpu(dir: &Path, cpu: &Cpu) -> Result<()> {
    if given(cpu.realtime_period).is_some() || given(cpu.realtime_runtime).is_some() {
        return Err(Error::unsupported("real-time limits need cgroup v1; this host has v2"));
    }
    if let Some(shares) = given(cpu.shares) {
        write(dir, "cpu.weight", &weight_of_shares(shares).to_string())?;
    }
    if let Some(line) =
        quota_line(&read(dir, "cpu.max").unwrap_or_default(), given(cpu.quota), given(cpu.period))
    {
        write(dir, "cpu.max", &line)?;
    }
    let set = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let rest = [
        ("cpu.max.burst", cpu.burst.map(|value| value.to_string())),
        ("cpu.idle", cpu.idle.map(|value| value.to_string())),
        ("cpuset.cpus", set(&cpu.cpus)),
        ("cpuset.mems", set(&cpu.mems)),
    ];
    rest.iter().try_for_each(|(file, value)| value.as_ref().map_or(Ok(()), |value| write(dir, file, value)))
}

/// The line of `cpu.max`; what is not given stays as it is `now`.
fn quota_line(now: &str, quota: Option<i64>, period: Option<u64>) -> Option<String> {
    if quota.is_none() && period.is_none() {
        return None;
    }
    let mut words = now.split_whitespace();
    let old_quota = words.next().unwrap_or("max").to_owned();
    let old_period = words.next().and_then(|word| word.parse().ok()).unwrap_or(PERIOD);
    Some(format!("{} {}", quota.map_or(old_quota, or_max), period.unwrap_or(old_period)))
}

fn limit_io(dir: &Path, block: &BlockIo, warnings: &mut Vec<String>) -> Result<()> {
    weigh_io(dir, block, warnings)?;
    let throttle = |key: &str, devices: &[ThrottleDevice]| {
        devices.iter().try_for_each(|device| {
            let rate = if device.rate == 0 { "max".to_owned() } else { device.rate.to_string() };
            write(dir, "io.max", &format!("{}:{} {key}={rate}", device.major, device.minor))
        })
    };
    throttle("rbps", &block.throttle_read_bps_device)?;
    throttle("wbps", &block.throttle_write_bps_device)?;
    throttle("riops", &block.throttle_read_iops_device)?;
    throttle("wiops", &block.throttle_write_iops_device)
}

/// BFQ's scale is the specification's; the general one is ten times as fine.
fn weigh_io(dir: &Path, block: &BlockIo, warnings: &mut Vec<String>) -> Result<()> {
    if names_leaf_weight(block) {
        warnings.push("leafWeight is not set: cgroup v2 has none".to_owned());
    }
    let file = ["io.bfq.weight", "io.weight"].into_iter().find(|file| dir.join(file).exists());
    let Some(file) = file else {
        if given(block.weight).is_some() || !block.weight_device.is_empty() {
            warnings.push("block I/O is not weighed: the host's kernel has no weights".to_owned());
        }
        return Ok(());
    };
    let scaled = |weight: u16| if file == "io.weight" { io_weight(weight) } else { u64::from(weight) };
    if let Some(weight) = given(block.weight) {
        write(dir, file, &format!("default {}", scaled(weight)))?;
    }
    for device in &block.weight_device {
        if let Some(weight) = given(device.weight) {
            write(dir, file, &format!("{}:{} {}", device.major, device.minor, scaled(weight)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_quota_keeps_the_other_half() {
        assert_eq!(quota_line("max 100000\n", Some(5000), None).unwrap(), "5000 100000");
        assert_eq!(quota_line("5000 100000\n", None, Some(50_000)).unwrap(), "5000 50000");
        assert_eq!(quota_line("5000 50000\n", Some(-1), None).unwrap(), "max 50000");
        assert_eq!(quota_line("", Some(7), Some(9)).unwrap(), "7 9");
        assert_eq!(quota_line("5000 50000\n", None, None), None);
    }
}
