//! Privileges.

use std::path::Path;

use proa_engine::config::{HostConfig, IdMappings};
use proa_engine::policy::Level;

use super::pairs;
use crate::error::{ENGINE, Failure};

/// Privileges.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Security")]
pub(super) struct SecurityFlags {
    /// Add a capability; ALL for all
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// Take a capability away; ALL for all
    #[arg(long, value_name = "NAME")]
    cap_drop: Vec<String>,
    /// seccomp=unconfined|builtin|FILE, apparmor=unconfined|NAME, no-new-privileges[=BOOL],
    /// systempaths=unconfined, label=disable|user:|role:|type:|level:, landlock=unconfined
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Pod Security Standard to hold it to: privileged, baseline or restricted
    #[arg(long, value_name = "LEVEL")]
    policy: Option<String>,
    /// Rule of the device cgroup, as "c 42:* rmw"
    #[arg(long, value_name = "RULE")]
    device_cgroup_rule: Vec<String>,
    /// Supplementary group by name or number
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Kernel parameter of the instance's namespaces
    #[arg(long, value_name = "KEY=VALUE")]
    sysctl: Vec<String>,
    /// User namespace: host; auto[:size=COUNT], root's, for ids that no other container has;
    /// keep-id[:uid=ID,gid=ID], an ordinary user's, to have the own id inside
    #[arg(long, value_name = "MODE")]
    userns: Option<String>,
    /// Map user ids of the container to the host's; --gidmap is the same unless given
    #[arg(long, value_name = "INSIDE:OUTSIDE:COUNT")]
    uidmap: Vec<String>,
    /// Map group ids of the container to the host's; --uidmap is the same unless given
    #[arg(long, value_name = "INSIDE:OUTSIDE:COUNT")]
    gidmap: Vec<String>,
    /// All capabilities and devices, and no filter, profile or mask
    #[arg(long)]
    privileged: bool,
}

impl SecurityFlags {
    pub(super) fn apply(&self, host: &mut HostConfig) -> Result<(), Failure> {
        host.cap_add.clone_from(&self.cap_add);
        host.cap_drop.clone_from(&self.cap_drop);
        host.security_opt =
            self.security_opt.iter().map(|text| with_profile(text)).collect::<Result<_, _>>()?;
        host.sysctls = pairs("--sysctl", &self.sysctl)?.into_iter().collect();
        host.privileged = self.privileged;
        host.device_cgroup_rules.clone_from(&self.device_cgroup_rule);
        host.group_add.clone_from(&self.group_add);
        host.userns_mode = self.userns.clone().unwrap_or_default();
        host.id_mappings = IdMappings { uid_map: self.uidmap.clone(), gid_map: self.gidmap.clone() };
        if let Some(word) = &self.policy {
            word.clone_into(&mut host.policy);
            Level::parse(word).map_err(super::usage)?;
        }
        Ok(())
    }
}

/// A profile's text in place of its path: the instance keeps what the file held when it was made.
fn with_profile(text: &str) -> Result<String, Failure> {
    let path = text.strip_prefix("seccomp=").or_else(|| text.strip_prefix("seccomp:"));
    let Some(path) = path.filter(|path| !["unconfined", "builtin", ""].contains(path)) else {
        return Ok(text.to_owned());
    };
    let profile = std::fs::read_to_string(path);
    let profile = profile
        .map_err(|error| Failure::io("read the seccomp profile", Path::new(path), error).with_code(ENGINE))?;
    Ok(format!("seccomp={profile}"))
}
