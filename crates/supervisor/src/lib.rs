//! One container's processes served over frames, on the host and in the guest alike.
//!
//! ```text
//!                 ┌──────────── start fails ───────────┐
//!                 ▼                                    │
//!   new ─────▶ Ready ──Start──▶ Running ◀──▶ Paused    │
//!                │ └──────────────┼───────────┼────────┘
//!                │ files          └──── first process has ended, its output is read
//!                ▼                                 ▼
//!               Held                             Ended ──▶ delete()
//!       (root mounted, nothing runs)
//! ```
//!
//! In a guest that is to be saved, Ready becomes Prepared: the container is made but for what runs in it, which
//! [`Supervisor::cast`] tells. From there it goes on as from Ready, in less time.
//!
//! The owner moves frames: [`Supervisor::handle`] takes what clients sent, [`Supervisor::pop`] gives what they
//! are to get. It polls what [`Supervisor::poll_fds`] names, passes readiness to [`Supervisor::ready`], and calls
//! [`Supervisor::tick`] after each round. Nothing here blocks, but for creating a container and the kernel calls
//! on cgroups; work on files is done by forked jobs.
//!
//! Contract: no more than a window is held for a channel in each direction (the last output of a process that
//! has ended excepted, see `channel`). Output reaches all its readers or none, so the slowest sets the pace.
//! A process's end is told after its output. Whoever attaches before the start misses nothing.
//!
//! [`Channels`], [`Input`] and [`Output`] keep that contract, for a machine's console as well, whose monitor uses them.

mod adopt;
mod channel;
mod devices;
mod files;
mod job;
mod poll;
mod process;
mod requests;
mod stream;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proa_oci::runtime::{ConsoleSize, NamespaceKind, Spec};
use proa_protocol::frame::{Frame, Kind};
use proa_protocol::message::{ErrorKind, ExitStatus, Happening, LaunchConfig, Request, Response};
use proa_runtime::{
    CgroupPolicy, Container, Create, Error, Handles, Interfaces, OomWatch, Part, Rootfs, Stdio, Taken,
};
use rustix::event::PollFlags;
use rustix::process::{WaitId, WaitIdOptions, waitid};

pub use crate::channel::{Channel, Channels, Key, Role};
pub use crate::files::root_outside;
pub use crate::poll::{HOST_TOKENS, PollSet};
pub use crate::stream::{Found, Input, Output, non_blocking};

use crate::job::Job;
use crate::process::Process;

/// The first process's name in tokens and channels.
const FIRST: Key = 0;
/// The name of the child that moves processes into the cgroup.
const JOINER: Key = 1;
/// The name of what tells that memory ran out.
const MEMORY: Key = 2;
/// When processes join the cgroup that they were spared at their start.
const LATE_JOIN: Duration = Duration::from_millis(50);

/// What a supervisor is told about its container.
#[derive(Debug)]
pub struct SupervisorConfig {
    /// Instance id.
    pub id: String,
    /// The runtime spec.
    pub spec: Spec,
    /// What the spec has no field for.
    pub launch: LaunchConfig,
    /// The root file system.
    pub rootfs: Rootfs,
    /// Directory for the files that are bound into the root; made when needed.
    pub scratch: PathBuf,
    /// Whether the container gets cgroups.
    pub cgroup: CgroupPolicy,
    /// Who makes its network interfaces.
    pub interfaces: Option<Box<dyn Interfaces>>,
    /// Sources of bind mounts that are no paths.
    pub taken: Vec<Taken>,
    /// Processes of exec share the caller's memory at first; see [`Create`].
    pub shares_memory: bool,
}

/// Where a supervisor is in its container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Nothing was started, or its start failed.
    Ready,
    /// The root is there; nothing runs.
    Held,
    /// The first process runs; its id where the supervisor runs.
    Running(u32),
    /// All processes are frozen.
    Paused(u32),
    /// The first process has ended and its output was read.
    Ended(ExitStatus),
}

/// What of a process or job a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Pid = 0,
    Input = 1,
    Stdout = 2,
    Stderr = 3,
}

fn token(key: Key, slot: Slot) -> u64 {
    u64::from(key) << 2 | slot as u64
}

fn from_token(token: u64) -> (Key, Slot) {
    let slot = match token & 3 {
        0 => Slot::Pid,
        1 => Slot::Input,
        2 => Slot::Stdout,
        _ => Slot::Stderr,
    };
    ((token >> 2) as Key, slot)
}

/// Serves one container; see the crate's documentation.
pub struct Supervisor {
    state: State,
    channels: Channels,
    processes: Processes,
    jobs: BTreeMap<Key, Job>,
    next_key: Key,
    size: Option<ConsoleSize>,
    /// It runs already, and is to go on with its start.
    adopted: bool,
}

/// The processes that run or have news to tell.
#[derive(Default)]
struct Processes {
    first: Option<Process>,
    execs: BTreeMap<Key, Process>,
}

impl Processes {
    fn get(&mut self, key: Key) -> Option<&mut Process> {
        if key == FIRST { self.first.as_mut() } else { self.execs.get_mut(&key) }
    }

    fn iter(&self) -> impl Iterator<Item = &Process> {
        self.first.iter().chain(self.execs.values())
    }
}

enum State {
    Ready(Box<SupervisorConfig>),
    Prepared(Box<Prepared>),
    Live(Box<Live>),
    Ended(ExitStatus, Box<Live>),
    Deleted,
}

/// A container whose first process waits for its part.
struct Prepared {
    config: Box<SupervisorConfig>,
    live: Live,
    handles: Handles,
}

/// How far a container is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    /// Its program runs.
    Run,
    /// Its root is there to be worked on.
    Hold,
    /// It waits for the part of its first process.
    Prepare,
}

/// Keeps the mounts of a container that was deleted. The kernel takes milliseconds to undo them, which nobody need
/// wait for who only wants to know how it ended. They vanish when this is dropped.
#[derive(Debug)]
pub struct Mounts(#[expect(dead_code, reason = "held, not used")] OwnedFd);

/// A container that exists, and what later requests need of its configuration.
struct Live {
    container: Container,
    mounts: Mounts,
    rootfs: Rootfs,
    mountpoints: Vec<String>,
    files: files::Written,
    /// Its pid namespace ends with the first process, and all other processes with it.
    own_pids: bool,
    held: bool,
    paused: bool,
    late_join: Option<Instant>,
    /// Tells that memory ran out, where it is limited.
    memory: Option<OomWatch>,
    /// Does the late join: the kernel takes tens of milliseconds for it, in which clients must not wait.
    joiner: Option<proa_sys::job::Job>,
}

impl Supervisor {
    /// A supervisor that has done nothing yet.
    pub fn new(config: SupervisorConfig) -> Self {
        Self {
            state: State::Ready(Box::new(config)),
            channels: Channels::default(),
            processes: Processes::default(),
            jobs: BTreeMap::new(),
            next_key: MEMORY + 1,
            size: None,
            adopted: false,
        }
    }

    /// Takes a frame from a client; its channel names the conversation. A first frame that is not a request
    /// (the rest of a conversation that we have ended) is dropped.
    pub fn handle(&mut self, frame: Frame) {
        let Frame { channel, kind, payload } = frame;
        match kind {
            Kind::Request => match Request::parse(&payload) {
                Ok(request) => self.request(channel, request),
                Err(error) => {
                    self.channels.open(channel);
                    self.channels.fail(channel, ErrorKind::InvalidInput, format!("not a request: {error}"));
                }
            },
            Kind::Stdin | Kind::Data => self.stream_in(channel, kind, payload),
            Kind::Credit => self.channels.credit(channel, Frame { channel, kind, payload }.credited()),
            Kind::Close => self.channel_closed(channel),
            Kind::Response | Kind::Stdout | Kind::Stderr => {
                self.expel(channel, "clients send no such frames")
            }
        }
    }

    /// The client of a channel is gone: what it joined runs on, but its own input ends and its job is dropped.
    pub fn channel_closed(&mut self, channel: u32) {
        let role = self.channels.remove(channel);
        self.leave(role);
    }

    /// Adds what to wait for. Tokens are below [`HOST_TOKENS`].
    pub fn poll_fds<'fd>(&'fd self, set: &mut PollSet<'fd>) {
        for process in self.processes.iter() {
            process.poll_fds(&self.channels, set);
        }
        for job in self.jobs.values() {
            job.poll_fds(&self.channels, set);
        }
        if let Some(joiner) = self.live().and_then(|live| live.joiner.as_ref()) {
            set.add(token(JOINER, Slot::Pid), joiner.pidfd.as_fd(), PollFlags::IN);
        }
        if let Some(memory) = self.live().and_then(|live| live.memory.as_ref()) {
            let (fd, flags) = memory.wants();
            set.add(token(MEMORY, Slot::Pid), fd, flags);
        }
    }

    /// A descriptor of [`Supervisor::poll_fds`] is ready.
    pub fn ready(&mut self, token: u64) {
        let (key, slot) = from_token(token);
        if key == JOINER {
            if let State::Live(live) = &mut self.state {
                live.reap_joiner();
            }
        } else if key == MEMORY {
            self.memory_ran_out();
        } else if let Some(process) = self.processes.get(key) {
            process.ready(slot, &mut self.channels);
        } else if let Some(job) = self.jobs.get_mut(&key)
            && job.ready(slot, &mut self.channels)
        {
            self.job_over(key);
        }
    }

    /// How long until [`Supervisor::tick`] must be called though nothing is ready; `None` for ever.
    pub fn timeout(&self) -> Option<Duration> {
        let late = self.live().and_then(|live| live.late_join);
        let next = self.processes.iter().filter_map(Process::deadline).chain(late).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Does what is due: ends that can be told, and the late cgroup join. To be called after each round.
    pub fn tick(&mut self) {
        let waiting = self.live().is_some_and(|live| live.late_join.is_some());
        let draining = self.processes.iter().any(|process| process.deadline().is_some());
        if !waiting && !draining {
            return;
        }
        let now = Instant::now();
        let first = self.processes.first.as_mut();
        if let Some(status) = first.and_then(|first| first.ended(now, &mut self.channels)) {
            self.first_ended(status);
        }
        let channels = &mut self.channels;
        self.processes.execs.retain(|&key, exec| match exec.ended(now, channels) {
            Some(status) => {
                // The monitor hears of it before any client can act on it.
                channels.tell_watchers(Happening::ExecEnded {
                    channel: exec.asked_by,
                    pid: exec.pid,
                    code: status.code,
                });
                channels.process_ended(key, status);
                false
            }
            None => true,
        });
        if let State::Live(live) = &mut self.state
            && live.late_join.is_some_and(|due| due <= now)
        {
            live.join_cgroup();
        }
    }

    /// The next frame for a client.
    pub fn pop(&mut self) -> Option<Frame> {
        self.channels.pop()
    }

    /// Whether [`Supervisor::pop`] has a frame.
    pub fn has_outgoing(&self) -> bool {
        self.channels.has_outgoing()
    }

    /// Where the container is in its life.
    pub fn status(&self) -> Status {
        match &self.state {
            State::Ready(_) | State::Prepared(_) | State::Deleted => Status::Ready,
            State::Live(live) if live.held => Status::Held,
            State::Live(live) if live.paused => Status::Paused(live.container.pid()),
            State::Live(live) => Status::Running(live.container.pid()),
            State::Ended(status, _) => Status::Ended(*status),
        }
    }

    /// What was asked for and could not be granted, one line each.
    pub fn warnings(&self) -> Vec<String> {
        self.live().map(|live| live.container.warnings().to_vec()).unwrap_or_default()
    }

    /// Whether a child of this process is the supervisor's to reap. PID 1 of a guest reaps all others.
    pub fn owns(&self, pid: u32) -> bool {
        self.live().is_some_and(|live| live.owns(pid))
            || matches!(&self.state, State::Prepared(prepared) if prepared.live.owns(pid))
            || self.processes.execs.values().any(|exec| exec.pid == pid)
            || self.jobs.values().any(|job| job.pid == pid)
    }

    /// Makes the container without running its program, so that its files can be worked on.
    fn hold(&mut self) -> Result<(), Error> {
        self.create(Aim::Hold)
    }

    /// Makes the container but for what runs in it, which is likely to be one of these files.
    ///
    /// # Errors
    /// It cannot be made, or not without its program.
    pub fn prepare(&mut self, programs: &[String]) -> Result<(), Error> {
        self.create(Aim::Prepare)?;
        if let State::Prepared(prepared) = &self.state {
            prepared.live.container.read_ahead(programs);
        }
        Ok(())
    }

    /// Tells a supervisor whose container is prepared whose it is: id, first process, host name, and the texts of the
    /// files that it was given. All else must be as it was prepared for.
    pub fn cast(&mut self, id: String, spec: Spec, launch: LaunchConfig) {
        let State::Prepared(prepared) = &mut self.state else { return };
        let config = &mut prepared.config;
        config.id = id;
        config.spec.process = spec.process;
        config.spec.hostname = spec.hostname;
        config.launch = launch;
    }

    /// Kills what runs and removes the container, but for its mounts, which are returned. Clients are told no more.
    ///
    /// # Errors
    /// Something of the container could not be removed.
    pub fn delete(&mut self) -> Result<Option<Mounts>, Error> {
        for job in self.jobs.values_mut() {
            job.kill(&mut self.channels);
        }
        match std::mem::replace(&mut self.state, State::Deleted) {
            State::Live(live) | State::Ended(_, live) => {
                let Live { container, mounts, .. } = *live;
                container.delete().map(|()| Some(mounts))
            }
            State::Prepared(prepared) => prepared.live.container.delete().map(|()| None),
            State::Ready(_) | State::Deleted => Ok(None),
        }
    }

    fn live(&self) -> Option<&Live> {
        match &self.state {
            State::Live(live) => Some(live),
            State::Ready(_) | State::Prepared(_) | State::Ended(..) | State::Deleted => None,
        }
    }

    fn new_key(&mut self) -> Key {
        self.next_key += 1;
        self.next_key - 1
    }

    fn create(&mut self, aim: Aim) -> Result<(), Error> {
        match std::mem::replace(&mut self.state, State::Deleted) {
            State::Ready(config) => self.create_from(config, aim),
            State::Prepared(prepared) if aim == Aim::Run => self.play(*prepared),
            State::Prepared(prepared) => {
                // Its first process is no holder of a root: another container is made.
                prepared.live.container.delete()?;
                self.create_from(prepared.config, aim)
            }
            other => {
                self.state = other;
                Err(Error::new(ErrorKind::Conflict, "the instance was started already"))
            }
        }
    }

    fn create_from(&mut self, mut config: Box<SupervisorConfig>, aim: Aim) -> Result<(), Error> {
        let made = match self.make(&mut config, aim) {
            Ok((live, handles)) if aim == Aim::Prepare => {
                self.state = State::Prepared(Box::new(Prepared { config, live, handles }));
                return Ok(());
            }
            Ok((live, _)) if aim == Aim::Hold => Ok(live),
            Ok((live, handles)) => self.begin(&config.launch, live, handles),
            Err(error) => Err(error),
        };
        match made {
            Ok(live) => self.state = State::Live(Box::new(live)),
            Err(error) => {
                self.state = State::Ready(config);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Runs the program of a prepared container.
    fn play(&mut self, prepared: Prepared) -> Result<(), Error> {
        let Prepared { config, mut live, mut handles } = prepared;
        let process = config.spec.process.clone().unwrap_or_default();
        let part = Part {
            size: self.size.or(process.console_size).unwrap_or_default(),
            process,
            user: config.launch.user.clone(),
            hostname: config.spec.hostname.clone(),
        };
        let played = live.files.fill(&config.launch.files);
        let begun = match played.and_then(|()| live.container.play(&part, &mut handles)) {
            Ok(()) => self.begin(&config.launch, live, handles),
            Err(error) => {
                let _ = live.container.delete();
                Err(error)
            }
        };
        begun.map(|live| self.state = State::Live(Box::new(live))).inspect_err(|_| {
            self.state = State::Ready(config);
        })
    }

    fn make(&mut self, config: &mut SupervisorConfig, aim: Aim) -> Result<(Live, Handles), Error> {
        let files = files::bind(&config.launch.files, &config.scratch, &mut config.spec)?;
        if config.launch.all_devices {
            devices::add_all(&mut config.spec)?;
        }
        let SupervisorConfig { id, spec, launch, rootfs, .. } = config;
        let holds = aim == Aim::Hold;
        let create = Create {
            id,
            spec,
            rootfs: rootfs.clone(),
            // A root that is only held needs no user, and shall not fail for one that its image lacks.
            user: if holds { "" } else { &launch.user },
            stdio: if holds { Stdio::Null } else { self.stdio(spec, launch) },
            init: !holds && launch.init,
            cgroup: config.cgroup,
            // What only holds a root talks to nobody.
            interfaces: config.interfaces.as_deref().filter(|_| !holds),
            bundle: &config.scratch,
            nodev: true,
            taken: &config.taken,
            shares_memory: config.shares_memory,
        };
        let (container, handles) = match aim {
            Aim::Run => Container::run(create)?,
            Aim::Hold => Container::create(create)?,
            Aim::Prepare => Container::prepare(create)?,
        };
        let mounts = match Mounts::of(&container) {
            Ok(mounts) => mounts,
            Err(error) => {
                // Why the start failed says more than what is then left behind.
                let _ = container.delete();
                return Err(error);
            }
        };
        let live = Live {
            memory: container.watch_oom(),
            container,
            mounts,
            rootfs: rootfs.clone(),
            mountpoints: spec.mounts.iter().map(|mount| mount.destination.clone()).collect(),
            files,
            own_pids: has_own_pids(spec),
            held: holds,
            paused: false,
            late_join: None,
            joiner: None,
        };
        Ok((live, handles))
    }

    /// Looks after a first process whose program runs.
    fn begin(&mut self, launch: &LaunchConfig, mut live: Live, handles: Handles) -> Result<Live, Error> {
        match first_process(&live.container, handles, live.own_pids) {
            Ok(first) => self.processes.first = Some(first.with_input_once(launch.stdin_once)),
            Err(error) => {
                let _ = live.container.delete();
                return Err(error);
            }
        }
        live.late_join = Some(Instant::now() + LATE_JOIN);
        Ok(live)
    }

    fn stdio(&self, spec: &Spec, launch: &LaunchConfig) -> Stdio {
        match &spec.process {
            Some(process) if process.terminal => {
                Stdio::Terminal(self.size.or(process.console_size).unwrap_or_default())
            }
            _ => Stdio::Pipes { stdin: launch.stdin },
        }
    }

    fn memory_ran_out(&mut self) {
        if let State::Live(live) = &mut self.state
            && live.memory.as_mut().is_some_and(OomWatch::has_fired)
        {
            self.channels.tell_watchers(Happening::OutOfMemory);
        }
    }

    fn first_ended(&mut self, mut status: ExitStatus) {
        self.processes.first = None;
        for key in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.abort_job(key, "the instance ended while its files were being worked on; try again");
        }
        self.state = match std::mem::replace(&mut self.state, State::Deleted) {
            State::Live(live) => {
                status.oom_killed = live.container.oom_killed();
                if live.own_pids {
                    self.processes.execs.values_mut().for_each(Process::set_alone);
                }
                State::Ended(status, live)
            }
            other => other,
        };
        self.channels.process_ended(FIRST, status);
        self.channels.answer_waiting(status);
    }

    fn stream_in(&mut self, channel: u32, kind: Kind, payload: Vec<u8>) {
        let Some(role) = self.channels.role(channel) else { return };
        if !self.channels.received(channel, payload.len()) {
            return self.expel(channel, "more was sent than the window allows");
        }
        let channels = &mut self.channels;
        match (role, kind) {
            (Role::Process { key, stdin: true, .. }, Kind::Stdin) => match self.processes.get(key) {
                Some(process) if payload.is_empty() => process.input_ended(),
                Some(process) => process.input.push(channel, payload, channels),
                None => channels.consumed(channel, payload.len()),
            },
            (Role::Job(key), Kind::Data) => match self.jobs.get_mut(&key) {
                Some(job) if payload.is_empty() => job.input.end(),
                Some(job) => job.input.push(channel, payload, channels),
                None => channels.consumed(channel, payload.len()),
            },
            // Nobody reads it: input of a process that was joined without, or the rest of a job that failed.
            _ => channels.consumed(channel, payload.len()),
        }
    }

    fn expel(&mut self, channel: u32, why: &str) {
        let role = self.channels.expel(channel, why);
        self.leave(role);
    }

    fn leave(&mut self, role: Option<Role>) {
        match role {
            Some(Role::Process { key, stdin: true, .. }) => {
                if let Some(process) = self.processes.get(key) {
                    process.input_ended();
                }
            }
            Some(Role::Job(key)) => {
                if let Some(job) = self.jobs.get_mut(&key) {
                    job.kill(&mut self.channels);
                }
            }
            Some(Role::Plain | Role::Process { .. }) | None => {}
        }
    }

    fn job_over(&mut self, key: Key) {
        let Some(job) = self.jobs.remove(&key) else { return };
        if let Some(channel) = self.channels.get(job.channel)
            && channel.role == Role::Job(key)
        {
            channel.role = Role::Plain;
        }
    }

    fn abort_job(&mut self, key: Key, why: &str) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        job.kill(&mut self.channels);
        if let Some(channel) = self.channels.get(job.channel)
            && channel.role == Role::Job(key)
        {
            channel.role = Role::Plain;
            self.channels.fail(job.channel, ErrorKind::Conflict, why);
        }
        // What it still says is for nobody.
        job.channel = u32::MAX;
    }

    fn respond(&mut self, channel: u32, result: Result<Response, Error>) {
        match result {
            Ok(response) => self.channels.respond(channel, &response),
            Err(error) => self.channels.fail(channel, error.kind(), error.to_string()),
        }
    }
}

impl Live {
    fn owns(&self, pid: u32) -> bool {
        self.container.pid() == pid || self.joiner.as_ref().is_some_and(|joiner| joiner.pid == pid)
    }

    /// Has the processes moved into the cgroup that they were spared at their start. Where that fails there are no
    /// statistics, which say so themselves.
    fn join_cgroup(&mut self) {
        if self.joiner.is_some() {
            // It may have looked already; whoever came since is moved when it is done.
            self.late_join = Some(Instant::now() + LATE_JOIN);
            return;
        }
        self.late_join = None;
        if self.container.make_cgroup_late().unwrap_or(false) {
            let container = &self.container;
            let keep: Vec<_> = container.descriptors().collect();
            self.joiner =
                proa_sys::job::spawn(&keep, || i32::from(container.move_into_cgroup().is_err())).ok();
        }
    }

    /// Watches for the end of memory, if a limit was set that was not there before.
    fn watch_memory(&mut self) {
        if self.memory.is_none() {
            self.memory = self.container.watch_oom();
        }
    }

    fn reap_joiner(&mut self) {
        if let Some(joiner) = &self.joiner
            && !matches!(
                waitid(WaitId::PidFd(joiner.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG),
                Ok(None)
            )
        {
            self.joiner = None;
        }
    }
}

impl Mounts {
    fn of(container: &Container) -> Result<Self, Error> {
        let namespace =
            container.mount_namespace().ok_or_else(|| Error::new(ErrorKind::Internal, "no mounts"))?;
        namespace.try_clone_to_owned().map(Self).map_err(|error| internal("mounts", &error))
    }
}

/// The first process of a container whose program runs.
fn first_process(container: &Container, handles: Handles, own_pids: bool) -> Result<Process, Error> {
    let pidfd = container.pidfd().try_clone_to_owned().map_err(|error| internal("pidfd", &error))?;
    let first = Process::new(FIRST, container.pid(), pidfd, handles, own_pids);
    first.map_err(|error| internal("streams", &error.into()))
}

fn has_own_pids(spec: &Spec) -> bool {
    let namespaces = spec.linux.iter().flat_map(|linux| &linux.namespaces);
    namespaces.into_iter().any(|namespace| namespace.kind == NamespaceKind::Pid && namespace.path.is_none())
}

fn internal(what: &str, error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Internal, format!("{what}: {error}"))
}
