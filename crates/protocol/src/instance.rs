//! The files that the engine and the monitor share.
//!
//! ```text
//!   <root>/instances/<id>/
//!     instance.json    InstanceConfig: written by the engine at create, read by the monitor at start
//!     state.json       InstanceState: written by the monitor alone, replaced by rename
//!     log.json         what it has written, see `crate::log`
//!     upper/ work/     container: the writable layer      rw.img   vm: the writable disk
//!                      a machine has disks of its own instead, see `crate::machine`
//!   <run>/instances/<id>/
//!     monitor.lock     held (flock) as long as the monitor lives: the one proof that it does
//!     monitor.sock     where clients connect
//!   <root>/removing/<id>/  the first of these when the instance is forgotten: files on their way out
//!   <root>/events/       the journal, see `crate::events`
//!   <run>/layers/<hex of diff id>/   a layer, mounted once for the whole host
//! ```
//!
//! A monitor that dies leaves its lock free. Whoever then reads a state that says `running` knows better,
//! cleans up what the monitor left, and the state becomes `exited` with code 137; or `restarting`, where the
//! policy asks for that and the host was not booted since (`<run>` does not survive a boot). A state that says
//! `restarting` under a free lock is an order to start the instance: whoever gets the lock and still finds that
//! state carries it out.
//!
//! Who removes an instance moves its directory to `removing/` first and removes it from there last, when everybody has
//! forgotten the instance. One that goes by itself (`auto_remove`) is forgotten while its monitor still undoes its
//! mounts, and with these in use its files would be in the way; so the monitor holds the directory (by a
//! lock) from before it tells of the end, and then removes what it finds in `removing/`. Whoever finds something there
//! that nobody holds, since a process was killed, removes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proa_oci::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::life::Life;
use crate::log::LogConfig;
use crate::machine::MachineConfig;
use crate::message::LaunchConfig;
use crate::network::Endpoint;
use crate::standby::Standby;
use crate::volume::MountPoint;

/// Name of the configuration file.
pub const CONFIG_FILE: &str = "instance.json";
/// Name of the state file.
pub const STATE_FILE: &str = "state.json";
/// Name of the log file.
pub const LOG_FILE: &str = "log.json";
/// Name of the lock file.
pub const LOCK_FILE: &str = "monitor.lock";
/// Name of the socket.
pub const SOCKET_FILE: &str = "monitor.sock";

/// How strongly an instance is separated from its host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolationLevel {
    /// Namespaces and cgroups on the host's kernel.
    #[default]
    Container,
    /// A hypervisor and a kernel of its own.
    Vm,
}

impl IsolationLevel {
    /// The word used on the command line and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Vm => "vm",
        }
    }
}

/// All that a monitor needs to run an instance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceConfig {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The level asked for; never weakened.
    pub isolation: IsolationLevel,
    /// The runtime spec. Its root path is not used: the root is `layers` under the writable layer.
    pub spec: Spec,
    /// What the spec has no field for.
    pub launch: LaunchConfig,
    /// The image's layers, lowest first.
    pub layers: Vec<Layer>,
    /// SELinux context of their files, the same for all instances of a host since these share the mounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_label: Option<String>,
    /// The layers as directories, where the form of `layers` is for guests alone and a volume is to be filled from them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readable_layers: Vec<Layer>,
    /// What is mounted into it, beside what every instance has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mount_points: Vec<MountPoint>,
    /// What becomes of its output.
    pub log: LogConfig,
    /// What only a VM has.
    pub vm: VmConfig,
    /// That a virtual machine is to stand by for the next of its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<Standby>,
    /// What makes it a machine: it boots its own disks, and has neither spec nor layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineConfig>,
    /// Its places in networks; the first has the default route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Endpoint>,
    /// Id of the instance whose network namespace it shares (`--network container:NAME`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_of: Option<String>,
    /// The same of its process ids (`--pid container:NAME`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_of: Option<String>,
    /// The same of System V's objects, message queues and `/dev/shm` (`--ipc container:NAME`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipc_of: Option<String>,
    /// What events say of it: name, image, labels.
    pub actor: BTreeMap<String, String>,
    /// How it is kept going and ended.
    #[serde(default, skip_serializing_if = "Life::is_default")]
    pub life: Life,
    /// Remove the instance when it ends (`--rm`).
    pub auto_remove: bool,
    /// Program to run as `PROGRAM --root ROOT --run RUN system reap ID` when an instance with `auto_remove` ends and
    /// no client that owns it is connected.
    pub reaper: Option<PathBuf>,
}

/// One layer of an image, ready to use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Digest of the uncompressed tar, `sha256:…`.
    pub diff_id: String,
    /// EROFS image, or a directory where that form is in use.
    pub path: PathBuf,
}

/// What only a VM has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VmConfig {
    /// Kernel image the user named (`--kernel`), or a name of one (`crate::kernel`).
    pub kernel: Option<PathBuf>,
    /// Words for its command line (`--kernel-arg`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernel_args: Vec<String>,
    /// Guest memory, bytes; 0 for the default.
    pub memory: u64,
    /// Virtual CPUs; 0 for the default.
    pub cpus: u32,
    /// Size of the writable disk, bytes; 0 for the default.
    pub disk_size: u64,
    /// Boot it, rather than start it from a template (`--no-template`).
    pub no_template: bool,
}

/// Where an instance is in its life.
///
/// ```text
///   created ──▶ running ◀──▶ paused
///                ▲ └──────────┴──▶ exited ──▶ (start again) running
///                │            └──▶ restarting (its policy lets its monitor start it again)
///                └───────────────────┘
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Never started, or its start failed.
    #[default]
    Created,
    /// Its first process runs.
    Running,
    /// Frozen.
    Paused,
    /// Its first process has ended, and is about to be run again.
    Restarting,
    /// Its first process has ended.
    Exited,
}

impl Status {
    /// Whether a monitor must be there.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Restarting)
    }
}

/// What the monitor knows of its instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceState {
    /// Where it is in its life.
    pub status: Status,
    /// First process as the host sees it: the container's init, or the VMM.
    pub pid: u32,
    /// The monitor.
    pub monitor_pid: u32,
    /// Last start, nanoseconds since the epoch; 0 for never.
    pub started_ns: i64,
    /// Last end, nanoseconds since the epoch; 0 for never.
    pub finished_ns: i64,
    /// Exit code of the first process.
    pub exit_code: i32,
    /// Killed for memory.
    pub oom_killed: bool,
    /// Why the last start failed.
    pub error: String,
    /// Starts since a user's, made because of its restart policy.
    #[serde(skip_serializing_if = "is_zero")]
    pub restart_count: u32,
    /// A user has asked for its end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// Of a virtual machine that runs: the cgroup of its VMM on the host, or `none: ` and why it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub vmm_cgroup: String,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl InstanceState {
    /// Reads a state file. An empty one is what a power cut can leave of a state written shortly before: such an
    /// instance was started, so it is taken for one that runs, and being without a monitor gets repaired.
    ///
    /// # Errors
    /// It is neither empty nor a state.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        if bytes.is_empty() {
            return Ok(Self { status: Status::Running, ..Self::default() });
        }
        serde_json::from_slice(bytes)
    }
}

/// Whether it can be the id of an instance or a network, and no path.
pub fn is_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Directory of an instance below `<root>` or `<run>`.
pub fn instance_dir(base: &Path, id: &str) -> PathBuf {
    base.join("instances").join(id)
}

/// Where the files of forgotten instances are, until they are removed.
pub fn removing_dir(root: &Path) -> PathBuf {
    root.join("removing")
}

/// Where the layer with this diff id is mounted.
pub fn layer_mount_dir(run: &Path, diff_id: &str) -> PathBuf {
    run.join("layers").join(diff_id.trim_start_matches("sha256:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_file_is_frozen() {
        let state = InstanceState { status: Status::Running, pid: 7, started_ns: 9, ..Default::default() };
        let text = r#"{"status":"running","pid":7,"monitor_pid":0,"started_ns":9,"finished_ns":0,"exit_code":0,"oom_killed":false,"error":""}"#;
        assert_eq!(serde_json::to_string(&state).unwrap(), text);
        assert_eq!(serde_json::from_str::<InstanceState>(text).unwrap(), state);
        assert_eq!(serde_json::from_str::<InstanceState>("{}").unwrap(), InstanceState::default());
        let again = InstanceState {
            status: Status::Restarting,
            restart_count: 2,
            stopped: true,
            ..Default::default()
        };
        let text = r#"{"status":"restarting","pid":0,"monitor_pid":0,"started_ns":0,"finished_ns":0,"exit_code":0,"oom_killed":false,"error":"","restart_count":2,"stopped":true}"#;
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
    }

    #[test]
    fn a_state_lost_in_a_power_cut_is_that_of_an_instance_to_repair() {
        assert_eq!(InstanceState::parse(b"").unwrap().status, Status::Running);
        assert_eq!(InstanceState::parse(b"{}").unwrap(), InstanceState::default());
        assert!(InstanceState::parse(b"{").is_err());
    }
}
