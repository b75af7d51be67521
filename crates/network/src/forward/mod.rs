//! Published ports that no rule of the host's firewall leads to the instance: a process of the instance's monitor takes
//! what comes there. All of an ordinary user's are such; of root's, those that the kernel has no way for (`[::1]`, and
//! IPv6 where the instance has IPv4 alone).
//!
//! ```text
//!   client ─▶ host's port (bound by `ports`) ─▶ socket where the bridges are, bound to the client's address ─▶ instance
//! ```
//!
//! In a user's switch the sockets have the clients' own addresses (`IP_TRANSPARENT`, which is allowed to the root of a
//! namespace's owner), so that instances see their clients as those of root's do; answers come back by
//! `switch::routes`. A client of the host's loopback interface, by a link-local address, or of another IP version than
//! the instance's, has the bridge's; so has every client of root's.
//!
//! ```text
//!   listening ─ accept ─▶ connecting ─▶ open ─ one side ends ─▶ half ─ the other ends ─▶ closed     (`tcp`)
//!   listening ─ packet of a new client ─▶ flow ─ silence, or too many ─▶ forgotten                  (`udp`)
//! ```
//!
//! Invariants: the process parses nothing; it holds the ports' sockets, the switch and nothing else, keeps of its
//! capabilities what such sockets need (`confine`), makes no call of the kernel's but those it is made of, and dies with
//! the monitor. Everything that waits is counted.

mod confine;
mod tcp;
mod udp;

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proa_protocol::network::Protocol;
use proa_sys::job;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use rustix::process::{Signal, WaitId, WaitIdOptions};

use crate::Error;
use crate::switch::{self, MARK};

/// Events taken at once.
const BATCH: usize = 64;
/// How often what is silent is looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// A port that is bound, and where its packets go.
#[derive(Debug)]
pub(crate) struct Route<'a> {
    /// Transport; SCTP cannot be forwarded.
    pub protocol: Protocol,
    /// The host's port.
    pub socket: BorrowedFd<'a>,
    /// The instance's.
    pub home: SocketAddr,
}

/// The process at work; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Forwarder {
    pidfd: Arc<OwnedFd>,
}

impl Forwarder {
    /// Starts it, in a user's switch where there is one. The caller has one thread.
    pub fn start(namespace: Option<BorrowedFd>, routes: &[Route]) -> Result<Self, Error> {
        let keep: Vec<BorrowedFd> = routes.iter().map(|route| route.socket).chain(namespace).collect();
        let job = job::spawn(&keep, || i32::from(work(namespace, routes).is_err()));
        let job = job.map_err(Error::file("start", "the forwarder of published ports"))?;
        Ok(Self { pidfd: Arc::new(job.pidfd) })
    }

    /// Readable when it has ended.
    pub fn pidfd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.pidfd)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let ended = || rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        // It fails where somebody has reaped it already.
        let _ = rustix::io::retry_on_intr(ended);
    }
}

fn work(namespace: Option<BorrowedFd>, routes: &[Route]) -> Result<(), Error> {
    let _ = rustix::thread::set_name(c"proa-forward");
    namespace.map_or(Ok(()), switch::enter)?;
    confine::narrow(namespace.is_some()).map_err(Error::call("give up privileges"))?;
    let server = Server::new(routes);
    let confined = server.and_then(|server| confine::filter().map(|()| server));
    confined.and_then(Server::run).map_err(Error::file("forward", "published ports"))
}

/// Who has a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// A port, by its number.
    Port(usize),
    /// A connection, and which end of it.
    Connection(usize, usize),
    /// A flow of UDP.
    Flow(usize),
}

impl Token {
    fn pack(self) -> EventData {
        EventData::new_u64(match self {
            Self::Port(number) => (number as u64) << 2,
            Self::Flow(number) => (number as u64) << 2 | 1,
            Self::Connection(number, end) => (number as u64) << 2 | 2 | end as u64,
        })
    }

    fn unpack(data: u64) -> Self {
        let number = (data >> 2) as usize;
        match data & 3 {
            0 => Self::Port(number),
            1 => Self::Flow(number),
            end => Self::Connection(number, (end & 1) as usize),
        }
    }
}

/// What is waited for.
#[derive(Debug)]
struct Poller(OwnedFd);

impl Poller {
    fn add(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, token.pack(), flags)?)
    }

    /// From one set of flags to another, where none is not to be told of errors either.
    fn change(&self, fd: impl AsFd, token: Token, from: EventFlags, to: EventFlags) -> io::Result<()> {
        match (from.is_empty(), to.is_empty()) {
            _ if from == to => return Ok(()),
            (true, _) => epoll::add(&self.0, fd, token.pack(), to)?,
            (_, true) => epoll::delete(&self.0, fd)?,
            _ => epoll::modify(&self.0, fd, token.pack(), to)?,
        }
        Ok(())
    }

    fn wait(&self, limit: Duration) -> io::Result<Vec<Token>> {
        let mut events = Vec::with_capacity(BATCH);
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
        match epoll::wait(&self.0, rustix::buffer::spare_capacity(&mut events), Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(events.iter().map(|event: &epoll::Event| Token::unpack(event.data.u64())).collect())
    }
}

#[derive(Debug)]
enum Port {
    Tcp(TcpListener, SocketAddr),
    Udp(UdpSocket, SocketAddr),
    Other,
}

#[derive(Debug)]
struct Server {
    poller: Poller,
    ports: Vec<Port>,
    connections: tcp::Connections,
    flows: udp::Flows,
}

impl Server {
    fn new(routes: &[Route]) -> io::Result<Self> {
        let poller = Poller(epoll::create(CreateFlags::CLOEXEC)?);
        let mut ports = Vec::new();
        for (number, route) in routes.iter().enumerate() {
            let socket = route.socket.try_clone_to_owned()?;
            rustix::io::ioctl_fionbio(&socket, true)?;
            poller.add(&socket, Token::Port(number), EventFlags::IN)?;
            ports.push(match route.protocol {
                Protocol::Tcp => Port::Tcp(socket.into(), route.home),
                Protocol::Udp => Port::Udp(packets(socket)?, route.home),
                Protocol::Sctp => Port::Other,
            });
        }
        Ok(Self { poller, ports, connections: tcp::Connections::new(), flows: udp::Flows::default() })
    }

    fn run(mut self) -> io::Result<()> {
        let mut swept = Instant::now();
        loop {
            for token in self.poller.wait(SWEEP)? {
                match token {
                    Token::Port(number) => self.port(number),
                    Token::Connection(number, _) => self.connections.ready(&self.poller, number),
                    Token::Flow(number) => self.flows.answered(&self.ports, number),
                }
            }
            if swept.elapsed() >= SWEEP {
                swept = Instant::now();
                self.flows.sweep(swept);
                self.connections.sweep(&self.poller, &self.ports);
            }
        }
    }

    fn port(&mut self, number: usize) {
        match &self.ports[number] {
            Port::Tcp(listener, home) => self.connections.accept(&self.poller, number, listener, *home),
            Port::Udp(socket, home) => self.flows.arrived(&self.poller, number, socket, *home),
            Port::Other => {}
        }
    }
}

/// A port of UDP, which may be at many addresses: an answer comes from the one that was asked.
fn packets(socket: OwnedFd) -> io::Result<UdpSocket> {
    let socket = UdpSocket::from(socket);
    proa_sys::datagram::tell_destination(&socket, socket.local_addr()?.is_ipv4())?;
    Ok(socket)
}

/// The same address with any port that is free.
fn any_port(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), 0)
}

/// A socket where the bridges are that speaks to an instance for a client, with its address where that can be.
fn towards(home: SocketAddr, client: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if home.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if is_elsewhere(client.ip()) && client.is_ipv4() == home.is_ipv4() {
        proa_sys::net::make_transparent(&socket, home.is_ipv4(), MARK)?;
        // The same client may ask several ports at once.
        set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &client)?;
    }
    Ok(socket)
}

/// Whether a client can be answered at its address.
fn is_elsewhere(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_unspecified(),
        IpAddr::V6(address) => address != Ipv6Addr::LOCALHOST && !address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_what_they_were() {
        for token in [Token::Port(65_534), Token::Connection(7, 0), Token::Connection(7, 1), Token::Flow(0)] {
            assert_eq!(Token::unpack(token.pack().u64()), token);
        }
    }

    #[test]
    fn what_is_here_alone_has_no_address_there() {
        for (address, elsewhere) in [
            ("127.0.0.2", false),
            ("::1", false),
            ("fe80::1", false),
            ("198.51.100.7", true),
            ("fd00::1", true),
        ] {
            assert_eq!(is_elsewhere(address.parse().unwrap()), elsewhere, "{address}");
        }
    }
}
