//! What is answered of a network's own names.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::dns::{self, A, AAAA, Answer, PTR, TXT, ask_stream};
use crate::fixture::{Host, address, ip, until};

const NXDOMAIN: u8 = 3;

#[test]
fn names_are_answered_by_udp_and_tcp_in_both_ip_versions() {
    let mut host = Host::new();
    let network = host.network(1, false);
    host.endpoint(&network, 2, &["one", "web"], &[]);
    host.endpoint(&network, 3, &["two", "web"], &[]);
    let one = host.instance(&network, 2);
    host.start(&[]);
    assert_eq!(one.ask("two", A), Answer::addresses(&["10.1.0.3"]));
    assert_eq!(one.ask("TWO.Net1", AAAA), Answer::addresses(&["fd00:1::3"]));
    assert_eq!(one.ask("two", TXT), Answer::empty(0));
    assert_eq!(one.ask("three", A), Answer::empty(NXDOMAIN));
    assert_eq!(one.ask("host.docker.internal", A), Answer::addresses(&["10.1.0.1"]));
    let reverse = one.ask("3.0.1.10.in-addr.arpa", PTR);
    assert_eq!(reverse.records, [b"\x03two\x04Net1\0"]);
    let mut stream = one.connect();
    let first = ask_stream(&mut stream, "web", A);
    let second = ask_stream(&mut stream, "web", A);
    assert_eq!(first.records.len(), 2);
    assert_ne!(first, second, "addresses take turns");
    let v6 = one.inside(|| UdpSocket::bind("[::]:0").unwrap());
    let server: SocketAddr = "[fd00:1::1]:53".parse().unwrap();
    assert_eq!(dns::ask(&v6, server, "two", A), Answer::addresses(&["10.1.0.3"]));
}

#[test]
fn changes_of_files_are_seen() {
    let mut host = Host::new();
    host.start(&[]);
    let network = host.network(1, false);
    let one = host.instance(&network, 2);
    assert_eq!(one.ask("two", A), Answer::empty(NXDOMAIN));
    host.endpoint(&network, 3, &["two"], &[]);
    until("a new name is known", || one.ask("two", A) == Answer::addresses(&["10.1.0.3"]));
    host.endpoint(&network, 3, &["zwei"], &[]);
    until("a new name takes the old one's place", || one.ask("zwei", A).rcode == 0);
    assert_eq!(one.ask("two", A), Answer::empty(NXDOMAIN));
    host.remove(&network, 3);
    until("a name is gone", || one.ask("zwei", A) == Answer::empty(NXDOMAIN));
}

#[test]
fn a_networks_names_are_hidden_from_others() {
    let mut host = Host::new();
    let (first, second) = (host.network(1, false), host.network(2, false));
    host.endpoint(&first, 2, &["one"], &[]);
    host.endpoint(&second, 3, &["secret"], &[]);
    let (one, other) = (host.instance(&first, 2), host.instance(&second, 3));
    host.start(&[]);
    assert_eq!(other.ask("secret", A), Answer::addresses(&["10.2.0.3"]));
    assert_eq!(one.ask("secret", A), Answer::empty(NXDOMAIN));
    assert_eq!(one.ask("one", A), Answer::addresses(&["10.1.0.2"]));
    // The other network's server does not hear what comes from this one, though the host has both addresses.
    let socket = one.socket();
    socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    socket.send_to(&dns::query(1, "secret", A), SocketAddr::new(address(2, 1), 53)).unwrap();
    let mut buffer = [0; 512];
    assert!(socket.recv_from(&mut buffer).is_err(), "the other network's server answered");
}

#[test]
fn an_instance_finds_the_names_of_all_its_networks_wherever_it_asks() {
    let mut host = Host::new();
    let (first, second) = (host.network(1, false), host.network(2, true));
    host.endpoint(&first, 2, &["both"], &[]);
    host.endpoint(&first, 3, &["near"], &[]);
    host.endpoint(&second, 4, &["far"], &[]);
    let both = host.instance(&first, 2);
    host.start(&[]);
    assert_eq!(both.ask("far", A), Answer::empty(NXDOMAIN));
    host.endpoint(&second, 2, &["both"], &[]);
    until("it is known to be in the other network", || both.ask("far", A).rcode == 0);
    for name in ["far", "far.net2"] {
        assert_eq!(both.ask(name, A), Answer::addresses(&["10.2.0.4"]));
    }
    assert_eq!(both.ask("4.0.2.10.in-addr.arpa", PTR).records, [b"\x03far\x04Net2\0"]);
    assert_eq!(both.ask("near", A), Answer::addresses(&["10.1.0.3"]));
    assert_eq!(both.ask("both", A), Answer::addresses(&["10.1.0.2"]));
    host.remove(&second, 2);
    until("it is known to have left", || both.ask("far", A) == Answer::empty(NXDOMAIN));
}

#[test]
fn a_bridge_that_is_made_again_is_served_again() {
    let (mut host, network, one) = Host::with_one();
    host.start(&[]);
    assert_eq!(one.ask("one", A), Answer::addresses(&["10.1.0.2"]));
    drop(one);
    ip("link delete br1");
    host.network(1, false);
    let one = host.instance(&network, 4);
    assert_eq!(one.ask("one", A), Answer::addresses(&["10.1.0.2"]));
}
