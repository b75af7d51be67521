//! Limits and devices.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use proa_oci::runtime::{Device, DeviceRule, Resources, Spec};

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
        let (device, rule) = device(mapping)?;
        linux.devices.push(device);
        resources.devices.push(rule);
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

fn device(mapping: &DeviceMapping) -> Result<(Device, DeviceRule)> {
    let path = Path::new(&mapping.path_on_host);
    let metadata = std::fs::metadata(path).map_err(|error| Error::io("use the device", path, error))?;
    let kind = metadata.file_type();
    let kind = match (kind.is_char_device(), kind.is_block_device()) {
        (true, _) => "c",
        (_, true) => "b",
        _ => return Err(invalid(format!("{} is not a device", path.display()))),
    };
    let number = metadata.rdev();
    let (major, minor) = (i64::from(rustix::fs::major(number)), i64::from(rustix::fs::minor(number)));
    let device = Device {
        kind: kind.into(),
        path: mapping.path_in_container.clone(),
        major,
        minor,
        file_mode: Some(metadata.mode() & 0o7777),
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
    };
    let rule = DeviceRule {
        allow: true,
        kind: Some(kind.into()),
        major: Some(major),
        minor: Some(minor),
        access: Some(mapping.cgroup_permissions.clone()),
    };
    Ok((device, rule))
}
