//! Memory, CPU, tasks, block I/O, rlimits.

use proa_engine::config::{DeviceRate, DeviceWeight, HostConfig, Ulimit};
use proa_engine::parse;
use proa_engine::update::LimitUpdate;

use super::usage;
use crate::error::Failure;

/// Limits that `update` can change.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct UpdateFlags {
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
    /// Real-time period, microseconds
    #[arg(long, value_name = "NUMBER")]
    cpu_rt_period: Option<i64>,
    /// Real-time share of the period, microseconds
    #[arg(long, value_name = "NUMBER")]
    cpu_rt_runtime: Option<i64>,
    /// CPUs by number, as 0-2,5
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes by number
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Most tasks; -1 for no limit
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Relative block I/O weight, 10 to 1000; 0 for none
    #[arg(long, value_name = "NUMBER")]
    blkio_weight: Option<u16>,
    #[arg(long, hide = true)]
    kernel_memory: Option<String>,
}

impl UpdateFlags {
    /// What was given.
    ///
    /// # Errors
    /// A value makes no sense, or there is no such limit any more.
    pub fn read(&self) -> Result<LimitUpdate, Failure> {
        if self.kernel_memory.is_some() {
            return Err(Failure::usage("--kernel-memory: Linux has no such limit any more")
                .with_hint("kernel memory counts against --memory"));
        }
        let bytes = |text: &Option<String>| match text.as_deref() {
            None => Ok(0),
            Some(text) => parse::bytes(text).map_err(usage),
        };
        let memory_swap =
            if self.memory_swap.as_deref() == Some("-1") { -1 } else { bytes(&self.memory_swap)? };
        Ok(LimitUpdate {
            memory: bytes(&self.memory)?,
            memory_swap,
            memory_reservation: bytes(&self.memory_reservation)?,
            nano_cpus: self
                .cpus
                .as_deref()
                .map(parse::nano_cpus)
                .transpose()
                .map_err(usage)?
                .unwrap_or_default(),
            cpu_shares: self.cpu_shares.unwrap_or_default(),
            cpu_period: self.cpu_period.unwrap_or_default(),
            cpu_quota: self.cpu_quota.unwrap_or_default(),
            cpu_realtime_period: self.cpu_rt_period.unwrap_or_default(),
            cpu_realtime_runtime: self.cpu_rt_runtime.unwrap_or_default(),
            cpuset_cpus: self.cpuset_cpus.clone().unwrap_or_default(),
            cpuset_mems: self.cpuset_mems.clone().unwrap_or_default(),
            pids_limit: self.pids_limit,
            blkio_weight: self.blkio_weight.unwrap_or_default(),
            restart: None,
        })
    }
}

/// Memory, CPU, tasks, block I/O, rlimits.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitFlags {
    #[command(flatten)]
    update: UpdateFlags,
    /// How readily memory is swapped out, 0 to 100; -1 for the host's
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    memory_swappiness: Option<i64>,
    /// Do not kill when memory runs out
    #[arg(long)]
    oom_kill_disable: bool,
    /// Block I/O weight on one device
    #[arg(long, value_name = "/dev/NAME:WEIGHT")]
    blkio_weight_device: Vec<String>,
    /// Bytes read per second from one device
    #[arg(long, value_name = "/dev/NAME:BYTES")]
    device_read_bps: Vec<String>,
    /// Bytes written per second to one device
    #[arg(long, value_name = "/dev/NAME:BYTES")]
    device_write_bps: Vec<String>,
    /// Reads per second from one device
    #[arg(long, value_name = "/dev/NAME:NUMBER")]
    device_read_iops: Vec<String>,
    /// Writes per second to one device
    #[arg(long, value_name = "/dev/NAME:NUMBER")]
    device_write_iops: Vec<String>,
    /// Resource limit
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// oom_score_adj, -1000 to 1000
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    oom_score_adj: Option<i32>,
}

impl LimitFlags {
    pub(super) fn apply(&self, host: &mut HostConfig) -> Result<(), Failure> {
        let limits = self.update.read()?;
        host.memory = limits.memory;
        host.memory_swap = limits.memory_swap;
        host.memory_reservation = limits.memory_reservation;
        host.nano_cpus = limits.nano_cpus;
        host.cpu_shares = limits.cpu_shares;
        host.cpu_period = limits.cpu_period;
        host.cpu_quota = limits.cpu_quota;
        host.cpu_realtime_period = limits.cpu_realtime_period;
        host.cpu_realtime_runtime = limits.cpu_realtime_runtime;
        host.cpuset_cpus = limits.cpuset_cpus;
        host.cpuset_mems = limits.cpuset_mems;
        host.pids_limit = limits.pids_limit;
        host.blkio_weight = limits.blkio_weight;
        host.memory_swappiness = self.memory_swappiness;
        host.oom_kill_disable = self.oom_kill_disable.then_some(true);
        host.blkio_weight_device = all(&self.blkio_weight_device, DeviceWeight::parse)?;
        host.blkio_device_read_bps = all(&self.device_read_bps, DeviceRate::parse_bytes)?;
        host.blkio_device_write_bps = all(&self.device_write_bps, DeviceRate::parse_bytes)?;
        host.blkio_device_read_iops = all(&self.device_read_iops, DeviceRate::parse_operations)?;
        host.blkio_device_write_iops = all(&self.device_write_iops, DeviceRate::parse_operations)?;
        host.ulimits = all(&self.ulimit, Ulimit::parse)?;
        host.oom_score_adj = self.oom_score_adj.unwrap_or(0);
        Ok(())
    }
}

fn all<T>(texts: &[String], parse: fn(&str) -> proa_engine::Result<T>) -> Result<Vec<T>, Failure> {
    texts.iter().map(|text| parse(text).map_err(usage)).collect()
}
