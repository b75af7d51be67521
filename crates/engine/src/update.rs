//! `update`: other limits for an instance, at once if it runs, and for every start after.
//!
//! ```text
//!   record ─ merge, by Docker's rules ─▶ new host configuration ─▶ resources
//!     live?  Request::Update ─▶ monitor ─▶ supervisor ─▶ cgroup, on the host or in the guest,
//!            whose memory and CPUs follow, as far as they can
//!     then   instance.json and the row
//! ```
//!
//! What the kernel refuses is not recorded. A crash between the two leaves limits that hold until the end of the
//! instance, and the old ones in the record.

use proa_oci::runtime::{Pids, Resources};
use proa_protocol::instance::{InstanceConfig, IsolationLevel, Status, VmConfig};
use proa_protocol::life::Restart;
use proa_protocol::message::{GuestSize, Request};

use crate::config::{HostConfig, RestartPolicy};
use crate::engine::{Engine, Instance};
use crate::error::{Error, Result};
use crate::spec::{self, resources};

/// New limits and restart policy; 0 and empty for those that stay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimitUpdate {
    /// Memory, bytes.
    pub memory: i64,
    /// Memory and swap, bytes; -1 for no limit on swap.
    pub memory_swap: i64,
    /// Soft memory limit, bytes.
    pub memory_reservation: i64,
    /// Billionths of CPUs.
    pub nano_cpus: i64,
    /// Relative weight.
    pub cpu_shares: i64,
    /// Microseconds.
    pub cpu_period: i64,
    /// Microseconds; -1 for no limit.
    pub cpu_quota: i64,
    /// Microseconds.
    pub cpu_realtime_period: i64,
    /// Microseconds.
    pub cpu_realtime_runtime: i64,
    /// As `0-2,5`.
    pub cpuset_cpus: String,
    /// As `0-2,5`.
    pub cpuset_mems: String,
    /// Most tasks; not positive for no limit.
    pub pids_limit: Option<i64>,
    /// 10 to 1000.
    pub blkio_weight: u16,
    /// When it is run again.
    pub restart: Option<RestartPolicy>,
}

impl LimitUpdate {
    /// The limits after it.
    fn merge(&self, old: &HostConfig) -> Result<HostConfig> {
        let conflict = |message: &str| Err(Error::invalid(message));
        if self.nano_cpus > 0 && (old.cpu_period > 0 || old.cpu_quota > 0) {
            return conflict("--cpus cannot be updated: the instance has --cpu-period or --cpu-quota");
        }
        if (self.cpu_period > 0 || self.cpu_quota > 0) && old.nano_cpus > 0 {
            return conflict("--cpu-period and --cpu-quota cannot be updated: the instance has --cpus");
        }
        let swap_holds = self.memory_swap == 0 && old.memory_swap > 0;
        if swap_holds && self.memory > old.memory_swap {
            return Err(Error::Invalid {
                message: format!(
                    "the new memory limit is more than the instance's limit on memory and swap, {} bytes",
                    old.memory_swap
                ),
                hint: "give --memory-swap as well".into(),
            });
        }
        let mut new = old.clone();
        let numbers = [
            (&mut new.memory, self.memory),
            (&mut new.memory_swap, self.memory_swap),
            (&mut new.memory_reservation, self.memory_reservation),
            (&mut new.nano_cpus, self.nano_cpus),
            (&mut new.cpu_shares, self.cpu_shares),
            (&mut new.cpu_period, self.cpu_period),
            (&mut new.cpu_quota, self.cpu_quota),
            (&mut new.cpu_realtime_period, self.cpu_realtime_period),
            (&mut new.cpu_realtime_runtime, self.cpu_realtime_runtime),
        ];
        numbers.into_iter().filter(|(_, value)| *value != 0).for_each(|(old, value)| *old = value);
        for (old, value) in
            [(&mut new.cpuset_cpus, &self.cpuset_cpus), (&mut new.cpuset_mems, &self.cpuset_mems)]
        {
            if !value.is_empty() {
                old.clone_from(value);
            }
        }
        if self.blkio_weight != 0 {
            new.blkio_weight = self.blkio_weight;
        }
        if let Some(policy) = &self.restart {
            if old.auto_remove && policy.rule()? != Restart::No {
                return conflict(
                    "the restart policy cannot be updated: the instance is removed when it ends",
                );
            }
            new.restart_policy.clone_from(policy);
        }
        new.pids_limit = self.pids_limit.or(old.pids_limit);
        resources::complete_swap(&mut new);
        Ok(new)
    }

    /// A machine has memory and CPUs, and no cgroup of its own.
    fn check_machine(&self) -> Result<()> {
        let known = Self {
            memory: self.memory,
            nano_cpus: self.nano_cpus,
            restart: self.restart.clone(),
            ..Self::default()
        };
        if *self == known {
            return Ok(());
        }
        Err(Error::unsupported(
            "of a machine, memory, CPUs and the restart policy can be updated, and no other limits",
            "--memory, --cpus, --restart",
        ))
    }

    /// What a cgroup is to be told: the instance's limits as they are then, of which those that were not named
    /// are in force already.
    fn resources(&self, new: &HostConfig) -> Result<Resources> {
        let mut told = resources::of(new)?;
        if self.pids_limit.is_some_and(|limit| limit <= 0) {
            told.pids = Some(Pids { limit: -1 });
        }
        // Those of a live instance can have been set at its start alone.
        if let Some(memory) = &mut told.memory {
            memory.disable_oom_killer = None;
            memory.swappiness = None;
        }
        Ok(told)
    }
}

impl Engine {
    /// Gives an instance other limits.
    ///
    /// # Errors
    /// A limit makes no sense, does not go with those the instance has, or cannot be set while it runs.
    pub fn update(&self, instance: &Instance, update: &LimitUpdate) -> Result<()> {
        // One at a time, so that none undoes what another has just recorded.
        let _alone = self.alone(&instance.record.id)?;
        let record = self.db.find(&instance.record.id)?;
        let mut new = update.merge(&record.host_config)?;
        if new.machine.is_some() {
            update.check_machine()?;
            new.memory_swap = 0;
        }
        spec::check_level(&new, record.level)?;
        let told = update.resources(&new)?;
        let mut config = self.read_config(&record.id)?;
        // One that waits to be run again is started with what is written here.
        let runs = matches!(instance.state.status, Status::Running | Status::Paused);
        let limits = LimitUpdate { restart: None, ..update.clone() } != LimitUpdate::default();
        if runs && limits {
            self.connect(instance)?.command(request(&config, &new, told)?)?;
        }
        resources::replace(
            config.spec.linux_mut().resources.get_or_insert_with(Resources::default),
            resources::of(&new)?,
        );
        config.vm = spec::vm_config(&new)?;
        config.life.restart = new.restart_policy.rule()?;
        self.write_config(&config)?;
        self.db.set_host_config(&record.id, &new)?;
        self.tell(&record, "update", &[]);
        Ok(())
    }
}

/// What the monitor is asked: that of a virtual machine also has the guest fit the limits.
fn request(config: &InstanceConfig, new: &HostConfig, told: Resources) -> Result<Request> {
    let resources = Box::new(told);
    if config.isolation != IsolationLevel::Vm || config.machine.is_some() {
        return Ok(Request::Update(resources));
    }
    let VmConfig { memory, cpus, .. } = spec::vm_config(new)?;
    Ok(Request::UpdateGuest { size: GuestSize { memory, cpus }, resources })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_merged_by_dockers_rules() {
        let old = HostConfig { memory: 64 << 20, memory_swap: 128 << 20, ..HostConfig::default() };
        let new =
            LimitUpdate { memory: 100 << 20, cpu_shares: 7, ..LimitUpdate::default() }.merge(&old).unwrap();
        assert_eq!((new.memory, new.memory_swap, new.cpu_shares), (100 << 20, 128 << 20, 7));
        let above = LimitUpdate { memory: 200 << 20, ..LimitUpdate::default() };
        assert!(above.merge(&old).unwrap_err().to_string().contains("memory and swap"));
        assert!(LimitUpdate { memory_swap: -1, ..above.clone() }.merge(&old).is_ok());
        // Where there was no limit, swap follows memory, as at `run`.
        assert_eq!(above.merge(&HostConfig::default()).unwrap().memory_swap, 400 << 20);
        let cpus = LimitUpdate { nano_cpus: 1, ..LimitUpdate::default() };
        assert!(cpus.merge(&HostConfig { cpu_quota: 5000, ..HostConfig::default() }).is_err());
        let quota = LimitUpdate { cpu_quota: 5000, ..LimitUpdate::default() };
        assert!(quota.merge(&HostConfig { nano_cpus: 1, ..HostConfig::default() }).is_err());
    }

    #[test]
    fn the_policy_is_replaced_unless_the_instance_goes_at_its_end() {
        let always = RestartPolicy::parse("always").unwrap();
        let update = LimitUpdate { restart: Some(always.clone()), ..LimitUpdate::default() };
        assert_eq!(update.merge(&HostConfig::default()).unwrap().restart_policy, always);
        let passing = HostConfig { auto_remove: true, ..HostConfig::default() };
        assert!(update.merge(&passing).is_err());
        let none = LimitUpdate { restart: Some(RestartPolicy::default()), ..LimitUpdate::default() };
        assert!(none.merge(&passing).is_ok());
    }

    #[test]
    fn a_limit_on_tasks_can_be_taken_away() {
        let update = LimitUpdate { pids_limit: Some(-1), ..LimitUpdate::default() };
        let new = update.merge(&HostConfig { pids_limit: Some(5), ..HostConfig::default() }).unwrap();
        assert_eq!(update.resources(&new).unwrap().pids, Some(Pids { limit: -1 }));
        assert_eq!(resources::of(&new).unwrap().pids, None);
    }
}
