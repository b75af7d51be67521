//! The virtual machine of an instance: its VMM, and the link to the agent that serves it.
//!
//! ```text
//!   Booting ─ first answer ─▶ Serving ─ stop() ─▶ Stopping ─ VMM has ended, or took too long ─▶ Gone
//!   Booting, Serving ─ silent, dead, or not to be trusted: an Error on MONITOR ─▶ Gone
//!   Booting from a template ─ silent, dead or not to be trusted: a Notice on MONITOR ─▶ Booting without
//! ```
//!
//! One that goes on from a snapshot ([`snapshot`]) has no other way to begin: where that fails, so does the start.
//!
//! One that stood by before there was an instance ([`standby`]) has everything but that behind it. Once this guest has
//! been at work for a moment, or has ended, another is made to stand by for the next of its kind.
//!
//! What is sent to a clone of a template before its first answer is kept, to be said again to the guest that boots
//! in its place. A guest that booted and for which a template is wanted has that made by a process of its own, which
//! nobody waits for.
//!
//! Frames may be sent from the start; they follow the configuration on the same stream. What comes back was
//! written by a guest and is trusted in nothing: the stream ends at the first byte that is no frame.

mod network;
mod resize;
mod snapshot;

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proa_oci::runtime::Process;
use proa_protocol::frame::{Decoder, Frame, Kind, MAX_STREAM, WINDOW};
use proa_protocol::instance::InstanceConfig;
use proa_protocol::message::{ErrorKind, GuestConfig, Request, Response};
use proa_protocol::network::Interface;
use proa_protocol::snapshot::Resume;
use proa_protocol::standby::Standby;
use proa_protocol::template::STORE;
use proa_supervisor::PollSet;
use proa_vm::{Extras, TemplateRequest, Vm, VmError, VmSpec, plan_shares};
use rustix::event::PollFlags;
use rustix::io::Errno;

use self::network::Devices;
use self::resize::Resizing;
use self::snapshot::{Freezing, take_resume};
use crate::args::Args;
use crate::backend::{MONITOR, Stop};
use crate::clock::now_ns;
use crate::enclosing::Enclosing;
use crate::error::Error;
use crate::maker;
use crate::network::{Places, Remains};
use crate::record::Record;
use crate::standby::{self, Ready};

/// The channel on which the agent is configured and shut down.
const AGENT: u32 = 0;
/// How long a guest may take to unmount and power off.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after the first answer what stands by for the next is made: this one's work comes first.
const SETTLED: Duration = Duration::from_secs(1);
/// Bytes that may wait for the guest before clients are no longer read.
const CONGESTED: usize = 4 * WINDOW as usize;

const STREAM_TOKEN: u64 = 0;
const PROCESS_TOKEN: u64 = 1;
const JOINER_TOKEN: u64 = 2;

enum Phase {
    Booting { until: Instant },
    Serving,
    Stopping { until: Instant },
    Gone,
}

/// What a guest needs that boots in place of a clone.
struct Retry {
    spec: VmSpec,
    config: GuestConfig,
    /// What it has been told since its configuration.
    told: Vec<u8>,
}

/// A guest and its link.
pub struct Guest {
    id: String,
    vm: Vm,
    /// To boot it without a template; until its first answer.
    retry: Option<Box<Retry>>,
    phase: Phase,
    decoder: Decoder,
    incoming: VecDeque<Frame>,
    outgoing: Vec<u8>,
    sent: usize,
    /// The VMM has not closed its end of the stream.
    open: bool,
    places: Places,
    devices: Devices,
    /// The writable disk.
    disk: PathBuf,
    freezing: Option<Box<Freezing>>,
    resizing: Option<Box<Resizing>>,
    enclosing: Enclosing,
    next: Option<Next>,
}

/// What is to stand by for the next instance of the kind, when this one has begun or ended.
struct Next {
    args: Args,
    wish: Standby,
    request: TemplateRequest,
    due: Option<Instant>,
}

impl Next {
    fn new(args: &Args, wish: Standby, spec: &VmSpec) -> Option<Self> {
        let request = TemplateRequest::of_kind(spec)?;
        Some(Self { args: args.clone(), wish, request, due: None })
    }
}

impl Guest {
    /// Boots the instance's virtual machine. Does not wait for it.
    pub fn boot(
        args: &Args,
        record: &Record,
        mut config: InstanceConfig,
        places: Places,
        standby: Option<Ready>,
        notice: &mut dyn FnMut(String),
    ) -> Result<Self, Error> {
        // What is only held for work on its files has no devices for them.
        let endpoints = config.networks.iter().take(places.count());
        let interfaces = endpoints.clone().map(|endpoint| endpoint.interface.clone()).collect();
        let devices = Devices::new(endpoints);
        let wish = config.standby.take();
        let (configure, mut spec) = describe(args, record, config, interfaces)?;
        let resume = take_resume(record)?;
        let standby = standby.filter(|ready| resume.is_none() && ready.fits(&mut spec, places.count()));
        spec.taps = places.taps(standby.as_ref().map_or(&[], |ready| &ready.taps))?;
        let next = wish.and_then(|wish| Next::new(args, wish, &spec));
        // What is left of its place is cleared when the guest has been told what it is.
        let (vm, _place) = match (&resume, standby) {
            (Some(resume), _) => (Vm::resume(&spec, &resume.snapshot, notice)?, None),
            (None, Some(Ready { machine, place, .. })) => (machine.take(&spec)?, Some(place)),
            (None, None) => (Vm::start(&spec, notice)?, None),
        };
        let vm_is_of_kind = vm.has_container();
        let mut guest = Self {
            id: spec.id.clone(),
            phase: Phase::Booting { until: Instant::now() + vm.answer_timeout() },
            retry: None,
            vm,
            decoder: Decoder::new(),
            incoming: VecDeque::new(),
            outgoing: Vec::new(),
            sent: 0,
            open: true,
            places,
            devices,
            disk: spec.rw_disk.clone(),
            freezing: None,
            resizing: None,
            enclosing: Enclosing::default(),
            next: next.filter(|_| vm_is_of_kind),
        };
        let told = if guest.vm.has_container() { configure.part() } else { configure.clone() };
        let config = Box::new(told);
        let first = match resume {
            Some(Resume { is_fork, .. }) => Request::Adopt { config, is_fork },
            None => Request::Configure(config),
        };
        guest.send(&first.frame(AGENT));
        if guest.vm.is_clone() {
            guest.retry = Some(Box::new(Retry { spec, config: configure, told: Vec::new() }));
        }
        Ok(guest)
    }

    /// Queues a frame for the guest.
    pub fn send(&mut self, frame: &Frame) {
        if matches!(self.phase, Phase::Gone) {
            return;
        }
        if let Some(freezing) = &mut self.freezing {
            return frame.encode(&mut freezing.held);
        }
        if let Some(retry) = &mut self.retry {
            frame.encode(&mut retry.told);
        }
        frame.encode(&mut self.outgoing);
        self.write();
    }

    /// The next frame from the guest, the agent's own channel excepted.
    pub fn pop(&mut self) -> Option<Frame> {
        while let Some(frame) = self.incoming.pop_front() {
            if frame.channel != AGENT {
                if self.takes_answer(&frame) {
                    continue;
                }
                return Some(frame);
            }
            if let Some(frame) = self.agent_frame(&frame) {
                return Some(frame);
            }
        }
        None
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
        if matches!(self.phase, Phase::Gone) {
            return;
        }
        let writes = if self.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        if self.open {
            set.add(STREAM_TOKEN, self.vm.stream().as_fd(), PollFlags::IN | writes);
        }
        set.add(PROCESS_TOKEN, self.vm.pidfd(), PollFlags::IN);
        self.enclosing.poll_fds(set, JOINER_TOKEN);
    }

    /// One of its descriptors is ready.
    pub fn ready(&mut self, token: u64) {
        match token {
            STREAM_TOKEN => {
                self.write();
                self.read();
            }
            PROCESS_TOKEN => self.reap(),
            _ => self.enclosing.joined(),
        }
    }

    /// How long until [`Guest::tick`] must be called.
    pub fn timeout(&self) -> Option<Duration> {
        let until = match self.phase {
            Phase::Booting { until } | Phase::Stopping { until } => Some(until),
            Phase::Serving => {
                let changes = [self.devices.deadline(), self.freeze_deadline(), self.resize_deadline()];
                let next = self.next.as_ref().and_then(|next| next.due);
                changes.into_iter().chain([self.enclosing.deadline(), next]).flatten().min()
            }
            Phase::Gone => None,
        };
        until.map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// Ends what has taken too long.
    pub fn tick(&mut self) {
        match self.phase {
            Phase::Booting { until } if Instant::now() >= until => {
                let error = self.vm.silent();
                self.give_up(error);
            }
            Phase::Stopping { until } if Instant::now() >= until => {
                self.vm.kill();
                self.phase = Phase::Gone;
            }
            Phase::Serving => {
                self.tick_change();
                self.tick_freeze();
                self.tick_resize();
                self.enclosing.tick(&self.id, &self.pids(), self.vm.bounds());
                if self.next.as_ref().and_then(|next| next.due).is_some_and(|due| Instant::now() >= due) {
                    self.prepare_next();
                }
            }
            _ => {}
        }
    }

    /// Whether too much waits for the guest.
    pub fn congested(&self) -> bool {
        self.outgoing.len() - self.sent > CONGESTED
    }

    /// The VMM's process id, then its helpers'.
    pub fn pids(&self) -> Vec<u32> {
        std::iter::once(self.vm.pid()).chain(self.vm.helper_pids()).collect()
    }

    /// Ends the VMM. The guest is then told to have been lost.
    pub fn kill(&mut self) {
        self.vm.kill();
    }

    /// Asks the guest to power off, so that its disk is in order; where that is to be discarded, ends it at once.
    /// Done when its VMM has ended.
    pub fn stop(&mut self, discard: bool) -> Result<Stop, Error> {
        match self.phase {
            Phase::Serving | Phase::Stopping { .. } if discard => {
                self.vm.kill();
                self.phase = Phase::Gone;
            }
            Phase::Booting { .. } => {
                // It may not even have an agent yet, and has run nothing that could be lost.
                self.vm.kill();
                self.phase = Phase::Gone;
            }
            Phase::Serving => {
                self.send(&Request::Shutdown.frame(AGENT));
                self.phase = Phase::Stopping { until: Instant::now() + STOP_TIMEOUT };
            }
            Phase::Stopping { .. } | Phase::Gone => {}
        }
        if !matches!(self.phase, Phase::Gone) {
            return Ok(Stop::NotYet);
        }
        // The taps go with the VMM.
        self.vm.wait()?;
        self.enclosing.remove()?;
        self.places.withdraw()?;
        Ok(Stop::Done(Remains::new(None, self.places.clone())))
    }

    /// The agent's own answers: the first ends the boot, others a change of networks.
    fn agent_frame(&mut self, frame: &Frame) -> Option<Frame> {
        let answer = Response::parse(&frame.payload).ok()?;
        match (answer, &self.phase) {
            (Response::Notice { message }, _) => Some(Response::Notice { message }.frame(MONITOR)),
            (Response::Error { kind, message }, Phase::Booting { .. }) => {
                self.serve();
                Some(Response::Error { kind, message }.frame(MONITOR))
            }
            (_, Phase::Booting { .. }) => {
                self.serve();
                None
            }
            (answer, Phase::Serving) => {
                self.agent_has_changed(answer);
                // What it has for a client stands behind the frame that is being looked at.
                None
            }
            _ => None,
        }
    }

    fn read(&mut self) {
        let mut bytes = Vec::with_capacity(MAX_STREAM);
        match rustix::io::read(self.vm.stream(), rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(count) if count > 0 => self.decoder.push(&bytes),
            Err(Errno::AGAIN | Errno::INTR) => return,
            // Why it ended is seen at the VMM's process.
            _ => return self.open = false,
        }
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) if is_answer(frame.kind) => self.incoming.push_back(frame),
                Ok(None) => return,
                Ok(Some(frame)) => return self.distrust(format!("a {:?} frame", frame.kind)),
                Err(error) => return self.distrust(error.to_string()),
            }
        }
    }

    fn write(&mut self) {
        while self.sent < self.outgoing.len() {
            match rustix::io::write(self.vm.stream(), &self.outgoing[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
        // An idle monitor keeps no buffer.
        self.outgoing = Vec::new();
        self.sent = 0;
    }

    fn reap(&mut self) {
        match self.vm.try_wait() {
            Ok(None) => {}
            Ok(Some(_)) if matches!(self.phase, Phase::Stopping { .. }) => self.phase = Phase::Gone,
            Ok(Some(exit)) => {
                // What the guest said last may still be in the stream.
                self.read();
                let error = self.vm.died(exit);
                self.give_up(error);
            }
            Err(error) => self.fail(&error.into()),
        }
    }

    /// It has answered: it works, and is configured or knows why not.
    fn serve(&mut self) {
        self.phase = Phase::Serving;
        self.enclosing.soon();
        self.retry = None;
        if let Some(next) = &mut self.next {
            next.due = Some(Instant::now() + SETTLED);
        }
        if let Some(request) = self.vm.take_template_request() {
            maker::start(&request);
        }
    }

    /// Has a virtual machine stand by for the next instance of this kind, once.
    pub fn prepare_next(&mut self) {
        if let Some(Next { args, wish, request, due: Some(_) }) = self.next.take() {
            standby::start(&args, &wish, self.places.count(), &request);
        }
    }

    /// A clone of a template is replaced by a guest that boots; any other guest is lost.
    fn give_up(&mut self, why: VmError) {
        let Some(retry) = self.retry.take() else { return self.fail(&why.into()) };
        // The template is gone.
        self.next = None;
        let Retry { spec, config, told } = *retry;
        let incoming = &mut self.incoming;
        let mut notice = |message: String| incoming.push_back(Response::Notice { message }.frame(MONITOR));
        match self.vm.boot_instead(&why, &spec, &mut notice) {
            Ok(()) => {
                self.phase = Phase::Booting { until: Instant::now() + self.vm.answer_timeout() };
                self.decoder = Decoder::new();
                (self.outgoing, self.sent, self.open) = (Vec::new(), 0, true);
                let config = GuestConfig { time_ns: now_ns(), ..config };
                Request::Configure(Box::new(config)).frame(AGENT).encode(&mut self.outgoing);
                self.outgoing.extend(told);
                self.write();
            }
            Err(error) => self.fail(&error.into()),
        }
    }

    fn distrust(&mut self, what: String) {
        let message = format!("the guest sent what no agent sends ({what}); it was ended");
        self.incoming.push_back(Response::error(ErrorKind::Internal, message).frame(MONITOR));
        self.vm.kill();
        self.phase = Phase::Gone;
    }

    fn fail(&mut self, error: &Error) {
        self.incoming.push_back(error.response().frame(MONITOR));
        self.vm.kill();
        self.phase = Phase::Gone;
    }
}

/// What the guest is told, and what its machine is made of, but for the taps.
fn describe(
    args: &Args,
    record: &Record,
    mut config: InstanceConfig,
    interfaces: Vec<Interface>,
) -> Result<(GuestConfig, VmSpec), Error> {
    let shares = plan_shares(&mut config.spec)?;
    let configure = GuestConfig {
        id: config.id.clone(),
        spec: config.spec,
        launch: config.launch,
        layers: config.layers.len(),
        shares: shares.iter().map(|share| share.tag.clone()).collect(),
        interfaces,
        entropy: entropy(),
        time_ns: now_ns(),
    };
    let spec = VmSpec {
        id: config.id,
        kernel: config.vm.kernel,
        agent: args.agent.clone().unwrap_or_default(),
        store: args.root.join(STORE),
        run_dir: record.run_dir.clone(),
        memory: config.vm.memory,
        cpus: config.vm.cpus,
        layers: config.layers.iter().map(|layer| layer.path.clone()).collect(),
        rw_disk: record.dir.join("rw.img"),
        rw_size: config.vm.disk_size,
        shares,
        templates: !config.vm.no_template,
        taps: Vec::new(),
        kind: Some(Box::new(configure.kind())),
        programs: configure.spec.process.as_ref().map(Process::candidates).unwrap_or_default(),
        extras: Extras { words: config.vm.kernel_args, ..Extras::default() },
    };
    Ok((configure, spec))
}

fn is_answer(kind: Kind) -> bool {
    !matches!(kind, Kind::Request | Kind::Stdin)
}

fn entropy() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap_or(0);
    bytes.truncate(filled);
    bytes
}
