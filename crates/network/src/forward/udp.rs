//! Flows of UDP: a socket where the bridges are for each client of a port at one of the host's addresses, from which it is
//! answered.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use proa_sys::datagram;
use rustix::event::epoll::EventFlags;
use rustix::net::SocketType;

use super::{Poller, Port, Token, any_port, towards};

/// Clients at once; then the one that was silent for longest is forgotten.
const MOST: usize = 1024;
/// How long a client may be silent: as long as the kernel remembers a flow in two directions.
const SILENCE: Duration = Duration::from_secs(120);
/// Packets of a socket before others have their turn.
const TURN: usize = 64;
/// Longest packet.
const PACKET: usize = 65_536;

/// All of them.
#[derive(Debug)]
pub(super) struct Flows {
    places: Vec<Option<Flow>>,
    free: Vec<usize>,
    known: HashMap<Key, usize>,
    packet: Vec<u8>,
}

/// Who asks what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    port: usize,
    client: SocketAddr,
    /// The host's address that was asked.
    asked: Option<IpAddr>,
}

#[derive(Debug)]
struct Flow {
    key: Key,
    home: SocketAddr,
    socket: UdpSocket,
    last: Instant,
}

impl Default for Flows {
    fn default() -> Self {
        let packet = vec![0; PACKET];
        Self { places: Vec::new(), free: Vec::new(), known: HashMap::new(), packet }
    }
}

impl Flows {
    /// Clients have sent something to a port.
    pub fn arrived(&mut self, poller: &Poller, port: usize, socket: &UdpSocket, home: SocketAddr) {
        for _ in 0..TURN {
            let Ok((length, client, asked)) = datagram::receive(socket, &mut self.packet) else { return };
            let Some(number) = self.flow(poller, Key { port, client, asked }, home) else { continue };
            let Some(Some(flow)) = self.places.get_mut(number) else { continue };
            flow.last = Instant::now();
            // What the instance does not take is lost, as anywhere.
            let _ = flow.socket.send(&self.packet[..length]);
        }
    }

    /// The instance has sent something to a client.
    pub fn answered(&mut self, ports: &[Port], number: usize) {
        let Some(Some(flow)) = self.places.get_mut(number) else { return };
        let Key { port, client, asked } = flow.key;
        let Port::Udp(socket, _) = &ports[port] else { return };
        flow.last = Instant::now();
        for _ in 0..TURN {
            match flow.socket.recv(&mut self.packet) {
                Ok(length) => _ = datagram::send(socket, &self.packet[..length], client, asked),
                Err(_) => return,
            }
        }
    }

    /// Forgets who was silent for long.
    pub fn sweep(&mut self, now: Instant) {
        for number in 0..self.places.len() {
            let is_over = |flow: &Flow| now.saturating_duration_since(flow.last) >= SILENCE;
            if self.places[number].as_ref().is_some_and(is_over) {
                self.forget(number);
            }
        }
    }

    fn flow(&mut self, poller: &Poller, key: Key, home: SocketAddr) -> Option<usize> {
        if let Some(number) = self.known.get(&key) {
            return Some(*number);
        }
        if self.known.len() >= MOST {
            let last = |number: &usize| self.places[*number].as_ref().map(|flow| flow.last);
            let oldest = self.known.values().copied().min_by_key(last)?;
            self.forget(oldest);
        }
        let socket = UdpSocket::from(towards(home, self.source(key.client, home), SocketType::DGRAM).ok()?);
        socket.connect(home).ok()?;
        let number = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        if poller.add(&socket, Token::Flow(number), EventFlags::IN).is_err() {
            self.free.push(number);
            return None;
        }
        self.places[number] = Some(Flow { key, home, socket, last: Instant::now() });
        self.known.insert(key, number);
        Some(number)
    }

    /// The client's address; with another port where it speaks to the same port of the instance by another way already,
    /// since the kernel could not tell the answers apart.
    fn source(&self, client: SocketAddr, home: SocketAddr) -> SocketAddr {
        let is_same = |flow: &Flow| flow.key.client == client && flow.home == home;
        if self.places.iter().flatten().any(is_same) { any_port(client) } else { client }
    }

    fn forget(&mut self, number: usize) {
        if let Some(flow) = self.places[number].take() {
            self.known.remove(&flow.key);
            self.free.push(number);
        }
    }
}
