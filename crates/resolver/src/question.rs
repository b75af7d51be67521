//! A question that only servers elsewhere can answer.
//!
//! ```text
//!   next server ─▶ UDP or, for a client of TCP, TCP ─▶ answer ─▶ the client
//!      ▲  ▲             │ too many foreign packets: TCP
//!      │  └─ failure ◀──┤
//!      └──── timeout ◀──┘                no server left ─▶ SERVFAIL, or the last failure
//! ```
//!
//! Each attempt has a socket of its own, so a port and an identifier that nobody can know, and the kernel takes packets
//! from that server alone. Whoever guesses at both is noticed by the packets that do not fit, and then the question
//! goes where guessing does not help. What a server cuts short by UDP goes on to the client, which has said how much it
//! takes and asks again by TCP.

use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::limits::Sender;
use crate::poller::{Interest, Poller, Token};
use crate::slab::Key;
use crate::stream::{Incoming, Outgoing, Progress};
use crate::wire::{self, MAX_MESSAGE, Query, Rcode, Verdict};

/// How long a server has: three of them have answered, or not, before a client's usual five seconds are over.
pub const PATIENCE: Duration = Duration::from_millis(1500);
/// Packets that do not fit, after which somebody is guessing.
const MAX_FOREIGN: u32 = 8;

/// Where an answer goes.
#[derive(Debug, Clone, Copy)]
pub enum Client {
    /// To an address, from a socket of the network's.
    Udp {
        /// The socket's number.
        socket: usize,
        /// The address.
        to: SocketAddr,
    },
    /// By its connection.
    Tcp(Key),
}

/// A question, and how far it is.
#[derive(Debug)]
pub struct Question {
    /// Whose it is.
    pub client: Client,
    /// The client's network.
    pub network: Key,
    /// Who it is counted for.
    pub sender: Sender,
    /// How often it was asked.
    pub attempt: u32,
    packet: Vec<u8>,
    servers: Vec<SocketAddr>,
    next: usize,
    id: u16,
    foreign: u32,
    asked: Asked,
    failure: Option<Vec<u8>>,
}

/// How it was asked last.
#[derive(Debug)]
enum Asked {
    Nobody,
    Udp(UdpSocket),
    Tcp { stream: TcpStream, outgoing: Outgoing, incoming: Incoming },
}

/// What happens next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// It waits.
    Waits,
    /// It is over, with this for the client.
    Done(Vec<u8>),
}

impl Question {
    /// Nobody has been asked yet. `packet` is a query that was read.
    pub fn new(
        client: Client,
        (network, sender): (Key, Sender),
        packet: &[u8],
        servers: Vec<SocketAddr>,
    ) -> Self {
        let packet = packet.to_vec();
        Self {
            client,
            network,
            sender,
            attempt: 0,
            packet,
            servers,
            next: 0,
            id: 0,
            foreign: 0,
            asked: Asked::Nobody,
            failure: None,
        }
    }

    /// Asks the next server that can be asked.
    pub fn ask(&mut self, poller: &Poller, place: usize) -> Step {
        let by_stream = matches!(self.client, Client::Tcp(_));
        while let Some(server) = self.servers.get(self.next).copied() {
            self.next += 1;
            if self.send(server, by_stream, poller, place).is_ok() {
                return Step::Waits;
            }
        }
        self.asked = Asked::Nobody;
        Step::Done(self.last_word())
    }

    fn send(&mut self, server: SocketAddr, by_stream: bool, poller: &Poller, place: usize) -> io::Result<()> {
        let mut id = [0; 2];
        getrandom(&mut id, GetRandomFlags::empty())?;
        self.id = u16::from_be_bytes(id);
        self.foreign = 0;
        self.attempt += 1;
        let mut packet = self.packet.clone();
        packet[..2].copy_from_slice(&id);
        let kind = if by_stream { SocketType::STREAM } else { SocketType::DGRAM };
        let socket = open(server, kind)?;
        let interest = if by_stream { Interest::Write } else { Interest::Read };
        poller.add(&socket, Token::Question(place), interest)?;
        self.asked = if by_stream {
            Asked::Tcp {
                stream: socket.into(),
                outgoing: Outgoing::new(&packet),
                incoming: Incoming::new(MAX_MESSAGE),
            }
        } else {
            let socket = UdpSocket::from(socket);
            socket.send(&packet)?;
            Asked::Udp(socket)
        };
        Ok(())
    }

    /// Something came of the last server.
    pub fn advance(&mut self, poller: &Poller, place: usize, buffer: &mut [u8]) -> Step {
        match &mut self.asked {
            Asked::Nobody => Step::Waits,
            Asked::Udp(socket) => match socket.recv(buffer) {
                Ok(length) => self.consider(buffer[..length].to_vec(), poller, place),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Step::Waits,
                // Nobody listens there.
                Err(_) => self.ask(poller, place),
            },
            Asked::Tcp { stream, outgoing, incoming } => match outgoing.write(stream) {
                Progress::Waits => Step::Waits,
                Progress::Over => self.ask(poller, place),
                Progress::Done => match incoming.read(stream) {
                    Progress::Waits => {
                        // It is in epoll's set as long as it is open.
                        let _ = poller.change(&*stream, Token::Question(place), Interest::Read);
                        Step::Waits
                    }
                    Progress::Over => self.ask(poller, place),
                    Progress::Done => {
                        let answer = incoming.take();
                        self.consider(answer, poller, place)
                    }
                },
            },
        }
    }

    fn consider(&mut self, mut answer: Vec<u8>, poller: &Poller, place: usize) -> Step {
        let Ok(query) = Query::read(&self.packet) else { return Step::Done(Vec::new()) };
        let verdict = wire::judge(&answer, self.id, query.question);
        match verdict {
            Verdict::Foreign => return self.suspect(poller, place),
            Verdict::Answer | Verdict::Failure => wire::adopt(&mut answer, query.id(), query.question),
        }
        let is_datagram = matches!(self.client, Client::Udp { .. });
        if is_datagram && answer.len() > query.udp_size() {
            answer = query.too_long();
        }
        if verdict == Verdict::Answer {
            return Step::Done(answer);
        }
        self.failure = Some(answer);
        self.ask(poller, place)
    }

    /// A packet did not fit. One can be an answer that comes late; many are somebody's who guesses.
    fn suspect(&mut self, poller: &Poller, place: usize) -> Step {
        self.foreign += 1;
        let server = self.servers.get(self.next.saturating_sub(1)).copied();
        match (&self.asked, server) {
            (Asked::Udp(_), Some(server)) if self.foreign > MAX_FOREIGN => {
                match self.send(server, true, poller, place) {
                    Ok(()) => Step::Waits,
                    Err(_) => self.ask(poller, place),
                }
            }
            (Asked::Udp(_), Some(_)) => Step::Waits,
            _ => self.ask(poller, place),
        }
    }

    fn last_word(&mut self) -> Vec<u8> {
        let none = || match Query::read(&self.packet) {
            Ok(query) => query.reply(Rcode::ServFail, &[], wire::PLAIN_SIZE),
            Err(_) => Vec::new(),
        };
        self.failure.take().unwrap_or_else(none)
    }
}

/// A socket, with a port that the kernel picks at random, that hears this server alone.
fn open(server: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match connect(&socket, &server) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}
