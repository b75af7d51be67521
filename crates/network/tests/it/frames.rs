//! Frames, byte for byte.

use std::net::{Ipv4Addr, Ipv6Addr};

pub type Mac = [u8; 6];

pub const BROADCAST: Mac = [0xff; 6];
pub const IP4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const IP6: u16 = 0x86dd;

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
