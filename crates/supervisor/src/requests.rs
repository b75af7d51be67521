//! What each request does.

use std::time::Instant;

use proa_oci::runtime::{ConsoleSize, Resources};
use proa_protocol::message::{ErrorKind, ExecConfig, Request, Response};
use proa_runtime::{Error, Rootfs, Stdio};
use rustix::process::{Signal, pidfd_send_signal};

use crate::channel::{Key, Role};
use crate::job::{Job, Root, Task};
use crate::process::Process;
use crate::{Aim, FIRST, LATE_JOIN, Live, State, Status, Supervisor, internal};

const KILL: i32 = Signal::KILL.as_raw();

impl Supervisor {
    /// Does what a client asks and answers it.
    pub(crate) fn request(&mut self, channel: u32, request: Request) {
        self.channels.open(channel);
        match request {
            Request::Start => self.start(channel),
            Request::Attach { stdin, stdout, stderr } => {
                let result = self.attach(channel, Role::Process { key: FIRST, stdin, stdout, stderr });
                self.respond(channel, result);
            }
            Request::Exec(exec) => self.exec(channel, &exec),
            Request::Resize(size) => self.resize(channel, size),
            Request::Signal { signal, all } => self.signal(channel, signal, all),
            Request::Abort => self.abort(channel),
            Request::Wait => self.wait(channel),
            Request::Watch => self.channels.open(channel).watches = true,
            Request::Pause => self.answer(channel, Self::pause),
            Request::Resume => self.answer(channel, Self::resume),
            Request::Update(resources) => self.update(channel, &resources),
            Request::Rewrite { files } => {
                self.answer(channel, |this| this.running()?.files.rewrite(files).map(|()| Response::Ok))
            }
            Request::Stats => self.answer(channel, |this| {
                this.join_now()?;
                this.running()?.container.stats().map(|stats| Response::Stats(Box::new(stats)))
            }),
            Request::Processes => self.answer(channel, |this| {
                this.running()?.container.processes().map(|processes| Response::Processes { processes })
            }),
            Request::Changes
            | Request::Stat { .. }
            | Request::ArchiveGet { .. }
            | Request::ArchivePut { .. } => {
                if let Err(error) = self.start_job(channel, request) {
                    self.respond(channel, Err(error));
                }
            }
            Request::Prepare { .. }
            | Request::Rehearse(_)
            | Request::Configure(_)
            | Request::Freeze
            | Request::Thaw
            | Request::Adopt { .. }
            | Request::Snapshot { .. }
            | Request::Connect(_)
            | Request::Disconnect { .. }
            | Request::Plug { .. }
            | Request::Unplug { .. }
            | Request::UpdateGuest { .. }
            | Request::Expand { .. }
            | Request::Stop { .. }
            | Request::Discard
            | Request::Screenshot
            | Request::Shutdown => {
                self.channels.fail(channel, ErrorKind::Unsupported, "that is not for a supervisor to do");
            }
        }
    }

    fn answer(&mut self, channel: u32, ask: impl FnOnce(&mut Self) -> Result<Response, Error>) {
        let result = ask(self);
        self.respond(channel, result);
    }

    fn start(&mut self, channel: u32) {
        let result = if std::mem::take(&mut self.adopted) { self.thaw() } else { self.create(Aim::Run) };
        for message in self.warnings() {
            self.channels.respond(channel, &Response::Notice { message });
        }
        let pid = self.processes.first.as_ref().map_or(0, |first| first.pid);
        self.respond(channel, result.map(|()| Response::Started { pid }));
    }

    fn attach(&mut self, channel: u32, role: Role) -> Result<Response, Error> {
        if let Status::Ended(_) | Status::Held = self.status() {
            return Err(not_running());
        }
        self.join(channel, role)?;
        Ok(Response::Ok)
    }

    fn join(&mut self, channel: u32, role: Role) -> Result<(), Error> {
        let known = self.channels.open(channel);
        if known.role != Role::Plain {
            return Err(Error::new(ErrorKind::InvalidInput, "this channel has joined something already"));
        }
        known.role = role;
        Ok(())
    }

    fn exec(&mut self, channel: u32, exec: &ExecConfig) {
        match self.try_exec(channel, exec) {
            Ok(pid) => self.channels.respond(channel, &Response::Started { pid }),
            Err(error) => self.channels.fail(channel, error.kind(), error.to_string()),
        }
    }

    fn try_exec(&mut self, channel: u32, exec: &ExecConfig) -> Result<u32, Error> {
        let live = self.running()?;
        if live.paused {
            return Err(Error::new(ErrorKind::Conflict, "the instance is paused; unpause it first"));
        }
        if self.channels.role(channel) != Some(Role::Plain) {
            return Err(Error::new(ErrorKind::InvalidInput, "this channel has joined something already"));
        }
        let key = self.new_key();
        let live = self.running()?;
        let stdio = match (exec.process.terminal, exec.attach || exec.stdin) {
            (true, _) => Stdio::Terminal(exec.process.console_size.unwrap_or_default()),
            (false, true) => Stdio::Pipes { stdin: exec.stdin },
            (false, false) => Stdio::Null,
        };
        let (child, handles) = live.container.exec(&exec.process, &exec.user, stdio)?;
        live.late_join.get_or_insert_with(|| Instant::now() + LATE_JOIN);
        let process = Process::new(key, child.pid, child.pidfd, handles, false);
        let process = process.map_err(|error| internal("streams", &error.into()))?;
        let mut process = process.with_input_once(true);
        process.asked_by = channel;
        self.processes.execs.insert(key, process);
        if exec.attach || exec.stdin {
            self.join(
                channel,
                Role::Process { key, stdin: exec.stdin, stdout: exec.attach, stderr: exec.attach },
            )?;
        }
        Ok(child.pid)
    }

    fn resize(&mut self, channel: u32, size: ConsoleSize) {
        let joined = self.joined(channel);
        let key = joined.unwrap_or(FIRST);
        if key == FIRST {
            // Before the start it is the size to start with.
            self.size = Some(size);
        }
        let done = match self.processes.get(key) {
            Some(process) if process.resize(size) => Ok(Response::Ok),
            Some(_) => Err(Error::new(ErrorKind::InvalidInput, "the process has no terminal")),
            None => Err(not_running()),
        };
        if joined.is_none() {
            self.respond(channel, done);
        }
    }

    fn signal(&mut self, channel: u32, signal: i32, all: bool) {
        let joined = self.joined(channel);
        let done = match joined {
            Some(key) if key != FIRST && !all => self.signal_exec(key, signal),
            _ => self.signal_container(signal, all),
        };
        if joined.is_none() {
            self.respond(channel, done);
        }
    }

    fn signal_exec(&mut self, key: Key, signal: i32) -> Result<Response, Error> {
        let signal = Signal::from_named_raw(signal)
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, format!("there is no signal {signal}")))?;
        let pidfd = self.processes.execs.get(&key).and_then(Process::pidfd).ok_or_else(not_running)?;
        pidfd_send_signal(pidfd, signal).map_err(|_| not_running())?;
        Ok(Response::Ok)
    }

    fn abort(&self, channel: u32) {
        if let Some(exec) = self.joined(channel).and_then(|key| self.processes.execs.get(&key)) {
            exec.kill_group();
        }
    }

    fn signal_container(&mut self, signal: i32, all: bool) -> Result<Response, Error> {
        let live = self.running()?;
        live.container.signal(signal, all)?;
        if live.paused && signal == KILL {
            // A frozen process does not even die.
            live.container.resume()?;
            live.paused = false;
        }
        Ok(Response::Ok)
    }

    fn wait(&mut self, channel: u32) {
        match self.status() {
            Status::Ended(status) => self.channels.respond(channel, &Response::Exited(status)),
            _ => self.channels.open(channel).waits = true,
        }
    }

    fn pause(&mut self) -> Result<Response, Error> {
        self.join_now()?;
        let live = self.running()?;
        if live.paused {
            return Err(Error::new(ErrorKind::Conflict, "the instance is paused already"));
        }
        live.container.pause()?;
        live.paused = true;
        Ok(Response::Ok)
    }

    fn resume(&mut self) -> Result<Response, Error> {
        let live = self.running()?;
        if !live.paused {
            return Err(Error::new(ErrorKind::Conflict, "the instance is not paused"));
        }
        live.container.resume()?;
        live.paused = false;
        Ok(Response::Ok)
    }

    fn update(&mut self, channel: u32, resources: &Resources) {
        let updated = self.running().and_then(|live| {
            // It joins its cgroup now, if it has not.
            live.late_join = None;
            let warnings = live.container.update(resources)?;
            live.watch_memory();
            Ok(warnings)
        });
        let result = updated.map(|warnings| {
            for message in warnings {
                self.channels.respond(channel, &Response::Notice { message });
            }
            Response::Ok
        });
        self.respond(channel, result);
    }

    fn start_job(&mut self, channel: u32, request: Request) -> Result<(), Error> {
        if let State::Ready(_) | State::Prepared(_) = self.state {
            // Whoever lets clients work on files before the start wants the container for that alone.
            self.hold()?;
        }
        let State::Live(live) = &self.state else { return Err(not_running()) };
        let task = task(live, request)?;
        let key = self.new_key();
        self.join(channel, Role::Job(key))?;
        match Job::start(key, channel, task) {
            Ok(job) => _ = self.jobs.insert(key, job),
            Err(error) => {
                self.channels.open(channel).role = Role::Plain;
                return Err(internal("cannot start the work on files", &error));
            }
        }
        Ok(())
    }

    /// The container's first process runs.
    pub(crate) fn running(&mut self) -> Result<&mut Live, Error> {
        match &mut self.state {
            State::Live(live) if !live.held => Ok(live),
            _ => Err(not_running()),
        }
    }

    /// What follows needs the cgroup that was put off, and waits for it.
    pub(crate) fn join_now(&mut self) -> Result<(), Error> {
        let live = self.running()?;
        if live.late_join.take().is_some() || live.joiner.is_some() {
            live.container.join_cgroup_late()?;
        }
        Ok(())
    }

    fn joined(&self, channel: u32) -> Option<Key> {
        match self.channels.role(channel) {
            Some(Role::Process { key, .. }) => Some(key),
            _ => None,
        }
    }
}

fn task(live: &Live, request: Request) -> Result<Task, Error> {
    let root = || -> Result<Root, Error> {
        Ok(Root { directory: live.container.root()?, users: live.container.user_namespace()? })
    };
    Ok(match request {
        Request::Stat { path } => Task::Stat { root: root()?, path },
        Request::ArchiveGet { path } => Task::Get { root: root()?, path },
        Request::ArchivePut { path, no_overwrite_dir } => Task::Put { root: root()?, path, no_overwrite_dir },
        _ => changes(live)?,
    })
}

fn changes(live: &Live) -> Result<Task, Error> {
    match &live.rootfs {
        Rootfs::Overlay { lowers, upper, owners, .. } => Ok(Task::Changes {
            upper: upper.clone(),
            lowers: lowers.clone(),
            mountpoints: live.mountpoints.clone(),
            owners: owners.clone(),
        }),
        Rootfs::Directory(_) => Err(Error::new(
            ErrorKind::Unsupported,
            "an instance on a plain directory has no image to compare with",
        )),
    }
}

fn not_running() -> Error {
    Error::new(ErrorKind::Conflict, "the instance is not running")
}
