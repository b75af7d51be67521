//! Ports of instances that are reached by ports of the host.

use std::io::ErrorKind;
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use proa_protocol::network::Protocol::{self, Tcp, Udp};
use proa_protocol::network::PublishedPort;

use crate::lab::{
    At, HOST, HOST_TOO, Instance, NEIGHBOUR, assert_blocked, ip, nft, on_a_host, port, set, source,
};

const BOTH: [Protocol; 2] = [Tcp, Udp];

fn everywhere(host_port: u16, to: u16) -> Vec<PublishedPort> {
    let published = |protocol| ["0.0.0.0", "::"].map(|address| port(protocol, address, host_port, to));
    BOTH.into_iter().flat_map(published).collect()
}

#[test]
fn a_port_on_all_addresses_is_reached_from_everywhere_and_sees_its_clients() {
    on_a_host(|lab| {
        let (first, second) = (lab.network(1, |_| {}), lab.network(2, |_| {}));
        let web = lab.instance(&first, 2, &everywhere(8080, 80));
        let other = lab.instance(&second, 2, &[]);
        for (protocol, version) in BOTH.into_iter().flat_map(|protocol| [(protocol, 0), (protocol, 1)]) {
            let to = (HOST[version], 8080);
            assert_eq!(source(protocol, &lab.lan, to, &web, 80), NEIGHBOUR[version]);
            assert_eq!(source(protocol, At::Host, to, &web, 80), HOST[version]);
            let from = other.address(version).to_string();
            assert_eq!(source(protocol, &other, to, &web, 80), from);
        }
        assert_eq!(source(Tcp, &lab.lan, (HOST_TOO, 8080), &web, 80), NEIGHBOUR[0]);
        lab.firewall.remove_endpoint(&web.live).unwrap();
        assert_blocked(&lab.lan, (HOST[0], 8080), &web, 80);
    });
}

#[test]
fn an_instance_reaches_its_own_and_its_neighbours_ports_by_the_hosts_address() {
    on_a_host(|lab| {
        let network = lab.network(1, |_| {});
        let web = lab.instance(&network, 2, &everywhere(8080, 80));
        let next = lab.instance(&network, 3, &[]);
        for (protocol, version) in BOTH.into_iter().flat_map(|protocol| [(protocol, 0), (protocol, 1)]) {
            let gateway = network.subnets[version].gateway.unwrap();
            for to in [HOST[version].to_owned(), gateway.to_string()] {
                assert_eq!(source(protocol, &next, (&to, 8080), &web, 80), gateway.to_string());
                assert_eq!(source(protocol, &web, (&to, 8080), &web, 80), gateway.to_string());
            }
        }
    });
}

#[test]
fn a_port_on_all_addresses_takes_nothing_that_is_for_others() {
    on_a_host(|lab| {
        let network = lab.network(1, |_| {});
        let web = lab.instance(&network, 2, &everywhere(8080, 80));
        let next = lab.instance(&network, 3, &[]);
        // A server of that port elsewhere is the one that is reached.
        for version in [0, 1] {
            let seen = source(Tcp, &web, (NEIGHBOUR[version], 8080), &lab.lan, 8080);
            assert_eq!(seen, HOST[version]);
            let seen = source(Tcp, &web, (next.address(version), 8080), &next, 8080);
            assert_eq!(seen, web.address(version).to_string());
        }
    });
}

#[test]
fn a_port_on_one_address_is_reached_by_that_alone() {
    on_a_host(|lab| {
        let network = lab.network(1, |_| {});
        let ports =
            [port(Tcp, HOST[0], 8080, 80), port(Udp, HOST[0], 8080, 80), port(Tcp, HOST[1], 8080, 80)];
        let web = lab.instance(&network, 2, &ports);
        assert_eq!(source(Tcp, &lab.lan, (HOST[0], 8080), &web, 80), NEIGHBOUR[0]);
        assert_eq!(source(Udp, &lab.lan, (HOST[0], 8080), &web, 80), NEIGHBOUR[0]);
        assert_eq!(source(Tcp, &lab.lan, (HOST[1], 8080), &web, 80), NEIGHBOUR[1]);
        assert_blocked(&lab.lan, (HOST_TOO, 8080), &web, 80);
        assert_blocked(At::Host, ("127.0.0.1", 8080), &web, 80);
    });
}

#[test]
fn a_port_on_the_loopback_address_is_the_hosts_alone() {
    on_a_host(|lab| {
        let network = lab.network(1, |_| {});
        let ports = BOTH.map(|protocol| port(protocol, "127.0.0.1", 8080, 80));
        let web = lab.instance(&network, 2, &ports);
        let next = lab.instance(&network, 3, &[]);
        for protocol in BOTH {
            assert_eq!(source(protocol, At::Host, ("127.0.0.1", 8080), &web, 80), "10.1.0.1");
        }
        assert_blocked(At::Host, (HOST[0], 8080), &web, 80);
        assert_blocked(&lab.lan, (HOST[0], 8080), &web, 80);
        // Others may send the host what is for 127.0.0.1, even where the host takes that on every interface.
        set("/proc/sys/net/ipv4/conf/all/route_localnet", 1);
        let intrude = |gateway: &'static str| {
            set("/proc/sys/net/ipv4/conf/all/route_localnet", 1);
            ip(&format!("link set lo down\nroute add 127.0.0.0/8 via {gateway}"));
        };
        lab.lan.run(|| intrude(HOST[0]));
        next.space.run(|| intrude("10.1.0.1"));
        assert_blocked(&lab.lan, ("127.0.0.1", 8080), &web, 80);
        assert_blocked(&next, ("127.0.0.1", 8080), &web, 80);
        // It is our rule that keeps them out.
        nft("flush chain inet proa raw_prerouting");
        assert_eq!(source(Tcp, &lab.lan, ("127.0.0.1", 8080), &web, 80), NEIGHBOUR[0]);
    });
}

#[test]
fn the_host_reaches_a_port_on_all_addresses_by_its_loopback_address() {
    on_a_host(|lab| {
        let network = lab.network(1, |_| {});
        let web = lab.instance(&network, 2, &everywhere(8080, 80));
        for protocol in BOTH {
            assert_eq!(source(protocol, At::Host, ("127.0.0.1", 8080), &web, 80), "10.1.0.1");
        }
        // By that of IPv6 it cannot, and learns so at once.
        let error = TcpStream::connect("[::1]:8080").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_client_of_udp_that_never_pauses_follows_the_port() {
    on_a_host(|lab| {
        let network = lab.network(1, |_| {});
        let (first, second) = (lab.instance(&network, 2, &[]), lab.instance(&network, 3, &[]));
        let listen = || {
            let server = UdpSocket::bind("0.0.0.0:53").unwrap();
            server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            server
        };
        let servers = [&first, &second].map(|instance| instance.space.run(listen));
        // One port of the client all the time, so that it is one flow.
        let client = lab.lan.run(|| UdpSocket::bind("0.0.0.0:4000")).unwrap();
        let send = |word: &str| client.send_to(word.as_bytes(), (HOST[0], 8053)).unwrap();
        let next = |server: &UdpSocket| {
            let mut word = [0; 16];
            let (length, _) = server.recv_from(&mut word).unwrap();
            String::from_utf8_lossy(&word[..length]).into_owned()
        };
        let publish = |instance: &Instance, host_ip| {
            let mut live = instance.live.clone();
            live.endpoint.ports = vec![port(Udp, host_ip, 8053, 53)];
            lab.firewall.add_endpoint(&live).unwrap();
            lab.firewall.forget_flows(&live).unwrap();
            live
        };
        send("nobody");
        let live = publish(&first, "0.0.0.0");
        send("first");
        assert_eq!(next(&servers[0]), "first");
        lab.firewall.remove_endpoint(&live).unwrap();
        send("nobody");
        publish(&second, HOST[0]);
        send("second");
        assert_eq!(next(&servers[1]), "second");
    });
}
