//! A log that somebody else keeps: messages to a socket, which may be slow, or not be there.
//!
//! ```text
//!   Closed ── time is over ──▶ Connecting ── connected ──▶ Open
//!     ▲ pause doubles, up to a limit │                       │
//!     └──────────── failed ──────────┴───────── failed ──────┘
//! ```
//!
//! Nothing here ever blocks. Messages that the socket does not take wait: of a driver that blocks as many as there
//! is room for, after which the instance's output is not read any more; of one that does not, the newest, and the
//! others are counted and told of in their place. A stream that broke gets the message again that it had begun.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use proa_protocol::log::SyslogAddress;
use proa_supervisor::PollSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, sendmsg, socket_with,
};

use super::journald::{self, Journal};
use super::syslog::Syslog;
use super::{Ends, Entry};
use crate::clock::now_ns;

/// Bytes that wait before an instance does.
const ROOM: usize = 256 * 1024;
/// How long the start waits for a server.
const START: Duration = Duration::from_secs(5);
/// Between attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// Sockets of the host's own syslog server.
const HOST: [&str; 3] = ["/dev/log", "/var/run/syslog", "/var/run/log"];

/// How messages are written.
pub enum Form {
    /// For the journal.
    Journal(Journal),
    /// For a syslog server.
    Syslog(Syslog),
}

impl Form {
    fn encode(&mut self, entry: &Entry) -> Vec<u8> {
        match self {
            Self::Journal(journal) => journal.encode(entry),
            Self::Syslog(syslog) => syslog.encode(entry),
        }
    }
}

/// Where they go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The journal, at this socket.
    Journal(String),
    /// A syslog server.
    Syslog(SyslogAddress),
}

enum Wire {
    Closed { again: Instant },
    Connecting { socket: OwnedFd, until: Instant },
    Open { socket: OwnedFd, stream: bool },
}

/// One instance's log.
pub struct Remote {
    form: Form,
    target: Target,
    wire: Wire,
    pause: Duration,
    queue: VecDeque<Vec<u8>>,
    queued: usize,
    /// Bytes of the first message that a stream has taken.
    written: usize,
    /// Bytes that may wait where the instance does not.
    max_buffer: Option<u64>,
    /// Messages dropped that nobody has been told of.
    dropped: u64,
    ending: bool,
}

impl Remote {
    /// Connects; a server that cannot be reached is an error at the start, and never again.
    pub fn open(target: Target, form: Form, max_buffer: Option<u64>) -> io::Result<Self> {
        let mut remote = Self {
            form,
            wire: Wire::Closed { again: Instant::now() },
            target,
            pause: FIRST_PAUSE,
            queue: VecDeque::new(),
            queued: 0,
            written: 0,
            max_buffer,
            dropped: 0,
            ending: false,
        };
        remote.wire = remote.connect()?;
        if let Wire::Connecting { socket, .. } = &remote.wire {
            let limit = Timespec { tv_sec: START.as_secs() as i64, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&limit));
            if ready == Ok(0) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            rustix::net::sockopt::socket_error(socket)?.map_err(io::Error::from)?;
            remote.connected();
        }
        Ok(remote)
    }

    /// Takes a line.
    pub fn push(&mut self, entry: &Entry) {
        let message = self.form.encode(entry);
        if let Some(max) = self.max_buffer {
            self.make_room(message.len(), usize::try_from(max).unwrap_or(usize::MAX));
        }
        self.queued += message.len();
        self.queue.push_back(message);
    }

    /// Drops the oldest, but for one that is half sent.
    fn make_room(&mut self, length: usize, max: usize) {
        let first = usize::from(self.written > 0);
        while self.queued + length > max && self.queue.len() > first {
            if let Some(old) = self.queue.remove(first) {
                self.queued -= old.len();
                self.dropped += 1;
            }
        }
    }

    /// Whether the instance is to wait.
    pub fn is_full(&self) -> bool {
        self.max_buffer.is_none() && !self.ending && self.queued >= ROOM
    }

    /// The instance has ended: what it had written already is taken, however much that is.
    pub fn set_ending(&mut self) {
        self.ending = true;
    }

    /// Whether everything has been sent.
    pub fn is_drained(&self) -> bool {
        self.queue.is_empty()
    }

    /// Messages that were dropped or wait, and that nobody has been told of.
    pub fn lost(&self) -> u64 {
        self.dropped + self.queue.len() as u64
    }

    /// Adds what to wait for.
    pub fn poll_fds<'fd>(&'fd self, token: u64, set: &mut PollSet<'fd>) {
        match &self.wire {
            Wire::Connecting { socket, .. } => set.add(token, socket.as_fd(), PollFlags::OUT),
            Wire::Open { socket, .. } if !self.queue.is_empty() => {
                set.add(token, socket.as_fd(), PollFlags::OUT);
            }
            Wire::Open { .. } | Wire::Closed { .. } => {}
        }
    }

    /// How long until [`Remote::send`] is due though nothing is ready.
    pub fn timeout(&self) -> Option<Duration> {
        let until = match self.wire {
            Wire::Closed { again } if !self.queue.is_empty() => again,
            Wire::Connecting { until, .. } => until,
            Wire::Closed { .. } | Wire::Open { .. } => return None,
        };
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// Sends what can be sent now.
    pub fn send(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        self.advance();
        while let (Wire::Open { socket, stream }, false) = (&self.wire, self.queue.is_empty()) {
            let (result, stream) = (send_some(socket, &self.queue[0][self.written..], &self.target), *stream);
            match result {
                Ok(count) if stream && self.written + count < self.queue[0].len() => self.written += count,
                Ok(_) => self.sent(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS) => break,
                // No server would ever take it.
                Err(Errno::MSGSIZE) => {
                    self.dropped += 1;
                    self.sent();
                }
                Err(_) => {
                    if matches!(self.target, Target::Syslog(SyslogAddress::Udp(_))) {
                        // An older datagram was refused, and this one was not sent for that.
                        self.pause = Duration::ZERO;
                    }
                    self.broken();
                }
            }
        }
        if self.queue.is_empty() {
            // An idle monitor keeps no queue.
            self.queue = VecDeque::new();
        }
    }

    fn sent(&mut self) {
        self.queued -= self.queue.pop_front().map_or(0, |message| message.len());
        self.written = 0;
        self.pause = FIRST_PAUSE;
        if self.dropped > 0 {
            let text = format!(
                "proa: {} messages were dropped here: the log driver did not take them",
                self.dropped
            );
            self.dropped = 0;
            let entry = Entry { stderr: true, at_ns: now_ns(), text: text.as_bytes(), ends: Ends::Line };
            let message = self.form.encode(&entry);
            self.queued += message.len();
            self.queue.push_front(message);
        }
    }

    fn broken(&mut self) {
        self.written = 0;
        self.wire = Wire::Closed { again: Instant::now() + self.pause };
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
    }

    /// Goes on with a connection.
    fn advance(&mut self) {
        let now = Instant::now();
        match &self.wire {
            Wire::Closed { again } if *again <= now => match self.connect() {
                Ok(wire) => self.wire = wire,
                Err(_) => self.broken(),
            },
            Wire::Connecting { socket, until } => {
                let ready = poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&Timespec::default()));
                match ready {
                    Ok(0) | Err(Errno::INTR) if *until > now => {}
                    Ok(1) if rustix::net::sockopt::socket_error(socket) == Ok(Ok(())) => self.connected(),
                    _ => self.broken(),
                }
            }
            Wire::Closed { .. } | Wire::Open { .. } => {}
        }
    }

    fn connected(&mut self) {
        let closed = Wire::Closed { again: Instant::now() };
        self.wire = match std::mem::replace(&mut self.wire, closed) {
            Wire::Connecting { socket, .. } => Wire::Open { socket, stream: true },
            other => other,
        };
    }

    fn connect(&self) -> io::Result<Wire> {
        let datagram = |path: &str| Ok(Wire::Open { socket: unix(path, SocketType::DGRAM)?, stream: false });
        let any = |path: &str| match unix(path, SocketType::STREAM) {
            Ok(socket) => Ok(Wire::Open { socket, stream: true }),
            Err(Errno::PROTOTYPE) => datagram(path),
            Err(error) => Err(error.into()),
        };
        match &self.target {
            Target::Journal(path) | Target::Syslog(SyslogAddress::Unixgram(path)) => datagram(path),
            Target::Syslog(SyslogAddress::Unix(path)) => any(path),
            Target::Syslog(SyslogAddress::Host) => {
                let known = HOST.iter().find(|path| std::path::Path::new(path).exists());
                any(known.ok_or_else(|| io::Error::other("this host has no syslog server"))?)
            }
            Target::Syslog(SyslogAddress::Udp(address)) => {
                let socket = inet(address, SocketType::DGRAM)?;
                connect(&socket, address)?;
                Ok(Wire::Open { socket, stream: false })
            }
            Target::Syslog(SyslogAddress::Tcp(address)) => {
                let socket = inet(address, SocketType::STREAM)?;
                match connect(&socket, address) {
                    Ok(()) => Ok(Wire::Open { socket, stream: true }),
                    Err(Errno::INPROGRESS) => {
                        Ok(Wire::Connecting { socket, until: Instant::now() + CONNECT })
                    }
                    Err(error) => Err(error.into()),
                }
            }
        }
    }
}

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

fn unix(path: &str, kind: SocketType) -> Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::UNIX, kind, FLAGS, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn inet(address: &std::net::SocketAddr, kind: SocketType) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    socket_with(family, kind, FLAGS, None)
}

fn send_some(socket: &OwnedFd, bytes: &[u8], target: &Target) -> Result<usize, Errno> {
    let flags = SendFlags::NOSIGNAL;
    match sendmsg(socket, &[IoSlice::new(bytes)], &mut SendAncillaryBuffer::default(), flags) {
        // The journal takes what does not fit into a datagram by a file.
        Err(Errno::MSGSIZE | Errno::NOBUFS) if matches!(target, Target::Journal(_)) => {
            send_file(socket, bytes).map(|()| bytes.len())
        }
        other => other,
    }
}

fn send_file(socket: &OwnedFd, bytes: &[u8]) -> Result<(), Errno> {
    let file = memfd_create(c"message", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut written = 0;
    while written < bytes.len() {
        written += rustix::io::write(&file, &bytes[written..])?;
    }
    // The journal trusts only what nobody can change any more.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [file.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(socket, &[], &mut control, SendFlags::NOSIGNAL).map(drop)
}

impl Target {
    /// The journal of this host.
    pub fn journal() -> Self {
        Self::Journal(journald::SOCKET.to_owned())
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Journal(path) => write!(f, "the journal at {path}"),
            Self::Syslog(SyslogAddress::Host) => write!(f, "the syslog server of this host"),
            Self::Syslog(SyslogAddress::Unix(path)) => write!(f, "the syslog server at unix://{path}"),
            Self::Syslog(SyslogAddress::Unixgram(path)) => {
                write!(f, "the syslog server at unixgram://{path}")
            }
            Self::Syslog(SyslogAddress::Udp(address)) => write!(f, "the syslog server at udp://{address}"),
            Self::Syslog(SyslogAddress::Tcp(address)) => write!(f, "the syslog server at tcp://{address}"),
        }
    }
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
