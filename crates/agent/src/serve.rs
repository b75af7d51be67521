//! Moves frames between the port and the supervisor until the host says that it is over.
//!
//! ```text
//!   Waiting ─Prepare, Rehearse─▶ Waiting ──Configure──▶ Serving ──Shutdown──▶ return      (the port's end, or bytes that are no frame: return)
//!                                                       Serving ─Plug, Unplug─▶ Serving: network devices of the instance come and go
//!                                                       Serving ─Expand─▶ Serving: memory and CPUs that have come are taken
//!                                                       Serving ─Freeze─▶ Frozen ─Thaw─▶ Serving
//!                                                                         Frozen ─Adopt─▶ Frozen ─Start─▶ Serving: in a copy of the guest
//! ```
//!
//! Frozen, it has said all that there was to say and says nothing, so that what is on its way in either direction is
//! nothing: a copy of the guest begins with whole frames.
//!
//! Output waits in one buffer; while more than [`CONGESTED`] bytes are in it, the supervisor's frames are left
//! where they are, bounded there by its windows.

use std::fs::File;
use std::io::{ErrorKind as IoKind, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use proa_protocol::frame::{Decoder, Frame, Kind};
use proa_protocol::message::{ErrorKind, Request, Response};
use proa_protocol::network::Interface;
use proa_supervisor::{HOST_TOKENS, PollSet, Supervisor};
use proa_sys::process::SchedAttr;
use proa_sys::signalfd::SignalFd;
use rustix::event::PollFlags;
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::adopt::adopt;
use crate::configure::{self, Prepared};
use crate::error::{At, Error};
use crate::expand::{LateModules, expand};
use crate::rehearse::rehearse;

/// The agent's own channel.
const AGENT: u32 = 0;
/// Bytes that may wait for the port before the supervisor's frames are left with it.
const CONGESTED: usize = 1024 * 1024;
/// What the kernel's driver gives to one read, and how often a round reads.
const PAGE: usize = 4096;
const READS: usize = 16;

/// How long orphans that have ended are left.
const LATE: Duration = Duration::from_millis(20);

const PORT_TOKEN: u64 = HOST_TOKENS;
const CHILD_TOKEN: u64 = HOST_TOKENS + 1;

/// The port, with what has been read from it and what waits to be written.
struct Link {
    port: File,
    decoder: Decoder,
    outgoing: Vec<u8>,
    sent: usize,
    ended: bool,
}

/// What the guest is.
#[derive(Default)]
struct Guest {
    prepared: Option<Prepared>,
    supervisor: Option<Supervisor>,
    /// The instance's, in the order of their devices.
    interfaces: Vec<Interface>,
    frozen: bool,
    /// When orphans that have ended are reaped, if any may have.
    orphans: Option<Instant>,
    late: LateModules,
}

impl Guest {
    /// Somebody's child has ended. If it was nobody's, it waits a moment: whoever waits for the end of the instance's
    /// program comes first.
    fn child_ended(&mut self, children: &SignalFd) {
        while let Ok(Some(_)) = children.next_signal() {}
        self.orphans.get_or_insert(Instant::now() + LATE);
    }

    /// Reaps orphans when that is due.
    fn reap_late(&mut self) {
        if self.orphans.take_if(|due| *due <= Instant::now()).is_some() {
            reap(self.supervisor.as_ref());
        }
    }

    /// The supervisor, where it has something to say.
    fn speaker(&mut self) -> Option<&mut Supervisor> {
        self.supervisor.as_mut().filter(|_| !self.frozen)
    }
}

/// Serves until the end.
pub fn run(port: File, late: LateModules) -> Result<(), Error> {
    yield_to_instance().at("set", "the scheduler")?;
    let children =
        SignalFd::new(&[rustix::process::Signal::CHILD.as_raw()]).at("watch", "child processes")?;
    let mut link = Link { port, decoder: Decoder::new(), outgoing: Vec::new(), sent: 0, ended: false };
    let mut guest = Guest { late, ..Guest::default() };
    while !link.ended {
        let events = wait(&link, &children, &guest)?;
        for (token, flags) in events {
            match (token, guest.speaker()) {
                (PORT_TOKEN, _) => link.exchange(flags),
                (CHILD_TOKEN, _) => guest.child_ended(&children),
                (token, Some(supervisor)) => supervisor.ready(token),
                (_, None) => {}
            }
        }
        while let Some(frame) = link.decoder.next_frame()? {
            if dispatch(frame, &mut link, &mut guest) {
                return link.flush();
            }
        }
        guest.reap_late();
        if let Some(supervisor) = guest.speaker() {
            supervisor.tick();
            while link.waiting() < CONGESTED {
                let Some(frame) = supervisor.pop() else { break };
                link.send(&frame);
            }
        }
        link.write();
    }
    Ok(())
}

/// A process that the agent has started, or serves, goes on when it wakes the agent: on a single CPU that is emulated, each
/// change from one to the other costs what it takes to run some thousand instructions. What it starts is scheduled as usual.
fn yield_to_instance() -> std::io::Result<()> {
    const BATCH: u32 = 3;
    const RESET_ON_FORK: u64 = 1;
    let attributes = SchedAttr { policy: BATCH, flags: RESET_ON_FORK, ..SchedAttr::default() };
    proa_sys::process::set_scheduler(attributes)
}

fn wait(link: &Link, children: &SignalFd, guest: &Guest) -> Result<Vec<(u64, PollFlags)>, Error> {
    let late = guest.orphans.map(|due| due.saturating_duration_since(Instant::now()));
    let supervisor = guest.supervisor.as_ref().filter(|_| !guest.frozen);
    let mut set = PollSet::new();
    let writes = if link.waiting() > 0 { PollFlags::OUT } else { PollFlags::empty() };
    set.add(PORT_TOKEN, link.port.as_fd(), PollFlags::IN | writes);
    set.add(CHILD_TOKEN, children.as_fd(), PollFlags::IN);
    if let Some(supervisor) = supervisor {
        supervisor.poll_fds(&mut set);
    }
    let timeout = supervisor.and_then(Supervisor::timeout).into_iter().chain(late).min();
    set.wait(timeout).at("poll", "the port")
}

/// Handles one frame; true when the guest shall end.
fn dispatch(frame: Frame, link: &mut Link, guest: &mut Guest) -> bool {
    if frame.channel != AGENT {
        match &mut guest.supervisor {
            Some(supervisor) => {
                let starts = guest.frozen && frame.kind == Kind::Request && is_start(&frame);
                supervisor.handle(frame);
                guest.frozen &= !starts;
            }
            None => link.refuse(frame.channel, "the guest is not configured yet"),
        }
        return false;
    }
    if frame.kind != Kind::Request {
        return false;
    }
    match Request::parse(&frame.payload) {
        Ok(Request::Shutdown) => {
            // What cannot be removed goes with the machine.
            let _ = guest.supervisor.take().map(|mut supervisor| supervisor.delete());
            link.send(&Response::Ok.frame(AGENT));
            return true;
        }
        Ok(request) => request_of(request, link, guest),
        Err(error) => link.refuse(AGENT, &format!("not a request: {error}")),
    }
    false
}

/// Only that starts a guest again that was adopted, and of all frames for a frozen one it alone is looked into.
fn is_start(frame: &Frame) -> bool {
    matches!(Request::parse(&frame.payload), Ok(Request::Start))
}

/// Does what the host asks of the agent.
fn request_of(request: Request, link: &mut Link, guest: &mut Guest) {
    let done = match (request, &mut guest.supervisor) {
        (Request::Prepare { mount, interfaces, kind, programs }, None) => {
            let kind = kind.map(|kind| (*kind, &programs[..]));
            configure::prepare(mount, interfaces, kind).map(|done| guest.prepared = Some(done))
        }
        (Request::Rehearse(config), None) if guest.prepared.is_some() => {
            rehearse(*config, guest.prepared.as_ref().map_or(0, |prepared| prepared.interfaces))
        }
        (Request::Configure(config), None) => {
            guest.interfaces.clone_from(&config.interfaces);
            let configured = configure::apply(*config, guest.prepared.take());
            configured.map(|configured| guest.supervisor = Some(configured))
        }
        (Request::Plug { device, interface }, Some(_)) => configure::plug(device, &interface),
        (Request::Unplug { device, interface }, Some(_)) => configure::unplug(device, &interface),
        (Request::Expand { memory, cpus }, Some(_)) => expand(memory, cpus, &guest.late),
        (Request::Freeze, Some(supervisor)) if !guest.frozen => freeze(supervisor, link, &mut guest.frozen),
        (Request::Thaw, Some(supervisor)) if guest.frozen => {
            guest.frozen = false;
            match supervisor.thaw() {
                // It has no answer.
                Ok(()) => return,
                Err(error) => Err(error.into()),
            }
        }
        (Request::Adopt { config, is_fork }, Some(supervisor)) if guest.frozen => {
            adopt(supervisor, *config, is_fork, &mut guest.interfaces)
        }
        _ => return link.refuse(AGENT, "not a request for the agent"),
    };
    link.send(&answer(done).frame(AGENT));
}

/// Stops the instance; the answer, which comes after all that it has said, is the last.
fn freeze(supervisor: &mut Supervisor, link: &mut Link, frozen: &mut bool) -> Result<(), Error> {
    supervisor.freeze()?;
    while let Some(frame) = supervisor.pop() {
        link.send(&frame);
    }
    *frozen = true;
    Ok(())
}

fn answer(result: Result<(), Error>) -> Response {
    match result {
        Ok(()) => Response::Ok,
        Err(error) => Response::error(ErrorKind::Internal, error.to_string()),
    }
}

/// Reaps what became an orphan in the guest; what the supervisor started is the supervisor's to reap.
fn reap(supervisor: Option<&Supervisor>) {
    let list = std::fs::read_to_string("/proc/self/task/1/children").unwrap_or_default();
    for pid in list.split_whitespace().filter_map(|text| text.parse::<i32>().ok()) {
        if !supervisor.is_some_and(|supervisor| supervisor.owns(pid as u32)) {
            // One that still runs is left alone.
            let _ = waitpid(Pid::from_raw(pid), WaitOptions::NOHANG);
        }
    }
}

impl Link {
    fn waiting(&self) -> usize {
        self.outgoing.len() - self.sent
    }

    fn send(&mut self, frame: &Frame) {
        frame.encode(&mut self.outgoing);
    }

    fn refuse(&mut self, channel: u32, why: &str) {
        self.send(&Response::error(ErrorKind::InvalidInput, why).frame(channel));
    }

    fn exchange(&mut self, flags: PollFlags) {
        if flags.contains(PollFlags::OUT) {
            self.write();
        }
        if !flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return;
        }
        // The kernel gives a page at a time; what is more than this is left for the next round.
        let mut bytes = [0; PAGE];
        for _ in 0..READS {
            match self.port.read(&mut bytes) {
                // The host has closed its side: nobody is there to serve.
                Ok(0) => self.ended = true,
                Ok(count) => {
                    self.decoder.push(&bytes[..count]);
                    continue;
                }
                Err(error) if matches!(error.kind(), IoKind::WouldBlock | IoKind::Interrupted) => {}
                Err(_) => self.ended = true,
            }
            return;
        }
    }

    fn write(&mut self) {
        while self.waiting() > 0 {
            match self.port.write(&self.outgoing[self.sent..]) {
                Ok(0) => return,
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == IoKind::Interrupted => {}
                Err(_) => return,
            }
        }
        self.outgoing.clear();
        self.sent = 0;
    }

    /// Writes what is left, waiting for the host to take it.
    fn flush(&mut self) -> Result<(), Error> {
        while self.waiting() > 0 {
            self.write();
            if self.waiting() > 0 {
                let mut set = PollSet::new();
                set.add(PORT_TOKEN, self.port.as_fd(), PollFlags::OUT);
                let events = set.wait(None).at("poll", "the port")?;
                if events.iter().any(|(_, flags)| flags.intersects(PollFlags::HUP | PollFlags::ERR)) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
