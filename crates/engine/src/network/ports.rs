//! `-p`, `--expose`: ports of an instance, and of the host.
//!
//! ```text
//!   [[ADDRESS:][HOST]:]PORT[/PROTOCOL]     HOST and PORT may be ranges of the same length, as 8000-8009
//! ```
//!
//! Without a port of the host the kernel picks one that is free at each start.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proa_protocol::network::Protocol;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Where a port can be reached, as in Docker's `PortBindings`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortBinding {
    /// Address of the host; empty for the default.
    pub host_ip: String,
    /// Port of the host; empty for one that is free.
    pub host_port: String,
}

/// Where each port of an instance (`80/tcp`) can be reached.
pub type PortBindings = BTreeMap<String, Vec<PortBinding>>;

/// Adds what `-p` says.
///
/// # Errors
/// It makes no sense.
pub fn publish(text: &str, bindings: &mut PortBindings) -> Result<()> {
    let wrong = |hint: &str| Error::Invalid {
        message: format!("invalid -p {text:?}"),
        hint: if hint.is_empty() { "[[ADDRESS:][HOSTPORT]:]PORT[/PROTOCOL]".into() } else { hint.into() },
    };
    let (rest, protocol) = split_protocol(text).ok_or_else(|| wrong("the protocol is tcp, udp or sctp"))?;
    let (rest, port) = rest.rsplit_once(':').unwrap_or(("", rest));
    let (address, host) = match rest.rsplit_once(':') {
        // Of an address of IPv6 the colons are in brackets.
        Some((address, host)) if !host.ends_with(']') => (address, host),
        _ if rest.starts_with('[') => (rest, ""),
        _ => ("", rest),
    };
    let address = address.trim_start_matches('[').trim_end_matches(']');
    if !address.is_empty() && address.parse::<IpAddr>().is_err() {
        return Err(wrong("an address of the host is needed before its port, as 127.0.0.1:8080:80"));
    }
    let ports = range(port).ok_or_else(|| wrong(""))?;
    let hosts = if host.is_empty() { None } else { Some(range(host).ok_or_else(|| wrong(""))?) };
    if hosts.as_ref().is_some_and(|hosts| hosts.len() != ports.len()) {
        return Err(wrong("both ranges need the same length"));
    }
    for (number, port) in ports.enumerate() {
        let host_port = match hosts.clone().and_then(|mut hosts| hosts.nth(number)) {
            Some(0) | None => String::new(),
            Some(host) => host.to_string(),
        };
        let binding = PortBinding { host_ip: address.to_owned(), host_port };
        let all = bindings.entry(format!("{port}/{}", protocol.as_str())).or_default();
        if !all.contains(&binding) {
            all.push(binding);
        }
    }
    Ok(())
}

/// The ports that `--expose` names, as `80/tcp`.
///
/// # Errors
/// It makes no sense.
pub fn exposed(text: &str) -> Result<Vec<String>> {
    let wrong = || Error::Invalid {
        message: format!("invalid --expose {text:?}"),
        hint: "PORT[-PORT][/PROTOCOL]".into(),
    };
    let (rest, protocol) = split_protocol(text).ok_or_else(wrong)?;
    let ports = range(rest).ok_or_else(wrong)?;
    Ok(ports.map(|port| format!("{port}/{}", protocol.as_str())).collect())
}

/// Reads `80/tcp`.
///
/// # Errors
/// It has another form.
pub fn port(text: &str) -> Result<(u16, Protocol)> {
    let read = || {
        let (port, protocol) = split_protocol(text)?;
        Some((port.parse().ok().filter(|port| *port > 0)?, protocol))
    };
    read().ok_or_else(|| Error::Invalid {
        message: format!("invalid port {text:?}"),
        hint: "PORT[/PROTOCOL], as 80/tcp".into(),
    })
}

fn split_protocol(text: &str) -> Option<(&str, Protocol)> {
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    Some((rest, protocol))
}

fn range(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let number =
        |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    (first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String, String)>> {
        let mut bindings = PortBindings::new();
        publish(text, &mut bindings)?;
        let flat = bindings.into_iter().flat_map(|(port, all)| {
            all.into_iter().map(move |one| (port.clone(), one.host_ip, one.host_port))
        });
        Ok(flat.collect())
    }

    #[test]
    fn ports_are_read_as_docker_reads_them() {
        for (text, port, address, host) in [
            ("80", "80/tcp", "", ""),
            ("8080:80", "80/tcp", "", "8080"),
            ("8080:80/udp", "80/udp", "", "8080"),
            ("127.0.0.1:8080:80", "80/tcp", "127.0.0.1", "8080"),
            ("127.0.0.1::80/TCP", "80/tcp", "127.0.0.1", ""),
            ("[::1]:8080:80", "80/tcp", "::1", "8080"),
            ("[::1]::80/sctp", "80/sctp", "::1", ""),
            ("0:80", "80/tcp", "", ""),
        ] {
            assert_eq!(read(text).unwrap(), [(port.into(), address.into(), host.into())], "{text}");
        }
        let range = read("7000-7002:80-82").unwrap();
        assert_eq!(range[2], ("82/tcp".into(), String::new(), "7002".into()));
        assert_eq!(range.len(), 3);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "x", "80/icmp", "1-3:80-81", "8080:", "host:80:80", "70000:80", "9-8", "+80", "a:b:c:d"]
        {
            assert!(read(text).is_err(), "{text}");
        }
        assert_eq!(exposed("80-81/udp").unwrap(), ["80/udp", "81/udp"]);
        assert!(exposed("80:80").is_err() && port("0/tcp").is_err() && port("80-81").is_err());
        assert_eq!(port("53/udp").unwrap(), (53, Protocol::Udp));
    }
}
