//! Addresses by DHCP: who is answered, with what, and that nobody else hears it.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use proa_resolver::dhcp::wrap;
use proa_resolver::listen::interface;
use proa_sys::packet;
use proa_sys::process::Insn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::fixture::{Host, Instance, until};
use crate::hostile::children;

const DISCOVER: &[u8] = &[53, 1, 1];
const ALL: [u8; 6] = [0xff; 6];

/// An instance's interface, by which it asks.
struct Client {
    socket: OwnedFd,
    index: u32,
}

impl Client {
    fn new(instance: &Instance) -> Self {
        instance.inside(|| {
            let index = interface("eth0").unwrap();
            let all = Insn { code: 6, k: u32::MAX, ..Insn::default() };
            Self { socket: packet::open(index, &[all]).unwrap(), index }
        })
    }

    /// Asks as a MAC, of which the last byte is given, with these options.
    fn send(&self, mac: u8, options: &[u8]) {
        let mut message = vec![0; 240];
        message[..8].copy_from_slice(&[1, 1, 6, 0, 1, 2, 3, 4]);
        message[28..34].copy_from_slice(&[2, 0, 0, 0, 0, mac]);
        message[236..].copy_from_slice(&[99, 130, 83, 99]);
        message.extend(options);
        let [nobody, everybody] = [[0; 4], [255; 4]].map(Ipv4Addr::from);
        let packet = wrap((nobody, 68), (everybody, 67), &message);
        packet::send(&self.socket, &packet, self.index, ALL).unwrap();
    }

    /// The next answer of a server: the kind of message, and the address that is given.
    fn heard(&self, patience: i64) -> Option<(u8, [u8; 4])> {
        loop {
            let limit = Timespec { tv_sec: patience / 1000, tv_nsec: patience % 1000 * 1_000_000 };
            if poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&limit)) != Ok(1) {
                return None;
            }
            let mut packet = [0; 2048];
            let (length, _) = packet::receive(&self.socket, &mut packet).unwrap();
            if length > 270 && packet[9] == 17 && packet[20..24] == [0, 67, 0, 68] {
                assert_eq!(packet[268..270], [53, 1]);
                return Some((packet[270], packet[44..48].try_into().unwrap()));
            }
        }
    }

    /// What is offered, asked for until there is a server.
    fn offer(&self, mac: u8) -> (u8, [u8; 4]) {
        let mut offer = None;
        until("an offer", || {
            self.send(mac, DISCOVER);
            offer = self.heard(200);
            offer.is_some()
        });
        offer.unwrap()
    }
}

#[test]
fn each_is_given_its_own_address_and_hears_nothing_of_the_others() {
    let (mut host, network, one) = Host::with_one();
    host.endpoint(&network, 3, &["two"], &[]);
    let two = host.instance(&network, 3);
    let (one, two) = (Client::new(&one), Client::new(&two));
    let pid = host.start(&[]);
    assert_eq!(one.offer(2), (2, [10, 1, 0, 2]));
    assert_eq!(two.offer(3), (2, [10, 1, 0, 3]));
    while one.heard(100).is_some() {}
    two.send(3, &[53, 1, 3, 50, 4, 10, 1, 0, 2]);
    assert_eq!(two.heard(5000), Some((6, [0; 4])));
    // As another, and as nobody.
    let server = children(pid);
    for mac in [2, 9] {
        two.send(mac, DISCOVER);
    }
    assert_eq!((two.heard(300), one.heard(0)), (None, None));
    // An endpoint that is gone is not answered any more.
    host.remove(&network, 3);
    until("the address is forgotten", || {
        two.send(3, DISCOVER);
        two.heard(200).is_none()
    });
    assert_eq!(one.offer(2), (2, [10, 1, 0, 2]));
    assert_eq!(children(pid), server, "the server is another");
}

#[test]
fn strange_requests_harm_nobody_and_a_new_server_gives_addresses_too() {
    let (mut host, _, one) = Host::with_one();
    let client = Client::new(&one);
    let pid = host.start(&[]);
    client.offer(2);
    let server = children(pid);
    for byte in [0, 1, 50, 53, 54, 61, 254, 255] {
        for length in 0..8 {
            client.send(2, &[&[byte, length], &[byte; 4][..]].concat());
        }
        client.send(2, &[byte; 1000]);
    }
    while client.heard(300).is_some() {}
    assert_eq!(client.offer(2), (2, [10, 1, 0, 2]));
    assert_eq!(children(pid), server, "the server is another");
    let killed = rustix::process::Pid::from_raw(server.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(killed, rustix::process::Signal::KILL).unwrap();
    until("there is another server", || {
        let now = children(pid);
        !now.is_empty() && now != server
    });
    assert_eq!(client.offer(2), (2, [10, 1, 0, 2]));
}
