//! What a new process does between its fork and its program: one table of steps in a reviewed order.
//!
//! The process is a fork of a single-threaded runtime, so ordinary code may run in it; it returns to nobody. Or it
//! shares the memory of the runtime, which stands still and gets it back: then what it holds is the runtime's to free.
//! It runs [`STEPS`] from top to bottom. A step that fails is reported by its name and the process ends.
//!
//! ```text
//!   parent                              child
//!     ├ forks ───────────────────────────▶│ steps that need nothing (namespaces, …)
//!     ├ mounts the root ─────── Root ────▶│ makes its /proc; the steps of the container, of the process
//!     ├ compiles the filter               │
//!     │◀───────────────────────  Ready ───┤
//!     ├ start ─────────────────── Go ────▶│ last steps: filter, capabilities, program
//! ```
//! In a prepared container (`Job::open`) the steps of the process wait for another message, after Go: the [`crate::Part`] that
//! says what the process is. Until then it has the rights of the runtime, and runs nothing of the container's.
//!
//! It dies with its parent, before its program runs and after; but for a detached one (`Job::detach`), which
//! needs its parent until Go, and may then wait at a [`crate::gate`] for the last steps.

mod affinity;
mod capabilities;
mod cgroup;
mod copyup;
mod devices;
mod enter;
mod filter;
mod hooks;
mod identity;
mod label;
mod landlock;
mod limits;
mod loopback;
mod masks;
mod mounts;
mod names;
pub(crate) mod namespaces;
pub(crate) mod oom;
mod pivot;
mod program;
mod root;
mod scheduling;
mod session;
mod streams;
mod sysctl;
mod workdir;

use std::ffi::CString;
use std::mem::ManuallyDrop;
use std::os::fd::{BorrowedFd, OwnedFd};

use proa_sys::clone::{ExitOnDrop, exit_now};
use proa_sys::exec::StringArray;
use proa_sys::seal::Sealed;

pub(crate) use self::hooks::attach_root as attach_at;
use crate::cgroup::View;
use crate::channel::{Channel, Go};
use crate::container::{Detach, Rootfs, Stdio};
use crate::plan::{Common, Plan, ProcessPlan};
use crate::stdio::ChildEnds;
use crate::user::Identity;
use crate::{Error, Result};

/// What the process is to become.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// The program and its attributes.
    pub process: &'a ProcessPlan<'a>,
    /// Docker's `--user`.
    pub user: &'a str,
    /// Its streams.
    pub stdio: Stdio,
    /// Run this as PID 1, which runs the program.
    pub init: Option<Sealed>,
    /// Cannot connect to abstract sockets made outside.
    pub scoped: bool,
    /// Where it runs.
    pub place: Place<'a>,
    /// What the process is comes later, when the container is set up: a [`crate::Part`] replaces `process` and `user`.
    pub open: bool,
    /// Set for a process that outlives its creator.
    pub detach: Option<&'a Detach>,
}

/// Where the process runs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    /// In a container that it sets up.
    New {
        /// The container.
        plan: &'a Plan<'a>,
        /// Its root, for kernels on which the parent cannot mount it.
        rootfs: &'a Rootfs,
        /// What it sees of its cgroups.
        cgroups: &'a View,
    },
    /// In the namespaces (flags of `setns`) of a running container.
    Existing {
        /// The container's first process.
        pidfd: BorrowedFd<'a>,
        /// The container's root directory, where it has the host's mounts.
        root: Option<BorrowedFd<'a>>,
        /// Which namespaces to join.
        namespaces: u64,
        /// Socket of the seccomp listener.
        listener: Option<&'a str>,
        /// What every process of the container has.
        common: &'a Common,
    },
}

/// The state of the work. Its descriptors end with the process, by `exec` or exit, and are not closed before: where
/// the process shares its parent's memory, it is the parent that frees this, and the numbers mean nothing to it.
pub struct Init<'a> {
    job: &'a Job<'a>,
    /// The container's root directory.
    root: ManuallyDrop<OwnedFd>,
    /// A `/proc` that nobody in the container can have replaced (invariant 9, CVE-2025-52881).
    proc: ManuallyDrop<OwnedFd>,
    /// Clones of what is bound into the container, in the order of the mounts.
    sources: ManuallyDrop<Vec<OwnedFd>>,
    /// The child's ends of the streams.
    streams: &'a mut ChildEnds,
    /// Master of its terminal, for the parent.
    terminal: ManuallyDrop<Option<OwnedFd>>,
    identity: Identity,
    /// The word to run the program, when it has come.
    go: Go,
    /// Socket of the seccomp listener.
    listener: ManuallyDrop<Option<OwnedFd>>,
    /// To wait for the runtime's hooks by.
    hooks_channel: ManuallyDrop<Option<Channel>>,
    warnings: Vec<String>,
    call: Option<Call>,
}

/// What the program is called by.
#[derive(Debug)]
struct Call {
    /// Where it may be.
    paths: Vec<CString>,
    args: StringArray,
    env: StringArray,
}

/// When a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before there is a root, while the parent mounts it.
    Alone,
    /// For the first process of a container.
    Container,
    /// For every process.
    Process,
    /// For every process, when the parent says go: it is in its cgroup.
    Released,
    /// For every process, before its program; a container that another process starts has waited at its gate.
    Last,
}

/// One step.
#[derive(Debug)]
pub struct Step {
    /// Shown to the user when it fails.
    pub name: &'static str,
    /// Where the OCI runtime specification asks for it.
    pub section: &'static str,
    /// When it runs.
    pub phase: Phase,
    run: Run,
}

/// What a step has to work with.
#[derive(Debug)]
enum Run {
    Alone(fn(&Job) -> Result<()>),
    Within(fn(&mut Init) -> Result<()>),
}

const fn alone(name: &'static str, section: &'static str, run: fn(&Job) -> Result<()>) -> Step {
    Step { name, section, phase: Phase::Alone, run: Run::Alone(run) }
}

const fn step(
    phase: Phase,
    name: &'static str,
    section: &'static str,
    run: fn(&mut Init) -> Result<()>,
) -> Step {
    Step { name, section, phase, run: Run::Within(run) }
}

/// All steps, in their order. The order matters: what needs privileges stands above `identity`, what writes
/// to `/proc/sys` above `read-only paths`, what looks at host paths above `pivot`.
pub const STEPS: &[Step] = {
    use Phase::{Container, Last, Process, Released};
    &[
        alone("initial CPUs", "config: process.execCPUAffinity", affinity::initial),
        alone("namespaces", "config-linux: namespaces", namespaces::run),
        alone("session", "runtime: create", session::run),
        alone("loopback", "config-linux: namespaces", loopback::run),
        step(Container, "root", "config: root", root::run),
        step(Container, "mounts", "config: mounts", mounts::run),
        step(Container, "host name", "config: hostname, domainname", names::run),
        step(Container, "sysctl", "config-linux: sysctl", sysctl::run),
        step(
            Container,
            "hooks",
            "config: hooks.createRuntime, createContainer; config-linux: netDevices",
            hooks::before_pivot,
        ),
        step(Process, "streams", "config: process.terminal", streams::run),
        step(Container, "masked paths", "config-linux: maskedPaths", masks::masked),
        step(Container, "read-only paths", "config-linux: readonlyPaths", masks::readonly),
        step(Container, "pivot", "config: root, rootfsPropagation", pivot::run),
        step(Process, "oom score", "config: process.oomScoreAdj", oom::run),
        step(
            Process,
            "scheduling",
            "config: process.scheduler, ioPriority, personality, memoryPolicy",
            scheduling::run,
        ),
        step(Process, "resource limits", "config: process.rlimits", limits::run),
        step(Process, "working directory", "config: process.cwd", workdir::run),
        step(Process, "user", "config: process.user, capabilities.bounding", identity::run),
        step(Released, "cgroup namespace", "config-linux: namespaces", cgroup::late_namespace),
        step(Last, "final CPUs", "config: process.execCPUAffinity", affinity::last),
        step(Last, "hooks", "config: hooks.startContainer", hooks::before_program),
        step(Last, "label", "config: process.apparmorProfile, selinuxLabel", label::run),
        step(Last, "landlock", "none: an annotation", landlock::run),
        step(Last, "seccomp", "config-linux: seccomp", filter::before_capabilities),
        step(Last, "capabilities", "config: process.capabilities, noNewPrivileges", capabilities::run),
        step(Last, "seccomp", "config-linux: seccomp", filter::after_capabilities),
        step(Last, "start", "config: process.args", program::run),
    ]
};

/// The child of the fork: does its job and becomes the program, or reports why not.
pub(crate) fn run(job: &Job, mut channel: Channel, mut streams: ChildEnds) -> ! {
    let _guard = ExitOnDrop;
    become_program(job, &mut channel, &mut streams, &mut None);
    exit_now(125)
}

/// The same for a process that shares its parent's memory: comes back when it has failed and has reported why. What
/// else is left at its end, be that the program or an exit, is in `held`.
pub(crate) fn become_program<'a>(
    job: &'a Job,
    channel: &mut Channel,
    streams: &'a mut ChildEnds,
    held: &mut Option<Init<'a>>,
) {
    match work(job, channel, streams, held) {
        Ok(never) => match never {},
        Err(error) => channel.send_failure(&error),
    }
}

/// No value: the work ends in the program or in an error.
enum Never {}

fn work<'a>(
    job: &'a Job,
    channel: &mut Channel,
    streams: &'a mut ChildEnds,
    held: &mut Option<Init<'a>>,
) -> Result<Never> {
    if let Some(detach) = job.detach {
        keep_only_own(job, detach, channel, streams)?;
    }
    let host_proc = enter::host_proc(job)?;
    let listener = filter::connect(job)?;
    for Step { name, run, .. } in STEPS {
        let Run::Alone(run) = run else { break };
        run(job).map_err(|error| error.context(name))?;
    }
    let enter::Entered { root, proc, sources } = enter::run(job, channel, host_proc)?;
    let hooks_channel = match &job.place {
        Place::New { plan, .. } if plan.waits_for_runtime() => Some(channel.try_clone()?),
        _ => None,
    };
    let init = Init {
        job,
        root: ManuallyDrop::new(root),
        proc: ManuallyDrop::new(proc),
        sources: ManuallyDrop::new(sources),
        streams,
        terminal: ManuallyDrop::new(None),
        identity: Identity::default(),
        go: Go::default(),
        listener: ManuallyDrop::new(listener),
        hooks_channel: ManuallyDrop::new(hooks_channel),
        warnings: job.process.warnings.clone(),
        call: None,
    };
    if job.open {
        return take_part(init, channel);
    }
    let init = held.insert(init);
    // Who joins a user namespace gets streams that belong to the root inside only when the parent has seen to that,
    // before it says go; until then they cannot be given to another user.
    let joins_users = matches!(job.place, Place::Existing { .. }) && init.in_user_namespace();
    if joins_users {
        init.go = channel.receive_go()?;
    }
    if matches!(job.place, Place::New { .. }) {
        // The order of the table, so the phases of a new container interleave.
        init.steps(&[Phase::Container, Phase::Process])?;
    } else {
        init.steps(&[Phase::Process])?;
    }
    if job.detach.is_some_and(|detach| detach.gate.is_some()) {
        program::look_up(job.process)?;
    }
    report_ready(init, channel)?;
    if !joins_users {
        init.go = channel.receive_go()?;
    }
    init.steps(&[Phase::Released])?;
    if let Some(gate) = job.detach.and_then(|detach| detach.gate.as_ref()) {
        // The creator has ended, or will: from now on `start` hears of failures.
        *channel = crate::gate::wait(gate)?;
    }
    // Standard streams are 0 to 2, and what was asked to be passed follows; nothing else is the program's
    // (CVE-2024-21626). Before the filter, which need not allow it.
    let first = job.detach.and_then(|detach| detach.preserve_fds.last()).map_or(3, |last| last + 1);
    proa_sys::process::close_on_exec_from(first).map_err(|error| Error::call("close_range", error))?;
    init.steps(&[Phase::Last])?;
    Err(Error::internal("the program was not run"))
}

/// Tells the parent that all steps but the last are done, and hands it the terminal.
fn report_ready(init: &mut Init, channel: &Channel) -> Result<()> {
    use std::os::fd::AsFd;
    let terminal = init.terminal.take();
    if init.job.detach.is_none() {
        // After the change of user, which would undo it. A parent that died before is seen at the channel.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(|errno| Error::call("prctl", errno))?;
    }
    channel
        .send_ready(&init.warnings, terminal.as_ref().map(AsFd::as_fd))
        .map_err(|errno| Error::call("sendmsg", errno))
}

/// The rest of the work in a prepared container.
fn take_part(mut init: Init, channel: &Channel) -> Result<Never> {
    init.steps(&[Phase::Container])?;
    report_ready(&mut init, channel)?;
    init.go = channel.receive_go()?;
    let part = channel.receive_part()?;
    if let Some(name) = &part.hostname {
        rustix::system::sethostname(name.as_bytes()).map_err(|errno| Error::call(name, errno))?;
    }
    let process = ProcessPlan::new(&part.process)?;
    let Job { stdio, scoped, place, .. } = *init.job;
    let stdio = if let Stdio::Terminal(_) = stdio { Stdio::Terminal(part.size) } else { stdio };
    let job = Job {
        process: &process,
        user: &part.user,
        stdio,
        init: None,
        scoped,
        place,
        open: false,
        detach: None,
    };
    let mut init = Init { job: &job, warnings: process.warnings.clone(), ..init };
    init.steps(&[Phase::Process])?;
    report_ready(&mut init, channel)?;
    init.steps(&[Phase::Released])?;
    // As in `work`.
    proa_sys::process::close_on_exec_from(3).map_err(|error| Error::call("close_range", error))?;
    init.steps(&[Phase::Last])?;
    Err(Error::internal("the program was not run"))
}

/// Closes what the caller had open: the process may wait long, and must hold no lock, log or pipe of the caller's.
fn keep_only_own(job: &Job, detach: &Detach, channel: &Channel, streams: &ChildEnds) -> Result<()> {
    use std::os::fd::{AsFd, AsRawFd};
    let mut keep: Vec<u32> =
        (0..3).chain(detach.preserve_fds.iter().copied()).chain(streams.numbers()).collect();
    keep.push(channel.as_fd().as_raw_fd() as u32);
    keep.extend(detach.gate.as_ref().map(|gate| gate.as_raw_fd() as u32));
    keep.extend(job.init.as_ref().map(|init| init.as_fd().as_raw_fd() as u32));
    if let Place::Existing { pidfd, root, .. } = &job.place {
        keep.push(pidfd.as_raw_fd() as u32);
        keep.extend(root.map(|root| root.as_raw_fd() as u32));
    }
    // SAFETY: this is the child of a fork, which uses what is kept and never returns, so that no destructor of
    // what the caller held runs here.
    unsafe { proa_sys::job::close_others(keep) }.map_err(|error| Error::call("close_range", error))
}

impl<'a> Init<'a> {
    fn steps(&mut self, phases: &[Phase]) -> Result<()> {
        for step in STEPS.iter().filter(|step| phases.contains(&step.phase)) {
            if let Run::Within(run) = step.run {
                run(self).map_err(|error| error.context(step.name))?;
            }
        }
        Ok(())
    }

    /// Whether the process is in a user namespace other than the runtime's.
    fn in_user_namespace(&self) -> bool {
        match &self.job.place {
            Place::New { plan, .. } => plan.namespaces.has_user(),
            Place::Existing { namespaces, .. } => namespaces & crate::plan::namespaces::USER != 0,
        }
    }

    /// The container's plan, in steps of the container's phase.
    fn plan(&self) -> Result<&'a Plan<'a>> {
        match &self.job.place {
            Place::New { plan, .. } => Ok(plan),
            Place::Existing { .. } => Err(Error::internal("step of a new container in an old one")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_keeps_what_depends_on_it() {
        let at = |name: &str| STEPS.iter().position(|step| step.name == name).unwrap();
        let ordered =
            |names: &[&str]| assert!(names.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{names:?}");
        ordered(&[
            "root",
            "mounts",
            "sysctl",
            "read-only paths",
            "pivot",
            "working directory",
            "user",
            "start",
        ]);
        ordered(&["mounts", "hooks", "streams", "pivot"]);
        ordered(&["user", "landlock", "seccomp", "capabilities", "start"]);
        ordered(&["namespaces", "loopback", "root"]);
        assert!(STEPS.iter().all(|step| !step.section.is_empty()));
    }

    #[test]
    fn phases_do_not_go_back() {
        let last = STEPS.iter().position(|step| step.phase == Phase::Last).unwrap();
        assert!(STEPS[last..].iter().all(|step| step.phase == Phase::Last));
        let with_root = STEPS.iter().position(|step| step.phase != Phase::Alone).unwrap();
        assert!(STEPS[with_root..].iter().all(|step| step.phase != Phase::Alone));
    }
}
