//! One container, from creation to removal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use proa_oci::runtime::{ConsoleSize, Hooks, IdMapping, Linux, Process, Resources, Spec};
use proa_oci::state::{State as OciState, Status};
use proa_protocol::message::{ErrorKind, ProcessInfo, Stats};
use proa_sys::userns;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::sched_getaffinity;
use rustix::time::{ClockId, clock_gettime};

use crate::cgroup::{Below, Cgroup, Wanted};
use crate::channel::Channel;
use crate::fork::{
    can_remount, end, fork, fork_first, go, help_in_user_namespace, is_running, is_scoped, open_namespace,
    share, try_wait, wait_program, wait_ready, write_id_maps,
};
use crate::hooks::{self, HookKind};
use crate::init::{Job, Place};
use crate::plan::{Common, Plan, ProcessPlan, namespaces};
use crate::seccomp::Filter;
use crate::{Error, Result, hostroot, netdev, processes, rootfs, sources};

mod detached;
mod prepared;

pub use detached::{Detach, Existing};
pub use prepared::Part;

/// Where the root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// An overlay, mounted by the runtime in the container's mount namespace.
    Overlay {
        /// Directories with the read-only layers, already mounted, lowest first.
        lowers: Vec<PathBuf>,
        /// The writable layer.
        upper: PathBuf,
        /// overlayfs' work directory, on the same file system as `upper`.
        work: PathBuf,
        /// How owners of the layers' files translate to those of the writable layer; empty where they are the same.
        owners: Owners,
    },
    /// A directory, bound as it is.
    Directory(PathBuf),
}

/// Ids of a read-only layer (`container_id`) and those they appear as (`host_id`), as in the maps of the container's
/// own user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owners {
    /// Of users.
    pub uids: Vec<IdMapping>,
    /// Of groups.
    pub gids: Vec<IdMapping>,
}

impl Owners {
    /// Whether all stay as they are.
    pub fn are_same(&self) -> bool {
        self.uids.is_empty()
    }

    /// Whom a layer's file belongs to outside; `None` for one that the map does not have.
    pub(crate) fn outside(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        if self.are_same() {
            return Some((uid, gid));
        }
        Some((translate(&self.uids, uid)?, translate(&self.gids, gid)?))
    }
}

/// The id outside of one inside.
pub(crate) fn translate(map: &[IdMapping], id: u32) -> Option<u32> {
    map.iter().find_map(|range| {
        let offset = id.checked_sub(range.container_id).filter(|offset| *offset < range.size)?;
        range.host_id.checked_add(offset)
    })
}

/// What a process has as standard input, output and error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdio {
    /// `/dev/null` for all three.
    Null,
    /// A pipe each.
    Pipes {
        /// Whether standard input is a pipe; otherwise it is `/dev/null`.
        stdin: bool,
    },
    /// A terminal of the container's own `/dev/pts`.
    Terminal(ConsoleSize),
    /// Those of the caller.
    Inherit,
}

/// Our ends of a process's streams, all close-on-exec and blocking.
#[derive(Debug, Default)]
pub struct Handles {
    /// Write end of standard input.
    pub stdin: Option<OwnedFd>,
    /// Read end of standard output.
    pub stdout: Option<OwnedFd>,
    /// Read end of standard error.
    pub stderr: Option<OwnedFd>,
    /// Master of the terminal.
    pub terminal: Option<OwnedFd>,
}

/// Whether the container gets cgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CgroupPolicy {
    /// At once where something is limited or the kernel makes it cheap, else by [`Container::join_cgroup_late`].
    #[default]
    Auto,
    /// At once, whatever is limited; refused where there is none to be had.
    Required,
    /// Never: for hosts without cgroups. A spec that limits something is refused.
    Disabled,
    /// A scope that systemd makes, at once; the spec's path is `slice:prefix:name`. By the bus at this address, of the
    /// system's systemd or, in a user namespace, of the user's.
    Systemd(&'static str),
}

/// Who makes a container's network interfaces, but for the loopback one.
pub trait Interfaces: std::fmt::Debug {
    /// Makes them in the network namespace of the first process, which is new and waits for them.
    ///
    /// # Errors
    /// A line for the user.
    fn make(&self, pid: u32) -> std::result::Result<(), String>;
}

/// What [`Container::create`] needs.
#[derive(Debug)]
pub struct Create<'a> {
    /// Instance id: names the cgroup.
    pub id: &'a str,
    /// The runtime spec; its `root.path` is not used.
    pub spec: &'a Spec,
    /// The root file system.
    pub rootfs: Rootfs,
    /// Docker's `--user`, resolved in the root; empty for the spec's numeric user. Docker's own default is `0`.
    pub user: &'a str,
    /// Streams of the first process.
    pub stdio: Stdio,
    /// Run a minimal init as PID 1 (needs a statically linked executable that calls [`crate::init_main`]).
    pub init: bool,
    /// Whether it gets cgroups.
    pub cgroup: CgroupPolicy,
    /// Who makes its network interfaces; a new network namespace without has the loopback one alone.
    pub interfaces: Option<&'a dyn Interfaces>,
    /// Absolute path of its bundle, for hooks and seccomp listeners.
    pub bundle: &'a Path,
    /// Whether the root and all mounts are `nodev` unless the spec says `dev` (invariant 11). Otherwise they are what
    /// the spec says.
    pub nodev: bool,
    /// Mounts that are there already, for bind mounts of the spec at these destinations.
    pub taken: &'a [Taken],
    /// Processes of [`Container::exec`] share the caller's memory until their program runs: where the CPU is emulated,
    /// a copy takes a fifth of an exec. When a cgroup's memory runs out the kernel may kill all who share memory with
    /// a process of it, so this is for a caller whom it never kills: the first process of a machine.
    pub shares_memory: bool,
}

/// A mount that no path of the caller's leads to, detached.
#[derive(Debug)]
pub struct Taken {
    /// Path inside of the spec's bind mount whose source this is.
    pub destination: String,
    /// The mount.
    pub mount: OwnedFd,
}

/// A process started by [`Container::exec`]; a child of the caller, who must reap it.
#[derive(Debug)]
pub struct Child {
    /// Its id in our pid namespace.
    pub pid: u32,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// What was asked for and could not be granted, one line each.
    pub warnings: Vec<String>,
}

impl Child {
    /// Reaps it if it has ended: its exit code, 128 + n after signal n.
    ///
    /// # Errors
    /// It has been reaped already.
    pub fn try_wait(&self) -> Result<Option<i32>> {
        try_wait(self.pidfd.as_fd())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// The signal is not known, or it has ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        pidfd_send_signal(&self.pidfd, signal_number(signal)?).map_err(|errno| Error::call("signal", errno))
    }
}

/// A container: created, then started, then deleted. Its first process is a child of the caller.
#[derive(Debug)]
pub struct Container {
    pid: u32,
    pidfd: OwnedFd,
    /// Set once it is set up.
    mount_namespace: Option<OwnedFd>,
    /// Held so that its end comes later than that of the last process, which the kernel would delay for it.
    ipc: Option<OwnedFd>,
    state: State,
    cgroup: Cgroup,
    /// Namespaces of its own, as flags of `setns`.
    namespaces: u64,
    /// Killing the first process kills all.
    owns_pids: bool,
    /// Its processes cannot connect to abstract sockets made outside.
    scoped: bool,
    /// As in [`Create`].
    shares_memory: bool,
    filter: Filter,
    /// What every process of it has.
    common: Common,
    /// What its hooks and listeners are told.
    oci_state: OciState,
    hooks: Option<Hooks>,
    /// Processes that `exec` started.
    children: Vec<(u32, OwnedFd)>,
    warnings: Vec<String>,
}

/// Where it is in its life.
#[derive(Debug)]
enum State {
    /// The first process waits for the word to run its program.
    Created(Channel),
    /// It has had it.
    Started,
}

/// How far the making of a container goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aim {
    /// Its first process waits just before `exec`.
    Create,
    /// Its program runs.
    Run,
    /// Its first process waits for its [`Part`].
    Prepare,
}

impl Container {
    /// Makes the container; its first process waits just before `exec`.
    ///
    /// # Errors
    /// Names the step that failed. Nothing is left behind.
    pub fn create(create: Create) -> Result<(Self, Handles)> {
        Self::make(&create, None, Aim::Create, |_| Ok(()))
    }

    /// Makes the container and runs its program: [`Container::create`] and [`Container::start`] without a stop
    /// between them.
    ///
    /// # Errors
    /// Those of both. Nothing is left behind.
    pub fn run(create: Create) -> Result<(Self, Handles)> {
        Self::make(&create, None, Aim::Run, |_| Ok(()))
    }

    /// `forked` is called as soon as there is a first process.
    fn make(
        create: &Create,
        detach: Option<&Detach>,
        aim: Aim,
        forked: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<(Self, Handles)> {
        let none = Linux::default();
        let linux = create.spec.linux.as_ref().unwrap_or(&none);
        let mut plan = Plan::new(create.id, create.spec, linux)?;
        plan.state.bundle = create.bundle.display().to_string();
        plan.as_written = !create.nodev;
        plan.taken = create.taken;
        if create.interfaces.is_some() {
            plan.namespaces.network_at_clone()?;
        }
        if plan.process.is_none() && detach.is_none_or(|detach| detach.gate.is_none()) {
            return Err(Error::invalid("the spec has no process"));
        }
        if !plan.namespaces.has_mount() {
            hostroot::check(create)?;
        }
        let mut warnings = std::mem::take(&mut plan.warnings);
        let at_once = must_join_at_once(&plan, detach.is_some());
        let annotations = &create.spec.annotations;
        let wanted = Wanted { id: create.id, linux, annotations, policy: create.cgroup, at_once };
        let cgroup = Cgroup::create(&wanted, &mut warnings)?;
        // Device rules that do not hold yet when the program starts could be got round (invariant 11).
        if create.nodev || !cgroup.holds_at_start() {
            plan.bind_devices();
        }
        let (first, handles) = fork_first(create, &plan, &cgroup, aim, detach).inspect_err(|_| {
            // The error that counts is the first.
            let _ = cgroup.remove();
        })?;
        let pid = first.pid;
        let mut container = Self {
            pid,
            pidfd: first.pidfd,
            mount_namespace: None,
            ipc: None,
            state: State::Created(first.channel),
            cgroup,
            namespaces: plan.namespaces.all,
            owns_pids: plan.namespaces.new_pid(),
            scoped: is_scoped(create.spec),
            shares_memory: create.shares_memory,
            filter: Filter::default(),
            oci_state: OciState { pid, ..plan.state.clone() },
            common: plan.common.clone(),
            hooks: plan.hooks.cloned(),
            children: Vec::new(),
            warnings,
        };
        let started = forked(&container).and_then(|()| container.start_scope());
        let made = started.and_then(|()| {
            let made = container.set_up(create, &plan, handles, aim != Aim::Create);
            // Where the process is gone, what is done to it fails as well.
            made.map_err(|error| {
                container.channel().map_or_else(|other| other, |channel| channel.cause_of(error))
            })
        });
        let run = aim == Aim::Run;
        match made.and_then(|handles| if run { container.started().map(|()| handles) } else { Ok(handles) }) {
            Ok(handles) => Ok((container, handles)),
            Err(error) => {
                let _ = container.delete();
                Err(error)
            }
        }
    }

    /// The parent's part, beside what the first process does. With `run` it gets the word to go on.
    fn set_up(&mut self, create: &Create, plan: &Plan, mut handles: Handles, run: bool) -> Result<Handles> {
        let channel = self.channel()?;
        if plan.namespaces.new_user() {
            write_id_maps(self.pid, [&plan.linux.uid_mappings, &plan.linux.gid_mappings])?;
        }
        let mut refused = Vec::new();
        if plan.namespaces.has_user() {
            refused = help_in_user_namespace(self.pid, self.pid, plan.process.spec.oom_score_adj, &handles)?;
        }
        let sources = if plan.takes_sources() { sources::take_outside(plan, self.pid)? } else { Vec::new() };
        let root = rootfs::mount(&create.rootfs, plan, self.pid)?;
        // It may have failed already: then its report says why, and these errors count after it.
        let sent = channel.send_root(root.as_ref().map(AsFd::as_fd), &sources);
        drop((root, sources));
        if let Some(interfaces) = create.interfaces {
            interfaces.make(self.pid).map_err(Error::internal)?;
        }
        let namespace = open_namespace(self.pid);
        let filter = plan.linux.seccomp.as_ref().map(Filter::new).transpose()?.unwrap_or_default();
        self.cgroup.attach(self.pid)?;
        // Given early, the word saves a stop; but where there is something to do between, that comes first.
        let early = run && !plan.waits_for_runtime();
        let word = || go(channel, &filter.for_process(self.pid, &self.oci_state));
        let gone = if early { word() } else { Ok(()) };
        let hooks = plan.hooks.map(|hooks| (hooks, &self.oci_state));
        let (terminal, warnings) = wait_ready(channel, || {
            netdev::move_all(plan.linux, self.pid)?;
            runtime_hooks(hooks)
        })?;
        sent.map_err(|errno| Error::call("sendmsg", errno))?;
        gone?;
        if run && !early {
            word()?;
        }
        handles.terminal = terminal;
        self.warnings.extend(refused.into_iter().chain(warnings));
        self.mount_namespace = Some(namespace?);
        self.filter = filter;
        Ok(handles)
    }

    /// The first process waits for its root meanwhile.
    fn start_scope(&mut self) -> Result<()> {
        self.cgroup.start_scope(self.pid, &mut self.warnings)
    }

    fn channel(&self) -> Result<&Channel> {
        match &self.state {
            State::Created(channel) => Ok(channel),
            State::Started => Err(Error::new(ErrorKind::Conflict, "the container has been started already")),
        }
    }

    /// Waits until the program runs.
    fn started(&mut self) -> Result<()> {
        wait_program(self.channel()?)?;
        self.state = State::Started;
        self.oci_state.status = Status::Running;
        let Some(hooks) = &self.hooks else { return Ok(()) };
        hooks::run(HookKind::Poststart, hooks, &self.oci_state)
    }

    /// Lets the first process `exec` the program.
    ///
    /// # Errors
    /// The kind tells "not found" (127) from "cannot be run" (126). The container must then be deleted.
    pub fn start(&mut self) -> Result<()> {
        self.oci_state.status = Status::Created;
        go(self.channel()?, &self.filter.for_process(self.pid, &self.oci_state))?;
        self.started()
    }

    /// Runs another process in the container.
    ///
    /// # Errors
    /// As for [`Container::start`].
    pub fn exec(&mut self, process: &Process, user: &str, stdio: Stdio) -> Result<(Child, Handles)> {
        self.exec_as(process, user, stdio, None)
    }

    fn exec_as(
        &mut self,
        process: &Process,
        user: &str,
        stdio: Stdio,
        detach: Option<&Detach>,
    ) -> Result<(Child, Handles)> {
        let plan = ProcessPlan::new(process)?;
        // Elsewhere it comes with the mount namespace.
        let root = (self.namespaces & namespaces::MOUNT == 0).then(|| self.root()).transpose()?;
        let place = Place::Existing {
            pidfd: self.pidfd.as_fd(),
            root: root.as_ref().map(AsFd::as_fd),
            namespaces: self.namespaces & !namespaces::PID,
            listener: self.filter.listener.as_ref().map(|listener| listener.path.as_str()),
            common: &self.common,
        };
        let scoped = self.scoped;
        let job = Job { process: &plan, user, stdio, init: None, scoped, place, open: false, detach };
        let join_pid = (self.namespaces & namespaces::PID != 0).then(|| self.pidfd.as_fd());
        let below = detach.map_or(Ok(None), |detach| self.cgroup.below(&detach.sub_cgroups))?;
        let target = match &below {
            Some(Below::Fork(dir)) => Some(dir.try_clone().map_err(|error| Error::call("dup", error))?),
            Some(Below::Attach(_)) => None,
            None => self.cgroup.fork_target()?,
        };
        let is_born_inside = below.as_ref().map_or(!self.cgroup.attaches(), |_| target.is_some());
        // Where there is nothing left to be done for it from outside, it does not stop to hear that.
        let is_ready =
            is_born_inside && self.filter.listener.is_none() && self.namespaces & namespaces::USER == 0;
        let can_share = self.shares_memory && is_ready && detach.is_none() && userns::is_initial();
        let (forked, mut handles) = if can_share && self.namespaces & namespaces::TIME == 0 {
            share(&job, join_pid, target, &self.filter)
        } else {
            fork(&job, 0, join_pid, target, is_ready.then_some(&self.filter))
        }?;
        let run = || {
            let mut warnings = Vec::new();
            if self.namespaces & namespaces::USER != 0 {
                warnings = help_in_user_namespace(forked.pid, self.pid, process.oom_score_adj, &handles)?;
            }
            below
                .as_ref()
                .map_or_else(|| self.cgroup.attach(forked.pid), |below| below.attach(forked.pid))?;
            let gone = if is_ready {
                Ok(())
            } else {
                go(&forked.channel, &self.filter.for_process(forked.pid, &self.oci_state))
            };
            let (terminal, more) = wait_ready(&forked.channel, || Ok(()))?;
            warnings.extend(more);
            gone.and_then(|()| wait_program(&forked.channel)).map(|()| (terminal, warnings))
        };
        let (terminal, warnings) = run().inspect_err(|_| {
            end(forked.pidfd.as_fd());
        })?;
        handles.terminal = terminal;
        let pidfd = forked.pidfd.try_clone().map_err(|error| Error::call("dup", error))?;
        self.children.retain(|(_, child)| is_running(child.as_fd()));
        self.children.push((forked.pid, forked.pidfd));
        Ok((Child { pid: forked.pid, pidfd, warnings }, handles))
    }

    /// The first process in our pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Readable when the first process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its user namespace, if that is another than ours.
    ///
    /// # Errors
    /// The first process is gone.
    pub fn user_namespace(&self) -> Result<Option<OwnedFd>> {
        let has_own = self.namespaces & namespaces::USER != 0;
        has_own.then(|| sources::open(self.pid)).transpose()
    }

    /// Its mount namespace. As long as somebody holds it, the mounts are not undone at the end of the last process.
    pub fn mount_namespace(&self) -> Option<BorrowedFd<'_>> {
        self.mount_namespace.as_ref().map(AsFd::as_fd)
    }

    /// Reaps the first process if it has ended: its exit code, 128 + n after signal n.
    ///
    /// # Errors
    /// It has been reaped already.
    pub fn try_wait(&self) -> Result<Option<i32>> {
        try_wait(self.pidfd.as_fd())
    }

    /// What was asked for and could not be granted, one line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Sends a signal to the first process, or to all.
    ///
    /// # Errors
    /// The signal is not known, or there is no such process any more.
    pub fn signal(&self, signal: i32, all: bool) -> Result<()> {
        let signal = signal_number(signal)?;
        if all && !(signal == Signal::KILL && self.cgroup.kill()) {
            self.members()
                .into_iter()
                .filter(|pid| *pid != self.pid)
                .for_each(|pid| self.signal_member(pid, signal));
        }
        pidfd_send_signal(&self.pidfd, signal).map_err(|errno| match errno {
            Errno::SRCH => Error::new(ErrorKind::Conflict, "the container's first process has ended"),
            errno => Error::call("signal", errno),
        })
    }

    /// A process id may have passed on to a process of the host since it was listed: a descriptor holds on to
    /// whatever it is now, and that is looked at first.
    fn signal_member(&self, pid: u32, signal: Signal) {
        let Some(id) = Pid::from_raw(pid as i32) else { return };
        let Ok(pidfd) = pidfd_open(id, PidfdFlags::empty()) else { return };
        let own = processes::pid_namespace(self.pid);
        let is_member =
            if self.owns_pids { processes::pid_namespace(pid) == own } else { self.members().contains(&pid) };
        if is_member {
            // It may end at any moment.
            let _ = pidfd_send_signal(&pidfd, signal);
        }
    }

    /// All processes, by cgroup where they are surely in it, else by descent.
    fn members(&self) -> Vec<u32> {
        if !self.owns_pids
            && let Some(pids) = self.cgroup.processes()
        {
            return pids;
        }
        let mut pids: Vec<u32> =
            if is_running(self.pidfd.as_fd()) { processes::descendants(self.pid) } else { vec![] };
        let children = self.children.iter().filter(|(_, child)| is_running(child.as_fd()));
        pids.extend(children.flat_map(|(pid, _)| processes::descendants(*pid)));
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Makes the cgroup, where that was put off (cgroup v1, nothing limited). Whether there may be processes for
    /// [`Container::move_into_cgroup`] then.
    ///
    /// # Errors
    /// The cgroup cannot be made.
    pub fn make_cgroup_late(&mut self) -> Result<bool> {
        self.cgroup.make_late()
    }

    /// Moves what runs in the container into its cgroup. The kernel takes tens of milliseconds for that, so it may
    /// be done in a forked copy of the caller that keeps [`Container::descriptors`].
    ///
    /// # Errors
    /// The cgroup cannot be joined.
    pub fn move_into_cgroup(&self) -> Result<()> {
        self.cgroup.move_in(|| self.members())
    }

    /// The descriptors by which it knows its processes.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.pidfd.as_fd()).chain(self.children.iter().map(|(_, child)| child.as_fd()))
    }

    /// Puts what runs in the container into its cgroup, where that was put off (cgroup v1, nothing limited).
    /// Call it some 50 ms after a start and after an exec; it does nothing where nothing is to be done.
    ///
    /// # Errors
    /// The cgroup cannot be made or joined.
    pub fn join_cgroup_late(&mut self) -> Result<()> {
        if self.make_cgroup_late()? { self.move_into_cgroup() } else { Ok(()) }
    }

    /// Sets other limits, those that `resources` names; what it leaves out, and the device rules, stay as they are.
    /// A container that has not joined its cgroup yet joins it. Returns what could not be granted, one line each.
    ///
    /// # Errors
    /// A limit cannot be set; those before it are in force then.
    pub fn update(&mut self, resources: &Resources) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        // Taken out, since the members are asked for meanwhile.
        let mut cgroup = std::mem::replace(&mut self.cgroup, Cgroup::None);
        let updated = cgroup.update(resources, || self.members(), &mut warnings);
        self.cgroup = cgroup;
        updated.map(|()| warnings)
    }

    /// Resource use now.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub fn stats(&self) -> Result<Stats> {
        let now = clock_gettime(ClockId::Realtime);
        let mut stats = Stats { at_ns: now.tv_sec * 1_000_000_000 + now.tv_nsec, ..Stats::default() };
        stats.online_cpus = sched_getaffinity(None).map_or(1, |cpus| cpus.count());
        let machine = rustix::system::sysinfo();
        stats.memory_total = machine.totalram as u64 * u64::from(machine.mem_unit);
        if !self.cgroup.stats(&mut stats) {
            let members = self.members();
            let usages: Vec<_> = members.iter().filter_map(|pid| processes::usage(*pid)).collect();
            stats.cpu_total_ns = usages.iter().map(|(cpu, _)| cpu).sum();
            stats.memory_usage = Some(usages.iter().map(|(_, rss)| rss).sum());
            stats.pids = Some(members.len() as u64);
        } else if self.cgroup.joins_late() {
            // What they held before they joined is charged elsewhere; it is this much at least.
            let held = self.members().into_iter().filter_map(processes::usage).map(|(_, rss)| rss).max();
            stats.memory_usage = stats.memory_usage.max(held);
        }
        // The host's own interfaces are not the container's doing.
        if self.namespaces & namespaces::NETWORK != 0 {
            (stats.net_rx_bytes, stats.net_tx_bytes) = processes::network(self.pid).unzip();
        }
        Ok(stats)
    }

    /// All processes of the container.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn processes(&self) -> Result<Vec<ProcessInfo>> {
        let teller = processes::Teller::new();
        Ok(self.members().into_iter().filter_map(|pid| teller.tell(pid)).collect())
    }

    /// Freezes all processes.
    ///
    /// # Errors
    /// There is no freezer.
    pub fn pause(&mut self) -> Result<()> {
        self.join_cgroup_late()?;
        self.cgroup.freeze(true)
    }

    /// Thaws them.
    ///
    /// # Errors
    /// There is no freezer.
    pub fn resume(&mut self) -> Result<()> {
        self.cgroup.freeze(false)
    }

    /// Whether the kernel killed something in the container for memory; ask before [`Container::delete`].
    pub fn oom_killed(&self) -> bool {
        self.cgroup.oom_killed()
    }

    /// Becomes ready when something in the container is killed for memory; `None` where memory is not limited.
    pub fn watch_oom(&self) -> Option<crate::OomWatch> {
        self.cgroup.watch_oom()
    }

    /// The container's root directory with all its mounts, for [`crate::archive`]; valid while it runs.
    ///
    /// # Errors
    /// The first process has ended.
    pub fn root(&self) -> Result<OwnedFd> {
        let path = format!("/proc/{}/root", self.pid);
        let root = rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        // Only now is it sure that the number was still that of our process.
        if !is_running(self.pidfd.as_fd()) {
            return Err(Error::new(ErrorKind::Conflict, "the container's first process has ended"));
        }
        root.map_err(|errno| Error::at(path, errno))
    }

    /// Kills what still runs, reaps it, and removes the cgroups.
    ///
    /// # Errors
    /// Something could not be removed.
    pub fn delete(self) -> Result<()> {
        self.kill_all()?;
        self.cgroup.remove()?;
        let Some(hooks) = &self.hooks else { return Ok(()) };
        let state = OciState { pid: 0, ..self.oci_state.clone() };
        hooks::run(HookKind::Poststop, hooks, &state)
            .map_err(|error| error.context("the container is gone, but"))
    }

    /// Kills what still runs, and reaps what is ours of it.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill_all(&self) -> Result<()> {
        // A frozen process dies when it is thawed.
        let killed = self.cgroup.kill();
        if !self.owns_pids && !killed {
            self.kill_members();
        }
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        if self.cgroup.processes().is_some() {
            let _ = self.cgroup.freeze(false);
        }
        // The first process of a pid namespace ends when all others have been reaped, ours among them.
        for (_, child) in &self.children {
            end(child.as_fd());
        }
        if !end(self.pidfd.as_fd()) {
            return Err(Error::internal(format!("process {} did not end within 10 s of SIGKILL", self.pid)));
        }
        Ok(())
    }

    /// Without a pid namespace of its own: kill until nobody is left to fork another.
    fn kill_members(&self) {
        for _ in 0..100 {
            let members = self.members();
            if members.is_empty() {
                break;
            }
            members.into_iter().for_each(|pid| self.signal_member(pid, Signal::KILL));
            let _ = self.cgroup.freeze(false);
        }
    }
}

/// Those that run before `pivot_root`, in our namespaces.
fn runtime_hooks(hooks: Option<(&Hooks, &OciState)>) -> Result<()> {
    let Some((hooks, state)) = hooks else { return Ok(()) };
    hooks::run(HookKind::Prestart, hooks, state)?;
    hooks::run(HookKind::CreateRuntime, hooks, state)
}

/// A signal by its number.
///
/// # Errors
/// The kernel has none of that number.
pub fn signal_number(signal: i32) -> Result<Signal> {
    // SAFETY: the number is checked to be one of the kernel's signals, real-time ones included.
    let known = (1..=64).contains(&signal).then(|| unsafe { Signal::from_raw_unchecked(signal) });
    known.ok_or_else(|| Error::invalid(format!("signal {signal} is not known")))
}

/// Whether a container must be in its cgroup before its program starts, though nothing is limited. Who names the
/// cgroup of a container that outlives its creator looks for it there as soon as it is created.
fn must_join_at_once(plan: &Plan, detached: bool) -> bool {
    let is_named = plan.linux.cgroups_path.as_ref().is_some_and(|path| !path.is_empty());
    let must = !plan.namespaces.new_pid() || can_remount(&plan.process.capabilities);
    must || detached && (is_named || plan.binds_devices())
}
