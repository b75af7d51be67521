//! What an instance was asked to be, in the shape of Docker's `inspect` and of its API's create request.
//!
//! The command line fills these from flags, as Docker's does; [`crate::spec`] turns them, with the image's
//! configuration, into what a monitor runs. They are kept whole in the database.

use std::collections::BTreeMap;
use std::path::PathBuf;

use proa_oci::image::Healthcheck;
use proa_protocol::machine::MachineConfig;
use serde::{Deserialize, Serialize};

use crate::network::EndpointConfig;
use crate::network::ports::PortBindings;

/// What belongs to the image's side: program, environment, streams.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// Host name.
    pub hostname: String,
    /// NIS domain name.
    pub domainname: String,
    /// `name|uid[:group|gid]`.
    pub user: String,
    /// The client gives standard input.
    pub attach_stdin: bool,
    /// The client takes standard output.
    pub attach_stdout: bool,
    /// The client takes standard error.
    pub attach_stderr: bool,
    /// A terminal.
    pub tty: bool,
    /// Keep standard input open.
    pub open_stdin: bool,
    /// Close it when the first client has.
    pub stdin_once: bool,
    /// `KEY=value`; `KEY` alone removes it.
    pub env: Vec<String>,
    /// Program or its arguments.
    pub cmd: Option<Vec<String>>,
    /// The image as the user named it.
    pub image: String,
    /// Volumes that the image declares.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Empty>,
    /// Ports that its program listens on, as `80/tcp`: of the image, and of `--expose`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// Absolute directory to start in.
    pub working_dir: String,
    /// Program; one empty string takes the image's away.
    pub entrypoint: Option<Vec<String>>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Signal that asks it to end.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Seconds before it is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// How to see whether it is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// What is done when it is not: `none`, `kill`, `restart` or `stop`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub healthcheck_on_failure_action: String,
    /// Shell of the health check's shell form; empty for `/bin/sh -c`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
}

/// JSON's `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// What belongs to the host's side: mounts, limits, privileges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    /// `source:destination[:options]`.
    pub binds: Vec<String>,
    /// Driver of volumes that it makes: `local`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub volume_driver: String,
    /// Instances whose mounts it has as well: `NAME[:ro]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes_from: Vec<String>,
    /// Where the id was written.
    #[serde(rename = "ContainerIDFile")]
    pub container_id_file: String,
    /// Logging.
    pub log_config: LogConfig,
    /// Name of the first network, `none`, `host`, or `container:ID`.
    pub network_mode: String,
    /// Its places in networks, as asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<EndpointConfig>,
    /// Ports that can be reached from outside.
    pub port_bindings: PortBindings,
    /// All exposed ports as well.
    pub publish_all_ports: bool,
    /// When it is run again.
    pub restart_policy: RestartPolicy,
    /// `NAME[:started|healthy|completed]` of what must be so before it is started.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
    /// Remove the instance when it ends.
    pub auto_remove: bool,
    /// Size of the terminal when it was made.
    pub console_size: [u16; 2],
    /// Annotations for the runtime.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Capabilities beyond the default.
    pub cap_add: Vec<String>,
    /// Capabilities taken away.
    pub cap_drop: Vec<String>,
    /// Name servers.
    pub dns: Vec<String>,
    /// Resolver options.
    pub dns_options: Vec<String>,
    /// Search domains.
    pub dns_search: Vec<String>,
    /// `host:address` for `/etc/hosts`.
    pub extra_hosts: Vec<String>,
    /// `oom_score_adj`.
    pub oom_score_adj: i32,
    /// All privileges.
    pub privileged: bool,
    /// Read-only root.
    pub readonly_rootfs: bool,
    /// As given with `--security-opt`; a profile's text in place of its path.
    pub security_opt: Vec<String>,
    /// Path and options.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tmpfs: BTreeMap<String, String>,
    /// Size of `/dev/shm`, bytes.
    pub shm_size: i64,
    /// Kernel parameters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Isolation level asked for.
    pub isolation: String,
    /// Relative CPU weight.
    pub cpu_shares: i64,
    /// Memory limit, bytes.
    pub memory: i64,
    /// Billionths of CPUs.
    pub nano_cpus: i64,
    /// CFS period, microseconds.
    pub cpu_period: i64,
    /// CFS quota, microseconds.
    pub cpu_quota: i64,
    /// CPUs by number.
    pub cpuset_cpus: String,
    /// Memory nodes by number.
    pub cpuset_mems: String,
    /// Real-time period, microseconds.
    pub cpu_realtime_period: i64,
    /// Real-time share of the period, microseconds.
    pub cpu_realtime_runtime: i64,
    /// Block I/O weight, 10 to 1000; 0 for none.
    pub blkio_weight: u16,
    /// Block I/O weight by device.
    pub blkio_weight_device: Vec<DeviceWeight>,
    /// Bytes read per second by device.
    pub blkio_device_read_bps: Vec<DeviceRate>,
    /// Bytes written per second by device.
    pub blkio_device_write_bps: Vec<DeviceRate>,
    /// Reads per second by device.
    #[serde(rename = "BlkioDeviceReadIOps")]
    pub blkio_device_read_iops: Vec<DeviceRate>,
    /// Writes per second by device.
    #[serde(rename = "BlkioDeviceWriteIOps")]
    pub blkio_device_write_iops: Vec<DeviceRate>,
    /// Host devices.
    pub devices: Vec<DeviceMapping>,
    /// Rules of the device cgroup beyond those that follow from the devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_cgroup_rules: Vec<String>,
    /// Supplementary groups by name or number.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub group_add: Vec<String>,
    /// Soft memory limit, bytes.
    pub memory_reservation: i64,
    /// Memory plus swap, bytes; -1 for no limit on swap.
    pub memory_swap: i64,
    /// 0 to 100; absent for the host's.
    pub memory_swappiness: Option<i64>,
    /// Do not kill when memory runs out.
    pub oom_kill_disable: Option<bool>,
    /// Most tasks; absent or not positive for no limit.
    pub pids_limit: Option<i64>,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    /// Mounts given with `--mount`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountConfig>,
    /// Unreadable paths.
    pub masked_paths: Vec<String>,
    /// Unwritable paths.
    pub readonly_paths: Vec<String>,
    /// A minimal init as PID 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// Process ids: `host` or `container:ID`; empty for its own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pid_mode: String,
    /// System V's objects, message queues and `/dev/shm`: `private`, `none`, `shareable`, `host` or `container:ID`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipc_mode: String,
    /// Host name: `host`; empty for its own.
    #[serde(rename = "UTSMode", skip_serializing_if = "String::is_empty")]
    pub uts_mode: String,
    /// View of the cgroups: `private` or `host`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroupns_mode: String,
    /// The cgroup that its own is made in; empty for ours.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroup_parent: String,
    /// `host`, `auto`, `auto:size=COUNT`, or `private` with maps of its own; empty for what the host decides.
    pub userns_mode: String,
    /// Maps of its user namespace: asked for, or claimed when it was made.
    #[serde(rename = "IDMappings", skip_serializing_if = "IdMappings::is_empty")]
    pub id_mappings: IdMappings,
    /// Pod Security Standard that it was held to: `privileged`, `baseline` or `restricted`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// What only a VM has.
    #[serde(rename = "VM", skip_serializing_if = "VmOptions::is_empty")]
    pub vm: VmOptions,
    /// What makes it a machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineConfig>,
}

/// Docker's default size of `/dev/shm`.
pub const DEFAULT_SHM_SIZE: i64 = 64 << 20;

impl HostConfig {
    /// Names of its networks, as `ps` shows them.
    pub fn network_names(&self) -> Vec<&str> {
        if self.networks.is_empty() {
            return if self.is_detached() { Vec::new() } else { vec![&self.network_mode] };
        }
        self.networks.iter().map(|endpoint| endpoint.network.as_str()).collect()
    }

    /// Whether it was made for a network and has been taken out of all.
    pub fn is_detached(&self) -> bool {
        let mode = self.network_mode.as_str();
        self.networks.is_empty() && !["none", "host"].contains(&mode) && !mode.starts_with("container:")
    }

    /// Ids of instances whose namespaces it shares.
    pub fn sharers(&self) -> impl Iterator<Item = &str> {
        let modes = [&self.network_mode, &self.pid_mode, &self.ipc_mode];
        modes.into_iter().filter_map(|mode| mode.strip_prefix("container:"))
    }

    /// Whether its ids are others than its user's.
    pub fn has_own_ids(&self) -> bool {
        !matches!(self.userns_mode.as_str(), "" | "host")
    }
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            binds: Vec::new(),
            volume_driver: String::new(),
            volumes_from: Vec::new(),
            container_id_file: String::new(),
            log_config: LogConfig::default(),
            network_mode: "default".into(),
            networks: Vec::new(),
            port_bindings: PortBindings::new(),
            publish_all_ports: false,
            restart_policy: RestartPolicy::default(),
            depends_on: Vec::new(),
            auto_remove: false,
            console_size: [0, 0],
            annotations: BTreeMap::new(),
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            dns: Vec::new(),
            dns_options: Vec::new(),
            dns_search: Vec::new(),
            extra_hosts: Vec::new(),
            oom_score_adj: 0,
            privileged: false,
            readonly_rootfs: false,
            security_opt: Vec::new(),
            tmpfs: BTreeMap::new(),
            shm_size: DEFAULT_SHM_SIZE,
            sysctls: BTreeMap::new(),
            isolation: String::new(),
            cpu_shares: 0,
            memory: 0,
            nano_cpus: 0,
            cpu_period: 0,
            cpu_quota: 0,
            cpuset_cpus: String::new(),
            cpuset_mems: String::new(),
            cpu_realtime_period: 0,
            cpu_realtime_runtime: 0,
            blkio_weight: 0,
            blkio_weight_device: Vec::new(),
            blkio_device_read_bps: Vec::new(),
            blkio_device_write_bps: Vec::new(),
            blkio_device_read_iops: Vec::new(),
            blkio_device_write_iops: Vec::new(),
            devices: Vec::new(),
            device_cgroup_rules: Vec::new(),
            group_add: Vec::new(),
            memory_reservation: 0,
            memory_swap: 0,
            memory_swappiness: None,
            oom_kill_disable: None,
            pids_limit: None,
            ulimits: Vec::new(),
            mounts: Vec::new(),
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            init: None,
            pid_mode: String::new(),
            ipc_mode: String::new(),
            uts_mode: String::new(),
            cgroupns_mode: String::new(),
            cgroup_parent: String::new(),
            userns_mode: String::new(),
            id_mappings: IdMappings::default(),
            policy: String::new(),
            vm: VmOptions::default(),
            machine: None,
        }
    }
}

/// Maps of a user namespace, each `inside:outside:count`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IdMappings {
    /// Of users.
    pub uid_map: Vec<String>,
    /// Of groups.
    pub gid_map: Vec<String>,
}

impl IdMappings {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What only a VM has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VmOptions {
    /// Kernel image: a path, or the name of one that is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Words for its command line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernel_args: Vec<String>,
    /// Size of the writable disk, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<i64>,
    /// Boot it, rather than start it from a template.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_template: bool,
}

impl VmOptions {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LogConfig {
    /// The driver; empty for the host's default.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Its options.
    pub config: BTreeMap<String, String>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { kind: "json-file".into(), config: BTreeMap::new() }
    }
}

/// Restart policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    /// `no`, `on-failure`, `always` or `unless-stopped`.
    pub name: String,
    /// Of `on-failure`: how often at most; 0 for no limit.
    pub maximum_retry_count: i64,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self { name: "no".into(), maximum_retry_count: 0 }
    }
}

/// One resource limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ulimit {
    /// As `nofile`.
    pub name: String,
    /// Hard limit; -1 for none.
    pub hard: i64,
    /// Soft limit; -1 for none.
    pub soft: i64,
}

/// Weight of one block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeviceWeight {
    /// On the host.
    pub path: String,
    /// 10 to 1000.
    pub weight: u16,
}

/// Rate limit of one block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeviceRate {
    /// On the host.
    pub path: String,
    /// Bytes or operations per second.
    pub rate: u64,
}

/// One host device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeviceMapping {
    /// On the host.
    pub path_on_host: String,
    /// In the instance.
    pub path_in_container: String,
    /// Any of `rwm`.
    pub cgroup_permissions: String,
}

/// One mount given with `--mount`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MountConfig {
    /// `bind`, `volume` or `tmpfs`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Host path of a bind mount, name of a volume.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Path in the instance.
    pub target: String,
    /// No writing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Options of a bind mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_options: Option<BindOptions>,
    /// Options of a volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_options: Option<VolumeOptions>,
    /// Options of a tmpfs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_options: Option<TmpfsOptions>,
}

/// Options of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeOptions {
    /// Do not fill it from the image.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_copy: bool,
    /// Labels of one that is made.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Path in it of what is mounted; empty for all of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subpath: String,
    /// Driver of one that is made.
    #[serde(skip_serializing_if = "VolumeDriver::is_default")]
    pub driver_config: VolumeDriver,
}

/// Driver of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeDriver {
    /// `local`, or nothing.
    pub name: String,
    /// Its options.
    pub options: BTreeMap<String, String>,
}

impl VolumeDriver {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Options of a bind mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BindOptions {
    /// `rprivate`, `shared`, …
    #[serde(skip_serializing_if = "String::is_empty")]
    pub propagation: String,
    /// Without what is mounted below the source.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub non_recursive: bool,
    /// Make a source that does not exist.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub create_mountpoint: bool,
    /// Read-only for the source alone, not for what is mounted below it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only_non_recursive: bool,
}

/// Options of a tmpfs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TmpfsOptions {
    /// Bytes; 0 for half of memory.
    pub size_bytes: i64,
    /// Permissions; 0 for 1777.
    pub mode: u32,
}
