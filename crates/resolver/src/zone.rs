//! The names of one network, and what is answered to a question of one of its instances.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use crate::update::{Entry, Segment};
use crate::wire::{self, Query, Record};

/// Names by which an instance finds its host.
const HOST_NAMES: &[&[u8]] = &[b"host.docker.internal", b"host.proa.internal", b"gateway.docker.internal"];
/// Types by which hosts are looked up.
const HOST_TYPES: &[u16] = &[wire::A, wire::AAAA, wire::HTTPS, wire::ANY];
/// Most servers that are asked one after the other: with the time that each is given, a client is answered before it
/// gives up. `resolv.conf` names no more either.
const MAX_SERVERS: usize = 3;

/// A network's names.
#[derive(Debug, Default)]
pub struct Zone {
    segment: Segment,
    suffix: Vec<u8>,
    endpoints: HashMap<Rc<str>, Entry>,
    names: HashMap<Vec<u8>, Holders>,
    owners: HashMap<IpAddr, Rc<str>>,
}

/// Who has a name.
#[derive(Debug, Default)]
struct Holders {
    addresses: Vec<(Rc<str>, IpAddr)>,
    /// How often its addresses were given, for each IP version: the next answer starts one further.
    turns: [Cell<usize>; 2],
}

/// What a zone knows of a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// The name is the network's, and these are its records of that type, perhaps none.
    Records(Vec<Record>),
    /// There is no such name, and nobody else is asked.
    Unknown,
    /// Whoever else is asked knows.
    Elsewhere,
}

impl Zone {
    /// Names of this network, of which nothing else is known yet.
    pub fn new(segment: Segment) -> Self {
        let mut zone = Self::default();
        zone.change(segment);
        zone
    }

    /// The network has changed.
    pub fn change(&mut self, segment: Segment) {
        self.suffix = format!(".{}", segment.name.to_ascii_lowercase()).into_bytes();
        self.segment = segment;
    }

    /// Whether packets of this sender are of the network.
    pub fn has(&self, source: IpAddr) -> bool {
        self.segment.subnets.iter().any(|subnet| subnet.contains(&source))
            && !self.segment.gateways.contains(&source)
    }

    /// Whether an endpoint has this address.
    pub fn knows(&self, source: IpAddr) -> bool {
        self.owners.contains_key(&source)
    }

    /// The host's addresses in the network.
    pub fn gateways(&self) -> &[IpAddr] {
        &self.segment.gateways
    }

    /// An endpoint is there, has changed, or is gone.
    pub fn set(&mut self, instance: &str, entry: Option<Entry>) {
        if let Some((instance, old)) = self.endpoints.remove_entry(instance) {
            self.forget(&instance, &old);
        }
        if let Some(entry) = entry {
            let instance: Rc<str> = instance.into();
            for name in &entry.names {
                let holders = self.names.entry(name.to_ascii_lowercase().into_bytes()).or_default();
                holders
                    .addresses
                    .extend(entry.addresses.iter().map(|address| (Rc::clone(&instance), *address)));
            }
            for address in &entry.addresses {
                self.owners.insert(*address, Rc::clone(&instance));
            }
            self.endpoints.insert(instance, entry);
        }
    }

    fn forget(&mut self, instance: &Rc<str>, old: &Entry) {
        for name in &old.names {
            let name = name.to_ascii_lowercase().into_bytes();
            if let Some(holders) = self.names.get_mut(&name) {
                holders.addresses.retain(|(owner, _)| owner != instance);
                if holders.addresses.is_empty() {
                    self.names.remove(&name);
                }
            }
        }
        // An instance that took over the address of one that ended keeps it.
        self.owners.retain(|_, owner| owner != instance);
    }

    /// The instance with this address.
    pub fn instance(&self, source: IpAddr) -> Option<&str> {
        self.owners.get(&source).map(|instance| &**instance)
    }

    /// What one of its instances finds here that has asked in another of its networks.
    pub fn find_for(&self, instance: &str, query: &Query) -> Option<Vec<Record>> {
        let name = query.name.as_bytes();
        let holders = || Some(self.holders(name)?.records(query.kind));
        let owner = || match self.owner(wire::reverse(name)?, query.kind) {
            Found::Records(records) => Some(records),
            Found::Unknown | Found::Elsewhere => None,
        };
        if self.endpoints.contains_key(instance) { holders().or_else(owner) } else { None }
    }

    /// What is known of the name and type that are asked for.
    pub fn find(&self, query: &Query) -> Found {
        let name = query.name.as_bytes();
        if let Some(holders) = self.holders(name) {
            return Found::Records(holders.records(query.kind));
        }
        if HOST_NAMES.contains(&name) {
            let Segment { gateways, hosts, .. } = &self.segment;
            let hosts = if hosts.is_empty() { gateways } else { hosts };
            return Found::Records(addresses(hosts.iter().copied(), query.kind));
        }
        if let Some(address) = wire::reverse(name)
            && self.segment.subnets.iter().any(|subnet| subnet.contains(&address))
        {
            return self.owner(address, query.kind);
        }
        // A lone name is an instance's, be it one that does not run: it is nobody's business outside, who could answer
        // with an address of his own.
        if query.name.labels() == 1 && HOST_TYPES.contains(&query.kind) {
            return Found::Unknown;
        }
        Found::Elsewhere
    }

    fn holders(&self, name: &[u8]) -> Option<&Holders> {
        let short = || name.strip_suffix(self.suffix.as_slice()).and_then(|name| self.names.get(name));
        self.names.get(name).or_else(short)
    }

    fn owner(&self, address: IpAddr, kind: u16) -> Found {
        let owner = self.owners.get(&address).and_then(|owner| self.endpoints.get(owner));
        let Some(name) = owner.and_then(|entry| entry.names.first()) else { return Found::Unknown };
        if ![wire::PTR, wire::ANY].contains(&kind) {
            return Found::Records(Vec::new());
        }
        let long = format!("{name}.{}", self.segment.name);
        let fits = wire::encode(&long).is_some();
        Found::Records(vec![Record::Pointer(if fits { long } else { name.clone() })])
    }

    /// The servers to ask for an instance, the host's being given. None that is the resolver itself or the instance that
    /// asks; for an internal network none that is not part of it, since a question can carry data out as any packet can.
    pub fn servers(&self, source: IpAddr, host: &[SocketAddr], ourselves: &[IpAddr]) -> Vec<SocketAddr> {
        let entry = self.owners.get(&source).and_then(|owner| self.endpoints.get(owner));
        let own = entry.map(|entry| entry.servers.as_slice()).unwrap_or_default();
        let asked: Vec<SocketAddr> = if own.is_empty() {
            host.to_vec()
        } else {
            own.iter().map(|server| SocketAddr::new(*server, 53)).collect()
        };
        let may = |server: &SocketAddr| {
            let address = server.ip();
            !(ourselves.contains(&address) || address == source || self.segment.gateways.contains(&address))
                && (!self.segment.internal || self.has(address))
        };
        asked.into_iter().filter(may).take(MAX_SERVERS).collect()
    }

    /// Whether questions for names outside may leave the network.
    pub fn is_internal(&self) -> bool {
        self.segment.internal
    }
}

impl Holders {
    fn records(&self, kind: u16) -> Vec<Record> {
        let mut records = addresses(self.addresses.iter().map(|(_, address)| *address), kind);
        if records.len() > 1 {
            let turn = &self.turns[usize::from(kind == wire::AAAA)];
            let start = turn.get() % records.len();
            turn.set(turn.get().wrapping_add(1));
            records.rotate_left(start);
        }
        records
    }
}

fn addresses(of: impl Iterator<Item = IpAddr>, kind: u16) -> Vec<Record> {
    let fits = |address: &IpAddr| match kind {
        wire::A => address.is_ipv4(),
        wire::AAAA => address.is_ipv6(),
        kind => kind == wire::ANY,
    };
    of.filter(fits).map(Record::Address).collect()
}

#[cfg(test)]
mod tests;
