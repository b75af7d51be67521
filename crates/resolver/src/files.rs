//! The files below `<run>/networks`, which may be anything, and gone at any moment.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use proa_network::files::read;
use proa_protocol::instance::is_id;
use proa_protocol::network::{
    DIRECTORY, Driver, Endpoint, Live, NETWORK_FILE, Network, network_dir, parse_mac,
};

use crate::dhcp::Lease;
use crate::update::{Entry, Segment};
use crate::wire::encode;

/// Longest name.
const MAX_NAME: usize = 253;

/// A network's file.
pub fn network(run: &Path, id: &str) -> Option<Network> {
    let network: Network = read(&network_dir(run, id).join(NETWORK_FILE))?;
    (network.id == id).then_some(network)
}

/// The file of an endpoint.
pub fn endpoint(run: &Path, network: &str, instance: &str) -> Option<Live> {
    read(&network_dir(run, network).join(instance))
}

/// Ids of networks that have a directory.
pub fn networks(run: &Path) -> BTreeSet<String> {
    ids(&run.join(DIRECTORY))
}

/// Ids of instances that have a file in a network's directory.
pub fn endpoints(run: &Path, network: &str) -> BTreeSet<String> {
    ids(&network_dir(run, network))
}

/// Whether any endpoint has a file.
pub fn has_endpoints(run: &Path) -> bool {
    networks(run).iter().any(|network| !endpoints(run, network).is_empty())
}

/// What the server needs to know of a network.
pub fn segment(network: &Network) -> Segment {
    let gateways = network.subnets.iter().filter_map(|subnet| subnet.gateway);
    Segment {
        id: network.id.clone(),
        name: network.name.chars().take(MAX_NAME).collect(),
        internal: network.internal,
        subnets: network.subnets.iter().map(|subnet| subnet.subnet).collect(),
        // On another's segment the gateway is somebody else.
        gateways: if network.driver == Driver::Bridge { gateways.collect() } else { Vec::new() },
        hosts: Vec::new(),
        bridge: 0,
        sockets: Vec::new(),
    }
}

/// What the server needs to know of an endpoint.
pub fn entry(live: &Live) -> Entry {
    let endpoint = &live.endpoint;
    let mut names: Vec<String> = Vec::new();
    for name in &endpoint.names {
        let is_new = !names.iter().any(|other| other.eq_ignore_ascii_case(name));
        if is_new && (1..=MAX_NAME).contains(&name.len()) && names.len() < Entry::MAX_NAMES {
            names.push(name.clone());
        }
    }
    let addresses = endpoint.interface.addresses.iter().map(ipnet::IpNet::addr);
    Entry {
        names,
        addresses: addresses.take(Entry::MAX_ADDRESSES).collect(),
        servers: endpoint.upstream.iter().copied().take(Entry::MAX_ADDRESSES).collect(),
        lease: lease(&live.endpoint),
    }
}

/// What an endpoint is told that asks for its address; nothing where the host has none in its network.
fn lease(endpoint: &Endpoint) -> Option<Lease> {
    let Endpoint { network, interface, .. } = endpoint;
    let Some(IpNet::V4(own)) = interface.addresses.iter().find(|own| own.addr().is_ipv4()) else {
        return None;
    };
    let version_4 = |address: IpAddr| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    };
    let subnet = network.subnets.iter().find(|subnet| subnet.subnet.contains(&IpAddr::V4(own.addr())))?;
    let is_domain = |domain: &&String| (1..=MAX_NAME).contains(&domain.len()) && encode(domain).is_some();
    let own_domain = std::slice::from_ref(&network.name);
    let search = if endpoint.search.is_empty() { own_domain } else { &endpoint.search };
    Some(Lease {
        mac: parse_mac(&interface.mac)?,
        address: own.addr(),
        prefix: own.prefix_len(),
        server: subnet.gateway.and_then(version_4).filter(|_| network.driver == Driver::Bridge)?,
        router: interface.gateways.iter().copied().find_map(version_4),
        mtu: u16::try_from(interface.mtu).unwrap_or(u16::MAX),
        hostname: endpoint.hostname.chars().take(MAX_NAME).filter(char::is_ascii).collect(),
        search: search.iter().filter(is_domain).take(Entry::MAX_DOMAINS).cloned().collect(),
    })
}

fn ids(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    // Other names are for something else, or not finished.
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_id(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_protocol::network::endpoint_file;
    use std::fs;

    #[test]
    fn only_files_that_hold_what_they_should_are_read() {
        let run = tempfile::tempdir().unwrap();
        let directory = network_dir(run.path(), "a1");
        fs::create_dir_all(&directory).unwrap();
        assert!(network(run.path(), "a1").is_none() && !has_endpoints(run.path()));
        let text = serde_json::to_vec(&Network { id: "a1".into(), ..Network::default() }).unwrap();
        fs::write(directory.join(NETWORK_FILE), &text).unwrap();
        assert!(network(run.path(), "a1").is_some() && !has_endpoints(run.path()));
        // A directory does not hold another network.
        fs::create_dir(network_dir(run.path(), "b2")).unwrap();
        fs::write(network_dir(run.path(), "b2").join(NETWORK_FILE), &text).unwrap();
        assert!(network(run.path(), "b2").is_none());
        fs::write(endpoint_file(run.path(), "a1", "i1"), "{").unwrap();
        assert!(endpoint(run.path(), "a1", "i1").is_none() && has_endpoints(run.path()));
        std::os::unix::fs::symlink("/dev/zero", endpoint_file(run.path(), "a1", "i2")).unwrap();
        assert!(endpoint(run.path(), "a1", "i2").is_none());
    }

    #[test]
    fn an_entry_has_limits() {
        let mut names = vec!["Web".to_owned(), "web".into(), String::new(), "x".repeat(300)];
        names.extend((0..1000).map(|number| number.to_string()));
        let live = Live { endpoint: Endpoint { names, ..Endpoint::default() }, ..Live::default() };
        let entry = entry(&live);
        assert_eq!((entry.names.len(), entry.names[0].as_str()), (Entry::MAX_NAMES, "Web"));
    }
}
