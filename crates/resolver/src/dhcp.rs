//! Addresses by DHCP (RFC 2131), for systems that know neither our agent nor our seed.
//!
//! Nothing is leased: an instance's address was claimed for it when it was made, and is its own until it is removed. So
//! there is no pool and no state, and each request is answered by what the endpoint's file says of its MAC:
//!
//! ```text
//!   DISCOVER                                   ─▶ OFFER   the claimed address, whatever was wished for
//!   REQUEST   of our offer, or at a boot       ─▶ ACK     if it asks for the claimed address, else NAK
//!   REQUEST   to renew, or to whoever is there ─▶ ACK     if it has the claimed address, else NAK
//!   INFORM    of the claimed address           ─▶ ACK     without an address
//!   REQUEST   of another server's offer, DECLINE, RELEASE, BOOTP, what came through a relay ─▶ nothing
//! ```
//!
//! Invariants: who has no endpoint in the network gets no answer; the frame's MAC, which the firewall has seen to be the
//! sender's own, is that of the request; no answer has another's address; an answer goes to that MAC alone, so that
//! nobody learns of the others by it (what is to be sent to all in IP's head is so, in a frame of its own).
//!
//! Packets are read from the bridge (`proa_sys::packet`) and not by UDP, for three reasons: the kernel tells whose frame it
//! was, it can be answered before it has an address, and no firewall of the host's for what is sent to the host is
//! in the way. The reader of messages is ours, as for DNS: the known crates come with fifty others for what is a table of
//! fixed fields and a list.

mod message;

use std::collections::HashMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use message::{CLIENT_PORT, Options, SERVER_PORT, option};
pub use message::{Kind, Request, datagram, keep, wrap};

/// How long an address may be used before the server is asked again, seconds. It does not end: what is asked for is
/// whether something has changed, and a server that is away for some hours is not missed.
const LEASE: u32 = 12 * 3600;

/// What an endpoint is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Who it is.
    pub mac: [u8; 6],
    /// Its address.
    pub address: Ipv4Addr,
    /// Bits of the network's prefix.
    pub prefix: u8,
    /// The host's address in the network: the server of DHCP and of names.
    pub server: Ipv4Addr,
    /// Where packets for elsewhere go.
    pub router: Option<Ipv4Addr>,
    /// Largest packet; 0 for the usual one.
    pub mtu: u16,
    /// Its host name; may be empty.
    pub hostname: String,
    /// Domains in which it looks for names.
    pub search: Vec<String>,
}

/// What the endpoints of a network are told.
#[derive(Debug, Default)]
pub struct Leases(HashMap<[u8; 6], (String, Lease)>);

impl Leases {
    /// An endpoint is there, has changed, or is gone.
    pub fn set(&mut self, instance: &str, lease: Option<Lease>) {
        // One that took over the MAC of another that ended keeps it.
        self.0.retain(|_, (owner, _)| owner != instance);
        if let Some(lease) = lease {
            self.0.insert(lease.mac, (instance.to_owned(), lease));
        }
    }

    /// Whose frame it was.
    pub fn of(&self, mac: [u8; 6]) -> Option<&Lease> {
        self.0.get(&mac).map(|(_, lease)| lease)
    }
}

impl Lease {
    /// The packet, from IP's head on, by which a packet from its MAC is answered.
    pub fn answer(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let (to, payload) = datagram(packet)?;
        if to != self.server && to != Ipv4Addr::BROADCAST {
            return None;
        }
        let request = Request::read(payload).filter(|request| request.mac == self.mac)?;
        let kind = self.decide(&request)?;
        let to = match kind {
            Kind::Nak => Ipv4Addr::BROADCAST,
            _ if !request.has.is_unspecified() => self.address,
            _ if request.is_deaf => Ipv4Addr::BROADCAST,
            _ => self.address,
        };
        Some(wrap((self.server, SERVER_PORT), (to, CLIENT_PORT), &self.message(&request, kind)))
    }

    fn decide(&self, request: &Request) -> Option<Kind> {
        let is_ours = |address: Ipv4Addr| if address == self.address { Kind::Ack } else { Kind::Nak };
        let has_address = !request.has.is_unspecified();
        match (request.kind, request.server, request.wished) {
            (Kind::Discover, ..) => Some(Kind::Offer),
            (Kind::Inform, ..) => (request.has == self.address).then_some(Kind::Ack),
            (Kind::Request, Some(server), _) if server != self.server => None,
            (Kind::Request, _, Some(wished)) if !has_address => Some(is_ours(wished)),
            (Kind::Request, None, _) if has_address => Some(is_ours(request.has)),
            _ => None,
        }
    }

    fn message(&self, request: &Request, kind: Kind) -> Vec<u8> {
        let is_given = kind != Kind::Nak && request.kind != Kind::Inform;
        let has = if kind == Kind::Nak { Ipv4Addr::UNSPECIFIED } else { request.has };
        let mut options =
            Options::begin(request, has, if is_given { self.address } else { Ipv4Addr::UNSPECIFIED });
        options.add(option::KIND, &[kind as u8]);
        options.add(option::SERVER, &self.server.octets());
        if let Some(client) = request.client {
            options.add(option::CLIENT, client);
        }
        if is_given {
            options.add(option::LEASE, &LEASE.to_be_bytes());
        }
        if kind != Kind::Nak {
            self.tell(&mut options);
        }
        options.end()
    }

    fn tell(&self, options: &mut Options) {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
        options.add(option::MASK, &mask.to_be_bytes());
        if let Some(router) = self.router {
            options.add(option::ROUTER, &router.octets());
        }
        options.add(option::NAMES, &self.server.octets());
        if self.mtu >= 68 {
            options.add(option::MTU, &self.mtu.to_be_bytes());
        }
        options.add(option::HOSTNAME, self.hostname.as_bytes());
        if let Some(domain) = self.search.first() {
            options.add(option::DOMAIN, domain.as_bytes());
        }
        let search: Vec<u8> =
            self.search.iter().filter_map(|domain| crate::wire::encode(domain)).flatten().collect();
        options.add(option::SEARCH, &search);
    }
}

#[cfg(test)]
mod tests;
