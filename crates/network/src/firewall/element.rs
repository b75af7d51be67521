//! The elements that networks and instances have in the sets of `rules.nft`.

use std::net::{IpAddr, Ipv6Addr};

use proa_protocol::network::{Driver, Endpoint, Live, Network, Protocol, PublishedPort, parse_mac};

use super::value::{self, Value};
use super::{Error, Family};

/// One element of a set or a map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Element {
    /// Which of the two tables has the set.
    pub family: Family,
    /// The set's name.
    pub set: &'static str,
    /// What is looked up.
    pub key: Vec<Value>,
    /// What is found, in a map; empty in a set.
    pub data: Vec<Value>,
}

impl Element {
    fn inet(set: &'static str, key: Vec<Value>) -> Self {
        Self { family: Family::Inet, set, key, data: Vec::new() }
    }

    fn bridge(set: &'static str, key: Vec<Value>) -> Self {
        Self { family: Family::Bridge, set, key, data: Vec::new() }
    }
}

/// What a network has; nothing if it is no bridge of ours.
pub(super) fn of_network(network: &Network) -> Vec<Element> {
    if network.driver != Driver::Bridge {
        return Vec::new();
    }
    let bridge = || Value::Name(network.bridge.clone());
    let mut elements = vec![Element::inet("bridges", vec![bridge()])];
    if network.internal {
        elements.push(Element::inet("internal", vec![bridge()]));
        for gateway in network.subnets.iter().filter_map(|subnet| subnet.gateway) {
            let set = of_version(gateway, "gateways4", "gateways6");
            elements.push(Element::inet(set, vec![bridge(), address(gateway)]));
        }
    } else if network.masquerade {
        elements.push(Element::inet("masquerading", vec![bridge()]));
    }
    if network.talk {
        elements.push(Element::inet("talking", vec![bridge(), bridge()]));
    }
    elements
}

/// What an instance has in a network.
pub(super) fn of_endpoint(live: &Live) -> Result<Vec<Element>, Error> {
    let endpoint = &live.endpoint;
    let network = &endpoint.network;
    if network.driver != Driver::Bridge {
        return Ok(Vec::new());
    }
    let mut elements = Vec::new();
    for home in &endpoint.interface.addresses {
        let set = of_version(home.addr(), "homes4", "homes6");
        elements.push(Element::inet(set, vec![Value::Name(network.bridge.clone()), address(home.addr())]));
    }
    if !network.internal {
        elements.extend(endpoint.ports.iter().filter_map(|port| published(endpoint, port)));
    }
    elements.extend(of_link(live)?);
    Ok(elements)
}

/// What an instance's link has.
pub(super) fn of_link(live: &Live) -> Result<Vec<Element>, Error> {
    let is_port = live.endpoint.network.driver == Driver::Bridge && !live.link.is_empty();
    if is_port { of_port(live) } else { Ok(Vec::new()) }
}

/// Without what nothing comes out of a link any more.
pub(super) fn voice(live: &Live) -> Result<Vec<Element>, Error> {
    Ok(of_link(live)?.into_iter().filter(|element| element.set == "macs").collect())
}

/// Where the kernel sends what comes for a port; none if the instance has no address of that IP version, or the host's is
/// `::1`.
pub(crate) fn way(endpoint: &Endpoint, port: &PublishedPort) -> Option<IpAddr> {
    if port.host_ip == IpAddr::V6(Ipv6Addr::LOCALHOST) {
        return None;
    }
    let is_fitting = |home: &IpAddr| home.is_ipv4() == port.host_ip.is_ipv4();
    endpoint.interface.addresses.iter().map(|home| home.addr()).find(is_fitting)
}

/// A published port that the kernel has a way for.
fn published(endpoint: &Endpoint, port: &PublishedPort) -> Option<Element> {
    let home = way(endpoint, port)?;
    let mut key = vec![Value::Transport(transport(port.protocol)), Value::Port(port.host_port)];
    let set = if port.host_ip.is_unspecified() {
        of_version(home, "anywhere4", "anywhere6")
    } else {
        key.insert(0, address(port.host_ip));
        of_version(home, "published4", "published6")
    };
    Some(Element { data: vec![address(home), Value::Port(port.port)], ..Element::inet(set, key) })
}

/// What may come out of an instance's link.
fn of_port(live: &Live) -> Result<Vec<Element>, Error> {
    let Endpoint { network, interface, .. } = &live.endpoint;
    let mac = parse_mac(&interface.mac).ok_or_else(|| Error::Mac { text: interface.mac.clone() })?;
    let port = || Value::Name(live.link.clone());
    let mut elements = vec![
        Element::bridge("macs", vec![port(), Value::Mac(mac)]),
        Element::bridge("mirrors", vec![port(), port()]),
        Element::bridge("ports", vec![port()]),
    ];
    if !network.talk {
        elements.push(Element::bridge("silent", vec![port()]));
        elements.push(Element::bridge("silent_macs", vec![Value::Mac(mac)]));
    }
    let homes = interface.addresses.iter().map(|home| home.addr());
    for home in homes.chain([IpAddr::V6(value::link_local(mac))]) {
        match home {
            IpAddr::V4(_) => elements.push(Element::bridge("ipv4", vec![port(), address(home)])),
            IpAddr::V6(target) => {
                elements.push(Element::bridge("ipv6", vec![port(), address(home)]));
                elements.push(Element::bridge("targets", vec![port(), Value::Number(target)]));
            }
        }
    }
    Ok(elements)
}

fn address(address: IpAddr) -> Value {
    match address {
        IpAddr::V4(address) => Value::V4(address),
        IpAddr::V6(address) => Value::V6(address),
    }
}

fn of_version(address: IpAddr, v4: &'static str, v6: &'static str) -> &'static str {
    if address.is_ipv4() { v4 } else { v6 }
}

fn transport(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}
