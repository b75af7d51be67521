//! Limits on memory, CPU, tasks and block I/O, by Docker's rules.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use proa_oci::runtime::{BlockIo, Cpu, Memory, Pids, Resources, ThrottleDevice, WeightDevice};

use crate::config::{DeviceRate, DeviceWeight, HostConfig};
use crate::error::{Error, Result};
use crate::parse;

/// Docker's least memory limit: below it nothing starts.
const LEAST_MEMORY: i64 = 6 << 20;
/// Docker's default period, microseconds.
const PERIOD: i64 = 100_000;
/// What the kernel takes for a period or, at the least, for a quota, microseconds.
const PERIODS: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
const WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;

fn invalid(message: String) -> Error {
    Error::Invalid { message, hint: String::new() }
}

/// Docker's rule: as much swap as memory, where nobody says otherwise.
pub(crate) fn complete_swap(host: &mut HostConfig) {
    if host.memory > 0 && host.memory_swap == 0 {
        host.memory_swap = host.memory.saturating_mul(2);
    }
}

/// Whether it limits what only a host's block devices have.
pub(crate) fn weighs_or_throttles(host: &HostConfig) -> bool {
    let rates = [
        &host.blkio_device_read_bps,
        &host.blkio_device_write_bps,
        &host.blkio_device_read_iops,
        &host.blkio_device_write_iops,
    ];
    host.blkio_weight != 0
        || !host.blkio_weight_device.is_empty()
        || rates.iter().any(|rates| !rates.is_empty())
}

/// The limits, without device rules.
///
/// # Errors
/// One makes no sense, or names a device or a CPU that is not there.
pub(crate) fn of(host: &HostConfig) -> Result<Resources> {
    Ok(Resources {
        memory: memory(host)?,
        cpu: cpu(host)?,
        pids: host.pids_limit.filter(|limit| *limit > 0).map(|limit| Pids { limit }),
        block_io: block_io(host)?,
        ..Resources::default()
    })
}

/// Puts other limits into a spec's resources; device rules and what has no flag stay.
pub(crate) fn replace(resources: &mut Resources, limits: Resources) {
    resources.memory = limits.memory;
    resources.cpu = limits.cpu;
    resources.pids = limits.pids;
    resources.block_io = limits.block_io;
}

fn memory(host: &HostConfig) -> Result<Option<Memory>> {
    if host.memory == 0 && host.memory_swap > 0 {
        return Err(invalid("--memory-swap needs --memory".into()));
    }
    if host.memory != 0 && host.memory < LEAST_MEMORY {
        return Err(invalid(format!(
            "a memory limit of {} bytes is less than the 6m that a start needs",
            host.memory
        )));
    }
    if host.memory_swap > 0 && host.memory_swap < host.memory {
        return Err(invalid("--memory-swap holds the memory too: it must not be less than --memory".into()));
    }
    if host.memory_reservation != 0 && host.memory_reservation < LEAST_MEMORY {
        return Err(invalid("--memory-reservation must be at least 6m".into()));
    }
    if host.memory > 0 && host.memory_reservation > host.memory {
        return Err(invalid("--memory-reservation must not be more than --memory".into()));
    }
    let swappiness = host.memory_swappiness.filter(|value| *value != -1);
    if swappiness.is_some_and(|value| !(0..=100).contains(&value)) {
        return Err(invalid("--memory-swappiness must be from 0 to 100".into()));
    }
    let limit = (host.memory > 0).then_some(host.memory);
    let swap = match host.memory_swap {
        0 => limit.map(|limit| limit.saturating_mul(2)),
        swap => limit.map(|_| swap),
    };
    let memory = Memory {
        limit,
        swap,
        reservation: (host.memory_reservation > 0).then_some(host.memory_reservation),
        swappiness: swappiness.map(i64::unsigned_abs),
        disable_oom_killer: host.oom_kill_disable.filter(|disable| *disable),
        ..Memory::default()
    };
    Ok((memory != Memory::default()).then_some(memory))
}

fn cpu(host: &HostConfig) -> Result<Option<Cpu>> {
    check_times(host)?;
    let from_cpus = (host.nano_cpus > 0).then(|| quota_of(host.nano_cpus)).transpose()?;
    let given = |value: i64| (value > 0).then_some(value);
    let text = |value: &String| (!value.is_empty()).then(|| value.clone());
    check_set("--cpuset-cpus", "CPUs", &host.cpuset_cpus, "/sys/devices/system/cpu/online")?;
    check_set("--cpuset-mems", "memory nodes", &host.cpuset_mems, "/sys/devices/system/node/online")?;
    let cpu = Cpu {
        shares: given(host.cpu_shares).map(i64::unsigned_abs),
        period: from_cpus.map(|_| PERIOD).or(given(host.cpu_period)).map(i64::unsigned_abs),
        quota: from_cpus.or((host.cpu_quota != 0).then_some(host.cpu_quota)),
        realtime_period: given(host.cpu_realtime_period).map(i64::unsigned_abs),
        realtime_runtime: given(host.cpu_realtime_runtime),
        cpus: text(&host.cpuset_cpus),
        mems: text(&host.cpuset_mems),
        ..Cpu::default()
    };
    Ok((cpu != Cpu::default()).then_some(cpu))
}

fn check_times(host: &HostConfig) -> Result<()> {
    let wrong = |message: &str| Err(invalid(message.into()));
    if host.nano_cpus < 0 {
        return wrong("--cpus must be more than 0");
    }
    if host.nano_cpus > 0 && (host.cpu_quota != 0 || host.cpu_period != 0) {
        return wrong("--cpus stands for --cpu-period and --cpu-quota: give one or the other");
    }
    if host.cpu_shares < 0 {
        return wrong("--cpu-shares must not be less than 0");
    }
    if host.cpu_period != 0 && !PERIODS.contains(&host.cpu_period) {
        return wrong("--cpu-period must be from 1000 to 1000000 microseconds");
    }
    if host.cpu_quota > 0 && host.cpu_quota < *PERIODS.start() {
        return wrong("--cpu-quota must be at least 1000 microseconds");
    }
    if host.cpu_realtime_period < 0 || host.cpu_realtime_runtime < 0 {
        return wrong("--cpu-rt-period and --cpu-rt-runtime must not be less than 0");
    }
    if host.cpu_realtime_period != 0 && host.cpu_realtime_runtime > host.cpu_realtime_period {
        return wrong("--cpu-rt-runtime must not be more than --cpu-rt-period");
    }
    Ok(())
}

fn quota_of(nano_cpus: i64) -> Result<i64> {
    let available = std::thread::available_parallelism().map_or(1, |count| count.get() as i64);
    let quota = (nano_cpus / 1000).saturating_mul(PERIOD) / 1_000_000;
    if nano_cpus > available.saturating_mul(1_000_000_000) || quota < 1000 {
        return Err(invalid(format!(
            "--cpus must be from 0.01 to {available}.00, as there are {available} CPUs"
        )));
    }
    Ok(quota)
}

fn check_set(flag: &str, what: &str, set: &str, online: &str) -> Result<()> {
    if set.is_empty() {
        return Ok(());
    }
    let wanted = numbers(set).ok_or_else(|| invalid(format!("invalid {flag} {set:?}: a list as 0-2,5")))?;
    // Where the kernel does not say what there is, it will say what there is not.
    let Some(online) = std::fs::read_to_string(online).ok() else { return Ok(()) };
    let there = numbers(online.trim()).unwrap_or_default();
    if wanted.iter().all(|number| there.contains(number)) {
        return Ok(());
    }
    Err(invalid(format!("{flag} {set}: there are only the {what} {}", online.trim())))
}

/// The numbers of a list as `0-2,5`.
fn numbers(set: &str) -> Option<Vec<u32>> {
    const MOST: u32 = 8192;
    let mut all = Vec::new();
    for part in set.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        if first > last || last > MOST {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

fn block_io(host: &HostConfig) -> Result<Option<BlockIo>> {
    if host.blkio_weight != 0 && !WEIGHTS.contains(&host.blkio_weight) {
        return Err(invalid("--blkio-weight must be from 10 to 1000, or 0 for none".into()));
    }
    let rates =
        |rates: &[DeviceRate]| rates.iter().map(throttle_device).collect::<Result<Vec<ThrottleDevice>>>();
    let block = BlockIo {
        weight: (host.blkio_weight != 0).then_some(host.blkio_weight),
        weight_device: host.blkio_weight_device.iter().map(weight_device).collect::<Result<_>>()?,
        throttle_read_bps_device: rates(&host.blkio_device_read_bps)?,
        throttle_write_bps_device: rates(&host.blkio_device_write_bps)?,
        throttle_read_iops_device: rates(&host.blkio_device_read_iops)?,
        throttle_write_iops_device: rates(&host.blkio_device_write_iops)?,
        ..BlockIo::default()
    };
    Ok((block != BlockIo::default()).then_some(block))
}

fn weight_device(device: &DeviceWeight) -> Result<WeightDevice> {
    let (major, minor) = block_device(&device.path)?;
    Ok(WeightDevice { major, minor, weight: Some(device.weight), leaf_weight: None })
}

fn throttle_device(device: &DeviceRate) -> Result<ThrottleDevice> {
    let (major, minor) = block_device(&device.path)?;
    Ok(ThrottleDevice { major, minor, rate: device.rate })
}

fn block_device(path: &str) -> Result<(i64, i64)> {
    let path = Path::new(path);
    let metadata = std::fs::metadata(path).map_err(|error| Error::io("limit", path, error))?;
    if !metadata.file_type().is_block_device() {
        return Err(invalid(format!("{} is not a block device", path.display())));
    }
    let number = metadata.rdev();
    Ok((i64::from(rustix::fs::major(number)), i64::from(rustix::fs::minor(number))))
}

impl DeviceWeight {
    /// Reads `/dev/NAME:WEIGHT`.
    ///
    /// # Errors
    /// It has another form.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || Error::invalid(format!("invalid weight {text:?}: /dev/NAME:WEIGHT, from 10 to 1000"));
        let (path, weight) = text.rsplit_once(':').ok_or_else(wrong)?;
        let weight = weight.parse().ok().filter(|weight| *weight == 0 || WEIGHTS.contains(weight));
        let weight = weight.filter(|_| path.starts_with("/dev/")).ok_or_else(wrong)?;
        Ok(Self { path: path.into(), weight })
    }
}

impl DeviceRate {
    /// Reads `/dev/NAME:RATE`, the rate in bytes with Docker's units.
    ///
    /// # Errors
    /// It has another form.
    pub fn parse_bytes(text: &str) -> Result<Self> {
        Self::parse(text, |rate| parse::bytes(rate).ok().and_then(|rate| u64::try_from(rate).ok()))
    }

    /// Reads `/dev/NAME:RATE`, the rate a number of operations.
    ///
    /// # Errors
    /// It has another form.
    pub fn parse_operations(text: &str) -> Result<Self> {
        Self::parse(text, |rate| rate.parse().ok())
    }

    fn parse(text: &str, rate: impl Fn(&str) -> Option<u64>) -> Result<Self> {
        let parsed = text
            .rsplit_once(':')
            .filter(|(path, _)| path.starts_with("/dev/"))
            .and_then(|(path, number)| Some(Self { path: path.into(), rate: rate(number)? }));
        parsed.ok_or_else(|| Error::invalid(format!("invalid rate {text:?}: /dev/NAME:RATE, a number")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers() {
        assert_eq!(numbers("0-2,5").unwrap(), [0, 1, 2, 5]);
        for wrong in ["", "x", "2-1", "1,", "0-99999999", "-1"] {
            assert_eq!(numbers(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn devices_and_their_rates() {
        let weight = DeviceWeight::parse("/dev/sda:500").unwrap();
        assert_eq!((weight.path.as_str(), weight.weight), ("/dev/sda", 500));
        assert_eq!(DeviceRate::parse_bytes("/dev/sda:1mb").unwrap().rate, 1 << 20);
        assert_eq!(DeviceRate::parse_operations("/dev/a:b:7").unwrap().path, "/dev/a:b");
        for wrong in ["/dev/sda", "/dev/sda:9", "/dev/sda:1001", "sda:100", "/dev/sda:-100"] {
            assert!(DeviceWeight::parse(wrong).is_err(), "{wrong}");
        }
        for wrong in ["/dev/sda", "/dev/sda:1mb", "/dev/sda:", "x:1"] {
            assert!(DeviceRate::parse_operations(wrong).is_err(), "{wrong}");
        }
        assert!(block_device("/dev/null").unwrap_err().to_string().contains("not a block device"));
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused() {
        let refused = |host: HostConfig| of(&host).unwrap_err().to_string();
        let base = HostConfig::default;
        assert!(refused(HostConfig { cpu_period: 5, ..base() }).contains("1000000"));
        assert!(refused(HostConfig { cpu_quota: 5, ..base() }).contains("1000"));
        assert!(refused(HostConfig { blkio_weight: 5, ..base() }).contains("10 to 1000"));
        assert!(refused(HostConfig { memory_swappiness: Some(101), ..base() }).contains("100"));
        assert!(refused(HostConfig { memory_reservation: 5, ..base() }).contains("6m"));
        let realtime = HostConfig { cpu_realtime_period: 5, cpu_realtime_runtime: 6, ..base() };
        assert!(refused(realtime).contains("--cpu-rt-period"));
        assert!(refused(HostConfig { cpuset_cpus: "8000".into(), ..base() }).contains("only the CPUs"));
        assert_eq!(of(&HostConfig { memory_swappiness: Some(-1), ..base() }).unwrap(), Resources::default());
    }
}
