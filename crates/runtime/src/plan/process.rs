//! The process: capabilities, limits and scheduling by number.

use std::sync::LazyLock;

use proa_oci::defaults::ALL_CAPABILITIES;
use proa_oci::runtime::{Capabilities, CpuAffinity, IoPriority, Process, Scheduler};
use proa_sys::process::SchedAttr;
use rustix::process::Resource;

use super::numbers;
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
    /// Profile or label of the program.
    pub label: Option<Label<'a>>,
    /// CPUs of a process that joins, before and after it is in the cgroup; empty for no change.
    pub affinity: [Vec<u64>; 2],
    /// What was asked for and cannot be granted.
    pub warnings: Vec<String>,
}

/// What the host's security module is told of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Label<'a> {
    /// An AppArmor profile.
    AppArmor(&'a str),
    /// An SELinux label.
    Selinux(&'a str),
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

/// What a container without a process is set up as; nothing of it is ever run.
static NONE: LazyLock<Process> = LazyLock::new(|| Process { cwd: "/".to_owned(), ..Process::default() });

impl<'a> ProcessPlan<'a> {
    /// For a container that is created and never started.
    pub(crate) fn none() -> Result<Self> {
        Self::of_any(&NONE)
    }

    /// Whether there is a program to run.
    pub(crate) fn is_none(&self) -> bool {
        self.spec.args.is_empty()
    }

    pub(crate) fn new(spec: &'a Process) -> Result<Self> {
        if spec.args.first().is_none_or(String::is_empty) {
            return Err(Error::invalid("no command: the image has none and none was given"));
        }
        Self::of_any(spec)
    }

    fn of_any(spec: &'a Process) -> Result<Self> {
        if !spec.cwd.starts_with('/') {
            return Err(Error::invalid(format!("working directory '{}' is not an absolute path", spec.cwd)));
        }
        let strings = spec.args.iter().chain(&spec.env).chain([&spec.cwd]);
        if let Some(text) = strings.into_iter().find(|text| text.contains('\0')) {
            return Err(Error::invalid(format!("{text:?} holds a NUL byte")));
        }
        let mut warnings = Vec::new();
        let capabilities = spec.capabilities.as_ref().map(|names| CapabilityPlan::new(names, &mut warnings));
        Ok(Self {
            spec,
            capabilities: capabilities.unwrap_or_default(),
            label: label(spec)?,
            affinity: affinity(spec.exec_cpu_affinity.as_ref())?,
            rlimits: spec
                .rlimits
                .iter()
                .map(|limit| Ok((resource(&limit.kind)?, limit.kind.as_str(), limit.soft, limit.hard)))
                .collect::<Result<_>>()?,
            io_priority: spec.io_priority.as_ref().map(io_priority).transpose()?,
            scheduler: spec.scheduler.as_ref().map(scheduler).transpose()?,
            warnings,
        })
    }
}

impl CapabilityPlan {
    /// What cannot be granted is left out with a warning, as the specification asks: names that nobody knows, and what
    /// no process could hold.
    fn new(names: &Capabilities, warnings: &mut Vec<String>) -> Self {
        let mut unknown = Vec::new();
        let mut plan = Self {
            bounding: bits(&names.bounding, &mut unknown),
            effective: bits(&names.effective, &mut unknown),
            permitted: bits(&names.permitted, &mut unknown),
            inheritable: bits(&names.inheritable, &mut unknown),
            ambient: bits(&names.ambient, &mut unknown),
        };
        if !unknown.is_empty() {
            // Suites look for this line, which is runc's.
            let names = unknown.join(" ");
            warnings.push(format!("ignoring unknown or unavailable capabilities: [{names}]"));
        }
        leave_out(&mut plan.effective, plan.permitted, "effective, but not permitted", warnings);
        // The kernel's word for it, which whoever knows it looks for.
        let why = "inheritable, but not in the bounding set (operation not permitted)";
        leave_out(&mut plan.inheritable, plan.bounding, why, warnings);
        let allowed = plan.permitted & plan.inheritable;
        leave_out(&mut plan.ambient, allowed, "ambient, but not permitted and inheritable", warnings);
        plan
    }
}

fn leave_out(set: &mut u64, allowed: u64, what: &str, warnings: &mut Vec<String>) {
    for (number, name) in ALL_CAPABILITIES.iter().enumerate() {
        if *set & !allowed & 1 << number != 0 {
            warnings.push(format!("{name} not granted: it is {what}"));
        }
    }
    *set &= allowed;
}

fn bits<'a>(names: &'a [String], unknown: &mut Vec<&'a str>) -> u64 {
    let mut bits = 0;
    for name in names {
        match ALL_CAPABILITIES.iter().position(|known| known == name) {
            Some(number) => bits |= 1 << number,
            None if unknown.contains(&name.as_str()) => {}
            None => unknown.push(name),
        }
    }
    bits
}

/// A module that the kernel does not have is an error, not a downgrade; `unconfined` needs none.
fn label(spec: &Process) -> Result<Option<Label<'_>>> {
    let apparmor = spec.apparmor_profile.as_deref().filter(|profile| !profile.is_empty());
    let selinux = spec.selinux_label.as_deref().filter(|label| !label.is_empty());
    let has_apparmor =
        || std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"));
    match (apparmor, selinux) {
        (None, None) => Ok(None),
        (Some("unconfined"), None) => Ok(has_apparmor().then_some(Label::AppArmor("unconfined"))),
        (Some(profile), None) if has_apparmor() => Ok(Some(Label::AppArmor(profile))),
        (Some(profile), None) => Err(Error::unsupported(format!(
            "AppArmor profile '{profile}': the kernel has no AppArmor: use 'unconfined'"
        ))),
        (None | Some("unconfined"), Some(label)) if has_selinux() => Ok(Some(Label::Selinux(label))),
        (None | Some("unconfined"), Some(label)) => Err(no_selinux(label)),
        (Some(_), Some(_)) => {
            Err(Error::invalid("apparmorProfile and selinuxLabel are both set: no kernel has both"))
        }
    }
}

/// Whether SELinux is in force.
pub(super) fn has_selinux() -> bool {
    std::fs::exists("/sys/fs/selinux/enforce").unwrap_or(false)
}

pub(super) fn no_selinux(label: &str) -> Error {
    Error::unsupported(format!("SELinux label '{label}': the kernel has no SELinux, or it is off"))
}

fn affinity(asked: Option<&CpuAffinity>) -> Result<[Vec<u64>; 2]> {
    let Some(asked) = asked else { return Ok([const { Vec::new() }; 2]) };
    let list = |list: &Option<String>| numbers::mask("execCPUAffinity", list.as_deref().unwrap_or_default());
    Ok([list(&asked.initial)?, list(&asked.after)?])
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
            // The specification has no field for the values that they need.
            "SCHED_FLAG_UTIL_CLAMP_MIN" | "SCHED_FLAG_UTIL_CLAMP_MAX" => {
                return Err(Error::unsupported(format!(
                    "scheduler: the specification has no value for {flag}"
                )));
            }
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
        assert!(refused(|p| p.apparmor_profile = Some("x".into())).contains("AppArmor"));
        assert!(refused(|p| p.selinux_label = Some("x".into())).contains("SELinux"));
        assert!(
            refused(|p| {
                p.exec_cpu_affinity = Some(CpuAffinity { initial: Some("x".into()), after: None });
            })
            .contains("execCPUAffinity")
        );
    }

    #[test]
    fn capabilities_that_cannot_be_granted_are_warned_of() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let capabilities = Capabilities {
            permitted: names(&["CAP_CHOWN", "CAP_OF_TOMORROW"]),
            effective: names(&["CAP_CHOWN", "CAP_KILL", "CAP_OF_TOMORROW"]),
            inheritable: names(&["CAP_CHOWN"]),
            ambient: names(&["CAP_CHOWN"]),
            ..Capabilities::default()
        };
        let spec = Process { capabilities: Some(capabilities), ..process() };
        let plan = ProcessPlan::new(&spec).unwrap();
        assert_eq!((plan.capabilities.permitted, plan.capabilities.effective), (1, 1));
        assert_eq!((plan.capabilities.inheritable, plan.capabilities.ambient), (0, 0));
        assert_eq!(plan.warnings.len(), 4, "{:?}", plan.warnings);
        for (warning, part) in
            plan.warnings.iter().zip(["[CAP_OF_TOMORROW]", "CAP_KILL", "bounding", "ambient"])
        {
            assert!(warning.contains(part), "{:?}", plan.warnings);
        }
    }
}
