//! Frames that no honest instance sends, written to the cable of a tap. Each of them is shown to arrive where our rules
//! are not there.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

use proa_protocol::network::{Network, Protocol, PublishedPort};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::frames::{
    self, ARP, BROADCAST, IP4, IP6, Mac, advertisement, arp, frame, icmp6, ip4, ip6, solicitation, udp,
};
use crate::lab::{Lab, ip, live, nft, on_a_host, port, set};

/// The header of virtio-net, which says that nothing is left to do.
const NOTHING_LEFT: usize = 10;
/// Enough for a frame that nobody has to fill up.
const BODY: &[u8] = &[b'x'; 18];

/// A virtual machine's end of a tap.
struct Cable {
    tap: File,
    mac: Mac,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    local: Ipv6Addr,
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
        Self { tap, mac, v4: addresses.0, v6: addresses.1, local }
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
        let [a, b, c, _] = self.v4.octets();
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

/// What an instance may send, and what it may not.
fn honest(me: &Cable, other: &Cable) -> Vec<(&'static str, Vec<u8>)> {
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

fn dishonest(me: &Cable, other: &Cable) -> Vec<(&'static str, Vec<u8>)> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let gateway = Ipv4Addr::new(10, 1, 0, 1);
    let stranger = [2, 0, 0, 9, 9, 9];
    let to = |kind, body: Vec<u8>| frame(other.mac, me.mac, kind, &body);
    let nobody = Ipv6Addr::UNSPECIFIED;
    let good = ip4(me.v4, other.v4, 17, &udp(1024, 80, BODY));
    let router = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let redirect = [[137, 0, 0, 0, 0, 0, 0, 0].as_slice(), &other.v6.octets(), &me.v6.octets()].concat();
    let mut token_ring = arp(1, me.mac, me.v4, other.v4);
    token_ring[1] = 6;
    vec![
        ("MAC address", frame(other.mac, stranger, IP4, &good)),
        ("gateway's address by ARP", frame(BROADCAST, me.mac, ARP, &arp(1, me.mac, gateway, gateway))),
        ("reply for the gateway", to(ARP, arp(2, me.mac, gateway, other.v4))),
        ("MAC address in ARP", to(ARP, arp(2, stranger, me.v4, other.v4))),
        ("reply of nobody", to(ARP, arp(2, me.mac, Ipv4Addr::UNSPECIFIED, other.v4))),
        ("hardware of ARP", frame(BROADCAST, me.mac, ARP, &token_ring)),
        ("IPv4 address", to(IP4, ip4(Ipv4Addr::new(10, 1, 0, 9), other.v4, 17, &udp(1024, 80, BODY)))),
        ("IPv4 without address", to(IP4, ip4(Ipv4Addr::UNSPECIFIED, other.v4, 17, &udp(68, 67, BODY)))),
        ("IPv6 address", to(IP6, ip6("fd01::9".parse().unwrap(), other.v6, 17, &udp(1024, 80, BODY)))),
        (
            "IPv6 address of the link",
            to(IP6, ip6("fe80::9".parse().unwrap(), other.v6, 17, &udp(1, 80, BODY))),
        ),
        ("IPv6 without address", to(IP6, ip6(nobody, other.v6, 17, &udp(1024, 80, BODY)))),
        ("advertisement of another", to(IP6, icmp6(me.v6, all_nodes, &advertisement(other.v6)))),
        ("advertisement of another's link", to(IP6, icmp6(me.local, all_nodes, &advertisement(other.local)))),
        ("detection of another", to(IP6, icmp6(nobody, all_nodes, &solicitation(other.v6)))),
        ("router", to(IP6, icmp6(me.local, all_nodes, &router))),
        ("router behind an option", to(IP6, frames::behind_option(icmp6(me.local, all_nodes, &router)))),
        ("router in fragments", to(IP6, frames::first_fragment(icmp6(me.local, all_nodes, &router)))),
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

#[test]
fn an_instance_sends_as_itself_alone() {
    on_a_host(|lab| {
        let network = lab.network(1, |_| {});
        let [me, other] = [66, 67].map(|number| Cable::new(lab, &network, number, &[]));
        for (what, frame) in honest(&me, &other) {
            assert!(me.reaches(&other, &frame), "dropped: {what}");
        }
        let lies = dishonest(&me, &other);
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

#[test]
fn frames_for_the_bridge_itself_do_not_steal_a_mac_address() {
    on_a_host(|lab| {
        let network = lab.network(1, |_| {});
        let [thief, victim, third] = [66, 67, 68].map(|number| Cable::new(lab, &network, number, &[]));
        let letter = frame(victim.mac, third.mac, IP4, &ip4(third.v4, victim.v4, 17, &udp(1024, 80, BODY)));
        let steal = || {
            assert!(victim.reaches(
                &third,
                &frame(BROADCAST, victim.mac, ARP, &arp(1, victim.mac, victim.v4, third.v4))
            ));
            thief.send(&frame([1, 0x80, 0xc2, 0, 0, 2], victim.mac, 0x8809, &[0; 46]));
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
        let mut frames = honest(&me, &other);
        let stranger = [2, 0, 0, 9, 9, 9];
        frames
            .push(("unknown", frame(stranger, me.mac, IP4, &ip4(me.v4, other.v4, 17, &udp(1024, 80, BODY)))));
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
            frame(host, me.mac, IP4, &ip4(me.v4, Ipv4Addr::LOCALHOST, 17, &packet)),
            frame(host, me.mac, IP6, &ip6(me.v6, Ipv6Addr::LOCALHOST, 17, &packet)),
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
