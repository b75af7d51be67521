//! Networks, and the places that instances have in them, as engine, monitor, guest agent and resolver tell each other.
//!
//! ```text
//!   engine    claims addresses, MAC and ports in the database; writes each Endpoint into instance.json
//!   monitor   makes bridge and link at the start, the firewall's elements, and the file of the endpoint
//!   resolver  reads the files, and answers names; brings the firewall's table back when somebody flushed it
//!
//!   <run>/networks/lock                         held while a bridge or the table is made or taken away
//!   <run>/networks/<network id>/network.json    Network: written by whoever makes its bridge
//!   <run>/networks/<network id>/<instance id>   Live: the endpoint of an instance that runs
//!   <run>/networks/resolver.lock                held (flock) as long as the resolver lives
//!   <run>/networks/switch.sock                  of an ordinary user: where the resolver hands out the network namespace
//!                                               that the bridges are in
//! ```
//!
//! All of them are replaced by rename, so that a reader never sees half of one. A file of an endpoint whose instance
//! has no monitor is what a crash left: repair removes it with what it names.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Directory of the networks below `<run>`.
pub const DIRECTORY: &str = "networks";
/// The lock under which bridges and the firewall's table are made and taken away.
pub const LOCK_FILE: &str = "lock";
/// The resolver's lock.
pub const RESOLVER_LOCK: &str = "resolver.lock";
/// The socket at which an ordinary user's network namespace is to be had.
pub const SWITCH_SOCKET: &str = "switch.sock";
/// A network's file in its directory.
pub const NETWORK_FILE: &str = "network.json";

/// One layer-2 segment: a bridge of the host, with containers' veth pairs and virtual machines' taps as its ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What instances' interfaces are: ports of a bridge, or macvlans of an interface of the host.
    pub driver: Driver,
    /// The bridge's interface, or for [`Driver::Macvlan`] the parent.
    pub bridge: String,
    /// At most one for each IP version. The host's own address, if it has one, is the gateway.
    pub subnets: Vec<Subnet>,
    /// Cut off from everything outside it: no way in or out, no published ports.
    pub internal: bool,
    /// Its instances reach each other (`com.docker.network.bridge.enable_icc`).
    pub talk: bool,
    /// What leaves it gets an address of the host (`com.docker.network.bridge.enable_ip_masquerade`).
    pub masquerade: bool,
    /// Largest packet, bytes; 0 for the kernel's choice.
    pub mtu: u32,
}

/// How instances are part of a network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// By a port of a bridge that Proa makes.
    #[default]
    Bridge,
    /// By an interface with a MAC of its own on one of the host's.
    Macvlan,
}

impl Driver {
    /// The word used on the command line and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
        }
    }
}

/// The addresses of a network in one IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// All of them.
    pub subnet: IpNet,
    /// Where packets for elsewhere go: for a bridge, the host's own address. None for no way out.
    pub gateway: Option<IpAddr>,
}

/// The place of an instance in one network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// The network.
    pub network: Network,
    /// What the instance has.
    pub interface: Interface,
    /// Names that other instances of the network find it by.
    pub names: Vec<String>,
    /// Its ports that can be reached from outside.
    pub ports: Vec<PublishedPort>,
    /// Servers that the resolver asks for names that are not the network's (`--dns`); the host's where there are none.
    pub upstream: Vec<IpAddr>,
    /// The host name that it is told where it asks by DHCP.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// The domains in which it looks for names (`--dns-search`), told likewise; the network's where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
}

/// A network interface as an instance sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name: `eth0`, ….
    pub name: String,
    /// Six bytes in hexadecimal with colons.
    pub mac: String,
    /// Its addresses with the lengths of their networks' prefixes.
    pub addresses: Vec<IpNet>,
    /// Where packets go that no other route has; at most one for each IP version.
    pub gateways: Vec<IpAddr>,
    /// Largest packet, bytes; 0 for the kernel's choice.
    pub mtu: u32,
}

/// A port of an instance that can be reached by a port of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Transport.
    pub protocol: Protocol,
    /// Address of the host; the unspecified one for all of that IP version.
    pub host_ip: IpAddr,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the instance.
    pub port: u16,
}

/// Transports that have ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    #[default]
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// The word used on the command line and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// An endpoint whose instance runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Live {
    /// The instance's place.
    pub endpoint: Endpoint,
    /// The host's interface that leads to it; empty where there is none.
    pub link: String,
    /// Where the network namespace of an ordinary user's bridges can be found, should the resolver be killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switch: Option<Held>,
}

/// A descriptor that somebody holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Below `/proc`.
    pub path: String,
    /// Inode of what it leads to: the process may be another one by now.
    pub inode: u64,
}

/// The bytes of a MAC: six in hexadecimal with colons.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// Name of the firewall's tables of the root with this runtime directory: the directory's own.
pub fn table_name(run: &Path) -> String {
    let name = run.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect()
}

/// Directory of a network below `<run>`.
pub fn network_dir(run: &Path, network: &str) -> PathBuf {
    run.join(DIRECTORY).join(network)
}

/// File of the endpoint of an instance that runs.
pub fn endpoint_file(run: &Path, network: &str, instance: &str) -> PathBuf {
    network_dir(run, network).join(instance)
}

/// Name of the host's interface for the numbered endpoint of an instance: as unique as the beginning of its id.
///
/// Interfaces have names of at most 15 bytes.
pub fn link_name(instance: &str, number: usize) -> String {
    format!("p{}{number:x}", instance.get(..12).unwrap_or(instance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_have_six_bytes() {
        assert_eq!(parse_mac("02:42:ac:11:00:ff"), Some([2, 0x42, 0xac, 0x11, 0, 0xff]));
        assert_eq!(parse_mac("02:42:ac:11:00:ff:01"), None);
    }

    #[test]
    fn names_of_links_fit_the_kernel() {
        let name = link_name(&"f".repeat(64), 15);
        assert_eq!(name, "pfffffffffffff");
        assert!(name.len() <= 15);
        assert_eq!(table_name(Path::new("/run/proa-6b4f067a")), "proa_6b4f067a");
    }

    #[test]
    fn the_file_of_an_endpoint_is_frozen() {
        let network = Network {
            id: "1".into(),
            name: "n".into(),
            bridge: "br0".into(),
            subnets: vec![Subnet {
                subnet: "10.1.0.0/20".parse().unwrap(),
                gateway: Some("10.1.0.1".parse().unwrap()),
            }],
            ..Network::default()
        };
        let interface = Interface {
            name: "eth0".into(),
            mac: "02:00:00:00:00:01".into(),
            addresses: vec!["10.1.0.2/20".parse().unwrap()],
            gateways: vec!["10.1.0.1".parse().unwrap()],
            mtu: 0,
        };
        let ports = vec![PublishedPort {
            protocol: Protocol::Udp,
            host_ip: "127.0.0.1".parse().unwrap(),
            host_port: 8053,
            port: 53,
        }];
        let endpoint =
            Endpoint { network, interface, names: vec!["web".into()], ports, ..Endpoint::default() };
        let live = Live { endpoint, link: "p1".into(), switch: None };
        let text = [
            r#"{"endpoint":{"network":{"id":"1","name":"n","#,
            r#""driver":"bridge","bridge":"br0","#,
            r#""subnets":[{"subnet":"10.1.0.0/20","gateway":"10.1.0.1"}],"internal":false,"#,
            r#""talk":false,"masquerade":false,"mtu":0},"#,
            r#""interface":{"name":"eth0","mac":"02:00:00:00:00:01","addresses":["10.1.0.2/20"],"gateways":["10.1.0.1"],"mtu":0},"#,
            r#""names":["web"],"#,
            r#""ports":[{"protocol":"udp","host_ip":"127.0.0.1","host_port":8053,"port":53}],"upstream":[]},"#,
            r#""link":"p1"}"#,
        ]
        .concat();
        assert_eq!(serde_json::to_string(&live).unwrap(), text);
        assert_eq!(serde_json::from_str::<Live>(&text).unwrap(), live);
    }
}
