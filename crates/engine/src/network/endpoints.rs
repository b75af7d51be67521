//! The places of an instance in its networks: what was asked for, and what it gets.

use std::fmt::Write;
use std::net::IpAddr;

use proa_protocol::instance::{InstanceConfig, IsolationLevel};
use proa_protocol::network::{Driver, Endpoint, Interface, Protocol, PublishedPort, parse_mac};
use serde::{Deserialize, Serialize};

use super::mode::Mode;
use super::ports::{self, PortBinding, PortBindings};
use super::{NetworkRecord, options};
use crate::config::{ContainerConfig, HostConfig};
use crate::db::Record;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::names;
use crate::settings::NetworkSettings;
use crate::spec::parse_extra_host;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What is asked of a place in a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EndpointConfig {
    /// Name or id of the network.
    pub network: String,
    /// Names for it in that network, beside the instance's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Address of IPv4 to have; empty for one that is free.
    #[serde(rename = "IPv4Address", skip_serializing_if = "String::is_empty")]
    pub ip: String,
    /// The same of IPv6.
    #[serde(rename = "IPv6Address", skip_serializing_if = "String::is_empty")]
    pub ip6: String,
    /// MAC to have; empty for one made of the address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac_address: String,
}

impl Engine {
    /// Finds the networks that an instance is to be in, and puts their names where the user left them to a rule.
    ///
    /// # Errors
    /// There is no such network, or its options make no sense together.
    pub(crate) fn complete_networks(
        &self,
        config: &mut ContainerConfig,
        host: &mut HostConfig,
        level: IsolationLevel,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<NetworkRecord>> {
        let publishes = host.publish_all_ports || !host.port_bindings.is_empty();
        let asked = host.network_mode.clone();
        let mode = Mode::parse(&asked)?;
        let name = match mode {
            Mode::Network(name) => name,
            Mode::None | Mode::Host | Mode::Container(_) => {
                if !host.networks.is_empty() {
                    return Err(Error::invalid(format!(
                        "--network {asked} goes with no other network, address or alias"
                    )));
                }
                if publishes {
                    warnings.push(format!("ports are not published with --network {asked}"));
                }
                return self.complete_shared(mode, host, config, level).map(|()| Vec::new());
            }
        };
        if host.networks.is_empty() {
            host.networks.push(EndpointConfig { network: name.to_owned(), ..EndpointConfig::default() });
        }
        let mut found: Vec<NetworkRecord> = Vec::new();
        for config in &mut host.networks {
            let network = self.network(&config.network)?;
            if found.iter().any(|other| other.id == network.id) {
                return Err(Error::invalid(format!("network {} is named twice", network.name)));
            }
            check_level(&network, level)?;
            config.network.clone_from(&network.name);
            found.push(network);
        }
        if let Some(first) = found.first() {
            host.network_mode.clone_from(&first.name);
        }
        if publishes && !found.iter().any(NetworkRecord::publishes) {
            warnings.push("ports are not published: none of the networks has a way out".into());
        }
        Ok(found)
    }

    /// `container:NAME` becomes `container:ID`, so that a new instance of that name is another. Its host name is this one's.
    fn complete_shared(
        &self,
        mode: Mode,
        host: &mut HostConfig,
        config: &mut ContainerConfig,
        level: IsolationLevel,
    ) -> Result<()> {
        let Mode::Container(name) = mode else { return Ok(()) };
        let other = self.find(name)?;
        if !config.hostname.is_empty() {
            return Err(Error::invalid(
                "--hostname goes with no --network container:, which has the other's",
            ));
        }
        config.hostname.clone_from(&other.record.config.hostname);
        if level == IsolationLevel::Vm || other.record.level == IsolationLevel::Vm {
            return Err(Error::unsupported(
                "--network container: needs two containers: a virtual machine has a network stack of its own",
                "give both a place in the same --network",
            ));
        }
        host.network_mode = format!("container:{}", other.record.id);
        Ok(())
    }

    /// Claims addresses for an instance, and writes its places and what they mean for its files.
    ///
    /// # Errors
    /// An address is taken, or there is none left.
    pub(crate) fn claim_endpoints(
        &self,
        record: &Record,
        networks: &[NetworkRecord],
        instance: &mut InstanceConfig,
        settings: &NetworkSettings,
    ) -> Result<()> {
        let host = &record.host_config;
        if let Some(id) = host.network_mode.strip_prefix("container:") {
            instance.network_of = Some(id.to_owned());
            return Ok(());
        }
        for (number, (network, config)) in networks.iter().zip(&host.networks).enumerate() {
            let place = self.claim_endpoint(record, network, config, number)?;
            instance.networks.push(place);
        }
        let published = published(&record.config, host);
        if let Some(place) = networks.iter().position(NetworkRecord::publishes) {
            let endpoint = &mut instance.networks[place];
            endpoint.ports = resolve_ports(&published, &networks[place], endpoint, settings)?;
        }
        complete_files(record, instance)
    }

    /// Claims addresses in one network.
    pub(super) fn claim_endpoint(
        &self,
        record: &Record,
        network: &NetworkRecord,
        config: &EndpointConfig,
        number: usize,
    ) -> Result<Endpoint> {
        let given = [&config.ip, &config.ip6].into_iter().filter(|text| !text.is_empty());
        let wanted: Vec<IpAddr> = given
            .map(|text| text.parse().map_err(|_| Error::invalid(format!("{text:?} is no IP address"))))
            .collect::<Result<_>>()?;
        let addresses = self.db.claim_addresses(&record.id, network, &wanted)?;
        let mac = if config.mac_address.is_empty() {
            mac_of(addresses.first().map(ipnet::IpNet::addr))
        } else {
            check_mac(&config.mac_address)?
        };
        let shared = network.network();
        // The first network with a way out has the default routes.
        let gateways = network.subnets.iter().filter_map(|subnet| subnet.gateway);
        let gateways = if network.internal || number > 0 { Vec::new() } else { gateways.collect() };
        let interface = Interface { name: format!("eth{number}"), mac, addresses, gateways, mtu: shared.mtu };
        let upstream = record.host_config.dns.iter().filter_map(|text| text.parse().ok()).collect();
        Ok(Endpoint {
            network: shared,
            interface,
            names: names_of(record, config),
            ports: Vec::new(),
            upstream,
            hostname: match record.config.hostname.as_str() {
                "" => names::short(&record.id).to_owned(),
                hostname => hostname.to_owned(),
            },
            search: record.host_config.dns_search.clone(),
        })
    }
}

impl NetworkRecord {
    /// Whether ports of its instances can be published.
    fn publishes(&self) -> bool {
        self.driver == Driver::Bridge && !self.internal
    }
}

pub(super) fn check_level(network: &NetworkRecord, level: IsolationLevel) -> Result<()> {
    if network.driver == Driver::Macvlan && level == IsolationLevel::Vm {
        return Err(Error::unsupported(
            format!("network {} is a macvlan, which a virtual machine cannot have", network.name),
            "use a network of driver bridge",
        ));
    }
    Ok(())
}

/// The instance's name, the beginning of its id, its host name and its aliases.
fn names_of(record: &Record, config: &EndpointConfig) -> Vec<String> {
    let mut names = vec![record.name.clone(), names::short(&record.id).to_owned()];
    for name in std::iter::once(&record.config.hostname).chain(&config.aliases) {
        if !name.is_empty() && !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// As Docker makes it: whoever gets the address of another later has its MAC as well, and no neighbour errs.
fn mac_of(address: Option<IpAddr>) -> String {
    let bytes = match address {
        Some(IpAddr::V4(address)) => address.octets(),
        Some(IpAddr::V6(address)) => {
            let [.., a, b, c, d] = address.octets();
            [a, b, c, d]
        }
        None => [0; 4],
    };
    let [a, b, c, d] = bytes;
    format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

fn check_mac(text: &str) -> Result<String> {
    let text = text.replace('-', ":").to_ascii_lowercase();
    match parse_mac(&text) {
        // The lowest bit of the first byte makes it one of a group.
        Some(mac) if mac[0] & 1 == 0 && mac != [0; 6] => Ok(text),
        _ => Err(Error::Invalid {
            message: format!("{text:?} is no MAC address of one interface"),
            hint: "six bytes as 02:42:ac:11:00:02".into(),
        }),
    }
}

/// What is published: what `-p` says, and with `-P` all that is exposed.
fn published(config: &ContainerConfig, host: &HostConfig) -> PortBindings {
    let mut bindings = host.port_bindings.clone();
    if host.publish_all_ports {
        for port in config.exposed_ports.keys() {
            bindings.entry(port.clone()).or_insert_with(|| vec![PortBinding::default()]);
        }
    }
    bindings
}

fn resolve_ports(
    bindings: &PortBindings,
    network: &NetworkRecord,
    endpoint: &Endpoint,
    settings: &NetworkSettings,
) -> Result<Vec<PublishedPort>> {
    let default = match network.options.get(options::PUBLISH_AT) {
        Some(text) => text.parse().map_err(|_| Error::invalid(format!("{text:?} is no IP address")))?,
        None => settings.publish,
    };
    let mut all = Vec::new();
    for (name, bindings) in bindings {
        let (port, protocol) = ports::port(name)?;
        for binding in bindings {
            let host_ip = match binding.host_ip.as_str() {
                "" => default,
                text => text.parse().map_err(|_| Error::invalid(format!("{text:?} is no IP address")))?,
            };
            let host_port = match binding.host_port.as_str() {
                "" => 0,
                text => text.parse().map_err(|_| Error::invalid(format!("{text:?} is no port")))?,
            };
            check_binding(host_ip, protocol, endpoint)?;
            all.push(PublishedPort { protocol, host_ip, host_port, port });
        }
    }
    Ok(all)
}

/// What no rule of the host's firewall leads to the instance is forwarded (`proa_network::forward`), TCP and UDP alone.
fn check_binding(host_ip: IpAddr, protocol: Protocol, endpoint: &Endpoint) -> Result<()> {
    if protocol != Protocol::Sctp {
        return Ok(());
    }
    if !proa_sys::userns::is_initial() {
        return Err(Error::unsupported(
            "ports of SCTP cannot be published by an ordinary user: only TCP and UDP are forwarded",
            "publish TCP or UDP, or run proa as root",
        ));
    }
    let is_same = |address: &ipnet::IpNet| address.addr().is_ipv4() == host_ip.is_ipv4();
    let has_way = endpoint.interface.addresses.iter().any(is_same);
    if !has_way || host_ip == IpAddr::V6(std::net::Ipv6Addr::LOCALHOST) {
        return Err(Error::unsupported(
            format!(
                "ports of SCTP cannot be published at {host_ip}: the kernel has no way from there into network {}",
                endpoint.network.name
            ),
            "publish at 127.0.0.1, or make a network with `proa network create --ipv6 NAME`",
        ));
    }
    Ok(())
}

/// `/etc/hosts` has the instance's addresses, and `/etc/resolv.conf` asks the network's resolver. Files that the user
/// mounts something on are the user's.
fn complete_files(record: &Record, instance: &mut InstanceConfig) -> Result<()> {
    let names = own_names(record, instance);
    let endpoints = &instance.networks;
    let gateways = resolvers(endpoints);
    // A user's gateways are not the host's.
    let is_user = !proa_sys::userns::is_initial() && !gateways.is_empty();
    let hosts = if is_user { proa_network::switch::host_addresses() } else { Vec::new() };
    if let Some(text) = instance.launch.files.get_mut(HOSTS) {
        for address in endpoints.iter().flat_map(|endpoint| &endpoint.interface.addresses) {
            let _ = writeln!(text, "{}\t{names}", address.addr());
        }
        for entry in &record.host_config.extra_hosts {
            if let (name, None) = parse_extra_host(entry)? {
                let gateway = hosts.first().or(gateways.first()).ok_or_else(|| {
                    Error::invalid(format!("--add-host {entry:?}: no network of the instance has a gateway"))
                })?;
                let _ = writeln!(text, "{gateway}\t{name}");
            }
        }
    }
    if let Some(text) = instance.launch.files.get_mut(RESOLV_CONF)
        && !gateways.is_empty()
    {
        *text = crate::spec::resolv_conf_of(&record.host_config, &gateways)?;
    }
    Ok(())
}

/// The same when places have come and gone since; these are those of before.
pub(super) fn change_files(
    record: &Record,
    instance: &mut InstanceConfig,
    before: &[Endpoint],
) -> Result<()> {
    let names = own_names(record, instance);
    let gateways = resolvers(&instance.networks);
    if let Some(text) = instance.launch.files.get_mut(HOSTS) {
        let own = |line: &str| {
            addresses(before).any(|address| line.strip_prefix(&format!("{address}\t")) == Some(&names))
        };
        let kept = text.lines().filter(|line| !own(line)).map(|line| format!("{line}\n"));
        let new = addresses(&instance.networks).map(|address| format!("{address}\t{names}\n"));
        *text = kept.chain(new).collect();
    }
    if let Some(text) = instance.launch.files.get_mut(RESOLV_CONF) {
        *text = crate::spec::resolv_conf_of(&record.host_config, &gateways)?;
    }
    Ok(())
}

fn own_names(record: &Record, instance: &InstanceConfig) -> String {
    let hostname = instance.spec.hostname.clone().unwrap_or_default();
    match record.config.domainname.as_str() {
        "" => hostname,
        domain => format!("{hostname}.{domain} {hostname}"),
    }
}

fn addresses(endpoints: &[Endpoint]) -> impl Iterator<Item = IpAddr> {
    endpoints.iter().flat_map(|endpoint| &endpoint.interface.addresses).map(ipnet::IpNet::addr)
}

/// Where the names of the networks are answered.
fn resolvers(endpoints: &[Endpoint]) -> Vec<IpAddr> {
    let bridges = endpoints.iter().filter(|endpoint| endpoint.network.driver == Driver::Bridge);
    bridges.flat_map(|endpoint| &endpoint.network.subnets).filter_map(|subnet| subnet.gateway).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_follow_addresses_unless_they_are_given() {
        assert_eq!(mac_of(Some("172.24.0.2".parse().unwrap())), "02:42:ac:18:00:02");
        assert_eq!(check_mac("02-42-AC-11-00-02").unwrap(), "02:42:ac:11:00:02");
        for wrong in
            ["", "02:42", "01:42:ac:11:00:02", "00:00:00:00:00:00", "02:42:ac:11:00:2", "x2:42:ac:11:00:02"]
        {
            assert!(check_mac(wrong).is_err(), "{wrong}");
        }
    }
}
