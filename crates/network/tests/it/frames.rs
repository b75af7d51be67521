//! Frames, byte for byte: the tests of the command line send them from instances, too.

use std::net::{Ipv4Addr, Ipv6Addr};

pub type Mac = [u8; 6];

pub const BROADCAST: Mac = [0xff; 6];
pub const IP4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const IP6: u16 = 0x86dd;
/// Enough for a frame that nobody has to fill up.
pub const BODY: &[u8] = &[b'x'; 18];

/// Where an instance is in its network.
#[derive(Debug, Clone, Copy)]
pub struct Station {
    pub mac: Mac,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub local: Ipv6Addr,
    pub gateway: Ipv4Addr,
}

/// A frame of Ethernet, filled up to its smallest length.
pub fn frame(to: Mac, from: Mac, kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = [to.as_slice(), &from, &kind.to_be_bytes(), body].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// Who has `target`? (1), or: here it is (2).
pub fn arp(operation: u8, mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [head.as_slice(), &mac, &sender.octets(), &[0; 6], &target.octets()].concat()
}

pub fn ip4(from: Ipv4Addr, to: Ipv4Addr, transport: u8, body: &[u8]) -> Vec<u8> {
    let length = (20 + body.len() as u16).to_be_bytes();
    let head = [0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, transport, 0, 0];
    let mut packet = [head.as_slice(), &from.octets(), &to.octets(), body].concat();
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum);
    packet
}

pub fn ip6(from: Ipv6Addr, to: Ipv6Addr, transport: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u16).to_be_bytes();
    let head = [0x60, 0, 0, 0, length[0], length[1], transport, 255];
    [head.as_slice(), &from.octets(), &to.octets(), body].concat()
}

/// Without a checksum, which IPv4 does not ask for.
pub fn udp(from: u16, to: u16, body: &[u8]) -> Vec<u8> {
    let length = 8 + body.len() as u16;
    [&from.to_be_bytes(), &to.to_be_bytes(), &length.to_be_bytes(), [0; 2].as_slice(), body].concat()
}

/// A packet of ICMPv6, whose checksum is put in.
pub fn icmp6(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u32).to_be_bytes();
    let pseudo = [from.octets().as_slice(), &to.octets(), &length, &[0, 0, 0, 58], message].concat();
    let mut message = message.to_vec();
    message[2..4].copy_from_slice(&checksum(&pseudo));
    ip6(from, to, 58, &message)
}

/// Neighbour's advertisement: the target is here.
pub fn advertisement(target: Ipv6Addr) -> Vec<u8> {
    [[136, 0, 0, 0, 0x20, 0, 0, 0].as_slice(), &target.octets()].concat()
}

/// Neighbour's solicitation: who has the target?
pub fn solicitation(target: Ipv6Addr) -> Vec<u8> {
    [[135, 0, 0, 0, 0, 0, 0, 0].as_slice(), &target.octets()].concat()
}

/// The same packet with destination options before its message.
pub fn behind_option(packet: Vec<u8>) -> Vec<u8> {
    insert(packet, 60, [0, 1, 4, 0, 0, 0, 0])
}

/// The same packet as the first of several fragments.
pub fn first_fragment(packet: Vec<u8>) -> Vec<u8> {
    insert(packet, 44, [0, 0, 1, 0, 0, 0, 7])
}

fn insert(mut packet: Vec<u8>, kind: u8, header: [u8; 7]) -> Vec<u8> {
    let next = std::mem::replace(&mut packet[6], kind);
    packet[5] += 8;
    packet.splice(40..40, [&[next], header.as_slice()].concat());
    packet
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes()
}

/// What an instance may send to another.
pub fn honest(me: &Station, other: &Station) -> Vec<(&'static str, Vec<u8>)> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let to = |kind, body: Vec<u8>| frame(other.mac, me.mac, kind, &body);
    let nobody = Ipv6Addr::UNSPECIFIED;
    vec![
        ("ARP request", frame(BROADCAST, me.mac, ARP, &arp(1, me.mac, me.v4, other.v4))),
        ("ARP probe", frame(BROADCAST, me.mac, ARP, &arp(1, me.mac, Ipv4Addr::UNSPECIFIED, me.v4))),
        ("ARP reply", to(ARP, arp(2, me.mac, me.v4, other.v4))),
        ("IPv4", to(IP4, ip4(me.v4, other.v4, 17, &udp(1024, 80, BODY)))),
        ("IPv6", to(IP6, ip6(me.v6, other.v6, 17, &udp(1024, 80, BODY)))),
        ("IPv6 of the link", to(IP6, ip6(me.local, other.local, 17, &udp(1024, 80, BODY)))),
        ("advertisement", to(IP6, icmp6(me.v6, other.v6, &advertisement(me.v6)))),
        ("advertisement by the link", to(IP6, icmp6(me.local, other.v6, &advertisement(me.v6)))),
        ("advertisement of the link", to(IP6, icmp6(me.local, all_nodes, &advertisement(me.local)))),
        ("solicitation", to(IP6, icmp6(me.v6, other.v6, &solicitation(other.v6)))),
        ("duplicate detection", to(IP6, icmp6(nobody, all_nodes, &solicitation(me.v6)))),
        ("duplicate detection of the link", to(IP6, icmp6(nobody, all_nodes, &solicitation(me.local)))),
    ]
}

/// What it may not.
pub fn dishonest(me: &Station, other: &Station) -> Vec<(&'static str, Vec<u8>)> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let gateway = me.gateway;
    let ([a, b, c, _], v6) = (me.v4.octets(), me.v6.segments());
    let (free4, free6) =
        (Ipv4Addr::new(a, b, c, 99), Ipv6Addr::new(v6[0], v6[1], v6[2], v6[3], 0, 0, 0, 0x99));
    let stranger = [2, 0, 0, 9, 9, 9];
    let to = |kind, body: Vec<u8>| frame(other.mac, me.mac, kind, &body);
    let nobody = Ipv6Addr::UNSPECIFIED;
    let request = ip4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, 17, &udp(68, 67, BODY));
    let good = ip4(me.v4, other.v4, 17, &udp(1024, 80, BODY));
    let router = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let redirect = [[137, 0, 0, 0, 0, 0, 0, 0].as_slice(), &other.v6.octets(), &me.v6.octets()].concat();
    let mut token_ring = arp(1, me.mac, me.v4, other.v4);
    token_ring[1] = 6;
    vec![
        ("MAC address", frame(other.mac, stranger, IP4, &good)),
        ("request for another's address", frame(BROADCAST, stranger, IP4, &request)),
        ("gateway's address by ARP", frame(BROADCAST, me.mac, ARP, &arp(1, me.mac, gateway, gateway))),
        ("reply for the gateway", to(ARP, arp(2, me.mac, gateway, other.v4))),
        ("MAC address in ARP", to(ARP, arp(2, stranger, me.v4, other.v4))),
        ("reply of nobody", to(ARP, arp(2, me.mac, Ipv4Addr::UNSPECIFIED, other.v4))),
        ("hardware of ARP", frame(BROADCAST, me.mac, ARP, &token_ring)),
        ("IPv4 address", to(IP4, ip4(free4, other.v4, 17, &udp(1024, 80, BODY)))),
        ("request for an address", frame(BROADCAST, me.mac, IP4, &request)),
        ("IPv4 without address", to(IP4, ip4(Ipv4Addr::UNSPECIFIED, other.v4, 17, &udp(68, 67, BODY)))),
        ("IPv6 address", to(IP6, ip6(free6, other.v6, 17, &udp(1024, 80, BODY)))),
        (
            "IPv6 address of the link",
            to(IP6, ip6("fe80::9".parse().unwrap(), other.v6, 17, &udp(1, 80, BODY))),
        ),
        ("IPv6 without address", to(IP6, ip6(nobody, other.v6, 17, &udp(1024, 80, BODY)))),
        ("advertisement of another", to(IP6, icmp6(me.v6, all_nodes, &advertisement(other.v6)))),
        ("advertisement of another's link", to(IP6, icmp6(me.local, all_nodes, &advertisement(other.local)))),
        ("detection of another", to(IP6, icmp6(nobody, all_nodes, &solicitation(other.v6)))),
        ("router", to(IP6, icmp6(me.local, all_nodes, &router))),
        ("router behind an option", to(IP6, behind_option(icmp6(me.local, all_nodes, &router)))),
        ("router in fragments", to(IP6, first_fragment(icmp6(me.local, all_nodes, &router)))),
        ("redirect", to(IP6, icmp6(me.local, other.v6, &redirect))),
        ("DHCP server", to(IP4, ip4(me.v4, other.v4, 17, &udp(67, 68, BODY)))),
        ("DHCPv6 server", to(IP6, ip6(me.local, other.local, 17, &udp(547, 546, BODY)))),
        ("VLAN", to(0x8100, [&[0, 7, 8, 0], good.as_slice()].concat())),
        ("VLAN 0", to(0x8100, [&[0, 0, 8, 0], good.as_slice()].concat())),
        ("provider's VLAN", to(0x88a8, [&[0, 7, 8, 0], good.as_slice()].concat())),
        ("other ether type", to(0x88b5, vec![0; 46])),
        ("length for ether type", to(46, vec![0x42; 46])),
        ("IPv4 of the wrong version", to(IP4, ip6(me.v6, other.v6, 17, &udp(1024, 80, BODY)))),
    ]
}
