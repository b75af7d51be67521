//! The process that reads packets. It has no privileges, no files and no threads: sockets and names come to it from the
//! steward, one change at a time, and between two events nothing waits.
//!
//! ```text
//!   packet ─▶ of the network? ─▶ not too many? ─▶ read ─▶ zone ─┬▶ answer
//!                                                               └▶ question to servers elsewhere ─▶ answer
//! ```
//!
//! Who asks for its address is answered by what its network's file says ([`crate::dhcp`]).
//!
//! Invariants: a packet leads to at most one answer, and an answer to none. A network's names are in its own zone, and
//! only its own sockets ask that, and those of networks in which an instance asks that is in it too. Everything that
//! waits is counted (`limits`).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use proa_sys::packet;

use crate::dhcp::Leases;
use crate::limits::{CONNECTIONS, Sender, Senders, WAITING};
use crate::poller::{Alarm, Interest, Poller, Token};
use crate::question::{Client, PATIENCE, Question, Step};
use crate::slab::{Key, Slab};
use crate::stream::{Incoming, Outgoing, Progress};
use crate::update::{self, Segment, Transport, Update};
use crate::wire::{self, Malformed, Query, Rcode};
use crate::zone::{Found, Zone};

/// Packets read of a socket before the others have their turn.
const TURN: usize = 32;
/// Longest query by TCP.
const MAX_QUERY: usize = 4096;
/// How long a connection may do nothing.
const IDLE: Duration = Duration::from_secs(10);

/// The server's whole state.
#[derive(Debug)]
pub struct Server {
    steward: OwnedFd,
    poller: Poller,
    networks: Slab<Network>,
    ids: HashMap<String, Key>,
    ourselves: Vec<IpAddr>,
    servers: Vec<SocketAddr>,
    questions: Slab<Question>,
    connections: Slab<Connection>,
    buffer: Vec<u8>,
    now: Instant,
}

#[derive(Debug, Default)]
struct Network {
    zone: Zone,
    leases: Leases,
    /// The bridge's number.
    bridge: u32,
    sockets: Vec<Listener>,
    senders: Senders,
}

#[derive(Debug)]
enum Listener {
    Udp(UdpSocket),
    Tcp(TcpListener),
    Bridge(OwnedFd),
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    network: Key,
    sender: Sender,
    source: IpAddr,
    incoming: Incoming,
    state: State,
    since: Instant,
}

/// What a connection is at.
#[derive(Debug)]
enum State {
    Reading,
    Asking,
    Writing(Outgoing),
}

/// What is done about a packet.
enum Decision {
    Nothing,
    Answer(Vec<u8>),
    Forward,
}

impl Network {
    /// Answers a packet of this sender that asks for an address.
    fn give_address(&mut self, packet: &[u8], from: [u8; 6], now: Instant, number: usize) {
        let Some(lease) = self.leases.of(from) else { return };
        let sender = Senders::sender(&self.zone, lease.address.into());
        if !self.senders.may_ask(sender, now) {
            return;
        }
        if let Some(answer) = lease.answer(packet)
            && let Some(Listener::Bridge(socket)) = self.sockets.get(number)
        {
            // One that gets no answer asks again.
            let _ = packet::send(socket, &answer, self.bridge, from);
        }
    }
}

impl Server {
    /// Knows no network yet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(steward: OwnedFd) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(&steward, Token::Steward, Interest::Read)?;
        Ok(Self {
            steward,
            poller,
            networks: Slab::default(),
            ids: HashMap::new(),
            ourselves: Vec::new(),
            servers: Vec::new(),
            questions: Slab::default(),
            connections: Slab::default(),
            buffer: vec![0; wire::MAX_MESSAGE],
            now: Instant::now(),
        })
    }

    /// Serves until the steward is gone.
    ///
    /// # Errors
    /// Waiting fails, or the steward says what cannot be read.
    pub fn run(mut self) -> io::Result<()> {
        let mut tokens = Vec::new();
        loop {
            self.poller.wait(&mut tokens)?;
            self.now = Instant::now();
            while let Some(alarm) = self.poller.due(self.now) {
                self.ring(alarm);
            }
            for token in &tokens {
                match *token {
                    Token::Steward if !self.learn()? => return Ok(()),
                    Token::Steward => {}
                    Token::Listener(place, number) => self.listened(place, number),
                    Token::Connection(place) => self.connected(place),
                    Token::Question(place) => self.answered(place),
                }
            }
        }
    }

    /// Takes what the steward says; false when it is gone.
    fn learn(&mut self) -> io::Result<bool> {
        loop {
            match update::receive(&self.steward) {
                Ok(Some((update, sockets))) => self.apply(update, sockets)?,
                Ok(None) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn apply(&mut self, update: Update, sockets: Vec<OwnedFd>) -> io::Result<()> {
        match update {
            Update::Servers(servers) => self.servers = servers,
            Update::Network(segment) => self.set_network(segment, sockets)?,
            Update::Gone(id) => {
                if let Some(key) = self.ids.remove(&id) {
                    self.networks.remove(key);
                }
                self.note_ourselves();
            }
            Update::Endpoint { network, instance, entry } => {
                let key = self.ids.get(&network).copied();
                if let Some(network) = key.and_then(|key| self.networks.get_mut(key)) {
                    network.leases.set(&instance, entry.as_ref().and_then(|entry| entry.lease.clone()));
                    network.zone.set(&instance, entry);
                    network.senders.tidy(&network.zone);
                }
            }
        }
        Ok(())
    }

    fn set_network(&mut self, segment: Segment, sockets: Vec<OwnedFd>) -> io::Result<()> {
        let id = segment.id.clone();
        let (transports, bridge) = (segment.sockets.clone(), segment.bridge);
        let key = match self.ids.get(&id).copied() {
            Some(key) => {
                if let Some(network) = self.networks.get_mut(key) {
                    network.zone.change(segment);
                }
                key
            }
            None => {
                let zone = Zone::new(segment);
                let key = self.networks.insert(Network { zone, ..Network::default() });
                self.ids.insert(id, key);
                key
            }
        };
        let network = self.networks.get_mut(key).filter(|_| !sockets.is_empty());
        if let Some(network) = network {
            network.bridge = bridge;
            network.sockets.clear();
            for (number, (socket, transport)) in sockets.into_iter().zip(transports).enumerate() {
                self.poller.add(&socket, Token::Listener(key.place, number), Interest::Read)?;
                network.sockets.push(match transport {
                    Transport::Udp => Listener::Udp(socket.into()),
                    Transport::Tcp => Listener::Tcp(socket.into()),
                    Transport::Bridge => Listener::Bridge(socket),
                });
            }
        }
        self.note_ourselves();
        Ok(())
    }

    fn note_ourselves(&mut self) {
        self.ourselves =
            self.networks.iter().flat_map(|(_, network)| network.zone.gateways().iter().copied()).collect();
    }

    fn ring(&mut self, alarm: Alarm) {
        match alarm {
            Alarm::Question(key, attempt) => {
                let late = self.questions.get_mut(key).filter(|question| question.attempt == attempt);
                if let Some(question) = late {
                    let step = question.ask(&self.poller, key.place);
                    self.step(key, attempt, step);
                }
            }
            Alarm::Connection(key) => {
                let Some(connection) = self.connections.get(key) else { return };
                let end = connection.since + IDLE;
                if end > self.now {
                    self.poller.alarm(end, Alarm::Connection(key));
                } else {
                    self.hang_up(key);
                }
            }
        }
    }

    fn listened(&mut self, place: usize, number: usize) {
        let Some(key) = self.networks.key_at(place) else { return };
        for _ in 0..TURN {
            let Some(network) = self.networks.get_mut(key) else { return };
            match network.sockets.get(number) {
                Some(Listener::Udp(socket)) => match socket.recv_from(&mut self.buffer) {
                    Ok((length, from)) => self.packet(key, number, from, length),
                    Err(_) => return,
                },
                Some(Listener::Tcp(listener)) => match listener.accept() {
                    Ok((stream, from)) => self.accept(key, stream, from.ip()),
                    Err(_) => return,
                },
                Some(Listener::Bridge(socket)) => match packet::receive(socket, &mut self.buffer) {
                    Ok((length, from)) => {
                        network.give_address(&self.buffer[..length], from, self.now, number)
                    }
                    Err(_) => return,
                },
                None => return,
            }
        }
    }

    /// A packet of this length is in the buffer.
    fn packet(&mut self, key: Key, number: usize, from: SocketAddr, length: usize) {
        let Some(network) = self.networks.get_mut(key) else { return };
        if !network.zone.has(from.ip()) {
            return;
        }
        let sender = Senders::sender(&network.zone, from.ip());
        if !network.senders.may_ask(sender, self.now) {
            return;
        }
        let packet = &self.buffer[..length];
        let answer = match self.decide(key, from.ip(), packet, |query| query.udp_size()) {
            Decision::Nothing => None,
            Decision::Answer(answer) => Some(answer),
            Decision::Forward => {
                let packet = packet.to_vec();
                self.forward(Client::Udp { socket: number, to: from }, (key, sender), from.ip(), &packet)
            }
        };
        if let Some(answer) = answer {
            self.send(key, number, from, &answer);
        }
    }

    fn send(&self, network: Key, number: usize, to: SocketAddr, answer: &[u8]) {
        let socket = self.networks.get(network).and_then(|network| network.sockets.get(number));
        if let Some(Listener::Udp(socket)) = socket {
            // A client that cannot be reached asks again, or does not.
            let _ = socket.send_to(answer, to);
        }
    }

    /// Has servers elsewhere asked, or returns what the client is told at once.
    fn forward(
        &mut self,
        client: Client,
        of: (Key, Sender),
        source: IpAddr,
        packet: &[u8],
    ) -> Option<Vec<u8>> {
        let (key, sender) = of;
        let network = self.networks.get_mut(key)?;
        let query = Query::read(packet).ok()?;
        let refuse = |rcode| Some(query.reply(rcode, &[], wire::PLAIN_SIZE));
        let servers = network.zone.servers(source, &self.servers, &self.ourselves);
        if servers.is_empty() {
            return refuse(if network.zone.is_internal() { Rcode::NxDomain } else { Rcode::ServFail });
        }
        if self.questions.count() >= WAITING || !network.senders.wait(sender) {
            return refuse(Rcode::Refused);
        }
        let key = self.questions.insert(Question::new(client, of, packet, servers));
        let step = self.questions.get_mut(key)?.ask(&self.poller, key.place);
        self.step(key, 0, step);
        None
    }

    fn answered(&mut self, place: usize) {
        let Some(key) = self.questions.key_at(place) else { return };
        let Some(question) = self.questions.get_mut(key) else { return };
        let before = question.attempt;
        let step = question.advance(&self.poller, place, &mut self.buffer);
        self.step(key, before, step);
    }

    fn step(&mut self, key: Key, attempt_before: u32, step: Step) {
        match step {
            Step::Waits => {
                let attempt = self.questions.get(key).map_or(attempt_before, |question| question.attempt);
                if attempt != attempt_before {
                    self.poller.alarm(self.now + PATIENCE, Alarm::Question(key, attempt));
                }
            }
            Step::Done(answer) => {
                let Some(question) = self.questions.remove(key) else { return };
                if let Some(network) = self.networks.get_mut(question.network) {
                    network.senders.waited(question.sender);
                }
                match question.client {
                    Client::Udp { socket, to } => self.send(question.network, socket, to, &answer),
                    Client::Tcp(connection) => self.respond(connection, &answer),
                }
            }
        }
    }

    fn accept(&mut self, network_key: Key, stream: TcpStream, source: IpAddr) {
        let Some(network) = self.networks.get_mut(network_key) else { return };
        if !network.zone.has(source)
            || self.connections.count() >= CONNECTIONS
            || stream.set_nonblocking(true).is_err()
        {
            return;
        }
        let sender = Senders::sender(&network.zone, source);
        if !network.senders.connect(sender) {
            return;
        }
        let key = self.connections.insert(Connection {
            stream,
            network: network_key,
            sender,
            source,
            incoming: Incoming::new(MAX_QUERY),
            state: State::Reading,
            since: self.now,
        });
        self.poller.alarm(self.now + IDLE, Alarm::Connection(key));
        let added = self.connections.get(key).is_some_and(|it| {
            self.poller.add(&it.stream, Token::Connection(key.place), Interest::Read).is_ok()
        });
        if !added {
            self.hang_up(key);
        }
    }

    fn hang_up(&mut self, key: Key) {
        if let Some(connection) = self.connections.remove(key)
            && let Some(network) = self.networks.get_mut(connection.network)
        {
            network.senders.disconnect(connection.sender);
        }
    }

    fn connected(&mut self, place: usize) {
        let Some(key) = self.connections.key_at(place) else { return };
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.since = self.now;
        let progress = match &mut connection.state {
            State::Reading => connection.incoming.read(&mut connection.stream),
            State::Writing(outgoing) => outgoing.write(&mut connection.stream),
            // Nothing is waited for, so this is its end.
            State::Asking => Progress::Over,
        };
        match progress {
            Progress::Waits => {}
            Progress::Over => self.hang_up(key),
            Progress::Done if matches!(connection.state, State::Reading) => {
                let message = connection.incoming.take();
                self.asked(key, &message);
            }
            Progress::Done => self.turn(key, State::Reading, Interest::Read),
        }
    }

    /// A whole message came by a connection.
    fn asked(&mut self, key: Key, packet: &[u8]) {
        let Some(connection) = self.connections.get(key) else { return };
        let (of, source) = ((connection.network, connection.sender), connection.source);
        let Some(network) = self.networks.get_mut(of.0) else { return self.hang_up(key) };
        if !network.senders.may_ask(of.1, self.now) {
            return self.hang_up(key);
        }
        match self.decide(of.0, source, packet, |_| wire::MAX_MESSAGE) {
            Decision::Nothing => self.hang_up(key),
            Decision::Answer(answer) => self.respond(key, &answer),
            Decision::Forward => {
                self.turn(key, State::Asking, Interest::Nothing);
                if let Some(answer) = self.forward(Client::Tcp(key), of, source, packet) {
                    self.respond(key, &answer);
                }
            }
        }
    }

    fn respond(&mut self, key: Key, answer: &[u8]) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.since = self.now;
        let mut outgoing = Outgoing::new(answer);
        match outgoing.write(&mut connection.stream) {
            Progress::Waits => self.turn(key, State::Writing(outgoing), Interest::Write),
            Progress::Done => self.turn(key, State::Reading, Interest::Read),
            Progress::Over => self.hang_up(key),
        }
    }

    fn turn(&mut self, key: Key, state: State, interest: Interest) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.state = state;
        if self.poller.change(&connection.stream, Token::Connection(key.place), interest).is_err() {
            self.hang_up(key);
        }
    }

    /// What is done about a packet of an instance of this network. It knows the names of all networks that it is in,
    /// wherever it asks.
    fn decide(
        &self,
        key: Key,
        source: IpAddr,
        packet: &[u8],
        limit: impl FnOnce(&Query) -> usize,
    ) -> Decision {
        let Some(network) = self.networks.get(key) else { return Decision::Nothing };
        let query = match Query::read(packet) {
            Ok(query) => query,
            Err(Malformed::Silent) => return Decision::Nothing,
            Err(Malformed::Answered(answer)) => return Decision::Answer(answer),
        };
        let limit = limit(&query);
        if query.class != wire::INTERNET || wire::TRANSFERS.contains(&query.kind) {
            return Decision::Answer(query.reply(Rcode::Refused, &[], limit));
        }
        let found = match (network.zone.find(&query), network.zone.instance(source)) {
            (known @ Found::Records(_), _) | (known, None) => known,
            (unknown, Some(instance)) => {
                let zones = self.networks.iter().map(|(_, network)| &network.zone);
                zones
                    .filter_map(|zone| zone.find_for(instance, &query))
                    .next()
                    .map_or(unknown, Found::Records)
            }
        };
        match found {
            Found::Records(records) => Decision::Answer(query.reply(Rcode::NoError, &records, limit)),
            Found::Unknown => Decision::Answer(query.reply(Rcode::NxDomain, &[], limit)),
            Found::Elsewhere => Decision::Forward,
        }
    }
}
