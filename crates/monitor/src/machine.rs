//! A machine: a whole disk that boots in a virtual machine, with nothing of ours inside.
//!
//! ```text
//!   Ready ─ Start: cont ─▶ Starting ─ QEMU has answered ─▶ Running ─ VMM has ended ─▶ Ended
//!     └───────────────────────┴── VMM has ended: an Error on MONITOR ──────────────────▶ Ended
//! ```
//!
//! Its first process, as clients see it, is the serial console: what comes out of it is standard output, with the
//! credit and the readers of a container's ([`Channels`]); lines of ours about the machine are standard error. A
//! console that nobody takes from stops the guest's port, and nothing else.
//!
//! | what is asked | what is done |
//! | --- | --- |
//! | SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGPWR | the power button is pressed; what follows is the guest's to do |
//! | SIGKILL | the VMM is killed |
//! | the guest powers off | the end, with code 0 |
//! | the guest resets | nothing; those that come one upon another are slowed down ([`Resets`]) |
//! | the VMM ends by itself | the end, with an error that says how |
//! | work inside: `exec`, `cp`, `top`, `diff` | refused: nobody is there to do it |
//!
//! What QEMU says is not trusted: it decides when its own guest has ended, and how, and nothing beyond.

mod copy;
mod resets;
mod screen;
mod stats;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proa_protocol::frame::{Frame, Kind, MAX_STREAM};
use proa_protocol::instance::InstanceConfig;
use proa_protocol::machine::{DEFAULT_MEMORY, MEDIA, SEED_FILE, VARS_FILE, disk_file};
use proa_protocol::message::{ErrorKind, ExitStatus, Request, Response};
use proa_protocol::template::STORE;
use proa_supervisor::{Channels, Found, Input, Key, Output, PollSet, Role, non_blocking};
use proa_vm::{Pc, PcSpec, Said, VmExit};
use rustix::event::PollFlags;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::args::{Args, Mode};
use crate::backend::{MONITOR, Stop};
use crate::clock::now_ns;
use crate::enclosing::Enclosing;
use crate::error::Error;
use crate::network::{Places, Remains};
use crate::record::Record;
use copy::{Copy, Next};
use resets::Resets;
use screen::{Picture, Screen};
use stats::Usage;

/// The console's name in channels.
const CONSOLE: Key = 0;
/// Signals that press the power button. SIGPWR is what init systems call that.
const POWER: [i32; 5] = [
    Signal::TERM.as_raw(),
    Signal::INT.as_raw(),
    Signal::QUIT.as_raw(),
    Signal::HUP.as_raw(),
    Signal::POWER.as_raw(),
];
const KILL: i32 = Signal::KILL.as_raw();
/// What a machine is said to have ended with whose VMM was killed or lost.
const LOST: i32 = 137;

const CONTROL_TOKEN: u64 = 0;
const PROCESS_TOKEN: u64 = 1;
const OUTPUT_TOKEN: u64 = 2;
const INPUT_TOKEN: u64 = 3;
const SCREEN_TOKEN: u64 = 4;
const JOINER_TOKEN: u64 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Ready,
    Starting,
    Running,
    Ended,
}

/// Who waits for the answer to a command, and what it is then told.
enum Asked {
    /// That the guest runs.
    Start(u32),
    /// That it is done.
    Done(u32),
    /// That the guest is halted, or goes on.
    Pause(u32, bool),
    /// The picture.
    Picture(u32, Picture),
    /// Whether a disk is being copied.
    Copy,
    /// That the guest is halted for the copy.
    Cut,
}

/// A machine, its console and who has joined that.
pub struct Machine {
    pc: Pc,
    phase: Phase,
    channels: Channels,
    input: Input,
    output: Output,
    asked: BTreeMap<u64, Asked>,
    /// A user has halted it.
    paused: bool,
    resets: Resets,
    /// The guest has powered itself off, and its VMM is about to end.
    powered_off: bool,
    /// We have killed the VMM.
    killed: bool,
    screen: Screen,
    usage: Usage,
    places: Places,
    media: PathBuf,
    disks: usize,
    copy: Option<Copy>,
    id: String,
    enclosing: Enclosing,
}

impl Machine {
    /// Starts the machine's VMM; the guest waits for `Start`. Lines for the user go to `notice`.
    ///
    /// # Errors
    /// It is to be held for work on its files, or a part of it is missing.
    pub fn prepare(
        args: &Args,
        record: &Record,
        config: &InstanceConfig,
        places: Places,
        notice: &mut dyn FnMut(String),
    ) -> Result<Self, Error> {
        if args.mode == Mode::Maintenance {
            return Err(Error::NoFiles);
        }
        let machine = config.machine.clone().unwrap_or_default();
        let macs = config.networks.iter().map(|endpoint| endpoint.interface.mac.clone());
        let memory = if config.vm.memory == 0 { DEFAULT_MEMORY } else { config.vm.memory };
        let media = record.dir.join(MEDIA);
        let spec = PcSpec {
            id: config.id.clone(),
            store: args.root.join(STORE),
            run_dir: record.run_dir.clone(),
            memory,
            cpus: config.vm.cpus.max(1),
            disks: (0..machine.disks).map(|number| media.join(disk_file(number))).collect(),
            vars: media.join(VARS_FILE),
            seed: machine.seed.then(|| record.dir.join(SEED_FILE)),
            machine,
            nics: places.taps(&[])?.into_iter().zip(macs).collect(),
        };
        let screen = Screen::listen(&record.run_dir)?;
        let pc = Pc::start(&spec, notice)?;
        let console = non_blocking(pc.console()?)
            .map_err(|errno| Error::Io { path: "the console".into(), error: errno.into() })?;
        Ok(Self {
            media,
            disks: spec.disks.len(),
            copy: None,
            id: config.id.clone(),
            enclosing: Enclosing::default(),
            usage: Usage::new(pc.pid(), memory, spec.cpus, &config.id, config.networks.len()),
            pc,
            phase: Phase::Ready,
            channels: Channels::default(),
            input: Input::new(Some(console.clone())),
            output: Output::new(Some(console), Kind::Stdout),
            asked: BTreeMap::new(),
            paused: false,
            resets: Resets::default(),
            powered_off: false,
            killed: false,
            screen,
            places,
        })
    }

    /// Takes a frame from a client; its channel names the conversation.
    pub fn send(&mut self, frame: Frame) {
        let Frame { channel, kind, payload } = frame;
        match kind {
            Kind::Request => match Request::parse(&payload) {
                Ok(request) => self.request(channel, request),
                Err(error) => {
                    self.refuse(channel, ErrorKind::InvalidInput, format!("not a request: {error}"))
                }
            },
            Kind::Stdin | Kind::Data => self.typed(channel, payload),
            Kind::Credit => self.channels.credit(channel, Frame { channel, kind, payload }.credited()),
            Kind::Close => {
                self.channels.remove(channel);
                self.abandon_copy(channel);
            }
            Kind::Response | Kind::Stdout | Kind::Stderr => {
                _ = self.channels.expel(channel, "clients send no such frames");
            }
        }
    }

    /// The next frame for a client or for the monitor.
    pub fn pop(&mut self) -> Option<Frame> {
        self.channels.pop()
    }

    /// Where its VMM is bounded, or why it is not; told once, when that is known.
    pub fn take_place(&mut self) -> Option<String> {
        self.enclosing.take_place()
    }

    /// Its places in networks.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The same, to be looked after.
    pub fn places_mut(&mut self) -> &mut Places {
        &mut self.places
    }

    /// Adds what to wait for.
    pub fn poll_fds<'fd>(&'fd self, set: &mut PollSet<'fd>) {
        if self.phase == Phase::Ended {
            return;
        }
        let control = &self.pc.control;
        if !control.is_broken() {
            let writes = if control.wants_to_write() { PollFlags::OUT } else { PollFlags::empty() };
            set.add(CONTROL_TOKEN, control.fd(), PollFlags::IN | writes);
        }
        set.add(PROCESS_TOKEN, self.pc.pidfd(), PollFlags::IN);
        if let Some(fd) = self.output.wants(CONSOLE, &self.channels) {
            set.add(OUTPUT_TOKEN, fd, PollFlags::IN);
        }
        if let Some(fd) = self.input.wants() {
            set.add(INPUT_TOKEN, fd, PollFlags::OUT);
        }
        set.add(SCREEN_TOKEN, self.screen.as_fd(), PollFlags::IN);
        self.enclosing.poll_fds(set, JOINER_TOKEN);
    }

    /// One of its descriptors is ready.
    pub fn ready(&mut self, token: u64) {
        match token {
            CONTROL_TOKEN => {
                self.pc.control.write();
                self.hear();
            }
            OUTPUT_TOKEN => _ = self.output.read(CONSOLE, &mut self.channels),
            INPUT_TOKEN => self.input.write(&mut self.channels),
            SCREEN_TOKEN => self.screen.admit(&mut self.pc.control),
            JOINER_TOKEN => self.enclosing.joined(),
            _ => self.reap(),
        }
    }

    /// How long until [`Machine::tick`] must be called.
    pub fn timeout(&self) -> Option<Duration> {
        let next = self.resets.held_until().into_iter().chain(self.enclosing.deadline()).min();
        next.map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// Lets a guest go on that was held for its resets, and has its VMM bounded.
    pub fn tick(&mut self) {
        self.enclosing.tick(&self.id, &self.pids(), self.pc.bounds());
        if self.resets.release(Instant::now()) {
            self.go_on();
        }
    }

    /// Has the guest run, unless something else halts it.
    fn go_on(&mut self) {
        let is_halted = self.paused || self.resets.held_until().is_some() || self.is_cut();
        if !is_halted && self.phase == Phase::Running {
            self.pc.control.send("cont", json!({}));
        }
    }

    fn is_cut(&self) -> bool {
        self.copy.as_ref().is_some_and(Copy::halts)
    }

    /// The VMM's process id, while it is there.
    pub fn pids(&self) -> Vec<u32> {
        if self.phase == Phase::Ended { Vec::new() } else { vec![self.pc.pid()] }
    }

    /// Ends the VMM. Its end is told as any other.
    pub fn kill(&mut self) {
        self.killed = true;
        // Why it could not be waited for is told when its end is seen.
        let _ = self.pc.kill();
        self.reap();
    }

    /// Ends what still runs, and gives up names and ports.
    pub fn stop(&mut self) -> Result<Stop, Error> {
        self.pc.kill()?;
        self.phase = Phase::Ended;
        self.enclosing.remove()?;
        // The taps go with the VMM.
        self.places.withdraw()?;
        Ok(Stop::Done(Remains::new(None, self.places.clone())))
    }
}

/// What clients ask.
impl Machine {
    fn request(&mut self, channel: u32, request: Request) {
        self.channels.open(channel);
        match request {
            Request::Start => self.start(channel),
            Request::Attach { stdin, stdout, stderr } => self.attach(channel, stdin, stdout, stderr),
            Request::Signal { signal, .. } => self.signal(channel, signal),
            Request::Wait => self.channels.open(channel).waits = true,
            Request::Watch => self.channels.open(channel).watches = true,
            // A serial line has no size.
            Request::Resize(_) if self.is_joined(channel) => {}
            Request::Resize(_) => self.channels.respond(channel, &Response::Ok),
            Request::Pause => self.pause(channel, true),
            Request::Resume => self.pause(channel, false),
            Request::Stats if self.phase == Phase::Running => {
                self.channels.respond(channel, &Response::Stats(Box::new(self.usage.now())));
            }
            Request::Screenshot if self.phase == Phase::Running => self.picture(channel),
            Request::Stats | Request::Screenshot => self.not_running(channel),
            Request::Update(_) => self.refuse(
                channel,
                ErrorKind::Conflict,
                "a machine has the memory and the CPUs that it was started with; stop it, update it, start it",
            ),
            _ => self.refuse(
                channel,
                ErrorKind::Unsupported,
                "a machine runs its own system, with nobody of ours in it to do that: use `proa attach`, or ssh",
            ),
        }
    }

    fn start(&mut self, channel: u32) {
        if self.phase != Phase::Ready {
            return self.refuse(channel, ErrorKind::Conflict, "the machine was started already");
        }
        self.phase = Phase::Starting;
        let number = self.pc.control.send("cont", json!({}));
        self.asked.insert(number, Asked::Start(channel));
    }

    fn attach(&mut self, channel: u32, stdin: bool, stdout: bool, stderr: bool) {
        if self.phase == Phase::Ended {
            return self.not_running(channel);
        }
        let known = self.channels.open(channel);
        if known.role != Role::Plain {
            return self.refuse(
                channel,
                ErrorKind::InvalidInput,
                "this channel has joined something already",
            );
        }
        known.role = Role::Process { key: CONSOLE, stdin, stdout, stderr };
        self.channels.respond(channel, &Response::Ok);
    }

    fn signal(&mut self, channel: u32, signal: i32) {
        let answer = !self.is_joined(channel);
        match signal {
            _ if self.phase != Phase::Running => self.not_running(channel),
            KILL => {
                self.killed = true;
                if answer {
                    self.channels.respond(channel, &Response::Ok);
                }
                self.kill();
            }
            _ if POWER.contains(&signal) => {
                let number = self.pc.control.send("system_powerdown", json!({}));
                if answer {
                    self.asked.insert(number, Asked::Done(channel));
                }
            }
            _ => self.refuse(
                channel,
                ErrorKind::Unsupported,
                "a machine has a power button and no processes: SIGTERM presses it, SIGKILL ends the machine",
            ),
        }
    }

    fn pause(&mut self, channel: u32, pause: bool) {
        if self.phase != Phase::Running {
            return self.not_running(channel);
        }
        if self.is_cut() {
            return self.refuse(
                channel,
                ErrorKind::Conflict,
                "the machine's disks are being copied; try again",
            );
        }
        if self.paused == pause {
            let state = if pause { "paused already" } else { "not paused" };
            return self.refuse(channel, ErrorKind::Conflict, format!("the instance is {state}"));
        }
        // One that is held for its resets goes on when that is over.
        let command = if pause || self.resets.held_until().is_some() { "stop" } else { "cont" };
        let number = self.pc.control.send(command, json!({}));
        self.asked.insert(number, Asked::Pause(channel, pause));
    }

    fn picture(&mut self, channel: u32) {
        match Picture::order(&mut self.pc.control) {
            Ok((number, picture)) => _ = self.asked.insert(number, Asked::Picture(channel, picture)),
            Err(error) => {
                self.refuse(channel, ErrorKind::Internal, format!("no room for a picture: {error}"))
            }
        }
    }

    fn typed(&mut self, channel: u32, bytes: Vec<u8>) {
        let Some(role) = self.channels.role(channel) else { return };
        if !self.channels.received(channel, bytes.len()) {
            _ = self.channels.expel(channel, "more was sent than the window allows");
            return;
        }
        match role {
            // A serial line has no end of input.
            Role::Process { stdin: true, .. } if !bytes.is_empty() => {
                self.input.push(channel, bytes, &mut self.channels);
            }
            _ => self.channels.consumed(channel, bytes.len()),
        }
    }

    fn is_joined(&self, channel: u32) -> bool {
        matches!(self.channels.role(channel), Some(Role::Process { .. }))
    }

    fn not_running(&mut self, channel: u32) {
        self.refuse(channel, ErrorKind::Conflict, "the instance is not running");
    }

    fn refuse(&mut self, channel: u32, kind: ErrorKind, message: impl Into<String>) {
        self.channels.open(channel);
        self.channels.fail(channel, kind, message);
    }
}

/// Copies of its disks.
impl Machine {
    /// Copies the disks as they are at one moment into an empty directory; answers when that is done.
    ///
    /// # Errors
    /// It does not run, is being copied already, or a file cannot be made.
    pub fn snapshot(&mut self, channel: u32, directory: &Path) -> Result<(), Error> {
        if self.phase != Phase::Running {
            return Err(Error::NotRunning);
        }
        if self.copy.is_some() {
            return Err(Error::Changing);
        }
        self.channels.open(channel);
        let begun = Copy::begin(&mut self.pc.control, channel, &self.media, directory, self.disks);
        let (copy, numbers) = begun.map_err(|error| Error::Io { path: directory.to_owned(), error })?;
        self.asked.extend(numbers.into_iter().map(|number| (number, Asked::Copy)));
        let is_in_step = copy.halts();
        self.copy = Some(copy);
        if is_in_step {
            self.copied(Next::Halt);
        }
        Ok(())
    }

    /// Its client is gone.
    fn abandon_copy(&mut self, channel: u32) {
        if let Some(copy) = self.copy.as_mut().filter(|copy| copy.channel == channel) {
            let next = copy.give_up(&mut self.pc.control, "nobody waits for it".into());
            self.copied(next);
        }
    }

    fn copied(&mut self, next: Next) {
        match next {
            Next::Wait => {}
            Next::Halt => {
                let number = self.pc.control.send("stop", json!({}));
                self.asked.insert(number, Asked::Cut);
            }
            Next::Done(result) => {
                let Some(copy) = self.copy.take() else { return };
                self.go_on();
                match result {
                    Ok(()) => self.channels.respond(copy.channel, &Response::Ok),
                    Err(why) if self.channels.role(copy.channel).is_some() => {
                        let message = format!("the machine's disks cannot be copied: {why}");
                        self.refuse(copy.channel, ErrorKind::Internal, message);
                    }
                    Err(_) => {}
                }
            }
        }
    }

    /// The end of the machine is that of its copy.
    fn lose_copy(&mut self) {
        if let Some(copy) = self.copy.take() {
            let message = "the machine ended before its disks were copied";
            self.refuse(copy.channel, ErrorKind::Conflict, message);
        }
    }
}

/// What QEMU says.
impl Machine {
    fn hear(&mut self) {
        for said in self.pc.control.read() {
            match said {
                Said::Answer(number, result) => {
                    if let Some(asked) = self.asked.remove(&number) {
                        self.answered(asked, result);
                    }
                }
                Said::Event(name, data) => self.happened(&name, &data),
            }
        }
        if self.pc.control.is_broken() && self.phase != Phase::Ended {
            self.lose_control();
        }
    }

    fn answered(&mut self, asked: Asked, result: Result<Value, String>) {
        match (asked, result) {
            (Asked::Start(channel), Ok(_)) => {
                self.phase = Phase::Running;
                self.enclosing.soon();
                self.channels.respond(channel, &Response::Started { pid: self.pc.pid() });
            }
            (Asked::Done(channel), Ok(_)) => self.channels.respond(channel, &Response::Ok),
            (Asked::Pause(channel, pause), Ok(_)) => {
                self.paused = pause;
                self.channels.respond(channel, &Response::Ok);
            }
            (Asked::Picture(channel, picture), Ok(_)) => match picture.bytes() {
                Ok(bytes) => {
                    for part in bytes.chunks(MAX_STREAM).chain([&[][..]]) {
                        self.channels.forward(Frame::new(channel, Kind::Data, part.to_vec()));
                    }
                    self.channels.respond(channel, &Response::Ok);
                }
                Err(error) => {
                    self.refuse(channel, ErrorKind::Internal, format!("no picture of the screen: {error}"));
                }
            },
            (Asked::Cut, Ok(_)) => {
                let next = self.copy.as_mut().map(|copy| copy.halted(&mut self.pc.control));
                self.copied(next.unwrap_or(Next::Wait));
            }
            (Asked::Copy, Ok(_)) => {}
            (Asked::Copy, Err(message)) => {
                let next = self.copy.as_mut().map(|copy| copy.refused(&mut self.pc.control, message));
                self.copied(next.unwrap_or(Next::Wait));
            }
            (Asked::Cut, Err(message)) => {
                let next = self.copy.as_mut().map(|copy| copy.give_up(&mut self.pc.control, message));
                self.copied(next.unwrap_or(Next::Wait));
            }
            (
                Asked::Start(channel)
                | Asked::Done(channel)
                | Asked::Pause(channel, _)
                | Asked::Picture(channel, _),
                Err(message),
            ) => self.refuse(channel, ErrorKind::Internal, format!("QEMU failed: {message}")),
        }
    }

    fn happened(&mut self, name: &str, data: &Value) {
        match name {
            "SHUTDOWN" => self.powered_off = data["guest"] == true,
            "RESET" if data["guest"] == true => self.was_reset(),
            _ => {
                let next = self.copy.as_mut().map(|copy| copy.happened(&mut self.pc.control, name, data));
                self.copied(next.unwrap_or(Next::Wait));
            }
        }
    }

    fn was_reset(&mut self) {
        let Some(pause) = self.resets.note(Instant::now()) else { return };
        self.pc.control.send("stop", json!({}));
        let seconds = pause.as_secs();
        self.say(&format!("the machine resets again and again: it is held for {seconds} s"));
    }

    /// A line of ours, on standard error.
    fn say(&mut self, line: &str) {
        self.channels.fan_out(CONSOLE, Kind::Stderr, format!("proa: {line}\r\n").into_bytes());
    }
}

/// The end.
impl Machine {
    /// A VMM that cannot be told anything is about to end, or is of no use. That we end it is nothing that was asked for.
    fn lose_control(&mut self) {
        if !self.powered_off {
            // Why it could not be waited for is told when its end is seen.
            let _ = self.pc.kill();
            self.reap();
        }
    }

    fn reap(&mut self) {
        if self.phase == Phase::Ended {
            return;
        }
        match self.pc.try_wait() {
            Ok(None) => {}
            Ok(Some(exit)) => self.ended(exit),
            Err(error) => self.lost(&error.into()),
        }
    }

    fn ended(&mut self, exit: VmExit) {
        // What QEMU and the guest said last.
        self.hear_last();
        self.read_last();
        if self.powered_off && exit == VmExit::Code(0) {
            self.over(0);
        } else if self.killed {
            self.over(LOST);
        } else {
            let error = self.pc.died(exit);
            self.lost(&error.into());
        }
    }

    fn hear_last(&mut self) {
        while !self.pc.control.is_broken() {
            let said = self.pc.control.read();
            if said.is_empty() {
                return;
            }
            for said in said {
                if let Said::Event(name, data) = said {
                    self.happened(&name, &data);
                }
            }
        }
    }

    /// The socket holds no more than its buffer.
    fn read_last(&mut self) {
        self.output.read_rest(CONSOLE, &mut self.channels);
        while let Found::Bytes(_) = self.output.read(CONSOLE, &mut self.channels) {}
        self.output.close();
        self.input.discard(&mut self.channels);
    }

    fn over(&mut self, code: i32) {
        if self.phase == Phase::Starting {
            return self.lost(&Error::NotRunning);
        }
        self.phase = Phase::Ended;
        self.lose_copy();
        let status = ExitStatus { code, oom_killed: false, at_ns: now_ns() };
        self.channels.process_ended(CONSOLE, status);
        self.channels.answer_waiting(status);
    }

    /// It has ended in a way that nobody asked for: the monitor hears why before anybody hears of an end.
    fn lost(&mut self, error: &Error) {
        self.phase = Phase::Ended;
        self.lose_copy();
        // Whoever waits for an answer has it from the monitor.
        self.channels.respond(MONITOR, &error.response());
        let status = ExitStatus { code: LOST, oom_killed: false, at_ns: now_ns() };
        self.channels.process_ended(CONSOLE, status);
        self.channels.answer_waiting(status);
    }
}
