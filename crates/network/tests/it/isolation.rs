//! Who reaches whom by addresses of instances.

use std::process::Command;

use proa_protocol::network::Protocol::{Tcp, Udp};

use crate::lab::{At, HOST, NEIGHBOUR, assert_blocked, on_a_host, port, source};

#[test]
fn instances_of_one_network_talk_and_networks_are_apart() {
    on_a_host(|lab| {
        let (first, second) = (lab.network(1, |_| {}), lab.network(2, |network| network.masquerade = false));
        let (one, two) = (lab.instance(&first, 2, &[]), lab.instance(&first, 3, &[]));
        let other = lab.instance(&second, 2, &[]);
        for version in [0, 1] {
            let to = one.address(version);
            assert_eq!(source(Tcp, &two, (to, 80), &one, 80), two.address(version).to_string());
            assert_eq!(source(Udp, &two, (to, 80), &one, 80), two.address(version).to_string());
            let gateway = first.subnets[version].gateway.unwrap();
            assert_eq!(source(Tcp, At::Host, (to, 80), &one, 80), gateway.to_string());
            assert_blocked(&other, (to, 80), &one, 80);
            assert_blocked(&one, (other.address(version), 80), &other, 80);
            assert_blocked(&lab.lan, (to, 80), &one, 80);
        }
    });
}

#[test]
fn what_leaves_a_network_has_the_hosts_address_or_its_own() {
    on_a_host(|lab| {
        let (first, second) = (lab.network(1, |_| {}), lab.network(2, |network| network.masquerade = false));
        let (one, other) = (lab.instance(&first, 2, &[]), lab.instance(&second, 2, &[]));
        for version in [0, 1] {
            let to = (NEIGHBOUR[version], 80);
            assert_eq!(source(Tcp, &one, to, &lab.lan, 80), HOST[version]);
            assert_eq!(source(Udp, &one, to, &lab.lan, 80), HOST[version]);
            assert_eq!(source(Tcp, &other, to, &lab.lan, 80), other.address(version).to_string());
            // Services of the host are reached by any of its addresses.
            let gateway = first.subnets[version].gateway.unwrap();
            assert_eq!(source(Tcp, &one, (gateway, 22), At::Host, 22), one.address(version).to_string());
            assert_eq!(source(Tcp, &other, (gateway, 22), At::Host, 22), other.address(version).to_string());
        }
    });
}

#[test]
fn an_internal_network_has_no_way_in_or_out() {
    on_a_host(|lab| {
        let (inner, outer) = (lab.network(3, |network| network.internal = true), lab.network(1, |_| {}));
        let published = [port(Tcp, "0.0.0.0", 8080, 80), port(Tcp, "::", 8080, 80)];
        let (one, two) = (lab.instance(&inner, 2, &published), lab.instance(&inner, 3, &[]));
        let web = lab.instance(&outer, 2, &[port(Tcp, "0.0.0.0", 8081, 80), port(Tcp, "::", 8081, 80)]);
        for version in [0, 1] {
            let (to, gateway) = (one.address(version), inner.subnets[version].gateway.unwrap());
            let from = one.address(version).to_string();
            assert_eq!(source(Tcp, &one, (two.address(version), 80), &two, 80), from);
            assert_eq!(source(Tcp, At::Host, (to, 80), &one, 80), gateway.to_string());
            assert_blocked(&one, (NEIGHBOUR[version], 80), &lab.lan, 80);
            assert_blocked(&lab.lan, (to, 80), &one, 80);
            assert_blocked(&lab.lan, (HOST[version], 8080), &one, 80);
            assert_blocked(&web, (to, 80), &one, 80);
            assert_blocked(&one, (HOST[version], 8081), &web, 80);
            // Of the host: names and echoes, of the gateway alone.
            assert_eq!(source(Udp, &one, (gateway, 53), At::Host, 53), from);
            assert_eq!(source(Tcp, &one, (gateway, 53), At::Host, 53), from);
            assert_blocked(&one, (gateway, 22), At::Host, 22);
            assert_blocked(&one, (HOST[version], 53), At::Host, 53);
            let ping = |to: &str| one.space.run(|| ping(to));
            assert!(ping(&gateway.to_string()) && !ping(HOST[version]));
        }
    });
}

#[test]
fn where_instances_may_not_talk_they_reach_published_ports_alone() {
    on_a_host(|lab| {
        let network = lab.network(4, |network| network.talk = false);
        let published = [port(Tcp, "0.0.0.0", 8080, 80), port(Tcp, "::", 8080, 80)];
        let (one, two) = (lab.instance(&network, 2, &published), lab.instance(&network, 3, &[]));
        for version in [0, 1] {
            let gateway = network.subnets[version].gateway.unwrap().to_string();
            assert_blocked(&two, (one.address(version), 80), &one, 80);
            assert_blocked(&one, (two.address(version), 80), &two, 80);
            assert_eq!(source(Tcp, &two, (HOST[version], 8080), &one, 80), gateway);
            assert_eq!(source(Tcp, &one, (HOST[version], 8080), &one, 80), gateway);
            assert_eq!(source(Tcp, &lab.lan, (HOST[version], 8080), &one, 80), NEIGHBOUR[version]);
            assert_eq!(source(Tcp, &two, (NEIGHBOUR[version], 80), &lab.lan, 80), HOST[version]);
        }
    });
}

fn ping(to: &str) -> bool {
    let output = Command::new("busybox").args(["ping", "-c", "1", "-W", "1", to]).output();
    output.expect("these tests need busybox").status.success()
}
