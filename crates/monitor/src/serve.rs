//! The monitor's loop: one instance, its clients, its log, its state.
//!
//! ```text
//!   Created ─ Start ─▶ Starting ─ Started ─▶ Running ─ first process ended, or guest lost ─▶ Ending
//!      │ no client asks  │  ▲                                  clients have the rest of the output │
//!      │                 │  └ time is over ─ Waiting ◀─ its policy says so ─┐                      │
//!      ▼                 ▼ Error       │ Stop                               │                      ▼
//!   Stopping: the backend ends ◀───────┘             └─ Stopping: the backend ends ◀───────────────┘
//!      │ ▲ Shutdown, or no client asks any more
//!      │ Held
//!      ▼
//!   Over: state written, clients told; ends when they have read it
//! ```
//!
//! What a restart policy adds is in `again`: from `Waiting` the instance starts with a backend of its own, and no
//! client is needed for that.
//!
//! While nothing runs, the monitor stays for the client that it was started for and for those that have asked for
//! more than to hear of the end. Others wait for the monitor's end, and must not put it off.
//!
//! Order at the end: the log is complete, all processes and cgroups gone, `state.json` written and the socket
//! removed before any client hears of the end. The container's mounts, which the kernel takes milliseconds to
//! undo, go after that, and then the lock: whoever starts the instance again or removes it waits for the lock
//! anyway. Only an instance to be removed gives its lock before, and has its files removed after. A client that stands still keeps this process
//! alive, and nothing of the instance.
//!
//! A log that does not take everything at once (a server's) holds up the instance: its output gets no credit then.
//! Once the first process has ended, what is in its pipes is taken all the same, and the log has as long as clients.
//!
//! Requests are passed to the backend as they came, but for those that change the instance's state (`Start`,
//! `Wait`, `Pause`, `Resume`, `Shutdown`): those are the monitor's.

mod again;
mod health;
mod joined;
mod places;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proa_protocol::frame::{Frame, Kind, WINDOW};
use proa_protocol::instance::{InstanceConfig, InstanceState, Status};
use proa_protocol::life::Life;
use proa_protocol::message::{ErrorKind, ExitStatus, Request, Response};
use proa_supervisor::{HOST_TOKENS, PollSet};
use rustix::event::PollFlags;
use rustix::process::Signal;

use crate::args::Args;
use crate::backend::{Backend, MONITOR, Stop};
use crate::client::{Client, Joined};
use crate::clock::now_ns;
use crate::events::Events;
use crate::log::Log;
use crate::network::Remains;
use crate::peek;
use crate::record::{Record, Stamp};
use crate::restart::BackOff;
use crate::volumes::Volumes;
use health::HealthChecks;

/// The channel on which the monitor passes on what changes the instance's state.
const CONTROL: u32 = 2;
/// No client has it: its place among the tokens is the log's.
const LOG: u32 = 1;
const FIRST_CLIENT: u32 = 3;
/// How long a monitor without a first client waits for one.
const FIRST_CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end waits for clients of processes that ended with the first.
const ENDING_TIMEOUT: Duration = Duration::from_secs(2);
/// How long nothing must happen before free memory is returned.
const IDLE: Duration = Duration::from_millis(300);

/// How long a backend may take to end what was killed, before it is ended itself.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// Lines for the user kept for whoever comes.
const MOST_NOTICES: usize = 64;
/// SIGKILL.
const KILL: i32 = Signal::KILL.as_raw();

/// What is to be told at the end.
#[derive(Debug, Clone)]
enum Outcome {
    /// Nothing was run.
    Nothing,
    /// The start failed.
    Failed { kind: ErrorKind, message: String },
    /// The first process ended, or was lost with its guest.
    Exited { status: ExitStatus, error: String },
    /// It had ended like this, which was told, and was then kept from being run again.
    CalledOff(ExitStatus),
}

enum Phase {
    Created { until: Option<Instant> },
    Starting,
    Running,
    Waiting { until: Instant },
    Held,
    Ending { outcome: Outcome, until: Instant },
    Stopping(Outcome),
    Over,
}

/// What running the program again needs.
pub struct Again {
    args: Args,
    life: Life,
    /// Of the configuration that `life` is from.
    stamp: Stamp,
    back_off: BackOff,
    /// The instance is to stay down when it has ended.
    called_off: bool,
    /// It is to be run again when it has ended, whatever its policy.
    forced: bool,
    health: Option<Box<HealthChecks>>,
}

impl Again {
    /// For an instance with this record, whose configuration has just been read.
    pub fn new(args: Args, record: &Record, config: &InstanceConfig) -> Self {
        Self {
            args,
            life: config.life.clone(),
            stamp: record.config_stamp(),
            back_off: BackOff::default(),
            called_off: false,
            forced: false,
            health: HealthChecks::new(config, record),
        }
    }
}

/// What ends an instance that was to be removed.
pub struct Reaper {
    /// Program to run.
    pub program: PathBuf,
    /// Its `--root`.
    pub root: PathBuf,
    /// Its `--run`.
    pub run: PathBuf,
    /// Its last argument.
    pub id: String,
}

/// Serves one instance.
pub struct Server {
    record: Record,
    state: InstanceState,
    backend: Backend,
    log: Log,
    events: Events,
    listener: Option<UnixListener>,
    clients: BTreeMap<u32, Client>,
    next_channel: u32,
    phase: Phase,
    again: Again,
    /// Who asked for the start.
    askers: Vec<u32>,
    /// Lines for the user that nobody has got yet.
    notices: Vec<String>,
    /// Who asked for `Pause` (true) and `Resume` (false), in order.
    pauses: VecDeque<(u32, bool)>,
    reaper: Option<Reaper>,
    /// Nobody needs its files when it has ended.
    discards: bool,
    /// Bytes of the first process's output for which it has no credit yet.
    owed: u32,
    /// When the backend is ended if the first process has not.
    kill_by: Option<Instant>,
    trimmed: bool,
    volumes: Volumes,
}

impl Server {
    /// A server for an instance whose backend is ready.
    pub fn new(
        record: Record,
        state: InstanceState,
        backend: Backend,
        (log, events): (Log, Events),
        listener: UnixListener,
        (again, notices): (Again, Vec<String>),
    ) -> Self {
        Self {
            state,
            record,
            backend,
            log,
            events,
            listener: Some(listener),
            clients: BTreeMap::new(),
            next_channel: FIRST_CLIENT,
            phase: Phase::Created { until: Some(Instant::now() + FIRST_CLIENT_TIMEOUT) },
            again,
            askers: Vec::new(),
            notices,
            pauses: VecDeque::new(),
            reaper: None,
            discards: false,
            owed: 0,
            kill_by: None,
            trimmed: false,
            volumes: Volumes::default(),
        }
    }

    /// Uses the instance's volumes until its end.
    pub fn keep_volumes(&mut self, volumes: Volumes) {
        self.volumes = volumes;
    }

    /// Runs nothing: the instance's root is held for work on its files.
    pub fn hold(&mut self) {
        self.phase = Phase::Held;
    }

    /// The instance is to be removed when it has ended.
    pub fn remove_at_end(&mut self, reaper: Reaper) {
        self.reaper = Some(reaper);
        self.discards = true;
    }

    /// Takes the first client.
    pub fn add_client(&mut self, stream: UnixStream, owner: bool) -> io::Result<()> {
        self.clients.insert(self.next_channel, Client::new(stream, owner)?);
        self.next_channel += 1;
        if let Phase::Created { until } = &mut self.phase
            && owner
        {
            *until = None;
        }
        Ok(())
    }

    /// Serves until all is over.
    ///
    /// # Errors
    /// Polling fails, which only lack of memory makes it do.
    pub fn run(mut self) -> io::Result<()> {
        while !(matches!(self.phase, Phase::Over) && self.clients.is_empty()) {
            let events = self.wait()?;
            for (token, flags) in events {
                self.dispatch(token, flags);
            }
            self.backend.tick();
            self.route();
            self.check_health();
            self.note_place();
            // Whoever hears of something finds it in the journal.
            self.events.flush();
            self.flush_clients();
            self.log.flush();
            self.take_more();
            self.advance();
        }
        Ok(())
    }

    fn wait(&mut self) -> io::Result<Vec<(u64, PollFlags)>> {
        let timeout = self.timeout();
        let mut set = PollSet::new();
        if let Some(listener) = &self.listener {
            set.add(HOST_TOKENS, listener.as_fd(), PollFlags::IN);
        }
        self.log.poll_fds(HOST_TOKENS + u64::from(LOG), &mut set);
        let congested = self.backend.congested();
        for (&channel, client) in &self.clients {
            if let Some((fd, flags)) = client.wants(congested) {
                set.add(HOST_TOKENS + u64::from(channel), fd, flags);
            }
        }
        if !matches!(self.phase, Phase::Over) {
            self.backend.poll_fds(&mut set);
        }
        let events = set.wait(timeout)?;
        if !events.is_empty() {
            self.trimmed = false;
        } else if !self.trimmed && timeout == Some(IDLE) {
            proa_sys::memory::trim();
            self.trimmed = true;
        }
        Ok(events)
    }

    fn timeout(&self) -> Option<Duration> {
        let own = match &self.phase {
            Phase::Created { until: Some(until) }
            | Phase::Ending { until, .. }
            | Phase::Waiting { until } => Some(until.saturating_duration_since(Instant::now())),
            Phase::Running => self.kill_by.map(|until| until.saturating_duration_since(Instant::now())),
            _ => None,
        };
        let idle = (!self.trimmed).then_some(IDLE);
        let check = self.health_deadline().map(|until| until.saturating_duration_since(Instant::now()));
        [own, check, self.backend.timeout(), self.log.timeout(), idle].into_iter().flatten().min()
    }

    fn dispatch(&mut self, token: u64, flags: PollFlags) {
        match token.checked_sub(HOST_TOKENS) {
            None => self.backend.ready(token),
            Some(0) => self.accept(),
            Some(token) if token == u64::from(LOG) => self.log.ready(),
            Some(channel) => self.client_ready(channel as u32, flags),
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        if let Ok((stream, _)) = listener.accept() {
            // A connection that cannot be used is its client's to notice.
            let _ = self.add_client(stream, false);
        }
    }

    fn client_ready(&mut self, channel: u32, flags: PollFlags) {
        let Some(client) = self.clients.get_mut(&channel) else { return };
        if !flags.contains(PollFlags::IN) {
            if flags.intersects(PollFlags::HUP | PollFlags::ERR) {
                self.drop_client(channel);
            }
            return;
        }
        let alive = client.read();
        loop {
            let Some(client) = self.clients.get_mut(&channel) else { return };
            match client.next_frame() {
                Ok(Some(frame)) => self.client_frame(channel, frame),
                Ok(None) => break,
                Err(error) => {
                    self.refuse(channel, ErrorKind::InvalidInput, error.to_string());
                    self.close_client(channel);
                    break;
                }
            }
        }
        if !alive {
            self.drop_client(channel);
        }
    }

    /// The client is gone.
    fn drop_client(&mut self, channel: u32) {
        if self.clients.remove(&channel).is_some() {
            self.backend.send(Frame::close(channel));
            self.askers.retain(|&asker| asker != channel);
        }
    }

    /// We are done with the client; it is dropped when it has read what it is to get.
    fn close_client(&mut self, channel: u32) {
        if let Some(client) = self.clients.get_mut(&channel) {
            client.close();
        }
    }

    fn flush_clients(&mut self) {
        let gone: Vec<u32> = self
            .clients
            .iter_mut()
            .filter_map(|(&channel, client)| (!client.flush()).then_some(channel))
            .collect();
        for channel in gone {
            self.drop_client(channel);
        }
    }

    fn answer(&mut self, channel: u32, response: &Response) {
        self.push(channel, response.frame(channel));
    }

    fn refuse(&mut self, channel: u32, kind: ErrorKind, message: impl Into<String>) {
        self.answer(channel, &Response::error(kind, message));
    }

    fn push(&mut self, channel: u32, frame: Frame) {
        let Some(client) = self.clients.get_mut(&channel) else { return };
        if !client.push(frame) {
            self.drop_client(channel);
        }
    }
}

/// Frames from clients.
impl Server {
    fn client_frame(&mut self, channel: u32, mut frame: Frame) {
        frame.channel = channel;
        match frame.kind {
            Kind::Request => self.request(channel, frame),
            Kind::Close => self.close_client(channel),
            Kind::Credit => {
                if let Some(client) = self.clients.get_mut(&channel) {
                    client.credited(frame.credited());
                }
                // At the end the monitor takes what is left, and has given credit for it.
                if !matches!(self.phase, Phase::Ending { .. }) {
                    self.backend.send(frame);
                }
            }
            _ => self.backend.send(frame),
        }
    }

    fn request(&mut self, channel: u32, frame: Frame) {
        let Some(request) = peek::request(&frame.payload) else {
            return self.refuse(channel, ErrorKind::InvalidInput, "not a request");
        };
        if let Some(client) = self.clients.get_mut(&channel) {
            client.asks |= request.op != "wait";
        }
        for message in std::mem::take(&mut self.notices) {
            self.answer(channel, &Response::Notice { message });
        }
        match request.op.as_str() {
            "signal" if self.is_restarting() => self.signal_waiting(channel, request.signal),
            "start" => self.start(channel),
            "wait" => self.wait_for_end(channel),
            "stop" => self.stay_down(channel, request.by_user),
            "discard" => {
                self.discards = true;
                self.answer(channel, &Response::Ok);
            }
            _ if self.is_restarting() => self.refuse(channel, ErrorKind::Conflict, again::RESTARTING),
            "pause" => self.pause(channel, true),
            "resume" => self.pause(channel, false),
            "shutdown" => self.shutdown(channel),
            "configure" => {
                self.refuse(channel, ErrorKind::InvalidInput, "an instance is configured by its file")
            }
            _ if matches!(self.phase, Phase::Ending { .. } | Phase::Stopping(_) | Phase::Over) => {
                self.refuse(channel, ErrorKind::Conflict, "the instance has ended");
            }
            "signal" => self.signal(channel, frame, &request),
            "attach" => {
                self.events.tell("attach", &[]);
                self.join(channel, frame, Joined::First);
            }
            "exec" => self.exec(channel, frame, &request),
            "connect" | "disconnect" => self.change_network(channel, &frame),
            "update_guest" => self.update_guest(channel, &frame),
            "snapshot" => self.snapshot(channel, &frame),
            // Work on files would make the root, and stand in the start's way.
            "stat" | "changes" | "archive_get" | "archive_put"
                if matches!(self.phase, Phase::Created { .. }) =>
            {
                self.refuse(channel, ErrorKind::Conflict, "the instance is being started; try again");
            }
            _ => {
                self.tell_request(channel, &request);
                self.backend.send(frame);
            }
        }
    }

    /// What Docker tells of requests that change nothing but are worth knowing.
    fn tell_request(&mut self, channel: u32, request: &peek::Request) {
        let to_exec = self.clients.get(&channel).is_some_and(|client| client.joined == Joined::Exec);
        match request.op.as_str() {
            "resize" if !to_exec && matches!(self.phase, Phase::Running) => {
                let size = [("height", request.height.to_string()), ("width", request.width.to_string())];
                self.events.tell("resize", &size);
            }
            "archive_get" => self.events.tell("archive-path", &[]),
            "archive_put" => self.events.tell("extract-to-dir", &[]),
            "processes" => self.events.tell("top", &[]),
            _ => {}
        }
    }

    /// A guest may be deaf: what a kill does not end in time is ended from outside.
    fn signal(&mut self, channel: u32, frame: Frame, request: &peek::Request) {
        let to_exec = self.clients.get(&channel).is_some_and(|client| client.joined == Joined::Exec);
        if !to_exec && matches!(self.phase, Phase::Running) {
            self.events.tell("kill", &[("signal", request.signal.to_string())]);
            self.note_signal(request.signal);
        }
        if request.signal == KILL && !to_exec && matches!(self.phase, Phase::Running) {
            self.kill_by.get_or_insert_with(|| Instant::now() + KILL_TIMEOUT);
        }
        self.backend.send(frame);
    }

    fn start(&mut self, channel: u32) {
        match self.phase {
            Phase::Created { .. } => {
                self.askers.push(channel);
                (self.state.restart_count, self.state.stopped) = (0, false);
                self.begin();
            }
            Phase::Held => {
                self.refuse(
                    channel,
                    ErrorKind::Conflict,
                    "the instance's files are being worked on; try again",
                );
            }
            _ => self.refuse(channel, ErrorKind::Conflict, "the instance is running already"),
        }
    }

    fn begin(&mut self) {
        self.phase = Phase::Starting;
        let attach = Request::Attach { stdin: false, stdout: true, stderr: true };
        self.backend.send(attach.frame(MONITOR));
        self.backend.send(Request::Watch.frame(MONITOR));
        self.backend.send(Request::Start.frame(MONITOR));
        if self.log.may_wait() {
            // The end is told on the other channel only after the output that has no credit.
            self.backend.send(Request::Wait.frame(CONTROL));
        }
    }

    fn wait_for_end(&mut self, channel: u32) {
        if matches!(self.phase, Phase::Held) {
            return self.refuse(channel, ErrorKind::Conflict, "the instance is not running");
        }
        if let Some(client) = self.clients.get_mut(&channel) {
            client.waits = true;
        }
    }

    fn pause(&mut self, channel: u32, pause: bool) {
        if !matches!(self.phase, Phase::Running) {
            return self.refuse(channel, ErrorKind::Conflict, "the instance is not running");
        }
        self.pauses.push_back((channel, pause));
        let request = if pause { Request::Pause } else { Request::Resume };
        self.backend.send(request.frame(CONTROL));
    }

    fn shutdown(&mut self, channel: u32) {
        if !matches!(self.phase, Phase::Held) {
            return self.refuse(channel, ErrorKind::Conflict, "the instance runs a program; stop it");
        }
        self.askers.push(channel);
        self.phase = Phase::Stopping(Outcome::Nothing);
    }
}

/// Frames from the backend.
impl Server {
    fn route(&mut self) {
        while let Some(frame) = self.backend.pop() {
            match frame.channel {
                MONITOR => self.first_process_frame(frame),
                CONTROL => self.control_frame(&frame),
                _ if self.take_check_frame(&frame) => {}
                channel => self.relay(channel, frame),
            }
        }
    }

    fn first_process_frame(&mut self, frame: Frame) {
        match frame.kind {
            Kind::Stdout | Kind::Stderr => {
                self.log.push(frame.kind, &frame.payload);
                self.owed += frame.payload.len() as u32;
                self.take_more();
            }
            Kind::Response => match Response::parse(&frame.payload) {
                Ok(Response::Started { pid }) => self.started(pid),
                Ok(Response::Notice { message }) => self.notice(message),
                Ok(Response::Error { kind, message }) => self.failed(kind, message),
                Ok(Response::Happened(what)) => {
                    self.events.happened(what);
                    self.health_happened(what);
                }
                Ok(Response::Exited(status)) => {
                    let status = ExitStatus { at_ns: self.plausible(status.at_ns), ..status };
                    self.ended(Outcome::Exited { status, error: String::new() });
                }
                _ => {}
            },
            _ => {}
        }
    }

    /// Lets the first process go on writing, unless its log must be waited for.
    fn take_more(&mut self) {
        if self.owed > 0 && !self.log.is_full() {
            self.backend.send(Frame::credit(MONITOR, std::mem::take(&mut self.owed)));
        }
    }

    fn notice(&mut self, message: String) {
        if self.askers.is_empty() {
            // What there is to say of a start that nobody asked for was said at the first.
            if self.state.restart_count == 0 && self.notices.len() < MOST_NOTICES {
                self.notices.push(message);
            }
            return;
        }
        for channel in self.askers.clone() {
            self.answer(channel, &Response::Notice { message: message.clone() });
        }
    }

    fn started(&mut self, pid: u32) {
        if !matches!(self.phase, Phase::Starting) {
            return;
        }
        self.phase = Phase::Running;
        let pids = self.backend.pids();
        self.state = InstanceState {
            status: Status::Running,
            pid: pids.first().copied().unwrap_or_default(),
            monitor_pid: std::process::id(),
            started_ns: now_ns(),
            finished_ns: self.state.finished_ns,
            restart_count: self.state.restart_count,
            ..InstanceState::default()
        };
        let written = self.record.write_state(&self.state).and_then(|()| self.record.write_processes(&pids));
        if let Err(error) = written {
            // What nobody can see running must not run.
            let (kind, message) = (error.kind(), error.to_string());
            self.phase = Phase::Stopping(Outcome::Failed { kind, message });
            return;
        }
        self.again.back_off.started(Instant::now());
        self.health_started();
        self.events.started();
        for channel in std::mem::take(&mut self.askers) {
            self.answer(channel, &Response::Started { pid });
        }
    }

    /// The start failed, or the guest was lost.
    fn failed(&mut self, kind: ErrorKind, message: String) {
        match self.phase {
            Phase::Running => {
                let status = ExitStatus { code: 137, oom_killed: false, at_ns: now_ns() };
                self.ended(Outcome::Exited { status, error: message });
            }
            Phase::Created { .. } | Phase::Starting | Phase::Held => {
                self.phase = Phase::Stopping(Outcome::Failed { kind, message });
            }
            Phase::Waiting { .. } | Phase::Ending { .. } | Phase::Stopping(_) | Phase::Over => {}
        }
    }

    fn ended(&mut self, outcome: Outcome) {
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        self.log.set_ending();
        self.phase = Phase::Ending { outcome, until: Instant::now() + ENDING_TIMEOUT };
        self.health_stopped();
        // What is left is bounded by the pipes of dead processes: it waits here, not in the backend.
        for (&channel, client) in &self.clients {
            if client.joined != Joined::Nothing {
                self.backend.send(Frame::credit(channel, WINDOW));
            }
        }
    }

    /// A guest's clock may be wrong: an end before the start, or in the future, is taken to be now.
    fn plausible(&self, at_ns: i64) -> i64 {
        let now = now_ns();
        if (self.state.started_ns..=now).contains(&at_ns) { at_ns } else { now }
    }

    fn control_frame(&mut self, frame: &Frame) {
        let Ok(response) = Response::parse(&frame.payload) else { return };
        if let Response::Exited(_) = response {
            self.log.set_ending();
            return self.take_more();
        }
        let Some((channel, pause)) = self.pauses.pop_front() else { return };
        self.answer(channel, &response);
        if response == Response::Ok && matches!(self.phase, Phase::Running) {
            self.state.status = if pause { Status::Paused } else { Status::Running };
            self.events.tell(if pause { "pause" } else { "unpause" }, &[]);
            self.health_paused(pause);
            // The instance is paused all the same; whoever asks it will be told.
            let _ = self.record.write_state(&self.state);
        }
    }

    fn relay(&mut self, channel: u32, frame: Frame) {
        let ending = matches!(self.phase, Phase::Ending { .. });
        if frame.kind == Kind::Response {
            self.exec_answer(channel, &frame);
        }
        let Some(client) = self.clients.get_mut(&channel) else { return };
        match frame.kind {
            Kind::Response => {
                let answer = peek::answer(&frame.payload);
                if answer == Some("exited") && client.joined == Joined::First {
                    // It is told when the instance's state says the same.
                    client.waits = true;
                    return;
                }
                if answer == Some("error") {
                    // It could not join, or was expelled.
                    client.joined = Joined::Nothing;
                }
            }
            Kind::Close => {
                if client.joined != Joined::First {
                    client.close();
                }
                client.joined = Joined::Nothing;
                return;
            }
            kind if kind.is_stream() && ending => {
                self.backend.send(Frame::credit(channel, frame.payload.len() as u32));
            }
            _ => {}
        }
        self.push(channel, frame);
    }
}

/// Further processes, for the journal.
impl Server {
    fn exec_answer(&mut self, channel: u32, frame: &Frame) {
        match peek::answer(&frame.payload) {
            Some("started" | "error") => {}
            _ => return,
        }
        match Response::parse(&frame.payload) {
            Ok(Response::Started { pid }) => self.events.exec_started(channel, pid),
            Ok(Response::Error { kind, .. }) => self.events.exec_failed(channel, kind),
            _ => {}
        }
    }
}

/// The way to the end.
impl Server {
    fn advance(&mut self) {
        match &self.phase {
            Phase::Created { until }
                if !self.is_wanted() && until.is_none_or(|until| Instant::now() >= until) =>
            {
                self.phase = Phase::Stopping(Outcome::Nothing);
            }
            Phase::Running if self.kill_by.is_some_and(|until| Instant::now() >= until) => {
                self.kill_by = None;
                self.backend.kill();
            }
            Phase::Waiting { until } if Instant::now() >= *until => self.start_again(),
            Phase::Held if !self.is_wanted() => self.phase = Phase::Stopping(Outcome::Nothing),
            Phase::Ending { outcome, until } => {
                let all_told = self.clients.values().all(|client| client.joined == Joined::Nothing);
                if (all_told && self.log.is_drained()) || Instant::now() >= *until {
                    self.phase = Phase::Stopping(outcome.clone());
                }
            }
            _ => {}
        }
        if let Phase::Stopping(outcome) = &self.phase {
            let outcome = outcome.clone();
            match self.backend.stop(self.discards) {
                Ok(Stop::NotYet) => {}
                Ok(Stop::Done(remains)) => self.over(&outcome, Some(remains), String::new()),
                Err(error) => self.over(&outcome, None, error.to_string()),
            }
        }
    }

    fn is_wanted(&self) -> bool {
        self.clients.values().any(Client::keeps_us)
    }

    /// Nothing runs any more: it ends, or is run again.
    fn over(&mut self, outcome: &Outcome, remains: Option<Remains>, left_behind: String) {
        match self.next_start(outcome) {
            Some(until) => self.wait_for_next(outcome, remains, left_behind, until),
            None => self.finish(outcome, remains, left_behind),
        }
    }

    /// Writes down how it ended and tells everybody; then the mounts and links go, and the lock.
    fn finish(&mut self, outcome: &Outcome, mut remains: Option<Remains>, left_behind: String) {
        self.phase = Phase::Over;
        self.log.end();
        if self.log.lost() > 0 {
            self.events.tell("log_lost", &[("messages", self.log.lost().to_string())]);
        }
        if !matches!(outcome, Outcome::Nothing) {
            self.note_end(outcome, left_behind);
            // Should it fail, the state still says `running` under a free lock, which is what repair looks for.
            let _ = self.record.write_state(&self.state);
        }
        if let Outcome::Exited { status, .. } = outcome {
            self.events.died(*status, self.state.started_ns);
        }
        self.events.flush();
        self.listener = None;
        self.record.remove_run_files();
        self.leave_volumes(remains.as_mut());
        if self.reaper.is_some() {
            // Its owner forgets it now, for which the mounts are no hindrance; nobody starts it again.
            self.record.hold_files();
            self.record.unlock();
        }
        for channel in self.clients.keys().copied().collect::<Vec<_>>() {
            self.tell_end(channel, outcome);
        }
        let owned = self.clients.values().any(|client| client.owner);
        self.flush_clients();
        drop(remains);
        self.record.unlock();
        if let Some(reaper) = &self.reaper {
            self.record.remove_files(&reaper.root);
        }
        if !owned && !matches!(outcome, Outcome::Nothing) {
            self.reap();
        }
        self.backend.prepare_next();
    }

    fn note_end(&mut self, outcome: &Outcome, left_behind: String) {
        match outcome {
            Outcome::Nothing => {}
            Outcome::CalledOff(_) => self.state.status = Status::Exited,
            Outcome::Failed { kind, message } => {
                // An instance that ran before has ended, however its next start went.
                let ran = self.state.started_ns > 0 && self.state.status != Status::Created;
                self.state.status = if ran { Status::Exited } else { Status::Created };
                self.state.exit_code = start_failure_code(*kind);
                self.state.error = message.clone();
            }
            Outcome::Exited { status, error } => {
                self.state.status = Status::Exited;
                self.state.exit_code = status.code;
                self.state.oom_killed = status.oom_killed;
                self.state.finished_ns = status.at_ns;
                self.state.error = if error.is_empty() { left_behind } else { error.clone() };
            }
        }
        self.state.pid = 0;
        self.state.monitor_pid = 0;
        self.state.vmm_cgroup.clear();
    }

    fn tell_end(&mut self, channel: u32, outcome: &Outcome) {
        let asked = self.askers.contains(&channel);
        let Some(client) = self.clients.get_mut(&channel) else { return };
        let waits = client.waits;
        match outcome {
            Outcome::Nothing if asked => self.answer(channel, &Response::Ok),
            Outcome::Nothing => {}
            Outcome::Failed { kind, message } if asked || waits => {
                self.refuse(channel, *kind, message.clone());
            }
            Outcome::Failed { .. } => {}
            Outcome::Exited { status, .. } | Outcome::CalledOff(status) if waits => {
                self.answer(channel, &Response::Exited(*status));
            }
            Outcome::Exited { .. } | Outcome::CalledOff(_) => {}
        }
        self.close_client(channel);
    }

    /// Has the instance removed, if that was asked for. Only without a client who would do it.
    fn reap(&self) {
        let Some(reaper) = &self.reaper else { return };
        let mut command = Command::new(&reaper.program);
        command.arg("--root").arg(&reaper.root).arg("--run").arg(&reaper.run);
        command.args(["system", "reap", &reaper.id]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Where it cannot be run, the next `system check` removes the instance.
        let _ = command.spawn();
    }
}

fn start_failure_code(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::CommandNotFound => 127,
        ErrorKind::CommandNotExecutable => 126,
        _ => 128,
    }
}
