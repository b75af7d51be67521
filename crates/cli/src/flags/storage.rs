//! Mounts, devices, the root.

use std::path::Path;

use proa_engine::config::{ContainerConfig, DeviceMapping, Empty, HostConfig};
use proa_engine::{mounts, parse};

use super::{absolute, usage};
use crate::error::Failure;

/// Mounts, devices, the root.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Files")]
pub(super) struct StorageFlags {
    /// Path of the host or volume to mount; a path alone is an anonymous volume
    #[arg(short, long, value_name = "[HOST-PATH|NAME:]PATH[:ro]")]
    volume: Vec<String>,
    /// Driver of volumes that are made: local
    #[arg(long, value_name = "DRIVER")]
    volume_driver: Option<String>,
    /// All that another instance has mounted
    #[arg(long, value_name = "INSTANCE[:ro]")]
    volumes_from: Vec<String>,
    /// Mount: type=bind|volume|tmpfs,source=,target=[,readonly]…
    #[arg(long)]
    mount: Vec<String>,
    /// tmpfs
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Mount the root read-only
    #[arg(long)]
    read_only: bool,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES")]
    shm_size: Option<String>,
    /// Host device, or a directory of them
    #[arg(long, value_name = "HOST-PATH[:PATH][:rwm]")]
    device: Vec<String>,
}

impl StorageFlags {
    pub(super) fn apply(&self, config: &mut ContainerConfig, host: &mut HostConfig) -> Result<(), Failure> {
        let (bound, anonymous): (Vec<&String>, Vec<&String>) =
            self.volume.iter().partition(|text| text.contains(':'));
        host.binds = bound.into_iter().map(|text| bind(text)).collect::<Result<_, _>>()?;
        for path in anonymous {
            mounts::check_destination(path, path).map_err(usage)?;
            config.volumes.insert(path.clone(), Empty {});
        }
        host.volume_driver = self.volume_driver.clone().unwrap_or_default();
        host.volumes_from.clone_from(&self.volumes_from);
        host.mounts = self
            .mount
            .iter()
            .map(|text| mounts::parse_mount(text))
            .collect::<Result<_, _>>()
            .map_err(usage)?;
        for text in &self.tmpfs {
            let (path, options) = text.split_once(':').unwrap_or((text, ""));
            host.tmpfs.insert(path.to_owned(), options.to_owned());
        }
        host.readonly_rootfs = self.read_only;
        if let Some(size) = &self.shm_size {
            host.shm_size = parse::bytes(size).map_err(usage)?;
        }
        host.devices = self
            .device
            .iter()
            .map(|text| DeviceMapping::parse(text))
            .collect::<Result<_, _>>()
            .map_err(usage)?;
        Ok(())
    }
}

/// A source such as `.` or `./data` is relative to where the user is.
fn bind(text: &str) -> Result<String, Failure> {
    let relative = text.starts_with("./")
        || text.starts_with("../")
        || text.starts_with(".:")
        || text.starts_with("..:");
    let text = match text.split_once(':') {
        Some((source, rest)) if relative => {
            let source = absolute(Path::new(source))?;
            format!("{}:{rest}", mounts::normalize(&source.to_string_lossy()))
        }
        _ => text.to_owned(),
    };
    mounts::parse_bind(&text).map_err(usage)?;
    Ok(text)
}
