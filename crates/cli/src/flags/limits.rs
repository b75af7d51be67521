//! Memory, CPU, tasks, rlimits.

use proa_engine::config::{HostConfig, Ulimit};
use proa_engine::parse;

use super::usage;
use crate::error::Failure;

/// Memory, CPU, tasks, rlimits.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitFlags {
    /// Memory; a vm's size as well
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// Memory plus swap; -1 for no limit on swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Soft memory limit
    #[arg(long, value_name = "BYTES")]
    memory_reservation: Option<String>,
    /// CPUs, as 1.5
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    cpus: Option<String>,
    /// Relative CPU weight
    #[arg(short, long, value_name = "NUMBER")]
    cpu_shares: Option<i64>,
    /// CFS period, microseconds
    #[arg(long, value_name = "NUMBER")]
    cpu_period: Option<i64>,
    /// CFS quota, microseconds
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// CPUs by number, as 0-2,5
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes by number
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Most tasks; -1 for no limit
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Resource limit
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// oom_score_adj, -1000 to 1000
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    oom_score_adj: Option<i32>,
}

impl LimitFlags {
    pub(super) fn apply(&self, host: &mut HostConfig) -> Result<(), Failure> {
        let bytes = |text: &Option<String>| match text.as_deref() {
            None => Ok(0),
            Some("-1") => Ok(-1),
            Some(text) => parse::bytes(text).map_err(usage),
        };
        host.memory = bytes(&self.memory)?.max(0);
        host.memory_swap = bytes(&self.memory_swap)?;
        host.memory_reservation = bytes(&self.memory_reservation)?.max(0);
        host.nano_cpus = self.cpus.as_deref().map(parse::nano_cpus).transpose().map_err(usage)?.unwrap_or(0);
        host.cpu_shares = self.cpu_shares.unwrap_or(0);
        host.cpu_period = self.cpu_period.unwrap_or(0);
        host.cpu_quota = self.cpu_quota.unwrap_or(0);
        host.cpuset_cpus = self.cpuset_cpus.clone().unwrap_or_default();
        host.cpuset_mems = self.cpuset_mems.clone().unwrap_or_default();
        host.pids_limit = self.pids_limit;
        host.ulimits =
            self.ulimit.iter().map(|text| Ulimit::parse(text)).collect::<Result<_, _>>().map_err(usage)?;
        host.oom_score_adj = self.oom_score_adj.unwrap_or(0);
        Ok(())
    }
}
