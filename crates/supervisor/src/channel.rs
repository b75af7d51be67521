//! The channels of a supervisor's clients: what each has joined, its credit, and the queue of frames to send.
//!
//! ```text
//!   first request ─▶ Plain ─ Attach, Exec ─▶ Process ─ Exited, Close ─▶ forgotten
//!                     Plain ─ Archive…, Stat, Changes ─▶ Job ─ answer ─▶ Plain
//! ```
//!
//! Stream bytes go out only as far as a channel's credit reaches. The one exception is the last output of a
//! process that has ended: it is read out of the kernel's pipes at once (they bound it), and what a channel has
//! no credit for waits in its backlog. So a client that stands still never holds up the end of an instance.

use std::collections::{BTreeMap, VecDeque};

use proa_protocol::frame::{Frame, Kind, WINDOW};
use proa_protocol::message::{ErrorKind, ExitStatus, Happening, Response};

/// Names a process or a job of one supervisor; never used again.
pub type Key = u32;

/// What a channel has joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Nothing: it asks and is answered.
    Plain,
    /// The streams of a process.
    Process {
        /// Which one.
        key: Key,
        /// Its standard input comes from here.
        stdin: bool,
        /// Its standard output goes here.
        stdout: bool,
        /// Its standard error goes here.
        stderr: bool,
    },
    /// A job works for it.
    Job(Key),
}

/// One client's conversation.
#[derive(Debug)]
pub struct Channel {
    /// What it has joined.
    pub role: Role,
    /// It wants to hear of the end of the first process.
    pub waits: bool,
    /// It wants to hear of what happens by itself.
    pub watches: bool,
    credit: u32,
    unconsumed: u32,
    backlog: VecDeque<Frame>,
    ended: Option<ExitStatus>,
}

impl Channel {
    fn new() -> Self {
        Self {
            role: Role::Plain,
            waits: false,
            watches: false,
            credit: WINDOW,
            unconsumed: 0,
            backlog: VecDeque::new(),
            ended: None,
        }
    }

    fn reads(&self, process: Key, kind: Kind) -> bool {
        match self.role {
            Role::Process { key, stdout, .. } if key == process && kind == Kind::Stdout => stdout,
            Role::Process { key, stderr, .. } if key == process && kind == Kind::Stderr => stderr,
            _ => false,
        }
    }
}

/// All channels and the frames to send on them.
#[derive(Debug, Default)]
pub struct Channels {
    map: BTreeMap<u32, Channel>,
    outgoing: VecDeque<Frame>,
}

impl Channels {
    /// The channel, if it is known.
    pub fn get(&mut self, channel: u32) -> Option<&mut Channel> {
        self.map.get_mut(&channel)
    }

    /// The channel, made if it is not known.
    pub fn open(&mut self, channel: u32) -> &mut Channel {
        self.map.entry(channel).or_insert_with(Channel::new)
    }

    /// Forgets the channel, as its client did.
    pub fn remove(&mut self, channel: u32) -> Option<Role> {
        let gone = self.map.remove(&channel)?;
        self.outgoing.retain(|frame| frame.channel != channel);
        Some(gone.role)
    }

    /// All that are known.
    pub fn numbers(&self) -> Vec<u32> {
        self.map.keys().copied().collect()
    }

    /// What the channel has joined.
    pub fn role(&self, channel: u32) -> Option<Role> {
        self.map.get(&channel).map(|known| known.role)
    }

    /// The next frame to send.
    pub fn pop(&mut self) -> Option<Frame> {
        let frame = self.outgoing.pop_front();
        if self.outgoing.is_empty() {
            // An idle supervisor keeps no queue.
            self.outgoing = VecDeque::new();
        }
        frame
    }

    /// Whether a frame waits to be sent.
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Sends an answer.
    pub fn respond(&mut self, channel: u32, response: &Response) {
        self.forward(response.frame(channel));
    }

    /// Sends a frame that is no stream.
    pub fn forward(&mut self, frame: Frame) {
        if self.map.contains_key(&frame.channel) {
            self.outgoing.push_back(frame);
        }
    }

    /// Sends an error.
    pub fn fail(&mut self, channel: u32, kind: ErrorKind, message: impl Into<String>) {
        self.respond(channel, &Response::error(kind, message));
    }

    /// Ends a channel whose client broke the protocol. Returns what it had joined.
    pub fn expel(&mut self, channel: u32, why: &str) -> Option<Role> {
        let role = self.remove(channel)?;
        self.outgoing.push_back(Response::error(ErrorKind::InvalidInput, why).frame(channel));
        self.outgoing.push_back(Frame::close(channel));
        Some(role)
    }

    /// Counts stream bytes that came in; false if they exceed the window.
    pub fn received(&mut self, channel: u32, bytes: usize) -> bool {
        let Some(known) = self.map.get_mut(&channel) else { return true };
        known.unconsumed = known.unconsumed.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        known.unconsumed <= WINDOW
    }

    /// Returns credit for stream bytes that were passed on or thrown away.
    pub fn consumed(&mut self, channel: u32, bytes: usize) {
        let Some(known) = self.map.get_mut(&channel) else { return };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(known.unconsumed);
        if bytes > 0 {
            known.unconsumed -= bytes;
            self.outgoing.push_back(Frame::credit(channel, bytes));
        }
    }

    /// Takes credit that a client returned, and sends what waited for it.
    pub fn credit(&mut self, channel: u32, bytes: u32) {
        if let Some(known) = self.map.get_mut(&channel) {
            // More than a window is never on the way, so a client that returns more is not believed.
            known.credit = known.credit.saturating_add(bytes).min(WINDOW);
            self.drain_backlog(channel);
        }
    }

    /// Bytes the channel may be sent now.
    pub fn credit_of(&self, channel: u32) -> usize {
        self.map.get(&channel).map_or(0, |known| known.credit as usize)
    }

    /// Sends stream bytes within the channel's credit, of which the caller made sure.
    pub fn stream(&mut self, channel: u32, kind: Kind, payload: Vec<u8>) {
        let Some(known) = self.map.get_mut(&channel) else { return };
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        debug_assert!(length <= known.credit);
        known.credit = known.credit.saturating_sub(length);
        self.outgoing.push_back(Frame::new(channel, kind, payload));
    }

    /// Bytes that every reader of a process's stream has credit for; `None` without readers.
    pub fn budget(&self, process: Key, kind: Kind) -> Option<usize> {
        let readers = self.map.values().filter(|channel| channel.reads(process, kind));
        readers.map(|channel| channel.credit as usize).min()
    }

    /// Gives bytes of a process's stream to all that read it; what exceeds a reader's credit waits.
    pub fn fan_out(&mut self, process: Key, kind: Kind, payload: Vec<u8>) {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut readers = self.map.iter_mut().filter(|(_, channel)| channel.reads(process, kind)).peekable();
        let mut payload = Some(payload);
        while let Some((&number, channel)) = readers.next() {
            // The last reader gets the buffer itself: mostly there is but one.
            let bytes = if readers.peek().is_some() { payload.clone() } else { payload.take() };
            let frame = Frame::new(number, kind, bytes.unwrap_or_default());
            if channel.backlog.is_empty() && channel.credit >= length {
                channel.credit -= length;
                self.outgoing.push_back(frame);
            } else {
                channel.backlog.push_back(frame);
            }
        }
    }

    /// Tells all that joined a process how it ended, after their last output.
    pub fn process_ended(&mut self, process: Key, status: ExitStatus) {
        let joined: Vec<u32> = self.joined(process).collect();
        for channel in joined {
            if let Some(known) = self.map.get_mut(&channel) {
                known.ended = Some(status);
            }
            self.drain_backlog(channel);
        }
    }

    /// Tells all that wait how the first process ended.
    pub fn answer_waiting(&mut self, status: ExitStatus) {
        for (&number, channel) in &mut self.map {
            if std::mem::take(&mut channel.waits) {
                self.outgoing.push_back(Response::Exited(status).frame(number));
            }
        }
    }

    /// Tells all that watch what happened.
    pub fn tell_watchers(&mut self, what: Happening) {
        for (&number, _) in self.map.iter().filter(|(_, channel)| channel.watches) {
            self.outgoing.push_back(Response::Happened(what).frame(number));
        }
    }

    /// Channels that joined a process.
    pub fn joined(&self, process: Key) -> impl Iterator<Item = u32> + '_ {
        let joined =
            move |channel: &Channel| matches!(channel.role, Role::Process { key, .. } if key == process);
        self.map.iter().filter(move |(_, channel)| joined(channel)).map(|(&number, _)| number)
    }

    fn drain_backlog(&mut self, channel: u32) {
        let Some(known) = self.map.get_mut(&channel) else { return };
        while let Some(frame) = known.backlog.front_mut() {
            let fits = frame.payload.len().min(known.credit as usize);
            if fits == 0 {
                return;
            }
            let rest = frame.payload.split_off(fits);
            let kind = frame.kind;
            let now = std::mem::replace(&mut frame.payload, rest);
            known.credit -= now.len() as u32;
            if frame.payload.is_empty() {
                known.backlog.pop_front();
            }
            self.outgoing.push_back(Frame::new(channel, kind, now));
        }
        if let Some(status) = known.ended {
            self.map.remove(&channel);
            self.outgoing.push_back(Response::Exited(status).frame(channel));
            self.outgoing.push_back(Frame::close(channel));
        }
    }
}
