//! What keeps an instance going.

use proa_engine::config::{HostConfig, RestartPolicy};

use super::usage;
use crate::error::Failure;

/// Restart policy.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Life")]
pub(super) struct LifeFlags {
    /// Run it again when it ends: no, on-failure[:COUNT], always or unless-stopped
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
}

impl LifeFlags {
    pub(super) fn apply(&self, host: &mut HostConfig) -> Result<(), Failure> {
        if let Some(policy) = &self.restart {
            host.restart_policy = RestartPolicy::parse(policy).map_err(usage)?;
        }
        if host.auto_remove && host.restart_policy.name != "no" {
            return Err(Failure::usage("--restart and --rm exclude each other"));
        }
        Ok(())
    }
}
