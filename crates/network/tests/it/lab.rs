//! A host of its own for each test: a network namespace with bridges, instances behind them, and a neighbour on its LAN.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use proa_network::firewall::Firewall;
use proa_protocol::network::{Endpoint, Interface, Live, Network, Protocol, PublishedPort, Subnet};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The host's addresses on the LAN, and the neighbour's.
pub const HOST: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// Another address of the host's.
pub const HOST_TOO: &str = "192.0.2.2";
/// Whoever else is on the LAN.
pub const NEIGHBOUR: [&str; 2] = ["192.0.2.9", "2001:db8::9"];

/// How long what should work may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing may come of what should not work: what works takes a thousandth of it.
const SILENCE: Duration = Duration::from_millis(250);

/// A network namespace.
pub struct Space(File);

impl Space {
    fn new() -> Self {
        let make = || {
            proa_sys::process::unshare_namespaces(0x4000_0000).expect("these tests need root");
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        };
        thread::spawn(make).join().unwrap()
    }

    /// Does something in it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// As `ip` takes it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// An instance that stands behind a pair of interfaces.
pub struct Instance {
    /// Where its processes would be.
    pub space: Space,
    /// Its place in its network.
    pub live: Live,
}

impl Instance {
    /// Its address of IPv4, or of IPv6.
    pub fn address(&self, version: usize) -> IpAddr {
        self.live.endpoint.interface.addresses[version].addr()
    }
}

/// The host: what a test does, it does there.
pub struct Lab {
    /// The rules that are tested.
    pub firewall: Firewall,
    /// A namespace on its LAN, which routes the networks' subnets to it.
    pub lan: Space,
    /// Whether br_netfilter is at work.
    pub bridged_is_filtered: bool,
}

/// Runs a test on a host, once without and once with br_netfilter, which sends what crosses a bridge through the rules
/// for IP too.
pub fn on_a_host(test: fn(&Lab)) {
    for bridged_is_filtered in [false, true] {
        let host = Space::new();
        host.run(|| {
            for version in ["iptables", "ip6tables"] {
                let switch = format!("/proc/sys/net/bridge/bridge-nf-call-{version}");
                assert!(fs::exists(&switch).unwrap(), "these tests need the module br_netfilter");
                set(&switch, u8::from(bridged_is_filtered));
            }
            eprintln!("br_netfilter: {bridged_is_filtered}");
            test(&Lab::new(bridged_is_filtered));
        });
    }
}

impl Lab {
    fn new(bridged_is_filtered: bool) -> Self {
        set("/proc/sys/net/ipv4/ip_forward", 1);
        set("/proc/sys/net/ipv6/conf/all/forwarding", 1);
        let lan = Space::new();
        ip(&format!(
            "link set lo up
            link add lan type veth peer name eth0 netns {}
            addr add {}/24 dev lan
            addr add {HOST_TOO}/24 dev lan
            addr add {}/64 dev lan nodad
            link set lan up",
            lan.path(),
            HOST[0],
            HOST[1]
        ));
        lan.run(|| {
            ip(&format!(
                "addr add {}/24 dev eth0
                addr add {}/64 dev eth0 nodad
                link set eth0 up
                route add 10.0.0.0/8 via {}
                route add fd00::/8 via {}",
                NEIGHBOUR[0], NEIGHBOUR[1], HOST[0], HOST[1]
            ));
        });
        let firewall = Firewall::new("proa".into());
        assert!(firewall.ensure().unwrap());
        Self { firewall, lan, bridged_is_filtered }
    }

    /// A network `10.<number>.0.0/24`, `fd0<number>::/64` with its bridge.
    pub fn network(&self, number: u8, change: fn(&mut Network)) -> Network {
        let network = network(number, change);
        let bridge = &network.bridge;
        ip(&format!(
            "link add {bridge} type bridge
            addr add 10.{number}.0.1/24 dev {bridge}
            addr add fd0{number}::1/64 dev {bridge} nodad"
        ));
        set(&format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"), 1);
        self.firewall.add_network(&network).unwrap();
        ip(&format!("link set {bridge} up"));
        network
    }

    /// An instance with the addresses of that number.
    pub fn instance(&self, network: &Network, number: u8, ports: &[PublishedPort]) -> Instance {
        let live = live(network, number, ports);
        let space = Space::new();
        let Live {
            link,
            endpoint: Endpoint { interface: Interface { mac, addresses, gateways, .. }, .. },
            ..
        } = &live;
        let path = space.path();
        self.firewall.add_endpoint(&live).unwrap();
        ip(&format!(
            "link add {link} type veth peer name eth0 address {mac} netns {path}
            link set {link} master {} up
            link set {link} type bridge_slave hairpin on",
            network.bridge
        ));
        space.run(|| {
            set("/proc/sys/net/ipv6/conf/eth0/accept_dad", 0);
            ip(&format!(
                "link set lo up
                addr add {} dev eth0
                addr add {} dev eth0 nodad
                link set eth0 up
                route add default via {}
                route add default via {}",
                addresses[0], addresses[1], gateways[0], gateways[1]
            ));
        });
        Instance { space, live }
    }
}

/// A network as the engine would describe it: instances talk, and are masqueraded.
pub fn network(number: u8, change: fn(&mut Network)) -> Network {
    let subnet = |subnet: String, gateway: String| Subnet {
        subnet: subnet.parse().unwrap(),
        gateway: Some(gateway.parse().unwrap()),
    };
    let mut network = Network {
        id: format!("{number:064x}"),
        name: format!("net{number}"),
        bridge: format!("br{number}"),
        subnets: vec![
            subnet(format!("10.{number}.0.0/24"), format!("10.{number}.0.1")),
            subnet(format!("fd0{number}::/64"), format!("fd0{number}::1")),
        ],
        talk: true,
        masquerade: true,
        ..Network::default()
    };
    change(&mut network);
    network
}

/// An instance's place in a network.
pub fn live(network: &Network, number: u8, ports: &[PublishedPort]) -> Live {
    let gateways: Vec<IpAddr> = network.subnets.iter().filter_map(|subnet| subnet.gateway).collect();
    let address = |gateway: &IpAddr, length: u8| {
        let text = gateway.to_string();
        let separator = if gateway.is_ipv4() { '.' } else { ':' };
        let (prefix, _) = text.rsplit_once(separator).unwrap();
        let number = if gateway.is_ipv4() { number.to_string() } else { format!("{number:x}") };
        format!("{prefix}{separator}{number}/{length}").parse::<IpNet>().unwrap()
    };
    let interface = Interface {
        name: "eth0".into(),
        mac: format!("02:00:00:00:{}:{number:02x}", &network.id[62..]),
        addresses: vec![address(&gateways[0], 24), address(&gateways[1], 64)],
        gateways,
        mtu: 0,
    };
    let link = format!("p{}i{number}", network.bridge);
    let endpoint =
        Endpoint { network: network.clone(), interface, ports: ports.to_vec(), ..Endpoint::default() };
    Live { endpoint, link, switch: None }
}

/// `-p HOST_IP:HOST_PORT:PORT`
pub fn port(protocol: Protocol, host_ip: &str, host_port: u16, port: u16) -> PublishedPort {
    PublishedPort { protocol, host_ip: host_ip.parse().unwrap(), host_port, port }
}

/// Runs `ip` with one command a line.
pub fn ip(batch: &str) {
    let output = feed(Command::new("ip").args(["-batch", "-"]), batch);
    assert!(output.status.success(), "ip: {output:?} of\n{batch}");
}

/// Runs nft.
pub fn nft(script: &str) -> String {
    let output = feed(Command::new("nft").args(["-f", "-"]), script);
    assert!(output.status.success(), "nft: {output:?} of\n{script}");
    String::from_utf8(output.stdout).unwrap()
}

fn feed(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("these tests need ip and nft");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Writes a number to one of the kernel's switches.
pub fn set(switch: &str, value: u8) {
    fs::write(switch, value.to_string()).unwrap_or_else(|error| panic!("{switch}: {error}"));
}

/// Somewhere that processes are: on the host, or in a namespace.
#[derive(Clone, Copy)]
pub enum At<'a> {
    Host,
    In(&'a Space),
}

impl At<'_> {
    fn run<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        match self {
            At::Host => work(),
            At::In(space) => space.run(work),
        }
    }
}

impl<'a> From<&'a Instance> for At<'a> {
    fn from(instance: &'a Instance) -> Self {
        At::In(&instance.space)
    }
}

impl<'a> From<&'a Space> for At<'a> {
    fn from(space: &'a Space) -> Self {
        At::In(space)
    }
}

/// Which address a server sees when a client connects to `to`; panics if nothing comes of it.
pub fn source<'a>(
    protocol: Protocol,
    client: impl Into<At<'a>>,
    to: (impl ToString, u16),
    server: impl Into<At<'a>>,
    port: u16,
) -> String {
    let to = SocketAddr::new(to.0.to_string().parse().unwrap(), to.1);
    let seen = exchange(protocol, client.into(), to, server.into(), port, PATIENCE);
    seen.unwrap_or_else(|error| panic!("{protocol:?} to {to}, port {port}: {error}")).to_string()
}

/// Asserts that neither TCP nor UDP gets from a client through `to` to a server.
pub fn assert_blocked<'a>(
    client: impl Into<At<'a>>,
    to: (impl ToString, u16),
    server: impl Into<At<'a>>,
    port: u16,
) {
    let to = SocketAddr::new(to.0.to_string().parse().unwrap(), to.1);
    let (client, server) = (client.into(), server.into());
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let seen = exchange(protocol, client, to, server, port, SILENCE);
        assert!(seen.is_err(), "{protocol:?} to {to}, port {port}: reached from {seen:?}");
    }
}

/// Sends one message from client to server and another back.
fn exchange(
    protocol: Protocol,
    client: At,
    to: SocketAddr,
    server: At,
    port: u16,
    limit: Duration,
) -> io::Result<IpAddr> {
    match protocol {
        Protocol::Tcp => over_tcp(client, to, server, port, limit),
        Protocol::Udp => over_udp(client, to, server, port, limit),
        Protocol::Sctp => panic!("no sockets of SCTP here"),
    }
}

/// A socket that was closed lives on for a moment, if another test starts a program just then.
fn bind<T>(socket: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match socket() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::yield_now();
            }
            done => return done,
        }
    }
}

fn over_tcp(client: At, to: SocketAddr, server: At, port: u16, limit: Duration) -> io::Result<IpAddr> {
    let listener = server.run(|| bind(|| TcpListener::bind(("::", port))))?;
    set_socket_timeout(&listener, Timeout::Recv, Some(limit))?;
    let mut near = client.run(|| TcpStream::connect_timeout(&to, limit))?;
    let (mut far, peer) = listener.accept()?;
    near.set_read_timeout(Some(limit))?;
    far.set_read_timeout(Some(limit))?;
    let mut byte = [0];
    near.write_all(b"a")?;
    far.read_exact(&mut byte)?;
    far.write_all(b"b")?;
    near.read_exact(&mut byte)?;
    Ok(peer.ip().to_canonical())
}

fn over_udp(client: At, to: SocketAddr, server: At, port: u16, limit: Duration) -> io::Result<IpAddr> {
    let far = server.run(|| bind(|| UdpSocket::bind(("::", port))))?;
    let local = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let near = client.run(|| UdpSocket::bind(local))?;
    near.connect(to)?;
    near.set_read_timeout(Some(limit))?;
    far.set_read_timeout(Some(limit))?;
    let mut byte = [0];
    near.send(b"a")?;
    let (_, peer) = far.recv_from(&mut byte)?;
    far.send_to(b"b", peer)?;
    near.recv(&mut byte)?;
    Ok(peer.ip().to_canonical())
}
