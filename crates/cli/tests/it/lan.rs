//! A host of its own for a test, with somebody else on its LAN: network namespaces, in which the test's thread is, and
//! with it all that it starts.

use std::fs::File;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The host's addresses on its LAN, and the neighbour's.
pub const HOST: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
pub const NEIGHBOUR: [&str; 2] = ["192.0.2.9", "2001:db8::9"];

const NEW_NETWORK: u64 = 0x4000_0000;
/// How long what should work may take on a busy machine, and nothing may come of what should not.
const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(400);

/// Whoever else is on the LAN.
pub struct Lan(File);

impl Lan {
    /// Makes the host and its LAN, and takes the calling thread there. The neighbour routes everything to the host.
    pub fn enter() -> Self {
        let namespace = || File::open("/proc/thread-self/ns/net").unwrap();
        let new = move || {
            proa_sys::process::unshare_namespaces(NEW_NETWORK).unwrap();
            namespace()
        };
        let lan = Self(std::thread::spawn(new).join().unwrap());
        proa_sys::process::unshare_namespaces(NEW_NETWORK).unwrap();
        ip(&format!(
            "link set lo up
            link add lan type veth peer name eth0 netns /proc/{}/fd/{}
            addr add {}/24 dev lan
            addr add {}/64 dev lan nodad
            link set lan up",
            std::process::id(),
            lan.0.as_raw_fd(),
            HOST[0],
            HOST[1]
        ));
        lan.run(|| {
            ip(&format!(
                "link set lo up
                addr add {}/24 dev eth0
                addr add {}/64 dev eth0 nodad
                link set eth0 up
                route add default via {}
                route add default via {}",
                NEIGHBOUR[0], NEIGHBOUR[1], HOST[0], HOST[1]
            ));
        });
        lan
    }

    /// Does something as the neighbour.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// The address that a server of `who.c` sees when the neighbour asks it by UDP, or by TCP.
    pub fn seen(&self, udp: bool, at: &str) -> String {
        let told = self.run(|| ask(udp, at, PATIENCE));
        told.unwrap_or_else(|error| panic!("{at}, UDP {udp}: {error}"))
    }

    /// Asserts that the neighbour gets nothing from there, neither by TCP nor by UDP.
    pub fn assert_blocked(&self, at: &str) {
        for udp in [false, true] {
            let told = self.run(|| ask(udp, at, SILENCE));
            assert!(told.is_err(), "{at}, UDP {udp}: {told:?}");
        }
    }
}

/// What a server of `who.c` tells the calling thread.
pub fn ask(udp: bool, at: &str, limit: Duration) -> io::Result<String> {
    let at: SocketAddr = at.parse().unwrap();
    let mut text = String::new();
    if udp {
        let socket = UdpSocket::bind(if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect(at)?;
        socket.set_read_timeout(Some(limit))?;
        socket.send(b"?")?;
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes)?;
        text.push_str(&String::from_utf8_lossy(&bytes[..length]));
    } else {
        let mut stream = TcpStream::connect_timeout(&at, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.read_to_string(&mut text)?;
    }
    Ok(text.trim().to_owned())
}

/// The same of what must work.
pub fn told(udp: bool, at: &str) -> String {
    ask(udp, at, PATIENCE).unwrap_or_else(|error| panic!("{at}, UDP {udp}: {error}"))
}

/// Runs `ip` with one command a line.
pub fn ip(batch: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    io::Write::write_all(&mut child.stdin.take().unwrap(), batch.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip: {batch}");
}

/// Writes a number to one of the switches of networks.
pub fn set(switch: &str, value: u8) {
    std::fs::write(format!("/proc/sys/net/{switch}"), value.to_string()).unwrap();
}
