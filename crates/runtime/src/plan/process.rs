//! The process: capabilities, limits and scheduling by number.

use proa_oci::defaults::ALL_CAPABILITIES;
use proa_oci::runtime::{Capabilities, IoPriority, Process, Scheduler};
use proa_sys::process::SchedAttr;
use rustix::process::Resource;

use crate::{Error, Result};

/// A process, checked.
#[derive(Debug)]
pub(crate) struct ProcessPlan<'a> {
    /// The spec's own.
    pub spec: &'a Process,
    /// Capability sets.
    pub capabilities: CapabilityPlan,
    /// Resource limits: which, soft, hard.
    pub rlimits: Vec<(Resource, &'a str, u64, u64)>,
    /// Class and level.
    pub io_priority: Option<(u32, u32)>,
    /// Scheduling attributes.
    pub scheduler: Option<SchedAttr>,
}

/// Capability sets as bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CapabilityPlan {
    /// Bounding set.
    pub bounding: u64,
    /// Effective set.
    pub effective: u64,
    /// Permitted set.
    pub permitted: u64,
    /// Inheritable set.
    pub inheritable: u64,
    /// Ambient set.
    pub ambient: u64,
}

impl<'a> ProcessPlan<'a> {
    pub(crate) fn new(spec: &'a Process) -> Result<Self> {
        if spec.args.first().is_none_or(String::is_empty) {
            return Err(Error::invalid("no command: the image has none and none was given"));
        }
        if !spec.cwd.starts_with('/') {
            return Err(Error::invalid(format!("working directory '{}' is not an absolute path", spec.cwd)));
        }
        let strings = spec.args.iter().chain(&spec.env).chain([&spec.cwd]);
        if let Some(text) = strings.into_iter().find(|text| text.contains('\0')) {
            return Err(Error::invalid(format!("{text:?} holds a NUL byte")));
        }
        if spec
            .apparmor_profile
            .as_deref()
            .is_some_and(|profile| !profile.is_empty() && profile != "unconfined")
        {
            return Err(Error::unsupported("AppArmor profiles are not supported yet: use 'unconfined'"));
        }
        if spec.selinux_label.as_deref().is_some_and(|label| !label.is_empty()) {
            return Err(Error::unsupported("SELinux labels are not supported yet"));
        }
        Ok(Self {
            spec,
            capabilities: spec
                .capabilities
                .as_ref()
                .map(CapabilityPlan::new)
                .transpose()?
                .unwrap_or_default(),
            rlimits: spec
                .rlimits
                .iter()
                .map(|limit| Ok((resource(&limit.kind)?, limit.kind.as_str(), limit.soft, limit.hard)))
                .collect::<Result<_>>()?,
            io_priority: spec.io_priority.as_ref().map(io_priority).transpose()?,
            scheduler: spec.scheduler.as_ref().map(scheduler).transpose()?,
        })
    }
}

impl CapabilityPlan {
    fn new(names: &Capabilities) -> Result<Self> {
        let plan = Self {
            bounding: bits(&names.bounding)?,
            effective: bits(&names.effective)?,
            permitted: bits(&names.permitted)?,
            inheritable: bits(&names.inheritable)?,
            ambient: bits(&names.ambient)?,
        };
        if plan.effective & !plan.permitted != 0 || plan.ambient & !(plan.permitted & plan.inheritable) != 0 {
            return Err(Error::invalid(
                "capabilities: effective must be permitted, ambient permitted and inheritable",
            ));
        }
        Ok(plan)
    }
}

fn bits(names: &[String]) -> Result<u64> {
    names.iter().try_fold(0, |bits, name| {
        let number = ALL_CAPABILITIES.iter().position(|known| known == name);
        let number = number.ok_or_else(|| Error::invalid(format!("capability '{name}' is not known")))?;
        Ok(bits | 1 << number)
    })
}

fn resource(name: &str) -> Result<Resource> {
    Ok(match name {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        _ => return Err(Error::invalid(format!("resource limit '{name}' is not known"))),
    })
}

fn io_priority(priority: &IoPriority) -> Result<(u32, u32)> {
    let class = match priority.class.as_str() {
        "IOPRIO_CLASS_RT" => 1,
        "IOPRIO_CLASS_BE" => 2,
        "IOPRIO_CLASS_IDLE" => 3,
        class => return Err(Error::invalid(format!("I/O priority class '{class}' is not known"))),
    };
    match u32::try_from(priority.priority) {
        Ok(level) if level < 8 => Ok((class, level)),
        _ => Err(Error::invalid(format!("I/O priority {} is not between 0 and 7", priority.priority))),
    }
}

fn scheduler(scheduler: &Scheduler) -> Result<SchedAttr> {
    let unknown = |what: &str| Error::invalid(format!("scheduler: '{what}' is not known"));
    let policy = match scheduler.policy.as_str() {
        "SCHED_OTHER" => 0,
        "SCHED_FIFO" => 1,
        "SCHED_RR" => 2,
        "SCHED_BATCH" => 3,
        "SCHED_ISO" => 4,
        "SCHED_IDLE" => 5,
        "SCHED_DEADLINE" => 6,
        policy => return Err(unknown(policy)),
    };
    let flags = scheduler.flags.iter().try_fold(0, |flags, flag| {
        let bit = match flag.as_str() {
            "SCHED_FLAG_RESET_ON_FORK" => 0x01,
            "SCHED_FLAG_RECLAIM" => 0x02,
            "SCHED_FLAG_DL_OVERRUN" => 0x04,
            "SCHED_FLAG_KEEP_POLICY" => 0x08,
            "SCHED_FLAG_KEEP_PARAMS" => 0x10,
            "SCHED_FLAG_UTIL_CLAMP_MIN" => 0x20,
            "SCHED_FLAG_UTIL_CLAMP_MAX" => 0x40,
            flag => return Err(unknown(flag)),
        };
        Ok(flags | bit)
    })?;
    Ok(SchedAttr {
        policy,
        flags,
        nice: scheduler.nice,
        priority: u32::try_from(scheduler.priority).map_err(|_| unknown(&scheduler.priority.to_string()))?,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
        ..SchedAttr::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_oci::runtime::Rlimit;

    fn process() -> Process {
        Process { args: vec!["sh".into()], cwd: "/".into(), ..Process::default() }
    }

    #[test]
    fn names_become_numbers() {
        let capabilities = Capabilities { bounding: vec!["CAP_KILL".into()], ..Capabilities::default() };
        let spec = Process {
            capabilities: Some(capabilities),
            rlimits: vec![Rlimit { kind: "RLIMIT_NOFILE".into(), soft: 1, hard: 2 }],
            io_priority: Some(IoPriority { class: "IOPRIO_CLASS_IDLE".into(), priority: 7 }),
            scheduler: Some(Scheduler { policy: "SCHED_BATCH".into(), nice: 3, ..Scheduler::default() }),
            ..process()
        };
        let plan = ProcessPlan::new(&spec).unwrap();
        assert_eq!(plan.capabilities.bounding, 1 << 5);
        assert_eq!(plan.io_priority, Some((3, 7)));
        assert_eq!(plan.scheduler.unwrap().policy, 3);
        assert_eq!(plan.rlimits[0].2, 1);
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |change: fn(&mut Process)| {
            let mut spec = process();
            change(&mut spec);
            ProcessPlan::new(&spec).unwrap_err().to_string()
        };
        assert!(refused(|p| p.args.clear()).contains("no command"));
        assert!(refused(|p| p.cwd = "tmp".into()).contains("absolute"));
        assert!(refused(|p| p.env.push("A=\0".into())).contains("NUL"));
        assert!(
            refused(|p| p.rlimits.push(Rlimit { kind: "RLIMIT_FUN".into(), ..Rlimit::default() }))
                .contains("FUN")
        );
        assert!(
            refused(|p| {
                p.capabilities =
                    Some(Capabilities { effective: vec!["CAP_KILL".into()], ..Capabilities::default() });
            })
            .contains("permitted")
        );
    }
}
