//! Making a machine.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use proa_image::Progress;
use proa_protocol::instance::{InstanceConfig, IsolationLevel};
use proa_protocol::machine::{
    DEFAULT_MEMORY, DiskFormat, DiskImport, FIRMWARE, Firmware, MEDIA, MachineConfig, SEED_FILE, VARS_FILE,
    disk_file,
};

use super::seed::{self, Seed};
use crate::config::{ContainerConfig, HostConfig};
use crate::create::Created;
use crate::db::Record;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::logging::{self, DEFAULT_DRIVER, LogSettings};
use crate::network::NetworkRecord;
use crate::settings::NetworkSettings;
use crate::{events, monitor, names, parse, spec};

/// Seconds that a system may take to shut down where nobody says otherwise.
const STOP_TIMEOUT: i64 = 60;
/// A console can be written to for ever: what is kept of it, unless the user says otherwise.
const LOG_OPTIONS: [(&str, &str); 2] = [("max-size", "10m"), ("max-file", "3")];

/// Where a machine's disk comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// A file, of this form if it is named.
    File(PathBuf, Option<DiskFormat>),
    /// A disk image of the store, by its reference.
    Image(String),
    /// Nothing: it is empty.
    Empty,
}

impl DiskSource {
    /// As its user wrote it.
    fn name(&self) -> String {
        match self {
            Self::File(path, _) => path.display().to_string(),
            Self::Image(reference) => reference.clone(),
            Self::Empty => "(empty disk)".into(),
        }
    }
}

/// What to make.
#[derive(Debug, Default)]
pub struct MachineRequest {
    /// Its name.
    pub name: String,
    /// Its disks, the one that it boots first.
    pub disks: Vec<DiskSource>,
    /// Bytes of the first disk; as many as it comes with where there are none.
    pub disk_size: Option<i64>,
    /// What it is made of; the number of disks and whether it has a seed is filled in.
    pub machine: MachineConfig,
    /// What cloud-init is to do.
    pub seed: Option<Seed>,
    /// Labels, ports and how to stop it.
    pub config: ContainerConfig,
    /// Networks, limits, restart policy.
    pub host_config: HostConfig,
    /// What holds for networks.
    pub network: NetworkSettings,
    /// What becomes of its output where nobody says so.
    pub log: LogSettings,
}

impl Engine {
    /// Makes a machine. Its disks can take long, of which `progress` is told.
    ///
    /// # Errors
    /// The request makes no sense, a disk is refused, or the name is taken.
    pub fn create_machine(&self, mut request: MachineRequest, progress: &dyn Progress) -> Result<Created> {
        complete(&mut request)?;
        let MachineRequest { config, host_config, log, .. } = &mut request;
        log.complete(host_config);
        bound_log(host_config);
        spec::check_level(host_config, IsolationLevel::Vm)?;
        let mut warnings = Vec::new();
        let networks = self.complete_networks(config, host_config, IsolationLevel::Vm, &mut warnings)?;
        let mut record = Record {
            id: names::fresh_id()?,
            name: String::new(),
            image_id: String::new(),
            image: config.image.clone(),
            level: IsolationLevel::Vm,
            created_ns: parse::now_ns(),
            auto_remove: host_config.auto_remove,
            config: config.clone(),
            host_config: Box::new(host_config.clone()),
        };
        let instance = configure(&record)?;
        let making = self.making()?;
        self.claim(&mut record, Some(&request.name))?;
        if let Err(error) = self.furnish(&record, &networks, instance, &request, progress) {
            self.undo(&record);
            return Err(error);
        }
        self.tell(&record, "create", &[]);
        Ok(Created { record, warnings, standby: None, _making: making })
    }

    /// Gives it all that it is to have, its configuration last.
    fn furnish(
        &self,
        record: &Record,
        networks: &[NetworkRecord],
        mut instance: InstanceConfig,
        request: &MachineRequest,
        progress: &dyn Progress,
    ) -> Result<()> {
        self.claim_endpoints(record, networks, &mut instance, &request.network)?;
        instance.actor = events::actor(record);
        instance.reaper = Some(self.programs.own.clone());
        logging::identify(&mut instance.log, record)?;
        let directory = self.paths.instance(&record.id);
        let media = directory.join(MEDIA);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&media);
        made.map_err(|error| Error::io("make directory", &media, error))?;
        for (number, source) in request.disks.iter().enumerate() {
            let size = if number == 0 { request.disk_size } else { None };
            self.make_disk(record, source, &media.join(disk_file(number)), size, progress)?;
        }
        copy_variables(request.machine.firmware, &media.join(VARS_FILE))?;
        if let Some(seed) = &request.seed {
            let path = directory.join(SEED_FILE);
            let bytes = seed::build(seed, record, &instance.networks)?;
            write_private(&path, &bytes).map_err(|error| Error::io("write", &path, error))?;
        }
        self.write_config(&instance)
    }

    fn make_disk(
        &self,
        record: &Record,
        source: &DiskSource,
        target: &Path,
        size: Option<i64>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let size = size.unwrap_or(0).max(0).unsigned_abs();
        match source {
            DiskSource::File(path, format) => {
                let import = DiskImport {
                    id: record.id.clone(),
                    view: self.paths.instance(&record.id),
                    source: path.clone(),
                    format: *format,
                    target: target.to_owned(),
                    size,
                };
                monitor::import_disk(&self.programs, &import, progress).map(drop)
            }
            DiskSource::Image(reference) => self.unpack_disk(reference, target, size, progress),
            DiskSource::Empty => {
                let failed = |error| Error::io("make the disk", target, error);
                write_private(target, &[]).map_err(failed)?;
                let file = fs::OpenOptions::new().write(true).open(target).map_err(failed)?;
                file.set_len(size.next_multiple_of(512)).map_err(failed)
            }
        }
    }
}

/// Checks the request, and writes out what was left to a rule.
fn complete(request: &mut MachineRequest) -> Result<()> {
    let MachineRequest { disks, disk_size, machine, config, host_config, .. } = request;
    if disks.is_empty() && disk_size.is_some() {
        disks.push(DiskSource::Empty);
    }
    if disks.is_empty() && machine.cdrom.is_none() {
        return Err(Error::invalid_with_hint(
            "a machine needs something to boot",
            "--disk FILE or --disk IMAGE; to install, --cdrom ISO and --disk-size BYTES for an empty disk",
        ));
    }
    if let Some(path) = &machine.cdrom
        && !path.is_file()
    {
        return Err(Error::invalid(format!("--cdrom {}: there is no such file", path.display())));
    }
    if let Some(seed) = &request.seed {
        seed.check()?;
    }
    machine.disks = disks.len();
    machine.seed = request.seed.is_some();
    if let Some(reason) = machine.refusal() {
        return Err(Error::invalid(reason));
    }
    let hostname = request.seed.as_ref().and_then(|seed| seed.hostname.clone());
    config.hostname = hostname.unwrap_or_else(|| request.name.clone());
    config.image = disks.first().map_or_else(|| "(disc)".into(), DiskSource::name);
    // The serial console: a terminal, whose input is never over.
    (config.tty, config.open_stdin) = (true, true);
    config.stop_timeout.get_or_insert(STOP_TIMEOUT);
    IsolationLevel::Vm.as_str().clone_into(&mut host_config.isolation);
    if host_config.memory == 0 {
        host_config.memory = DEFAULT_MEMORY as i64;
    }
    host_config.vm.disk_size = *disk_size;
    host_config.machine = Some(machine.clone());
    Ok(())
}

/// What its monitor runs.
fn configure(record: &Record) -> Result<InstanceConfig> {
    let host = &record.host_config;
    Ok(InstanceConfig {
        id: record.id.clone(),
        isolation: IsolationLevel::Vm,
        machine: host.machine.clone(),
        log: logging::parse(host)?,
        vm: spec::vm_config(host)?,
        life: crate::restart::life(&record.config, host)?,
        auto_remove: host.auto_remove,
        ..InstanceConfig::default()
    })
}

fn bound_log(host: &mut HostConfig) {
    let log = &mut host.log_config;
    let is_bounded = LOG_OPTIONS.iter().any(|(key, _)| log.config.contains_key(*key));
    if log.kind == DEFAULT_DRIVER && !is_bounded {
        log.config.extend(LOG_OPTIONS.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }
}

/// A copy of its own of what UEFI starts with: for secure boot, the keys of Microsoft and of the distributions.
fn copy_variables(firmware: Firmware, target: &Path) -> Result<()> {
    let name = match firmware {
        Firmware::Bios => return Ok(()),
        Firmware::Uefi => "OVMF_VARS_4M.fd",
        Firmware::SecureBoot => "OVMF_VARS_4M.ms.fd",
    };
    let source = Path::new(FIRMWARE).join(name);
    if !source.exists() {
        return Err(Error::unsupported(
            format!("UEFI's variables {} are not on this host", source.display()),
            "install them: apt-get install ovmf",
        ));
    }
    let copied = fs::copy(&source, target)
        .and_then(|_| fs::set_permissions(target, fs::Permissions::from_mode(0o600)));
    copied.map_err(|error| Error::io("make", target, error))
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes))
}
