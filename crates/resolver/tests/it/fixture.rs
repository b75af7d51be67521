//! A host with bridges, instances behind them, and the resolver at work.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use proa_protocol::network::{
    Endpoint, Interface, Live, NETWORK_FILE, Network, RESOLVER_LOCK, Subnet, endpoint_file, network_dir,
};
use proa_sys::lock;
use tempfile::TempDir;

use crate::dns::{self, Answer, LIMIT};

/// `CLONE_NEWNET`
const NEW_NETWORK: u64 = 0x4000_0000;

/// A host.
pub struct Host {
    base: TempDir,
    resolvers: Vec<Child>,
}

impl Host {
    /// This thread becomes it: what it starts and opens from now on is the host's.
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        proa_sys::process::unshare_namespaces(NEW_NETWORK).unwrap();
        proa_sys::net::loopback_up().unwrap();
        let base = TempDir::new().unwrap();
        fs::create_dir_all(base.path().join("networks")).unwrap();
        let host = Self { base, resolvers: Vec::new() };
        host.servers(&[]);
        host
    }

    /// One with a network that has one instance, `one` at 10.1.0.2, for which nothing answers yet.
    pub fn with_one() -> (Self, Network, Instance) {
        let host = Self::new();
        let network = host.network(1, false);
        host.endpoint(&network, 2, &["one"], &[]);
        let one = host.instance(&network, 2);
        (host, network, one)
    }

    /// `--run`.
    pub fn run(&self) -> &Path {
        self.base.path()
    }

    /// What the host's `resolv.conf` names.
    pub fn servers(&self, servers: &[&str]) {
        let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        replace(&self.resolv_conf(), text.as_bytes());
    }

    fn resolv_conf(&self) -> PathBuf {
        self.base.path().join("resolv.conf")
    }

    /// A network with its bridge: `10.<number>.0.0/24` and `fd00:<number>::/64`, the host being 1 in both.
    pub fn network(&self, number: u8, internal: bool) -> Network {
        let network = Network {
            id: format!("net{number}"),
            name: format!("Net{number}"),
            bridge: format!("br{number}"),
            subnets: vec![
                Subnet {
                    subnet: format!("10.{number}.0.0/24").parse().unwrap(),
                    gateway: Some(address(number, 1)),
                },
                Subnet {
                    subnet: format!("fd00:{number}::/64").parse().unwrap(),
                    gateway: Some(format!("fd00:{number}::1").parse().unwrap()),
                },
            ],
            internal,
            ..Network::default()
        };
        self.bridge(&network);
        let directory = network_dir(self.run(), &network.id);
        fs::create_dir_all(&directory).unwrap();
        replace(&directory.join(NETWORK_FILE), &serde_json::to_vec(&network).unwrap());
        network
    }

    /// Makes a network's bridge.
    pub fn bridge(&self, network: &Network) {
        let bridge = &network.bridge;
        ip(&format!("link add {bridge} type bridge"));
        for subnet in &network.subnets {
            let address = subnet.gateway.unwrap();
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            ip(&format!("address add {address}/{} dev {bridge}{nodad}", subnet.subnet.prefix_len()));
        }
        ip(&format!("link set {bridge} up"));
    }

    /// Writes the file of an endpoint: its number is the end of its addresses.
    pub fn endpoint(&self, network: &Network, number: u8, names: &[&str], upstream: &[&str]) {
        let net = &network.id["net".len()..];
        let addresses = [format!("10.{net}.0.{number}/24"), format!("fd00:{net}::{number}/64")];
        let endpoint = Endpoint {
            network: network.clone(),
            interface: Interface {
                name: "eth0".into(),
                mac: format!("02:00:00:00:00:{number:02x}"),
                addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
                ..Interface::default()
            },
            names: names.iter().map(|&name| name.into()).collect(),
            upstream: upstream.iter().map(|server| server.parse().unwrap()).collect(),
            ..Endpoint::default()
        };
        let live = Live { endpoint, link: format!("v{net}n{number}"), switch: None };
        let file = endpoint_file(self.run(), &network.id, &format!("i{number}"));
        replace(&file, &serde_json::to_vec(&live).unwrap());
    }

    /// Removes an endpoint's file.
    pub fn remove(&self, network: &Network, number: u8) {
        fs::remove_file(endpoint_file(self.run(), &network.id, &format!("i{number}"))).unwrap();
    }

    /// Starts a resolver.
    pub fn start(&mut self, more: &[&str]) -> u32 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proa-resolver"));
        command.arg("--run").arg(self.run()).arg("--resolv-conf").arg(self.resolv_conf()).args(more);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        self.resolvers.push(child);
        pid
    }

    /// Waits for the end of a resolver; whether it succeeded.
    pub fn wait(&mut self, pid: u32) -> bool {
        let place = self.resolvers.iter().position(|child| child.id() == pid).unwrap();
        let mut child = self.resolvers.remove(place);
        until("the resolver ends", || child.try_wait().unwrap().is_some());
        child.wait().unwrap().success()
    }

    /// Whether some resolver holds the lock.
    pub fn is_served(&self) -> bool {
        lock::is_held(&self.run().join("networks").join(RESOLVER_LOCK)).unwrap()
    }

    /// An instance in a network, without a file yet.
    pub fn instance(&self, network: &Network, number: u8) -> Instance {
        Instance::new(network, number)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for child in &mut self.resolvers {
            // Its server dies with it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// A network namespace with one end of a link in it, and a thread that is there.
pub struct Instance {
    work: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
    /// The network's number.
    net: u8,
}

impl Instance {
    fn new(network: &Network, number: u8) -> Self {
        let (work, todo) = channel::<Work>();
        let (say, hear) = channel();
        let thread = std::thread::spawn(move || {
            proa_sys::process::unshare_namespaces(NEW_NETWORK).unwrap();
            say.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
            for work in todo {
                work();
            }
        });
        let thread_id = hear.recv().unwrap();
        let net: u8 = network.id["net".len()..].parse().unwrap();
        let link = format!("v{net}n{number}");
        let mac = format!("02:00:00:00:00:{number:02x}");
        ip(&format!("link add {link} type veth peer name eth0 address {mac} netns {thread_id}"));
        ip(&format!("link set {link} master {} up", network.bridge));
        let instance = Self { work: Some(work), thread: Some(thread), net };
        instance.inside(move || {
            ip(&format!("address add 10.{net}.0.{number}/24 dev eth0"));
            ip(&format!("address add fd00:{net}::{number}/64 dev eth0 nodad"));
            ip("link set eth0 up");
            ip(&format!("route add default via 10.{net}.0.1"));
        });
        instance
    }

    /// Does something in there.
    pub fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (say, hear) = channel();
        let work = Box::new(move || say.send(work()).unwrap());
        self.work.as_ref().unwrap().send(work).unwrap();
        hear.recv().unwrap()
    }

    /// Its server of names.
    pub fn server(&self) -> SocketAddr {
        SocketAddr::new(address(self.net, 1), 53)
    }

    /// A socket in there.
    pub fn socket(&self) -> UdpSocket {
        self.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap())
    }

    /// Asks by UDP.
    pub fn ask(&self, name: &str, kind: u16) -> Answer {
        dns::ask(&self.socket(), self.server(), name, kind)
    }

    /// A connection from in there.
    pub fn connect(&self) -> TcpStream {
        let server = self.server();
        self.inside(move || {
            let mut stream = None;
            until("the resolver takes connections", || {
                stream = TcpStream::connect(server).ok();
                stream.is_some()
            });
            stream.unwrap()
        })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An address of a network.
pub fn address(network: u8, number: u8) -> IpAddr {
    [10, network, 0, number].into()
}

/// Tries until something holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// Runs `ip`.
pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn replace(path: &Path, text: &[u8]) {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, path).unwrap();
}
