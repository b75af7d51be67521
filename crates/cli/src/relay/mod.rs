//! Standard streams and signals on one side, a monitor's frames on the other.
//!
//! ```text
//!   stdin ──▶ detach keys ──▶ Stdin frames ──┐                  one poll(2), no threads;
//!   signals ──▶ Signal, Resize requests ─────┼─▶ monitor        each queue is bounded by the
//!   stdout, stderr ◀── queues ◀── frames ────┘                  protocol's window
//! ```
//!
//! Writing to a pipe never blocks here, so that signals are seen while nobody reads; to a terminal or file it may.

mod keys;
mod sink;

use std::os::fd::AsFd;

use proa_engine::{Channel, Error, signals};
use proa_protocol::frame::{Frame, Kind, MAX_STREAM, WINDOW};
use proa_protocol::message::{ExitStatus, Request, Response};
use proa_sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::{stderr, stdin, stdout};

use crate::error::Failure;
use crate::terminal;
use sink::Sink;

pub use keys::parse as parse_detach_keys;

/// Signals that are passed on.
const PROXIED: &[i32] = &[
    signals::HUP,
    signals::INT,
    signals::QUIT,
    signals::USR1,
    signals::USR2,
    signals::ALRM,
    signals::TERM,
    signals::CONT,
];
/// So many requests to end that did not help end us instead.
const PATIENCE: u32 = 3;
/// Input that waits for the monitor to read it is bounded by this; no more is read from standard input then.
const MOST_UNSENT: usize = 2 * MAX_STREAM;

/// What is relayed.
#[derive(Debug, Clone)]
pub struct Options {
    /// Our standard input goes to the process.
    pub stdin: bool,
    /// The process has a terminal.
    pub tty: bool,
    /// Pass signals on.
    pub sig_proxy: bool,
    /// What to type to leave; empty for nothing.
    pub detach_keys: Vec<u8>,
    /// The process runs already.
    pub running: bool,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The process ended.
    Exited(ExitStatus),
    /// The user left by the detach keys.
    Detached,
    /// Nobody takes the output any more.
    OutputClosed,
    /// The user insisted on leaving; the signal.
    Interrupted(i32),
}

struct Relay {
    channel: Channel,
    signals: SignalFd,
    keys: keys::Scanner,
    out: Sink,
    err: Sink,
    /// Frames on their way to the monitor.
    unsent: Vec<u8>,
    /// Input bytes the monitor still takes.
    window: u32,
    /// Output bytes it has not been given credit for.
    consumed: u32,
    started: bool,
    input_open: bool,
    insistence: u32,
    /// The signal that called the start off before it was made: what starts is killed at once.
    called_off: Option<i32>,
}

/// Relays until the process ends or the user leaves. Attach and start requests must have been sent; `started` is
/// called once the process runs.
///
/// # Errors
/// The process does not start, or its monitor is gone.
pub fn relay(channel: Channel, options: &Options, started: impl FnOnce()) -> Result<Ended, Failure> {
    let mut watched = vec![rustix::process::Signal::PIPE.as_raw()];
    if options.sig_proxy {
        watched.extend(PROXIED);
    }
    if options.tty {
        watched.push(signals::WINCH);
    }
    let signals = SignalFd::new(&watched).map_err(Failure::terminal)?;
    channel.set_nonblocking()?;
    let raw = if options.tty && options.stdin { terminal::Raw::enter()? } else { None };
    let mut relay = Relay {
        channel,
        signals,
        keys: keys::Scanner::new(if options.tty && options.stdin {
            options.detach_keys.clone()
        } else {
            Vec::new()
        }),
        out: Sink::new(stdout()),
        err: Sink::new(stderr()),
        unsent: Vec::new(),
        window: WINDOW,
        consumed: 0,
        started: options.running,
        input_open: options.stdin,
        insistence: 0,
        called_off: None,
    };
    let mut started = Some(started);
    let ended = relay.run(&mut || {
        if let Some(started) = started.take() {
            started();
        }
    });
    drop(raw);
    // A SIGPIPE that has been dealt with must not end us when signals are let in again.
    while let Ok(Some(_)) = relay.signals.next_signal() {}
    ended
}

impl Relay {
    fn run(&mut self, started: &mut dyn FnMut()) -> Result<Ended, Failure> {
        loop {
            while let Some(frame) = self.channel.buffered()? {
                if let Some(status) = self.take(frame, started)? {
                    self.out.finish();
                    self.err.finish();
                    return Ok(self.called_off.map_or(Ended::Exited(status), Ended::Interrupted));
                }
            }
            if self.out.is_closed() || self.err.is_closed() {
                return Ok(Ended::OutputClosed);
            }
            self.give_credit();
            self.send()?;
            if let Some(ended) = self.wait()? {
                return Ok(ended);
            }
        }
    }

    /// Takes a frame; the exit status if it is that.
    fn take(&mut self, frame: Frame, started: &mut dyn FnMut()) -> Result<Option<ExitStatus>, Failure> {
        match frame.kind {
            Kind::Stdout => self.consumed += self.out.push(frame.payload),
            Kind::Stderr => self.consumed += self.err.push(frame.payload),
            Kind::Credit => self.window = self.window.saturating_add(frame.credited()),
            _ => match self.channel.read_response(&frame)? {
                Some(Response::Exited(status)) => return Ok(Some(status)),
                Some(Response::Started { .. }) => {
                    self.started = true;
                    started();
                    if self.called_off.is_some() {
                        self.pass_on(signals::KILL);
                    }
                }
                _ => {}
            },
        }
        Ok(None)
    }

    /// Credit is given in large pieces; a short output needs none.
    fn give_credit(&mut self) {
        if self.consumed >= WINDOW / 2 {
            Frame::credit(0, self.consumed).encode(&mut self.unsent);
            self.consumed = 0;
        }
    }

    fn send(&mut self) -> Result<(), Failure> {
        if !self.unsent.is_empty() {
            match self.channel.write_some(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                // It has ended; what it said last is still to be read.
                Err(Error::MonitorGone(_)) => self.unsent.clear(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<Option<Ended>, Failure> {
        let reads_input =
            self.started && self.input_open && self.window > 0 && self.unsent.len() < MOST_UNSENT;
        let flag = |wanted, flag| if wanted { flag } else { PollFlags::empty() };
        let to_monitor = PollFlags::IN | flag(!self.unsent.is_empty(), PollFlags::OUT);
        let (stdin, stdout, stderr) = (stdin(), stdout(), stderr());
        let mut fds = vec![
            PollFd::new(&self.channel, to_monitor),
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
        ];
        let mut add = |wanted: bool, fd, flags| {
            wanted.then(|| {
                fds.push(PollFd::from_borrowed_fd(fd, flags));
                fds.len() - 1
            })
        };
        let input = add(reads_input, stdin, PollFlags::IN);
        let output = add(self.out.is_full(), stdout, PollFlags::OUT);
        let errors = add(self.err.is_full(), stderr, PollFlags::OUT);
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::terminal(errno.into())),
        }
        let ready = |at: usize| !fds[at].revents().is_empty();
        let is_ready = |at: Option<usize>| at.is_some_and(ready);
        let (monitor, signal) = (fds[0].revents(), ready(1));
        let (input, output, errors) = (is_ready(input), is_ready(output), is_ready(errors));
        drop(fds);
        if output {
            self.consumed += self.out.flush();
        }
        if errors {
            self.consumed += self.err.flush();
        }
        if signal && let Some(ended) = self.signal()? {
            return Ok(Some(ended));
        }
        if input && let Some(ended) = self.read_input()? {
            return Ok(Some(ended));
        }
        if monitor.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && !self.channel.fill()? {
            return self.closed();
        }
        Ok(None)
    }

    /// The monitor closed the connection without a last word.
    fn closed(&self) -> Result<Option<Ended>, Failure> {
        Err(Error::MonitorGone(proa_engine::names::short(self.channel.instance()).to_owned()).into())
    }

    fn signal(&mut self) -> Result<Option<Ended>, Failure> {
        while let Some(signal) = self.signals.next_signal().map_err(Failure::terminal)? {
            if signal == signals::WINCH {
                if let Some(size) = terminal::size() {
                    Request::Resize(size).frame(0).encode(&mut self.unsent);
                }
                continue;
            }
            if !PROXIED.contains(&signal) {
                continue;
            }
            let ends = [signals::INT, signals::TERM, signals::HUP, signals::QUIT].contains(&signal);
            self.insistence += u32::from(ends);
            if self.started && self.insistence <= PATIENCE {
                self.pass_on(signal);
            } else if self.started || (ends && self.called_off.is_some()) {
                return Ok(Some(Ended::Interrupted(signal)));
            } else if ends {
                self.called_off = Some(signal);
            }
        }
        Ok(None)
    }

    fn pass_on(&mut self, signal: i32) {
        Request::Signal { signal, all: false }.frame(0).encode(&mut self.unsent);
    }

    fn read_input(&mut self) -> Result<Option<Ended>, Failure> {
        let mut bytes = vec![0; MAX_STREAM.min(self.window as usize)];
        let count = match rustix::io::read(stdin(), &mut bytes) {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            // A terminal that was hung up.
            Err(_) => 0,
        };
        if count == 0 {
            self.input_open = false;
            Frame::new(0, Kind::Stdin, Vec::new()).encode(&mut self.unsent);
            return Ok(None);
        }
        bytes.truncate(count);
        let detach = self.keys.scan(&mut bytes);
        if !bytes.is_empty() {
            self.window -= bytes.len().min(self.window as usize) as u32;
            Frame::new(0, Kind::Stdin, bytes).encode(&mut self.unsent);
        }
        if detach {
            // What was typed before the keys is still the process's.
            self.send()?;
            return Ok(Some(Ended::Detached));
        }
        Ok(None)
    }
}
