//! Networks, addresses and ports.

use std::collections::BTreeMap;

use proa_engine::config::{ContainerConfig, Empty, HostConfig};
use proa_engine::network::{EndpointConfig, Mode, ports};

use super::usage;
use crate::error::Failure;

/// Networks, addresses and ports.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Network")]
pub(super) struct NetworkFlags {
    /// Network by name (bridge where none is named), none, host, or container:NAME; repeatable, and with more about a
    /// place as name=NET,alias=NAME,ip=ADDRESS,mac-address=MAC
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    network: Vec<String>,
    /// Another name of the instance in its network
    #[arg(long, alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<String>,
    /// IPv4 address in its network
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// IPv6 address in its network
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<String>,
    /// MAC address in its network
    #[arg(long, value_name = "MAC")]
    mac_address: Option<String>,
    /// Publish a port, at 127.0.0.1 unless another address is given
    #[arg(short, long, value_name = "[[ADDRESS:]HOST:]PORT")]
    publish: Vec<String>,
    /// Publish all exposed ports at ports that are free
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// A port that the program listens on
    #[arg(long, value_name = "PORT[/PROTOCOL]")]
    expose: Vec<String>,
}

impl NetworkFlags {
    pub(super) fn apply(&self, config: &mut ContainerConfig, host: &mut HostConfig) -> Result<(), Failure> {
        host.networks = self.network.iter().map(|text| endpoint(text)).collect::<Result<_, _>>()?;
        let mode = host.networks.first().map_or("default", |first| &first.network).to_owned();
        let is_network = matches!(Mode::parse(&mode).map_err(usage)?, Mode::Network(_));
        if host.networks.is_empty() && self.says_more() {
            host.networks.push(EndpointConfig {
                network: proa_engine::network::DEFAULT.to_owned(),
                ..EndpointConfig::default()
            });
        }
        if let Some(first) = host.networks.first_mut() {
            first.aliases.extend(self.network_alias.iter().cloned());
            let texts = [
                (&mut first.ip, &self.ip),
                (&mut first.ip6, &self.ip6),
                (&mut first.mac_address, &self.mac_address),
            ];
            for (place, given) in texts {
                if let Some(given) = given {
                    place.clone_from(given);
                }
            }
        }
        if !is_network && host.networks.len() == 1 && !self.says_more() {
            host.networks.clear();
        }
        host.network_mode = mode;
        for text in &self.publish {
            ports::publish(text, &mut host.port_bindings).map_err(usage)?;
        }
        host.publish_all_ports = self.publish_all;
        let mut exposed: BTreeMap<String, Empty> = BTreeMap::new();
        for text in &self.expose {
            exposed.extend(ports::exposed(text).map_err(usage)?.into_iter().map(|port| (port, Empty {})));
        }
        // What is published is exposed.
        exposed.extend(host.port_bindings.keys().map(|port| (port.clone(), Empty {})));
        config.exposed_ports = exposed;
        Ok(())
    }

    /// Whether anything is asked of the place in the network.
    fn says_more(&self) -> bool {
        !self.network_alias.is_empty()
            || self.ip.is_some()
            || self.ip6.is_some()
            || self.mac_address.is_some()
    }
}

/// Reads `NETWORK`, or `name=NETWORK,…`.
fn endpoint(text: &str) -> Result<EndpointConfig, Failure> {
    let mut endpoint = EndpointConfig::default();
    if !text.contains('=') {
        text.clone_into(&mut endpoint.network);
        return Ok(endpoint);
    }
    for pair in text.split(',') {
        let wrong = || {
            Failure::usage(format!("invalid --network {text:?}"))
                .with_hint("name=NETWORK,alias=NAME,ip=ADDRESS,ip6=ADDRESS,mac-address=MAC")
        };
        let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
        match key {
            "name" => value.clone_into(&mut endpoint.network),
            "alias" => endpoint.aliases.push(value.to_owned()),
            "ip" => value.clone_into(&mut endpoint.ip),
            "ip6" => value.clone_into(&mut endpoint.ip6),
            "mac-address" => value.clone_into(&mut endpoint.mac_address),
            _ => return Err(wrong()),
        }
    }
    if endpoint.network.is_empty() {
        return Err(
            Failure::usage(format!("--network {text:?} names no network")).with_hint("name=NETWORK,…")
        );
    }
    Ok(endpoint)
}
