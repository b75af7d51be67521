//! What is shown of an instance's networks: `inspect`, `ps`, `port`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proa_network::files;
use proa_protocol::instance::InstanceConfig;
use proa_protocol::network::{Endpoint, PublishedPort};
use serde_json::{Map, Value, json};

use crate::engine::{Engine, Instance};

impl Engine {
    /// The places of an instance that runs; else those that it is to have.
    fn places(&self, instance: &Instance, config: &InstanceConfig) -> Vec<Endpoint> {
        let place = |endpoint: &Endpoint| {
            let live = files::read_live(&self.paths.run, &endpoint.network.id, &instance.record.id);
            live.map_or_else(|| endpoint.clone(), |live| live.endpoint)
        };
        config
            .networks
            .iter()
            .map(|endpoint| if instance.is_live() { place(endpoint) } else { endpoint.clone() })
            .collect()
    }
}

/// The ports of an instance that runs, as they are published.
pub fn published(engine: &Engine, instance: &Instance) -> Vec<PublishedPort> {
    let host = &instance.record.host_config;
    if !instance.is_live() || (host.port_bindings.is_empty() && !host.publish_all_ports) {
        return Vec::new();
    }
    let config = engine.read_config(&instance.record.id).unwrap_or_default();
    let mut ports: Vec<PublishedPort> =
        engine.places(instance, &config).into_iter().flat_map(|endpoint| endpoint.ports).collect();
    ports.sort_by_key(|port| (port.port, port.protocol, port.host_ip, port.host_port));
    ports
}

/// Docker's text for them: `127.0.0.1:8080->80/tcp`, and exposed ports that are not published.
pub fn ports_text(engine: &Engine, instance: &Instance) -> String {
    if !instance.is_live() {
        return String::new();
    }
    let published = published(engine, instance);
    let mut texts: Vec<String> = published
        .iter()
        .map(|port| {
            let host = std::net::SocketAddr::new(port.host_ip, port.host_port);
            format!("{host}->{}/{}", port.port, port.protocol.as_str())
        })
        .collect();
    let is_published =
        |name: &str| published.iter().any(|port| name == format!("{}/{}", port.port, port.protocol.as_str()));
    let exposed = instance.record.config.exposed_ports.keys();
    texts.extend(exposed.filter(|name| !is_published(name)).cloned());
    texts.join(", ")
}

/// `NetworkSettings`.
pub(crate) fn settings(engine: &Engine, instance: &Instance, config: &InstanceConfig) -> Value {
    let places = engine.places(instance, config);
    let live = instance.is_live();
    let mut networks = Map::new();
    for endpoint in &places {
        networks.insert(endpoint.network.name.clone(), network(instance, endpoint, live));
    }
    let host = &instance.record.host_config;
    if places.is_empty() && ["host", "none"].contains(&&*host.network_mode) {
        networks.insert(host.network_mode.clone(), network(instance, &Endpoint::default(), live));
    }
    // Docker repeats here what the default network says.
    let default = networks.get(super::DEFAULT).cloned().unwrap_or_else(|| json!({}));
    let repeated = |field: &str, empty: Value| default.get(field).cloned().unwrap_or(empty);
    let ports: Vec<PublishedPort> =
        if live { places.iter().flat_map(|endpoint| endpoint.ports.clone()).collect() } else { Vec::new() };
    json!({
        "Bridge": "",
        "SandboxID": "",
        "SandboxKey": "",
        "Ports": port_map(instance, &ports, live),
        "EndpointID": repeated("EndpointID", json!("")),
        "Gateway": repeated("Gateway", json!("")),
        "IPAddress": repeated("IPAddress", json!("")),
        "IPPrefixLen": repeated("IPPrefixLen", json!(0)),
        "IPv6Gateway": repeated("IPv6Gateway", json!("")),
        "GlobalIPv6Address": repeated("GlobalIPv6Address", json!("")),
        "GlobalIPv6PrefixLen": repeated("GlobalIPv6PrefixLen", json!(0)),
        "MacAddress": repeated("MacAddress", json!("")),
        "Networks": networks,
    })
}

fn network(instance: &Instance, endpoint: &Endpoint, live: bool) -> Value {
    let is = |four: bool| {
        let found = endpoint.interface.addresses.iter().find(|address| address.addr().is_ipv4() == four);
        found.filter(|_| live).map_or((String::new(), 0), |net| (net.addr().to_string(), net.prefix_len()))
    };
    let gateway = |four: bool| {
        let subnets = endpoint.network.subnets.iter().filter_map(|subnet| subnet.gateway);
        let found = subnets.into_iter().find(|gateway: &IpAddr| gateway.is_ipv4() == four);
        found
            .filter(|_| live && !endpoint.network.internal)
            .map_or_else(String::new, |gateway| gateway.to_string())
    };
    let (address_4, prefix_4) = is(true);
    let (address_6, prefix_6) = is(false);
    let config = &instance.record.host_config;
    let asked = config.networks.iter().find(|asked| asked.network == endpoint.network.name);
    let given = asked.map(|asked| [("IPv4Address", &asked.ip), ("IPv6Address", &asked.ip6)]);
    let given: Map<String, Value> = given
        .into_iter()
        .flatten()
        .filter(|(_, address)| !address.is_empty())
        .map(|(name, address)| (name.to_owned(), json!(address)))
        .collect();
    json!({
        "IPAMConfig": if given.is_empty() { Value::Null } else { given.into() },
        "Links": null,
        "Aliases": asked.map(|asked| &asked.aliases).filter(|aliases| !aliases.is_empty()),
        "MacAddress": if live { endpoint.interface.mac.as_str() } else { "" },
        "NetworkID": endpoint.network.id,
        "EndpointID": if live && !endpoint.network.id.is_empty() { instance.record.id.as_str() } else { "" },
        "Gateway": gateway(true),
        "IPAddress": address_4,
        "IPPrefixLen": prefix_4,
        "IPv6Gateway": gateway(false),
        "GlobalIPv6Address": address_6,
        "GlobalIPv6PrefixLen": prefix_6,
        "DNSNames": if endpoint.names.is_empty() { Value::Null } else { json!(endpoint.names) },
    })
}

/// Each exposed or published port, and where it can be reached.
fn port_map(instance: &Instance, ports: &[PublishedPort], live: bool) -> Value {
    let mut map: BTreeMap<String, Option<Vec<Value>>> = BTreeMap::new();
    if live {
        map.extend(instance.record.config.exposed_ports.keys().map(|name| (name.clone(), None)));
    }
    for port in ports {
        let at = json!({ "HostIp": port.host_ip.to_string(), "HostPort": port.host_port.to_string() });
        let name = format!("{}/{}", port.port, port.protocol.as_str());
        map.entry(name).or_default().get_or_insert_default().push(at);
    }
    json!(map)
}
