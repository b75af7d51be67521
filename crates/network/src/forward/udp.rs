//! Flows of UDP: a socket in the switch for each client of a port.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::net::SocketType;

use super::{Poller, Port, Token, towards};

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
    known: HashMap<(usize, SocketAddr), usize>,
    packet: Vec<u8>,
}

#[derive(Debug)]
struct Flow {
    port: usize,
    client: SocketAddr,
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
            let Ok((length, client)) = socket.recv_from(&mut self.packet) else { return };
            let Some(number) = self.flow(poller, port, client, home) else { continue };
            let Some(Some(flow)) = self.places.get_mut(number) else { continue };
            flow.last = Instant::now();
            // What the instance does not take is lost, as anywhere.
            let _ = flow.socket.send(&self.packet[..length]);
        }
    }

    /// The instance has sent something to a client.
    pub fn answered(&mut self, ports: &[Port], number: usize) {
        let Some(Some(flow)) = self.places.get_mut(number) else { return };
        let Port::Udp(socket, _) = &ports[flow.port] else { return };
        flow.last = Instant::now();
        for _ in 0..TURN {
            match flow.socket.recv(&mut self.packet) {
                Ok(length) => _ = socket.send_to(&self.packet[..length], flow.client),
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

    fn flow(&mut self, poller: &Poller, port: usize, client: SocketAddr, home: SocketAddr) -> Option<usize> {
        if let Some(number) = self.known.get(&(port, client)) {
            return Some(*number);
        }
        if self.known.len() >= MOST {
            let last = |number: &usize| self.places[*number].as_ref().map(|flow| flow.last);
            let oldest = self.known.values().copied().min_by_key(last)?;
            self.forget(oldest);
        }
        let socket = UdpSocket::from(towards(home, client, SocketType::DGRAM).ok()?);
        socket.connect(home).ok()?;
        let number = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        if poller.add(&socket, Token::Flow(number), EventFlags::IN).is_err() {
            self.free.push(number);
            return None;
        }
        self.places[number] = Some(Flow { port, client, socket, last: Instant::now() });
        self.known.insert((port, client), number);
        Some(number)
    }

    fn forget(&mut self, number: usize) {
        if let Some(flow) = self.places[number].take() {
            self.known.remove(&(flow.port, flow.client));
            self.free.push(number);
        }
    }
}
