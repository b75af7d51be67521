//! Limits: memory, CPU, tasks, devices.

use std::path::Path;

use proa_oci::runtime::{Cpu, Device, DeviceRule, Memory, Pids, Resources, Spec};
use proa_sys::device_nodes::DeviceNode;

use crate::config::{DeviceMapping, HostConfig};
use crate::error::{Error, Result};

/// Docker's least memory limit: below it nothing starts.
const LEAST_MEMORY: i64 = 6 << 20;
/// Docker's default period, microseconds.
const PERIOD: i64 = 100_000;

fn invalid(message: String) -> Error {
    Error::Invalid { message, hint: String::new() }
}

pub(super) fn apply(spec: &mut Spec, host: &HostConfig) -> Result<()> {
    let memory = memory(host)?;
    let cpu = cpu(host)?;
    let limit = host.pids_limit.filter(|limit| *limit > 0);
    let linux = spec.linux_mut();
    let resources = linux.resources.get_or_insert_with(Resources::default);
    resources.memory = memory;
    resources.cpu = cpu;
    resources.pids = limit.map(|limit| Pids { limit });
    for mapping in &host.devices {
        for (device, rule) in devices(mapping)? {
            linux.devices.push(device);
            resources.devices.push(rule);
        }
    }
    for rule in &host.device_cgroup_rules {
        resources.devices.push(cgroup_rule(rule)?);
    }
    Ok(())
}

fn memory(host: &HostConfig) -> Result<Option<Memory>> {
    if host.memory == 0 {
        if host.memory_swap > 0 {
            return Err(invalid("--memory-swap needs --memory".into()));
        }
        if host.memory_reservation == 0 {
            return Ok(None);
        }
    } else if host.memory < LEAST_MEMORY {
        return Err(invalid(format!(
            "a memory limit of {} bytes is less than the 6m that a start needs",
            host.memory
        )));
    }
    if host.memory_swap > 0 && host.memory_swap < host.memory {
        return Err(invalid("--memory-swap holds the memory too: it must not be less than --memory".into()));
    }
    if host.memory > 0 && host.memory_reservation > host.memory {
        return Err(invalid("--memory-reservation must not be more than --memory".into()));
    }
    let limit = (host.memory > 0).then_some(host.memory);
    let swap = match host.memory_swap {
        0 => limit.map(|limit| limit.saturating_mul(2)),
        swap => limit.map(|_| swap),
    };
    let reservation = (host.memory_reservation > 0).then_some(host.memory_reservation);
    Ok(Some(Memory { limit, swap, reservation, ..Memory::default() }))
}

fn cpu(host: &HostConfig) -> Result<Option<Cpu>> {
    if host.nano_cpus < 0 {
        return Err(invalid("--cpus must be more than 0".into()));
    }
    if host.nano_cpus > 0 && (host.cpu_quota != 0 || host.cpu_period != 0) {
        return Err(invalid("--cpus stands for --cpu-period and --cpu-quota: give one or the other".into()));
    }
    let from_cpus = (host.nano_cpus > 0).then(|| quota_of(host.nano_cpus)).transpose()?;
    let given = |value: i64| (value > 0).then_some(value);
    let text = |value: &String| (!value.is_empty()).then(|| value.clone());
    for (flag, set) in [("--cpuset-cpus", &host.cpuset_cpus), ("--cpuset-mems", &host.cpuset_mems)] {
        if !set.bytes().all(|byte| byte.is_ascii_digit() || b",-".contains(&byte)) {
            return Err(invalid(format!("invalid {flag} {set:?}: a list as 0-2,5")));
        }
    }
    let cpu = Cpu {
        shares: given(host.cpu_shares).map(i64::unsigned_abs),
        period: from_cpus.map(|_| PERIOD).or(given(host.cpu_period)).map(i64::unsigned_abs),
        quota: from_cpus.or(given(host.cpu_quota)),
        cpus: text(&host.cpuset_cpus),
        mems: text(&host.cpuset_mems),
        ..Cpu::default()
    };
    Ok((cpu != Cpu::default()).then_some(cpu))
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

impl DeviceMapping {
    /// Reads `host-path[:path][:rwm]`.
    ///
    /// # Errors
    /// It has another form.
    pub fn parse(text: &str) -> Result<Self> {
        let is_mode = |part: &str| !part.is_empty() && part.bytes().all(|byte| b"rwm".contains(&byte));
        let parts: Vec<&str> = text.split(':').collect();
        let (host, inside, mode) = match parts[..] {
            [host] => (host, host, "rwm"),
            [host, mode] if is_mode(mode) => (host, host, mode),
            [host, inside] => (host, inside, "rwm"),
            [host, inside, mode] if is_mode(mode) => (host, inside, mode),
            _ => return Err(Error::invalid(format!("invalid device {text:?}: HOST-PATH[:PATH][:rwm]"))),
        };
        if !host.starts_with('/') || !inside.starts_with('/') {
            return Err(Error::invalid(format!("invalid device {text:?}: paths must be absolute")));
        }
        Ok(Self {
            path_on_host: host.into(),
            path_in_container: inside.into(),
            cgroup_permissions: mode.into(),
        })
    }
}

/// The device of a mapping, or all below its directory, each at the same place below the other directory.
fn devices(mapping: &DeviceMapping) -> Result<Vec<(Device, DeviceRule)>> {
    let path = Path::new(&mapping.path_on_host);
    let failed = |error| Error::io("use the device", path, error);
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_dir() {
        let node = DeviceNode::new(path, &metadata);
        let node = node.ok_or_else(|| invalid(format!("{} is not a device", path.display())))?;
        return Ok(vec![device(&node, mapping.path_in_container.clone(), &mapping.cgroup_permissions)]);
    }
    let nodes = DeviceNode::below(path).map_err(failed)?;
    if nodes.is_empty() {
        return Err(invalid(format!("there is no device in {}", path.display())));
    }
    let inside = |node: &DeviceNode| {
        let rest = node.path.strip_prefix(path).unwrap_or(&node.path);
        format!("{}/{}", mapping.path_in_container.trim_end_matches('/'), rest.display())
    };
    Ok(nodes.iter().map(|node| device(node, inside(node), &mapping.cgroup_permissions)).collect())
}

fn device(node: &DeviceNode, path: String, access: &str) -> (Device, DeviceRule) {
    let (kind, major, minor) = (node.kind.to_string(), i64::from(node.major), i64::from(node.minor));
    let device = Device {
        kind: kind.clone(),
        path,
        major,
        minor,
        file_mode: Some(node.mode),
        uid: Some(node.uid),
        gid: Some(node.gid),
    };
    let rule = DeviceRule {
        allow: true,
        kind: Some(kind),
        major: Some(major),
        minor: Some(minor),
        access: Some(access.to_owned()),
    };
    (device, rule)
}

/// Reads Docker's `TYPE MAJOR:MINOR ACCESS`, where a number may be `*`.
fn cgroup_rule(text: &str) -> Result<DeviceRule> {
    let wrong = || Error::Invalid {
        message: format!("invalid device rule {text:?}"),
        hint: "a, c or b, then MAJOR:MINOR with * for all, then some of rwm: \"c 42:* rmw\"".into(),
    };
    let parts: Vec<&str> = text.split(' ').collect();
    let [kind @ ("a" | "b" | "c"), numbers, access] = parts[..] else { return Err(wrong()) };
    let (major, minor) = numbers.split_once(':').ok_or_else(wrong)?;
    let number = |text: &str| match text {
        "*" => Ok(None),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse::<u32>().map(|number| Some(number.into())).map_err(|_| wrong())
        }
        _ => Err(wrong()),
    };
    if access.is_empty() || access.len() > 3 || !access.bytes().all(|byte| b"rwm".contains(&byte)) {
        return Err(wrong());
    }
    Ok(DeviceRule {
        allow: true,
        kind: Some(kind.into()),
        major: number(major)?,
        minor: number(minor)?,
        access: Some(access.into()),
    })
}
