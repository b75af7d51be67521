//! Frames that no honest instance sends, written to the cable of a tap. Each of them is shown to arrive where our rules
//! are not there.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::OwnedFd;

use proa_network::link::Links;
use proa_protocol::network::{Network, Protocol, PublishedPort};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::frames::{ARP, BODY, BROADCAST, IP4, IP6, Station, arp, dishonest, frame, honest, ip4, ip6, udp};
use crate::lab::{Lab, ip, live, nft, on_a_host, port, set};

/// The header of virtio-net, which says that nothing is left to do.
const NOTHING_LEFT: usize = 10;

/// A virtual machine's end of a tap.
struct Cable {
    tap: File,
    at: Station,
}

impl Cable {
    fn new(lab: &Lab, network: &Network, number: u8, ports: &[PublishedPort]) -> Self {
        let live = live(network, number, ports);
        let id = u8::from_str_radix(&network.id[62..], 16).unwrap();
        let mac = [2, 0, 0, 0, id, number];
        lab.firewall.add_endpoint(&live).unwrap();
        let tap = proa_sys::tap::open(&live.link).unwrap().into();
        let (link, bridge) = (&live.link, &network.bridge);
        let text = live.endpoint.interface.mac;
        let addresses = live.endpoint.interface.addresses.map_addresses();
        ip(&format!(
            "link set {link} master {bridge} up
            neigh add {} lladdr {text} dev {bridge} nud permanent
            neigh add {} lladdr {text} dev {bridge} nud permanent",
            addresses.0, addresses.1
        ));
        let local = format!("fe80::ff:fe00:{id:x}{number:02x}").parse().unwrap();
        let gateway = Ipv4Addr::new(10, id, 0, 1);
        Self { tap, at: Station { mac, v4: addresses.0, v6: addresses.1, local, gateway } }
    }

    fn send(&self, frame: &[u8]) {
        let mut message = vec![0; NOTHING_LEFT];
        message.extend(frame);
        (&self.tap).write_all(&message).unwrap();
    }

    /// Everything that arrived until now, by a word that the host sends to all of the network.
    fn received(&self) -> Vec<Vec<u8>> {
        let word = format!("that was all {:?}", std::time::Instant::now());
        let host = UdpSocket::bind("0.0.0.0:0").unwrap();
        host.set_broadcast(true).unwrap();
        let [a, b, c, _] = self.at.v4.octets();
        host.send_to(word.as_bytes(), (Ipv4Addr::new(a, b, c, 255), 9)).unwrap();
        let mut frames = Vec::new();
        loop {
            let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
            let mut ready = [PollFd::new(&self.tap, PollFlags::IN)];
            assert_eq!(poll(&mut ready, Some(&limit)), Ok(1), "the host's word does not arrive");
            let mut buffer = [0; 2048];
            let length = (&self.tap).read(&mut buffer).unwrap();
            let frame = buffer[NOTHING_LEFT..length].to_vec();
            if contains(&frame, word.as_bytes()) {
                return frames;
            }
            frames.push(frame);
        }
    }

    /// Whether a frame that is sent here arrives at another.
    fn reaches(&self, other: &Cable, frame: &[u8]) -> bool {
        other.received();
        self.send(frame);
        other.received().iter().any(|received| received.starts_with(frame))
    }
}

/// An instance's addresses of both versions.
trait Addresses {
    fn map_addresses(&self) -> (Ipv4Addr, Ipv6Addr);
}

impl Addresses for Vec<ipnet::IpNet> {
    fn map_addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        let text = |place: usize| self[place].addr().to_string();
        (text(0).parse().unwrap(), text(1).parse().unwrap())
    }
}

fn contains(frame: &[u8], word: &[u8]) -> bool {
    frame.windows(word.len()).any(|part| part == word)
}

#[test]
fn an_instance_sends_as_itself_alone() {
    on_a_host(|lab| {
        let network = lab.network(1, |_| {});
        let [me, other] = [66, 67].map(|number| Cable::new(lab, &network, number, &[]));
        for (what, frame) in honest(&me.at, &other.at) {
            assert!(me.reaches(&other, &frame), "dropped: {what}");
        }
        let lies = dishonest(&me.at, &other.at);
        for (what, frame) in &lies {
            assert!(!me.reaches(&other, frame), "let through: {what}");
        }
        nft("delete table bridge proa");
        // br_netfilter refuses what is no valid IP by itself, and waits for all of a packet.
        let refused = ["IPv4 of the wrong version", "router in fragments"];
        let is_refused = |what: &str| lab.bridged_is_filtered && refused.contains(&what);
        for (what, frame) in lies.iter().filter(|(what, _)| !is_refused(what)) {
            assert!(me.reaches(&other, frame), "not dropped by our rules: {what}");
        }
    });
}

/// What the host's end of a bridge hears of requests for an address; its server reads them there.
#[test]
fn requests_for_an_address_come_from_their_sender_and_only_the_host_hears_them() {
    on_a_host(|lab| {
        for talk in [true, false] {
            let id = 6 + u8::from(talk);
            let network = lab.network(id, if talk { |_| {} } else { |network| network.talk = false });
            let [me, other] = [66, 67].map(|number| Cable::new(lab, &network, number, &[]));
            let index = Links::here().unwrap().index(&network.bridge).unwrap().unwrap();
            let all = proa_sys::process::Insn { code: 6, k: u32::MAX, ..Default::default() };
            let server = proa_sys::packet::open(index, &[all]).unwrap();
            let (nobody, everybody) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
            let ask =
                |mac, from, to, port| frame(BROADCAST, mac, IP4, &ip4(from, to, 17, &udp(68, port, BODY)));
            for lie in [
                ask(other.at.mac, nobody, everybody, 67),
                ask(me.at.mac, nobody, everybody, 69),
                ask(me.at.mac, nobody, me.at.gateway, 67),
                ask(me.at.mac, other.at.v4, everybody, 67),
            ] {
                me.send(&lie);
            }
            let honest = [ask(me.at.mac, nobody, everybody, 67), ask(me.at.mac, me.at.v4, me.at.gateway, 67)];
            for frame in &honest {
                me.send(frame);
            }
            let heard: Vec<Vec<u8>> = honest.iter().map(|_| next_request(&server, me.at.mac)).collect();
            assert_eq!(heard, honest.each_ref().map(|frame| frame[14..].to_vec()));
            // The kernel does not say that nobody is there.
            let is_answer = |frame: &Vec<u8>| frame[12..14] == [8, 0] && frame[23] == 1;
            assert!(!me.received().iter().any(is_answer));
            assert!(!other.received().iter().any(|frame| frame.starts_with(&honest[0])));
        }
    });
}

/// The next request that arrives, which must be of this sender.
fn next_request(server: &OwnedFd, sender: [u8; 6]) -> Vec<u8> {
    loop {
        let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(
            poll(&mut [PollFd::new(server, PollFlags::IN)], Some(&limit)),
            Ok(1),
            "no request arrives"
        );
        let mut packet = [0; 2048];
        let (length, from) = proa_sys::packet::receive(server, &mut packet).unwrap();
        if packet[9] == 17 && packet[20..22] == [0, 68] {
            assert_eq!(from, sender);
            return packet[..length].to_vec();
        }
    }
}

#[test]
fn frames_for_the_bridge_itself_do_not_steal_a_mac_address() {
    on_a_host(|lab| {
        let network = lab.network(1, |_| {});
        let [thief, victim, third] = [66, 67, 68].map(|number| Cable::new(lab, &network, number, &[]));
        let letter = frame(
            victim.at.mac,
            third.at.mac,
            IP4,
            &ip4(third.at.v4, victim.at.v4, 17, &udp(1024, 80, BODY)),
        );
        let steal = || {
            assert!(victim.reaches(
                &third,
                &frame(BROADCAST, victim.at.mac, ARP, &arp(1, victim.at.mac, victim.at.v4, third.at.v4))
            ));
            thief.send(&frame([1, 0x80, 0xc2, 0, 0, 2], victim.at.mac, 0x8809, &[0; 46]));
        };
        steal();
        assert!(third.reaches(&victim, &letter));
        nft("delete table bridge proa");
        steal();
        assert!(!third.reaches(&victim, &letter), "the bridge learns nothing from such frames");
    });
}

#[test]
fn where_instances_may_not_talk_no_frame_gets_from_one_to_another() {
    on_a_host(|lab| {
        let network = lab.network(4, |network| network.talk = false);
        let [me, other] = [66, 67].map(|number| Cable::new(lab, &network, number, &[]));
        let mut frames = honest(&me.at, &other.at);
        let stranger = [2, 0, 0, 9, 9, 9];
        frames.push((
            "unknown",
            frame(stranger, me.at.mac, IP4, &ip4(me.at.v4, other.at.v4, 17, &udp(1024, 80, BODY))),
        ));
        for (what, frame) in &frames {
            assert!(!me.reaches(&other, frame), "let through: {what}");
        }
        nft("delete table bridge proa\ndelete table inet proa");
        for (what, frame) in &frames {
            assert!(me.reaches(&other, frame), "not dropped by our rules: {what}");
        }
    });
}

#[test]
fn ports_on_loopback_addresses_are_not_reached_by_packets_for_them() {
    on_a_host(|lab| {
        let network = lab.network(1, |_| {});
        let ports = ["127.0.0.1", "::"].map(|address| port(Protocol::Udp, address, 8080, 80));
        // Before the cables, since the host forgets its neighbours with it.
        ip("link set br1 address 02:00:00:00:aa:aa");
        let (me, other) = (Cable::new(lab, &network, 66, &[]), Cable::new(lab, &network, 67, &ports));
        let host = [2, 0, 0, 0, 0xaa, 0xaa];
        set("/proc/sys/net/ipv4/conf/all/route_localnet", 1);
        let packet = udp(1024, 8080, b"intruder");
        let frames = [
            frame(host, me.at.mac, IP4, &ip4(me.at.v4, Ipv4Addr::LOCALHOST, 17, &packet)),
            frame(host, me.at.mac, IP6, &ip6(me.at.v6, Ipv6Addr::LOCALHOST, 17, &packet)),
        ];
        let arrives = |frame: &[u8]| {
            other.received();
            me.send(frame);
            other.received().iter().any(|received| contains(received, b"intruder"))
        };
        for (version, frame) in frames.iter().enumerate() {
            assert!(!arrives(frame), "{version}");
        }
        nft("flush chain inet proa raw_prerouting");
        assert!(arrives(&frames[0]));
    });
}
