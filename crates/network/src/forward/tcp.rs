//! Connections, of which each has two ends and a flow each way.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_keepalive, set_socket_linger};
use rustix::net::{SocketAddrAny, SocketFlags, SocketType, acceptfrom_with, connect};

use super::{Poller, Port, Token, any_port, towards};

/// Connections at once: each has two descriptors.
const MOST: usize = 4096;
/// Bytes read at once; what of them cannot be written is kept, and nothing more is read.
const CHUNK: usize = 256 * 1024;
/// Reads of one end before others have their turn.
const TURN: usize = 8;
/// Connections accepted before others have their turn.
const ACCEPTS: usize = 32;

/// All of them.
#[derive(Debug)]
pub(super) struct Connections {
    places: Vec<Option<Connection>>,
    free: Vec<usize>,
    scratch: Vec<u8>,
    /// Ports that wait until a connection has ended.
    held: Vec<usize>,
}

#[derive(Debug)]
struct Connection {
    /// The client's and the instance's.
    ends: [TcpStream; 2],
    /// From each end to the other.
    flows: [Flow; 2],
    /// What is waited for of each end.
    flags: [EventFlags; 2],
    is_connecting: bool,
}

#[derive(Debug, Default)]
struct Flow {
    /// What was read and could not be written yet, from `sent` on.
    kept: Vec<u8>,
    sent: usize,
    /// There is nothing more to be read.
    has_ended: bool,
}

impl Flow {
    fn waits(&self) -> bool {
        self.sent < self.kept.len()
    }
}

impl Connections {
    pub fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new(), scratch: vec![0; CHUNK], held: Vec::new() }
    }

    /// Somebody asks a port.
    pub fn accept(&mut self, poller: &Poller, port: usize, listener: &TcpListener, home: SocketAddr) {
        for _ in 0..ACCEPTS {
            if self.places.len() - self.free.len() >= MOST {
                return self.hold(poller, port, listener);
            }
            match acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok((client, Some(address))) => self.add(poller, client.into(), address, home),
                Ok((_, None)) => {}
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(errno) if is_exhausted(errno) => return self.hold(poller, port, listener),
                // That one has left meanwhile.
                Err(_) => {}
            }
        }
    }

    /// Lets a port wait until there is room again.
    fn hold(&mut self, poller: &Poller, port: usize, listener: &TcpListener) {
        if poller.change(listener, Token::Port(port), EventFlags::IN, EventFlags::empty()).is_ok() {
            self.held.push(port);
        }
    }

    /// Lets ports that waited have another try.
    pub fn sweep(&mut self, poller: &Poller, ports: &[Port]) {
        for port in std::mem::take(&mut self.held) {
            if let Port::Tcp(listener, _) = &ports[port]
                && poller.change(listener, Token::Port(port), EventFlags::empty(), EventFlags::IN).is_err()
            {
                self.held.push(port);
            }
        }
    }

    fn add(&mut self, poller: &Poller, client: TcpStream, address: SocketAddrAny, home: SocketAddr) {
        // Without a way to the instance the client is refused: at the latest when this is dropped.
        let _ = set_socket_linger(&client, Some(Duration::ZERO));
        let Ok(address) = SocketAddr::try_from(address) else { return };
        let Ok(connection) = Connection::open(client, address, home) else { return };
        let number = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[number] = Some(connection);
        self.ready(poller, number);
    }

    /// One of a connection's ends is ready.
    pub fn ready(&mut self, poller: &Poller, number: usize) {
        let Some(Some(connection)) = self.places.get_mut(number) else { return };
        let goes_on = connection.pump(&mut self.scratch).unwrap_or(false);
        if !goes_on || connection.wait(poller, number).is_err() {
            self.places[number] = None;
            self.free.push(number);
        }
    }
}

impl Connection {
    fn open(client: TcpStream, address: SocketAddr, home: SocketAddr) -> io::Result<Self> {
        let (socket, is_connecting) = match begin(address, home) {
            // The client has this port with another way to the same port of the instance.
            Err(error) if is_taken(&error) => begin(any_port(address), home),
            other => other,
        }?;
        let ends = [client, TcpStream::from(socket)];
        for end in &ends {
            end.set_nodelay(true)?;
            set_socket_keepalive(end, true)?;
        }
        let flags = [EventFlags::empty(); 2];
        Ok(Self { ends, flows: [Flow::default(), Flow::default()], flags, is_connecting })
    }

    /// Moves what can be moved; false when both sides are done.
    fn pump(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
        if self.is_connecting {
            if let Some(error) = self.ends[1].take_error()? {
                return Err(error);
            }
            if self.ends[1].peer_addr().is_err() {
                return Ok(true);
            }
            self.is_connecting = false;
            // From now on an end is an end, and no refusal.
            set_socket_linger(&self.ends[0], None)?;
        }
        for from in 0..2 {
            if let Err(error) = self.carry(from, scratch) {
                // Both sides learn that the connection broke.
                for end in &self.ends {
                    let _ = set_socket_linger(end, Some(Duration::ZERO));
                }
                return Err(error);
            }
        }
        Ok(self.flows.iter().any(|flow| flow.waits() || !flow.has_ended))
    }

    fn carry(&mut self, from: usize, scratch: &mut [u8]) -> io::Result<()> {
        let (mut source, mut target) = (&self.ends[from], &self.ends[1 - from]);
        let flow = &mut self.flows[from];
        if flow.waits() {
            flow.sent += written(&mut target, &flow.kept[flow.sent..])?;
            if flow.waits() {
                return Ok(());
            }
            *flow = Flow { has_ended: flow.has_ended, ..Flow::default() };
            if flow.has_ended {
                return shut(target);
            }
        }
        for _ in 0..TURN {
            if flow.has_ended {
                return Ok(());
            }
            let count = match source.read(scratch) {
                Ok(0) => {
                    flow.has_ended = true;
                    return shut(target);
                }
                Ok(count) => count,
                Err(error) if is_later(&error) => return Ok(()),
                Err(error) => return Err(error),
            };
            let sent = written(&mut target, &scratch[..count])?;
            if sent < count {
                flow.kept = scratch[sent..count].to_vec();
                flow.sent = 0;
                return Ok(());
            }
        }
        Ok(())
    }

    fn wait(&mut self, poller: &Poller, number: usize) -> io::Result<()> {
        for end in 0..2 {
            let (out_of, into) = (&self.flows[end], &self.flows[1 - end]);
            let mut flags = EventFlags::empty();
            flags.set(EventFlags::IN, !self.is_connecting && !out_of.has_ended && !out_of.waits());
            flags.set(EventFlags::OUT, into.waits() || self.is_connecting && end == 1);
            poller.change(&self.ends[end], Token::Connection(number, end), self.flags[end], flags)?;
            self.flags[end] = flags;
        }
        Ok(())
    }
}

/// Begins a connection to the instance, which may take a while.
fn begin(client: SocketAddr, home: SocketAddr) -> io::Result<(OwnedFd, bool)> {
    let socket = towards(home, client, SocketType::STREAM)?;
    match connect(&socket, &home) {
        Ok(()) => Ok((socket, false)),
        Err(Errno::INPROGRESS) => Ok((socket, true)),
        Err(errno) => Err(errno.into()),
    }
}

fn shut(target: &TcpStream) -> io::Result<()> {
    match target.shutdown(Shutdown::Write) {
        Err(error) if error.kind() == ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}

/// How many of the bytes could be written.
fn written(target: &mut &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match target.write(&bytes[sent..]) {
            Ok(count) => sent += count,
            Err(error) if is_later(&error) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn is_exhausted(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable)
}
