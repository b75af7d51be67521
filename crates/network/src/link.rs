//! Interfaces: bridges, the pairs and taps that are their ports, macvlans; and what an instance sees of them.
//!
//! All is asked of the kernel by `rtnetlink(7)`. A veth pair is made in one request: one end a port of the bridge and
//! switched on, the other in the instance's network namespace under its own name.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use ipnet::IpNet;
use proa_protocol::network::{Interface, Network, parse_mac};
use proa_sys::netlink::{
    ACK, CREATE, IFF_UP, IFLA_NET_NS_FD, NEW_ADDRESS, NEW_LINK, Netlink, Request, attribute, link, named,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::Error;

const DELETE_LINK: u16 = 17;
const SET_LINK: u16 = 19;
const NEW_ROUTE: u16 = 24;

const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_MACVLAN_MODE: u16 = 1;
/// Says that attributes are in an attribute.
const NESTED: u16 = 0x8000;
const IFLA_BRPORT_MODE: u16 = 4;
const MACVLAN_MODE_BRIDGE: u32 = 4;
const IFLA_BR_MULTI_BOOLOPT: u16 = 46;
/// `struct br_boolopt_multi`: bit 0, and that it is meant. Frames of protocols between bridges pass no hook of the
/// firewall, and would teach the bridge any address.
const NO_LINK_LOCAL_LEARNING: [u8; 8] = {
    let one = 1_u32.to_ne_bytes();
    [one[0], one[1], one[2], one[3], one[0], one[1], one[2], one[3]]
};

const IFA_LOCAL: u16 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_BROADCAST: u16 = 4;
/// No duplicate detection: addresses are claimed in a database, and would be of no use for a second.
const IFA_F_NODAD: u8 = 2;

const RTA_GATEWAY: u16 = 5;
const RTA_OIF: u16 = 4;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;

/// Where the host's switches for networks are.
const SYSCTL: &str = "/proc/sys/net";

/// The interfaces of one network namespace.
#[derive(Debug)]
pub struct Links {
    netlink: Netlink,
}

impl Links {
    /// Those of the caller's.
    ///
    /// # Errors
    /// The kernel gives no socket.
    pub fn here() -> Result<Self, Error> {
        Netlink::route().map(|netlink| Self { netlink }).map_err(Error::call("netlink"))
    }

    /// Those of another. The caller, who must have one thread, is in there for a moment.
    ///
    /// # Errors
    /// It cannot be entered.
    pub fn of(namespace: BorrowedFd) -> Result<Self, Error> {
        let route = Netlink::route_of(namespace);
        route.map(|netlink| Self { netlink }).map_err(|(action, errno)| Error::Call { action, errno })
    }

    /// The number of an interface, if there is one of this name.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn index(&mut self, name: &str) -> Result<Option<u32>, Error> {
        Ok(self.look(name)?.map(|(index, _)| index))
    }

    /// Whether there is an interface of this name that is switched on.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn is_up(&mut self, name: &str) -> Result<bool, Error> {
        Ok(self.look(name)?.is_some_and(|(_, flags)| flags & IFF_UP != 0))
    }

    /// Number and flags.
    fn look(&mut self, name: &str) -> Result<Option<(u32, u32)>, Error> {
        match self.netlink.link(name) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NODEV) => Ok(None),
            Err(errno) => Err(Error::at("look for interface", name)(errno)),
        }
    }

    /// Makes a network's bridge with the host's addresses, unless it is there, and has the kernel forward for it.
    ///
    /// # Errors
    /// The kernel refuses, or an interface of this name is something else.
    pub fn ensure_bridge(&mut self, network: &Network) -> Result<(), Error> {
        let name = network.bridge.as_str();
        let index = match self.index(name)? {
            Some(index) => index,
            None => self.make_bridge(network)?,
        };
        speak_at_once(name)?;
        let mut requests: Vec<Request> = network
            .subnets
            .iter()
            .filter_map(|subnet| Some(IpNet::new(subnet.gateway?, subnet.subnet.prefix_len())))
            .flatten()
            .map(|address| add_address(index, address))
            .collect();
        requests.push(Request { kind: NEW_LINK, flags: ACK, body: link(index, IFF_UP) });
        for request in requests {
            match self.netlink.order(std::slice::from_ref(&request)) {
                Ok(()) | Err((_, Errno::EXIST)) => {}
                Err((_, errno)) => return Err(Error::at("set up bridge", name)(errno)),
            }
        }
        switch_on_forwarding(network)
    }

    fn make_bridge(&mut self, network: &Network) -> Result<u32, Error> {
        let name = network.bridge.as_str();
        let mut body = link(0, 0);
        named(&mut body, name);
        // Otherwise it would have that of a port, and change it as these come and go.
        attribute(&mut body, IFLA_ADDRESS, &bridge_mac(&network.id));
        mtu(&mut body, network.mtu);
        nested(&mut body, IFLA_LINKINFO, |body| {
            attribute(body, IFLA_INFO_KIND, b"bridge");
            nested(body, IFLA_INFO_DATA, |body| {
                attribute(body, IFLA_BR_MULTI_BOOLOPT, &NO_LINK_LOCAL_LEARNING)
            });
        });
        match self.netlink.ask(NEW_LINK, ACK | CREATE, &body) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::at("make bridge", name)(errno)),
        }
        self.index(name)?.ok_or(Error::at("make bridge", name)(Errno::NODEV))
    }

    /// Makes a veth pair: `name` is a port of `bridge`, and the other end the instance's interface in its namespace.
    /// Gives the number of the latter.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn make_pair(
        &mut self,
        name: &str,
        bridge: u32,
        interface: &Interface,
        namespace: BorrowedFd,
    ) -> Result<(), Error> {
        let mut body = port(name, bridge, interface.mtu);
        nested(&mut body, IFLA_LINKINFO, |body| {
            attribute(body, IFLA_INFO_KIND, b"veth");
            nested(body, IFLA_INFO_DATA, |body| {
                nested(body, VETH_INFO_PEER, |body| {
                    body.extend(link(0, 0));
                    inside(body, interface, namespace);
                });
            });
        });
        self.netlink
            .ask(NEW_LINK, ACK | CREATE, &body)
            .map(drop)
            .map_err(Error::at("make a veth pair for", &interface.name))
    }

    /// Makes a macvlan of the interface with this number, in the instance's namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn make_macvlan(
        &mut self,
        parent: u32,
        interface: &Interface,
        namespace: BorrowedFd,
    ) -> Result<(), Error> {
        let mut body = link(0, 0);
        inside(&mut body, interface, namespace);
        attribute(&mut body, IFLA_LINK, &parent.to_ne_bytes());
        nested(&mut body, IFLA_LINKINFO, |body| {
            attribute(body, IFLA_INFO_KIND, b"macvlan");
            nested(body, IFLA_INFO_DATA, |body| {
                attribute(body, IFLA_MACVLAN_MODE, &MACVLAN_MODE_BRIDGE.to_ne_bytes());
            });
        });
        self.netlink
            .ask(NEW_LINK, ACK | CREATE, &body)
            .map(drop)
            .map_err(Error::at("make a macvlan for", &interface.name))
    }

    /// Makes an interface a port of a bridge and switches it on.
    ///
    /// # Errors
    /// There is none, or the kernel refuses.
    pub fn join(&mut self, name: &str, bridge: u32, mtu: u32) -> Result<(), Error> {
        let body = port(name, bridge, mtu);
        self.netlink.ask(NEW_LINK, ACK, &body).map(drop).map_err(Error::at("make a port of", name))
    }

    /// Lets a bridge's port get back what came from it: an instance reaches its own published ports so, where bridged
    /// packets pass the host's firewall. The firewall lets nothing else back.
    ///
    /// # Errors
    /// It is no port.
    pub fn reflect(&mut self, name: &str) -> Result<(), Error> {
        let index = self.index(name)?.ok_or(Error::at("find interface", name)(Errno::NODEV))?;
        let mut body = link(index, 0);
        body[0] = AF_BRIDGE;
        nested(&mut body, IFLA_PROTINFO | NESTED, |body| attribute(body, IFLA_BRPORT_MODE, &[1]));
        self.netlink.ask(SET_LINK, ACK, &body).map(drop).map_err(Error::at("set up the port", name))
    }

    /// Takes an interface away; one that is not there is fine.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&mut self, name: &str) -> Result<(), Error> {
        let mut body = link(0, 0);
        named(&mut body, name);
        match self.netlink.ask(DELETE_LINK, ACK, &body) {
            Ok(_) | Err(Errno::NODEV) => Ok(()),
            Err(errno) => Err(Error::at("remove interface", name)(errno)),
        }
    }

    /// Moves an interface into another namespace, where it is switched off and has this name.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn move_to(&mut self, index: u32, namespace: BorrowedFd, name: &str) -> Result<(), Error> {
        let mut body = link(index, 0);
        named(&mut body, name);
        attribute(&mut body, IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        let moved = self.netlink.ask(NEW_LINK, ACK, &body);
        moved.map(drop).map_err(Error::call("move an interface to a network namespace"))
    }

    /// Gives the interface with this number the name, MAC, addresses and routes that it is to have, and switches it on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn configure(&mut self, index: u32, interface: &Interface) -> Result<(), Error> {
        let mut identity = link(index, 0);
        named(&mut identity, &interface.name);
        attribute(&mut identity, IFLA_ADDRESS, &mac_bytes(&interface.mac));
        mtu(&mut identity, interface.mtu);
        let first = Request { kind: NEW_LINK, flags: ACK, body: identity };
        self.order(&interface.name, &[vec![first], addresses_and_routes(index, interface)].concat())
    }

    /// The same for one that has its name and MAC already.
    ///
    /// # Errors
    /// There is none of this name, or the kernel refuses.
    pub fn address(&mut self, interface: &Interface) -> Result<(), Error> {
        let name = &interface.name;
        let index = self.index(name)?.ok_or(Error::at("find interface", name)(Errno::NODEV))?;
        self.order(name, &addresses_and_routes(index, interface))
    }

    fn order(&mut self, name: &str, requests: &[Request]) -> Result<(), Error> {
        self.netlink.order(requests).map_err(|(_, errno)| Error::at("set up interface", name)(errno))
    }
}

fn addresses_and_routes(index: u32, interface: &Interface) -> Vec<Request> {
    let mut requests: Vec<Request> =
        interface.addresses.iter().map(|address| add_address(index, *address)).collect();
    requests.push(Request { kind: NEW_LINK, flags: ACK, body: link(index, IFF_UP) });
    requests.extend(interface.gateways.iter().map(|gateway| add_default_route(index, *gateway)));
    requests
}

/// Opens a namespace's file.
///
/// # Errors
/// It is not there.
pub fn open(path: &str) -> Result<OwnedFd, Error> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::file("open", path)(errno.into()))
}

/// Packets between networks pass the host only where it forwards, and published ports of the loopback interface only
/// where the bridge takes its addresses (the firewall drops them where they come from elsewhere).
fn switch_on_forwarding(network: &Network) -> Result<(), Error> {
    let bridge = &network.bridge;
    let has = |version: fn(&IpNet) -> bool| network.subnets.iter().any(|subnet| version(&subnet.subnet));
    if has(|subnet| matches!(subnet, IpNet::V4(_))) {
        set(&format!("{SYSCTL}/ipv4/ip_forward"), "1")?;
        set(&format!("{SYSCTL}/ipv4/conf/{bridge}/route_localnet"), "1")?;
    }
    if has(|subnet| matches!(subnet, IpNet::V6(_))) {
        // A bridge's own address is its router's.
        set(&format!("{SYSCTL}/ipv6/conf/{bridge}/accept_ra"), "0")?;
        forward_version_6()?;
    }
    Ok(())
}

/// An interface looks for a second or two whether others have its link-local address, and asks for no neighbour meanwhile:
/// what is forwarded to a fresh one is late, and is lost on those who are impatient. Ours is made of a MAC of our own.
pub(crate) fn speak_at_once(interface: &str) -> Result<(), Error> {
    let path = format!("{SYSCTL}/ipv6/conf/{interface}/accept_dad");
    if Path::new(&path).exists() { set(&path, "0") } else { Ok(()) }
}

/// A host that forwards takes no more advertisements of routers, and with them loses its own way out, unless told to.
fn forward_version_6() -> Result<(), Error> {
    let all = format!("{SYSCTL}/ipv6/conf/all/forwarding");
    if fs::read_to_string(&all).map_err(Error::file("read", &all))?.trim() == "1" {
        return Ok(());
    }
    let directory = format!("{SYSCTL}/ipv6/conf");
    for entry in fs::read_dir(&directory).map_err(Error::file("read", &directory))?.flatten() {
        let path = entry.path().join("accept_ra");
        if fs::read_to_string(&path).is_ok_and(|text| text.trim() == "1") {
            set(&path.to_string_lossy(), "2")?;
        }
    }
    set(&all, "1")
}

fn set(path: &str, value: &str) -> Result<(), Error> {
    let is_so = fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    if is_so { Ok(()) } else { fs::write(Path::new(path), value).map_err(Error::file("write", path)) }
}

/// Whether the kernel has IPv6, and it was not switched off when it booted.
pub fn has_version_6() -> bool {
    Path::new(SYSCTL).join("ipv6/conf").exists()
}

fn mtu(body: &mut Vec<u8>, bytes: u32) {
    if bytes != 0 {
        attribute(body, IFLA_MTU, &bytes.to_ne_bytes());
    }
}

/// A port of a bridge, switched on.
fn port(name: &str, bridge: u32, bytes: u32) -> Vec<u8> {
    let mut body = link(0, IFF_UP);
    named(&mut body, name);
    mtu(&mut body, bytes);
    attribute(&mut body, IFLA_MASTER, &bridge.to_ne_bytes());
    body
}

/// The instance's interface where it is to be.
fn inside(body: &mut Vec<u8>, interface: &Interface, namespace: BorrowedFd) {
    named(body, &interface.name);
    attribute(body, IFLA_ADDRESS, &mac_bytes(&interface.mac));
    mtu(body, interface.mtu);
    attribute(body, IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
}

fn nested(body: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    attribute(body, kind, &inner);
}

fn add_address(index: u32, address: IpNet) -> Request {
    let (family, bytes) = bytes(address.addr());
    let mut body = vec![family, address.prefix_len(), IFA_F_NODAD, 0];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &bytes);
    attribute(&mut body, IFA_ADDRESS, &bytes);
    if let IpNet::V4(version_4) = address {
        attribute(&mut body, IFA_BROADCAST, &version_4.broadcast().octets());
    }
    Request { kind: NEW_ADDRESS, flags: ACK | CREATE, body }
}

fn add_default_route(index: u32, gateway: IpAddr) -> Request {
    let (family, bytes) = bytes(gateway);
    // `struct rtmsg`: family, lengths of prefixes, type of service, table, who says so, scope, kind, flags.
    let mut body = vec![family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
    attribute(&mut body, RTA_GATEWAY, &bytes);
    attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
    Request { kind: NEW_ROUTE, flags: ACK | CREATE, body }
}

fn bytes(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    }
}

/// The bytes of a MAC in text; the engine has checked it.
fn mac_bytes(text: &str) -> [u8; 6] {
    parse_mac(text).unwrap_or_default()
}

/// Locally administered, and as unique as the network's id.
fn bridge_mac(id: &str) -> [u8; 6] {
    let mut bytes = [2, 0, 0, 0, 0, 0];
    for (byte, at) in bytes.iter_mut().skip(1).zip((0..).step_by(2)) {
        *byte = id.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok()).unwrap_or(0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_read_and_made() {
        assert_eq!(mac_bytes("02:42:ac:11:00:ff"), [2, 0x42, 0xac, 0x11, 0, 0xff]);
        assert_eq!(bridge_mac("0123456789abcdef"), [2, 1, 0x23, 0x45, 0x67, 0x89]);
    }

    #[test]
    fn an_address_has_its_broadcast() {
        let request = add_address(7, "10.1.0.2/20".parse().unwrap());
        assert_eq!(request.body[..8], [AF_INET, 20, IFA_F_NODAD, 0, 7, 0, 0, 0]);
        assert_eq!(request.body[request.body.len() - 4..], [10, 1, 15, 255]);
    }
}
