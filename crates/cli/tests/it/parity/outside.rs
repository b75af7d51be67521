//! Networks as others meet them: another host, and an instance that lies. Each test has a host of its own.

use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, connect, ipproto, socket};

use super::{Bed, at_both_levels};
use crate::frames::{self, Station};
use crate::harness::program;
use crate::lan::{HOST, Lan, NEIGHBOUR, ip, set, told};

at_both_levels!(
    ;
    ;
    ports_are_reached_from_another_host,
    ports_of_the_loopback_address_are_the_hosts_alone,
    an_instance_sends_as_itself_alone,
    ports_of_sctp_are_reached_from_another_host,
    ports_that_no_rule_leads_to_are_forwarded,
    version_6_works_like_version_4
);

/// An instance with a program of ours in it, which runs once more as `command` says.
fn tool(bed: &Bed, name: &str, flags: &[&str], source: &str) {
    bed.detach(name, &[flags, &["--stop-signal", "KILL"]].concat(), &["sleep", "1000"]);
    let directory = program(source);
    let path = directory.path().join(source);
    bed.ok(&["cp", path.to_str().unwrap(), &format!("{name}:/tool")]);
}

/// One that serves `who.c` at these ports.
pub fn serve(bed: &Bed, name: &str, flags: &[&str], ports: &[&str]) {
    tool(bed, name, flags, "who");
    let command = format!("exec /tool {} > /out", ports.join(" "));
    bed.ok(&["exec", "-d", name, "sh", "-c", &command]);
    bed.proa.wait_for("the server", || bed.proa(&["exec", name, "cat", "/out"]).stdout == "ready\n");
}

fn ports_are_reached_from_another_host(bed: &Bed) {
    let lan = Lan::enter();
    bed.ok(&["network", "create", "--ipv6", "net"]);
    let ports = [
        "-p",
        "0.0.0.0:8080-8082:80-82",
        "-p",
        "0.0.0.0:8080-8082:80-82/udp",
        "-p",
        "[::]:8080-8082:80-82",
        "-p",
        "[::]:8080-8082:80-82/udp",
        "-p",
        "192.0.2.1:9090:80",
    ];
    serve(bed, "site", &[&["--network", "net"], &ports[..]].concat(), &["80", "82"]);
    for udp in [false, true] {
        for port in [8080, 8082] {
            assert_eq!(lan.seen(udp, &format!("{}:{port}", HOST[0])), NEIGHBOUR[0]);
            assert_eq!(lan.seen(udp, &format!("[{}]:{port}", HOST[1])), NEIGHBOUR[1]);
        }
        // A source of the host's own is kept as well; what asks 127.0.0.1 comes from the gateway.
        let gateway = bed.ok(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "net"]);
        assert_eq!(told(udp, "127.0.0.1:8081"), gateway);
    }
    assert_eq!(lan.seen(false, &format!("{}:9090", HOST[0])), NEIGHBOUR[0]);
    // No way but by the ports.
    for field in ["IPAddress", "GlobalIPv6Address"] {
        let address =
            bed.ok(&["inspect", "-f", &format!("{{{{.NetworkSettings.Networks.net.{field}}}}}"), "site"]);
        let at = if address.contains(':') { format!("[{address}]:80") } else { format!("{address}:80") };
        lan.assert_blocked(&at);
    }
}

fn ports_of_the_loopback_address_are_the_hosts_alone(bed: &Bed) {
    let lan = Lan::enter();
    let ports = ["-p", "127.0.0.1:8080:80", "-p", "127.0.0.1:8080:80/udp"];
    serve(bed, "site", &ports, &["80"]);
    for switch in ["all", "lan"] {
        set(&format!("ipv4/conf/{switch}/route_localnet"), 1);
    }
    for udp in [false, true] {
        assert!(told(udp, "127.0.0.1:8080").starts_with("172."));
    }
    lan.assert_blocked(&format!("{}:8080", HOST[0]));
    // Whoever is on the LAN can send the host what is for 127.0.0.1.
    lan.run(|| {
        set("ipv4/conf/all/route_localnet", 1);
        set("ipv4/conf/eth0/route_localnet", 1);
        ip(&format!("link set lo down\nroute add 127.0.0.0/8 via {}", HOST[0]));
    });
    lan.assert_blocked("127.0.0.1:8080");
    // So can an instance.
    let gateway = bed.ok(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge"]);
    let aside =
        format!("ip link set lo down; ip route add 127.0.0.0/8 via {gateway}; nc -w 2 127.0.0.1 8080");
    let near = bed.run(&["--cap-add", "NET_ADMIN"], &["sh", "-c", &aside]);
    assert!(!near.stdout.contains("172."), "{near:?}");
}

fn station(bed: &Bed, name: &str) -> Station {
    let show = |field: &str| {
        bed.ok(&["inspect", "-f", &format!("{{{{.NetworkSettings.Networks.net.{field}}}}}"), name])
    };
    let mac: Vec<u8> =
        show("MacAddress").split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let local = [word(mac[0] ^ 2, mac[1]), word(mac[2], 0xff), word(0xfe, mac[3]), word(mac[4], mac[5])];
    Station {
        mac: mac.clone().try_into().unwrap(),
        v4: show("IPAddress").parse::<Ipv4Addr>().unwrap(),
        v6: show("GlobalIPv6Address").parse::<Ipv6Addr>().unwrap(),
        local: Ipv6Addr::new(0xfe80, 0, 0, 0, local[0], local[1], local[2], local[3]),
        gateway: show("Gateway").parse().unwrap(),
    }
}

fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn an_instance_sends_as_itself_alone(bed: &Bed) {
    let _lan = Lan::enter();
    bed.ok(&["network", "create", "--ipv6", "net"]);
    let flags = ["--network", "net", "--cap-add", "NET_RAW", "--cap-add", "NET_ADMIN"];
    for name in ["liar", "victim"] {
        tool(bed, name, &flags, "frames");
    }
    bed.ok(&["exec", "-d", "victim", "sh", "-c", "exec /tool hear > /out"]);
    let (me, other) = (station(bed, "liar"), station(bed, "victim"));
    let heard = || bed.proa(&["exec", "victim", "cat", "/out"]).stdout;
    let send = |frames: &[Vec<u8>]| {
        let words: Vec<String> = frames.iter().map(|frame| hex(frame)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        bed.ok(&[&["exec", "liar", "/tool", "send"], &words[..]].concat());
    };
    // By the last of them, which may arrive, it is known that none of the others will.
    let last = |body: &[u8]| {
        let packet = frames::ip4(me.v4, other.v4, 17, &frames::udp(1024, 80, body));
        frames::frame(other.mac, me.mac, frames::IP4, &packet)
    };
    let arrives = |frames: &[(&str, Vec<u8>)], end: Vec<u8>| {
        let mark = hex(&end);
        // It may not listen yet.
        bed.proa.wait_for("the end of the frames", || {
            send(&[frames.iter().map(|(_, frame)| frame.clone()).collect(), vec![end.clone()]].concat());
            heard().contains(&mark)
        });
        heard()
    };
    let lies = frames::dishonest(&me, &other);
    let seen = arrives(&lies, last(b"the end of all the lies"));
    for (what, frame) in &lies {
        // A tag is taken off before it is shown.
        let untagged = [&frame[..12], &frame[16..]].concat();
        assert!(!seen.contains(&hex(frame)) && !seen.contains(&hex(&untagged)), "let through: {what}");
    }
    let honest = frames::honest(&me, &other);
    let seen = arrives(&honest, last(b"the end of all the truth"));
    for (what, frame) in &honest {
        assert!(seen.contains(&hex(frame)), "dropped: {what}");
    }
}

fn version_6_works_like_version_4(bed: &Bed) {
    let _lan = Lan::enter();
    bed.ok(&["network", "create", "--ipv6", "--subnet", "fd00:77::/64", "net"]);
    serve(bed, "site", &["--network", "net", "--ip6", "fd00:77::9", "-p", "[::]:8080:80"], &["80"]);
    let seen = bed.run_ok(
        &["--network", "net"],
        &["sh", "-c", "nslookup -type=aaaa site; ip -6 route; nc site 80; nc fd00:77::9 80"],
    );
    assert!(seen.contains("fd00:77::9") && seen.contains("default via fd00:77::1"), "{seen}");
    assert!(seen.lines().last().unwrap().starts_with("fd00:77::"), "{seen}");
    let named = bed.run_ok(&["--network", "net"], &["cat", "/etc/hosts"]);
    assert!(named.contains("fd00:77::"), "{named}");
    assert_eq!(told(false, &format!("[{}]:8080", HOST[1])), HOST[1]);
}

/// What the kernel has no way for: `[::1]`, and IPv6 where the instance has IPv4 alone. Clients have the gateway's address.
fn ports_that_no_rule_leads_to_are_forwarded(bed: &Bed) {
    let lan = Lan::enter();
    bed.ok(&["network", "create", "--ipv6", "six"]);
    let ports =
        ["-p", "[::1]:8080:80", "-p", "[::1]:8080:80/udp", "-p", "[::]:8081:81", "-p", "[::]:8081:81/udp"];
    for (network, port) in [("bridge", 0), ("six", 1)] {
        serve(bed, network, &[&["--network", network], &ports[..]].concat(), &["80", "81"]);
        let subnet = format!("{{{{(index .IPAM.Config {port}).Gateway}}}}");
        let gateway = bed.ok(&["network", "inspect", "-f", &subnet, network]);
        for udp in [false, true] {
            assert_eq!(told(udp, "[::1]:8080"), gateway);
            assert_eq!(lan.seen(udp, &format!("[{}]:8081", HOST[1])), [&gateway, NEIGHBOUR[1]][port]);
        }
        lan.assert_blocked(&format!("[{}]:8080", HOST[1]));
        let shown = bed.ok(&["port", network, "80/udp"]);
        assert_eq!(shown, "[::1]:8080");
        forwarder_is_confined(bed);
        bed.ok(&["rm", "-f", network]);
        assert!(told_nothing("[::1]:8080"));
    }
    let sctp = bed.run(&["-p", "[::1]:81:80/sctp"], &["true"]);
    assert!(sctp.code == 125 && sctp.stderr.contains("SCTP"), "{sctp:?}");
}

/// Where the host's kernel has SCTP; elsewhere it is said what is missing.
fn ports_of_sctp_are_reached_from_another_host(bed: &Bed) {
    let lan = Lan::enter();
    bed.ok(&["network", "create", "--ipv6", "net"]);
    let ports = ["-p", "0.0.0.0:8080:80/sctp", "-p", "[::]:8080:80/sctp", "-p", "127.0.0.1::80/sctp"];
    let flags = [&["--network", "net"], &ports[..]].concat();
    if socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP)).is_err() {
        let refused = bed.run(&flags, &["true"]);
        assert!(refused.code == 125 && refused.stderr.contains("modprobe sctp"), "{refused:?}");
        assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
        return;
    }
    serve(bed, "site", &flags, &["80"]);
    for version in 0..2 {
        let at = SocketAddr::new(HOST[version].parse().unwrap(), 8080);
        assert_eq!(lan.run(|| asked_by_sctp(at)), NEIGHBOUR[version]);
    }
    let gateway = bed.ok(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "net"]);
    let shown = bed.ok(&["port", "site", "80/sctp"]);
    let own = shown.lines().find(|line| line.starts_with("127.0.0.1:")).unwrap();
    assert_eq!(asked_by_sctp(own.parse().unwrap()), gateway);
    // The port is taken, of this transport alone.
    let taken = bed.run(&["-p", "0.0.0.0:8080:80/sctp"], &["true"]);
    assert!(taken.code == 125 && taken.stderr.contains("in use"), "{taken:?}");
    bed.run_ok(&["-p", "0.0.0.0:8080:80"], &["true"]);
}

/// What a server of `who.c` tells by SCTP.
fn asked_by_sctp(at: SocketAddr) -> String {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, Some(ipproto::SCTP)).unwrap();
    connect(&socket, &at).unwrap_or_else(|errno| panic!("{at}: {errno}"));
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.trim().to_owned()
}

fn told_nothing(at: &str) -> bool {
    TcpStream::connect(at).is_err()
}

/// It has no capabilities, and a filter on its calls; one that is killed comes back.
fn forwarder_is_confined(bed: &Bed) {
    let found = || crate::network::helpers(bed, "proa-forward");
    let [forwarder] = found()[..] else { panic!("no forwarder") };
    let status = std::fs::read_to_string(format!("/proc/{forwarder}/status")).unwrap();
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    crate::network::kill(forwarder);
    bed.proa.wait_for("the next forwarder", || found().first().is_some_and(|pid| *pid != forwarder));
    assert!(told(false, "[::1]:8080").contains(['.', ':']));
}
