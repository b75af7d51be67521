//! What an instance shares with the host, or with another one.

use proa_engine::config::HostConfig;

/// Namespaces, and the cgroup's place.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Namespaces")]
pub(super) struct NamespaceFlags {
    /// Process ids: host, or container:NAME for those of another container
    #[arg(long, value_name = "MODE")]
    pid: Option<String>,
    /// System V's objects, message queues and /dev/shm: private, none (no /dev/shm), shareable, host, or container:NAME
    /// for those of a shareable one
    #[arg(long, value_name = "MODE")]
    ipc: Option<String>,
    /// Host name: host for the host's
    #[arg(long, value_name = "MODE")]
    uts: Option<String>,
    /// View of the cgroups: private or host
    #[arg(long, value_name = "MODE")]
    cgroupns: Option<String>,
    /// Cgroup in which the container's own is made
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,
}

impl NamespaceFlags {
    pub(super) fn apply(&self, host: &mut HostConfig) {
        let text = |flag: &Option<String>| flag.clone().unwrap_or_default();
        host.pid_mode = text(&self.pid);
        host.ipc_mode = text(&self.ipc);
        host.uts_mode = text(&self.uts);
        host.cgroupns_mode = text(&self.cgroupns);
        host.cgroup_parent = text(&self.cgroup_parent);
    }
}
