//! Privileges: capabilities, `--security-opt`, `--privileged`.
//!
//! What depends on the kernel's security modules is not here but in [`crate::lsm`], which completes the spec.

mod capabilities;
mod options;
mod profile;

use proa_oci::defaults;
use proa_oci::runtime::{DeviceRule, Spec};
use proa_protocol::instance::IsolationLevel;

use crate::config::HostConfig;
use crate::error::Result;

pub use options::{AppArmor, Filter, Label, SecurityOptions};

pub(super) use capabilities::{all as all_capabilities, normalize};

pub(super) fn apply(spec: &mut Spec, host: &HostConfig, level: IsolationLevel) -> Result<()> {
    let everything = || capabilities::all(level);
    let capabilities = match host.privileged {
        true => everything(),
        false => capabilities::granted(&host.cap_add, &host.cap_drop, everything)?,
    };
    let options = SecurityOptions::read(&host.security_opt)?;
    let seccomp = match &options.seccomp {
        // As Docker: no filter for a privileged instance, but one that is named.
        Filter::Builtin if host.privileged => None,
        Filter::Builtin => Some(defaults::default_seccomp(&capabilities)),
        Filter::Unconfined => None,
        Filter::Profile(text) => Some(profile::read(text, &capabilities)?),
    };
    let process = spec.process.get_or_insert_default();
    process.capabilities = Some(defaults::capability_sets(capabilities));
    process.no_new_privileges = options.no_new_privileges.unwrap_or(false);
    let linux = spec.linux_mut();
    linux.seccomp = seccomp;
    if options.open_paths || host.privileged {
        linux.masked_paths.clear();
        linux.readonly_paths.clear();
    } else if level == IsolationLevel::Container {
        linux.masked_paths.extend(thermal_paths());
    }
    if host.privileged {
        open_everything(spec);
    }
    Ok(())
}

/// As Docker, which masks how often each processor was too hot: a channel between instances (GHSA-6fw5-f8r9-fgfm).
/// A guest's processors have no temperature.
fn thermal_paths() -> Vec<String> {
    let path = |cpu: usize| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle");
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get());
    // Either every processor of a machine has it or none.
    if !std::path::Path::new(&path(0)).exists() {
        return Vec::new();
    }
    let present = std::fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    let numbers = present.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("cpu")?.parse().ok());
    let last = numbers.max().unwrap_or(cpus);
    (0..=last).map(path).collect()
}

/// Every device, and kernel file systems that can be written. Which devices there are is found where the instance
/// runs: a guest has its own.
fn open_everything(spec: &mut Spec) {
    for mount in &mut spec.mounts {
        let kind = mount.kind.as_deref().unwrap_or_default();
        if matches!(kind, "sysfs" | "cgroup") {
            mount.options.retain(|option| option != "ro");
        }
        if mount.destination == "/dev" && kind == "tmpfs" {
            // Nodes that it makes itself can be opened there.
            mount.options.push("dev".into());
        }
    }
    if let Some(resources) = &mut spec.linux_mut().resources {
        let access = Some("rwm".to_owned());
        resources.devices =
            vec![DeviceRule { allow: true, kind: Some("a".into()), access, ..DeviceRule::default() }];
    }
}
