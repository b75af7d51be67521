//! The seed of cloud-init: a disc labelled `cidata` with what a system is to make of itself at its first boot.
//!
//! The source is `NoCloud` of cloud-init's documentation. Documents are JSON, which is YAML, so that nothing that a user
//! names has to be escaped. Addresses are written out: what the machine has in its networks was claimed for it, and no
//! one there hands out any.

use proa_protocol::network::{Driver, Endpoint};
use serde_json::{Value, json};

use super::iso;
use crate::db::Record;
use crate::error::{Error, Result};

/// The disc's label.
const LABEL: &str = "cidata";
/// Longest document.
const LONGEST: usize = 1024 * 1024;

/// What a user asks of the first boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seed {
    /// Host name; the machine's where there is none.
    pub hostname: Option<String>,
    /// A user to make, who may become root.
    pub user: Option<String>,
    /// Keys that open it, as lines of `authorized_keys`.
    pub ssh_keys: Vec<String>,
    /// The user's own document, in place of ours.
    pub user_data: Option<Vec<u8>>,
}

impl Seed {
    /// # Errors
    /// Something makes no sense.
    pub(super) fn check(&self) -> Result<()> {
        if self.user_data.is_some() && (self.user.is_some() || !self.ssh_keys.is_empty()) {
            return Err(Error::invalid_with_hint(
                "--user-data goes with neither --user nor --ssh-key",
                "say in that file who there is to be",
            ));
        }
        if self.user_data.as_ref().is_some_and(|bytes| bytes.len() > LONGEST) {
            return Err(Error::invalid(format!("--user-data is longer than {LONGEST} bytes")));
        }
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
        let is_user = |name: &String| {
            let mut bytes = name.bytes();
            name.len() <= 32
                && bytes.next().is_some_and(letter)
                && bytes.all(|byte| letter(byte) || byte.is_ascii_digit() || byte == b'-')
        };
        if let Some(user) = self.user.as_ref().filter(|user| !is_user(user)) {
            return Err(Error::invalid_with_hint(
                format!("invalid user {user:?}"),
                "at most 32 small letters, digits, hyphens and underscores",
            ));
        }
        let is_host = |name: &String| {
            (1..=63).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
        };
        if let Some(name) = self.hostname.as_ref().filter(|name| !is_host(name)) {
            return Err(Error::invalid_with_hint(
                format!("invalid host name {name:?}"),
                "at most 63 letters, digits, dots and hyphens",
            ));
        }
        match self.ssh_keys.iter().find(|key| key.trim().is_empty() || key.chars().any(char::is_control)) {
            Some(key) => Err(Error::invalid(format!("invalid --ssh-key {key:?}: it is one line"))),
            None => Ok(()),
        }
    }

    fn user_data(&self) -> Vec<u8> {
        if let Some(bytes) = &self.user_data {
            return bytes.clone();
        }
        let mut document = json!({});
        match &self.user {
            Some(name) => {
                document["users"] = json!([{
                    "name": name,
                    "shell": "/bin/bash",
                    "sudo": "ALL=(ALL) NOPASSWD:ALL",
                    "lock_passwd": true,
                    "ssh_authorized_keys": self.ssh_keys,
                }]);
            }
            None if !self.ssh_keys.is_empty() => document["ssh_authorized_keys"] = json!(self.ssh_keys),
            None => {}
        }
        format!("#cloud-config\n{document}\n").into_bytes()
    }
}

/// The disc.
pub(super) fn build(seed: &Seed, record: &Record, endpoints: &[Endpoint]) -> Result<Vec<u8>> {
    let meta = json!({"instance-id": record.id, "local-hostname": record.config.hostname});
    let mut files = vec![("meta-data", format!("{meta}\n").into_bytes()), ("user-data", seed.user_data())];
    if !endpoints.is_empty() {
        files.push(("network-config", format!("{}\n", network(endpoints)).into_bytes()));
    }
    Ok(iso::build(LABEL, &files))
}

/// Version 2 of cloud-init's network configuration.
fn network(endpoints: &[Endpoint]) -> Value {
    let mut ethernets = json!({});
    for endpoint in endpoints {
        let interface = &endpoint.interface;
        let mut document = json!({
            "match": {"macaddress": interface.mac},
            "set-name": interface.name,
            "addresses": interface.addresses,
        });
        for gateway in &interface.gateways {
            document[if gateway.is_ipv4() { "gateway4" } else { "gateway6" }] = json!(gateway);
        }
        // A bridge's gateway is where its names are answered.
        let servers: Vec<_> = endpoint.network.subnets.iter().filter_map(|subnet| subnet.gateway).collect();
        if endpoint.network.driver == Driver::Bridge && !servers.is_empty() {
            document["nameservers"] = json!({"addresses": servers});
        }
        ethernets[&interface.name] = document;
    }
    json!({"version": 2, "ethernets": ethernets})
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_protocol::network::{Interface, Network, Subnet};

    #[test]
    fn documents_say_what_was_asked_for() {
        let seed = Seed {
            user: Some("ada".into()),
            ssh_keys: vec!["ssh-ed25519 AAAA \"x\"".into()],
            ..Seed::default()
        };
        seed.check().unwrap();
        let text = String::from_utf8(seed.user_data()).unwrap();
        let document: Value = serde_json::from_str(text.strip_prefix("#cloud-config\n").unwrap()).unwrap();
        assert_eq!(document["users"][0]["name"], "ada");
        assert_eq!(document["users"][0]["ssh_authorized_keys"][0], "ssh-ed25519 AAAA \"x\"");
        let own = Seed { user_data: Some(b"#!/bin/sh\n".to_vec()), ..Seed::default() };
        assert_eq!(own.user_data(), b"#!/bin/sh\n");
    }

    #[test]
    fn nonsense_is_refused() {
        let wrong = [
            Seed { user: Some("Ada".into()), ..Seed::default() },
            Seed { user: Some("-x".into()), ..Seed::default() },
            Seed { hostname: Some("a b".into()), ..Seed::default() },
            Seed { ssh_keys: vec!["one\ntwo".into()], ..Seed::default() },
            Seed { user: Some("ada".into()), user_data: Some(Vec::new()), ..Seed::default() },
        ];
        assert!(wrong.iter().all(|seed| seed.check().is_err()));
    }

    #[test]
    fn addresses_are_written_out() {
        let endpoint = Endpoint {
            network: Network {
                subnets: vec![Subnet {
                    subnet: "10.1.0.0/20".parse().unwrap(),
                    gateway: Some("10.1.0.1".parse().unwrap()),
                }],
                ..Network::default()
            },
            interface: Interface {
                name: "eth0".into(),
                mac: "02:42:0a:01:00:02".into(),
                addresses: vec!["10.1.0.2/20".parse().unwrap()],
                gateways: vec!["10.1.0.1".parse().unwrap()],
                mtu: 0,
            },
            ..Endpoint::default()
        };
        let expected = json!({"version": 2, "ethernets": {"eth0": {
            "match": {"macaddress": "02:42:0a:01:00:02"}, "set-name": "eth0",
            "addresses": ["10.1.0.2/20"], "gateway4": "10.1.0.1", "nameservers": {"addresses": ["10.1.0.1"]},
        }}});
        assert_eq!(network(&[endpoint]), expected);
    }
}
