//! More flows than the kernel remembers, all of one instance's.

use std::fs;
use std::net::UdpSocket;
use std::thread;

use proa_protocol::network::Protocol::{Tcp, Udp};

use crate::lab::{Lab, NEIGHBOUR, on_a_host, port, source};

/// Sends to so many ports of the neighbour, from as many ports as it takes, that each packet is a flow of its own that
/// nobody answers.
fn flood(flows: usize) {
    for _ in 0..flows.div_ceil(60_000) {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for to in 1024..61_024 {
            // Where the kernel has no room for one it says so; the next is tried all the same.
            let _ = socket.send_to(b"x", (NEIGHBOUR[0], to));
        }
    }
}

fn number(path: &str) -> usize {
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

#[test]
fn one_instances_half_open_flows_leave_room_for_others() {
    on_a_host(|lab: &Lab| {
        let network = lab.network(1, |_| {});
        let ports = [port(Tcp, "0.0.0.0", 8080, 80), port(Udp, "0.0.0.0", 8080, 80)];
        let (bad, web) = (lab.instance(&network, 66, &[]), lab.instance(&network, 67, &ports));
        let (most, used) =
            ("/proc/sys/net/netfilter/nf_conntrack_max", "/proc/sys/net/netfilter/nf_conntrack_count");
        let most = number(most);
        thread::scope(|scope| {
            scope.spawn(|| bad.space.run(|| flood(most + 60_000)));
            for _ in 0..20 {
                for protocol in [Tcp, Udp] {
                    source(protocol, &lab.lan, ("192.0.2.1", 8080), &web, 80);
                    source(protocol, &web, (NEIGHBOUR[0], 7), &lab.lan, 7);
                }
            }
        });
        eprintln!("flows: {} of {most}", number(used));
        for protocol in [Tcp, Udp] {
            source(protocol, &lab.lan, ("192.0.2.1", 8080), &web, 80);
            source(protocol, &web, (NEIGHBOUR[0], 7), &lab.lan, 7);
        }
    });
}
