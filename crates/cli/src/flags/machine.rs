//! The options of `machine create`.

use std::path::{Path, PathBuf};

use proa_engine::config::{ContainerConfig, HostConfig, RestartPolicy};
use proa_engine::machine::{DiskSource, MachineRequest, Seed};
use proa_engine::parse;
use proa_protocol::machine::{Chipset, DiskBus, DiskFormat, Firmware, MachineConfig, NicModel};

use super::{absolute, network, pairs, usage};
use crate::error::Failure;

/// What a machine is made of.
#[derive(Debug, Clone, clap::Args)]
pub struct MachineFlags {
    /// Disk: a file (raw, qcow2, vmdk, vdi, vhd or vhdx), or a disk image of the store; repeatable, the first is booted
    #[arg(long, value_name = "FILE|IMAGE")]
    disk: Vec<String>,
    /// Form of the files, rather than what their first bytes say
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Size of the first disk, which it is grown to; without --disk, of an empty one
    #[arg(long, value_name = "BYTES")]
    disk_size: Option<String>,
    /// Disc in its drive, which is booted where no disk can be
    #[arg(long, value_name = "ISO")]
    cdrom: Option<PathBuf>,
    /// Start by UEFI rather than BIOS
    #[arg(long)]
    uefi: bool,
    /// Start by UEFI only what is signed
    #[arg(long)]
    secure_boot: bool,
    /// Board: q35, or i440fx for old systems
    #[arg(long, value_name = "CHIPSET", default_value = "q35")]
    chipset: String,
    /// What the disks are plugged into: virtio, sata, or on i440fx ide
    #[arg(long, value_name = "BUS", default_value = "virtio")]
    disk_bus: String,
    /// Network devices: virtio or e1000
    #[arg(long, value_name = "MODEL", default_value = "virtio")]
    nic: String,
    /// Memory (1g)
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// Virtual CPUs
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<u16>,
    /// Run it again when it ends, and at the host's boot: no, on-failure[:COUNT], always or unless-stopped
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    /// Seconds that its system has to shut down before it is killed (60)
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    stop_timeout: Option<i64>,
    /// Label
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Who keeps what it writes to its console: json-file, local, journald, syslog or none
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Option of the log driver, as max-size=BYTES (10m), max-file=COUNT (3)
    #[arg(long, value_name = "KEY=VALUE")]
    log_opt: Vec<String>,
    #[command(flatten)]
    seed: SeedFlags,
    #[command(flatten)]
    network: network::NetworkFlags,
}

/// What cloud-init is to do at the first boot.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "cloud-init")]
struct SeedFlags {
    /// Host name
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// User to make, who may become root by sudo
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Public key that opens the user, or a file with such keys; repeatable
    #[arg(long, value_name = "KEY|FILE")]
    ssh_key: Vec<String>,
    /// Document of the user's own
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
}

impl MachineFlags {
    /// Reads all of them, for a machine of this name; what holds where nobody says otherwise is for the caller to add.
    ///
    /// # Errors
    /// One makes no sense.
    pub fn read(&self, name: &str) -> Result<MachineRequest, Failure> {
        let mut config = ContainerConfig { stop_timeout: self.stop_timeout, ..ContainerConfig::default() };
        for text in &self.label {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            config.labels.insert(key.to_owned(), value.to_owned());
        }
        let mut host = HostConfig::default();
        if let Some(text) = &self.memory {
            host.memory = parse::bytes(text).map_err(usage)?;
        }
        host.nano_cpus = i64::from(self.cpus.unwrap_or(1)) * 1_000_000_000;
        if let Some(policy) = &self.restart {
            host.restart_policy = RestartPolicy::parse(policy).map_err(usage)?;
        }
        host.log_config.kind = self.log_driver.clone().unwrap_or_default();
        host.log_config.config = pairs("--log-opt", &self.log_opt)?.into_iter().collect();
        self.network.apply(&mut config, &mut host)?;
        Ok(MachineRequest {
            name: name.to_owned(),
            disks: self.disks()?,
            disk_size: self.disk_size.as_deref().map(parse::bytes).transpose().map_err(usage)?,
            machine: self.machine()?,
            seed: self.seed.read()?,
            config,
            host_config: host,
            ..MachineRequest::default()
        })
    }

    fn machine(&self) -> Result<MachineConfig, Failure> {
        let firmware = match (self.secure_boot, self.uefi) {
            (true, _) => Firmware::SecureBoot,
            (false, true) => Firmware::Uefi,
            (false, false) => Firmware::Bios,
        };
        let buses = [("virtio", DiskBus::Virtio), ("sata", DiskBus::Sata), ("ide", DiskBus::Ide)];
        Ok(MachineConfig {
            firmware,
            chipset: choice(
                "--chipset",
                &self.chipset,
                &[("q35", Chipset::Q35), ("i440fx", Chipset::I440fx)],
            )?,
            disk_bus: choice("--disk-bus", &self.disk_bus, &buses)?,
            nic: choice("--nic", &self.nic, &[("virtio", NicModel::Virtio), ("e1000", NicModel::E1000)])?,
            cdrom: self.cdrom.as_deref().map(absolute).transpose()?,
            ..MachineConfig::default()
        })
    }

    fn disks(&self) -> Result<Vec<DiskSource>, Failure> {
        let format = match &self.format {
            Some(name) => Some(choice("--format", name, &DiskFormat::ALL)?),
            None => None,
        };
        let source = |text: &String| {
            let path = Path::new(text);
            // As with volumes: what begins like a path is one.
            if path.is_file() || text.starts_with(['/', '.']) {
                return Ok(DiskSource::File(absolute(path)?, format));
            }
            Ok(DiskSource::Image(text.clone()))
        };
        self.disk.iter().map(source).collect()
    }
}

impl SeedFlags {
    fn read(&self) -> Result<Option<Seed>, Failure> {
        let mut ssh_keys = Vec::new();
        for text in &self.ssh_key {
            if Path::new(text).is_file() {
                ssh_keys.extend(super::process::lines(Path::new(text))?);
            } else {
                ssh_keys.push(text.clone());
            }
        }
        let read = |path: &PathBuf| {
            std::fs::read(path)
                .map_err(|error| Failure::io("read", path, error).with_code(crate::error::ENGINE))
        };
        let seed = Seed {
            hostname: self.hostname.clone(),
            user: self.user.clone(),
            ssh_keys,
            user_data: self.user_data.as_ref().map(read).transpose()?,
        };
        Ok((seed != Seed::default()).then_some(seed))
    }
}

fn choice<T: Copy>(flag: &str, text: &str, known: &[(&str, T)]) -> Result<T, Failure> {
    let found = known.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        Failure::usage(format!("invalid {flag} {text:?}")).with_hint(names.join(", "))
    })
}
