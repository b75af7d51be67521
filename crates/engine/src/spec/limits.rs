//! Limits and devices.

use std::path::Path;

use proa_oci::runtime::{Device, DeviceRule, Resources, Spec};
use proa_sys::device_nodes::DeviceNode;

use crate::config::{DeviceMapping, HostConfig};
use crate::error::{Error, Result};

fn invalid(message: String) -> Error {
    Error::Invalid { message, hint: String::new() }
}

pub(super) fn apply(spec: &mut Spec, host: &HostConfig) -> Result<()> {
    let limits = super::resources::of(host)?;
    let linux = spec.linux_mut();
    let resources = linux.resources.get_or_insert_with(Resources::default);
    super::resources::replace(resources, limits);
    for mapping in &host.devices {
        for (device, rule) in devices(mapping)? {
            linux.devices.push(device);
            resources.devices.push(rule);
        }
    }
    if !host.device_cgroup_rules.is_empty() && !proa_sys::userns::is_initial() {
        return Err(Error::unsupported(
            "--device-cgroup-rule needs root",
            "leave it out: a device's own mode decides what you may do",
        ));
    }
    for rule in &host.device_cgroup_rules {
        resources.devices.push(cgroup_rule(rule)?);
    }
    Ok(())
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
    if mapping.cgroup_permissions != "rwm" && !proa_sys::userns::is_initial() {
        return Err(Error::unsupported(
            format!("--device {}: permissions {:?} need root", path.display(), mapping.cgroup_permissions),
            "leave them out: the device's own mode decides what you may do",
        ));
    }
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
