//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of an instance.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use proa_oci::runtime::Mount;

use super::Network;
use crate::config::{ContainerConfig, HostConfig};
use crate::error::{Error, Result};

/// Path and text of each; a path that the user mounts something on is the user's.
pub(super) fn build(
    config: &ContainerConfig,
    host: &HostConfig,
    network: Network,
    hostname: &str,
    mounts: &[Mount],
) -> Result<BTreeMap<String, String>> {
    let texts = [
        ("/etc/hosts", hosts(config, host, network, hostname)?),
        ("/etc/hostname", format!("{hostname}\n")),
        ("/etc/resolv.conf", resolv_conf(host, network)?),
    ];
    let free = |path: &str| !mounts.iter().any(|mount| mount.destination == path);
    Ok(texts.into_iter().filter(|(path, _)| free(path)).map(|(path, text)| (path.to_owned(), text)).collect())
}

fn hosts(config: &ContainerConfig, host: &HostConfig, network: Network, hostname: &str) -> Result<String> {
    let mut text = match network {
        Network::Host => read("/etc/hosts")?,
        Network::None | Network::Shared => own_hosts(config, hostname),
        Network::Own => LOCAL_HOSTS.to_owned(),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for entry in &host.extra_hosts {
        match parse_extra_host(entry)? {
            (name, Some(address)) => drop(writeln!(text, "{address}\t{name}")),
            // Known when the instance has its place in a network.
            (_, None) if network == Network::Own => {}
            (_, None) => {
                return Err(Error::invalid(format!("--add-host {entry:?} needs a network with a gateway")));
            }
        }
    }
    Ok(text)
}

fn own_hosts(config: &ContainerConfig, hostname: &str) -> String {
    let names = match config.domainname.as_str() {
        "" => hostname.to_owned(),
        domain => format!("{hostname}.{domain} {hostname}"),
    };
    format!("{LOCAL_HOSTS}127.0.1.1\t{names}\n")
}

const LOCAL_HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
    ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

/// Reads `name:address` or `name=address` of `--add-host`; no address stands for `host-gateway`.
///
/// # Errors
/// It has another form.
pub(crate) fn parse_extra_host(text: &str) -> Result<(&str, Option<IpAddr>)> {
    let wrong =
        |hint: &str| Error::Invalid { message: format!("invalid --add-host {text:?}"), hint: hint.into() };
    let at = text.find(['=', ':']).ok_or_else(|| wrong("NAME:ADDRESS"))?;
    let (name, address) = (&text[..at], &text[at + 1..]);
    if address == "host-gateway" {
        return Ok((name, None));
    }
    let address = address.trim_start_matches('[').trim_end_matches(']');
    match address.parse() {
        Ok(address) if !name.is_empty() && !name.contains(char::is_whitespace) => Ok((name, Some(address))),
        _ => Err(wrong("NAME:ADDRESS")),
    }
}

fn resolv_conf(host: &HostConfig, network: Network) -> Result<String> {
    let given = !host.dns.is_empty() || !host.dns_search.is_empty() || !host.dns_options.is_empty();
    if network == Network::Host && !given {
        return read("/etc/resolv.conf");
    }
    let servers = host.dns.iter().map(|server| {
        server.parse().map_err(|_| Error::invalid(format!("invalid --dns {server:?}: not an address")))
    });
    write_resolv_conf(host, &servers.collect::<Result<Vec<IpAddr>>>()?, &host.dns_search)
}

/// That of an instance which asks the resolver of its networks, at these addresses. What `--dns` names is asked by
/// the resolver; domains are searched as on the host, unless others are given.
pub(crate) fn resolv_conf_of(host: &HostConfig, servers: &[IpAddr]) -> Result<String> {
    let search = if host.dns_search.is_empty() { hosts_search()? } else { host.dns_search.clone() };
    write_resolv_conf(host, servers, &search)
}

fn hosts_search() -> Result<Vec<String>> {
    let text = read("/etc/resolv.conf")?;
    let last = text.lines().rev().find_map(|line| {
        let mut words = line.split_whitespace();
        matches!(words.next(), Some("search" | "domain")).then(|| words.map(ToOwned::to_owned).collect())
    });
    Ok(last.unwrap_or_default())
}

fn write_resolv_conf(host: &HostConfig, servers: &[IpAddr], search: &[String]) -> Result<String> {
    // A lone dot says that nothing is to be searched.
    let search: Vec<String> = search.iter().filter(|domain| *domain != ".").cloned().collect();
    let mut text = list("search", "--dns-search", &search)?;
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    text.push_str(&list("options", "--dns-option", &host.dns_options)?);
    Ok(text)
}

/// A line of words, or none.
fn list(keyword: &str, flag: &str, words: &[String]) -> Result<String> {
    let one_word = |word: &str| !word.is_empty() && !word.contains(char::is_whitespace);
    match words.iter().find(|word| !one_word(word)) {
        Some(wrong) => Err(Error::invalid(format!("invalid {flag} {wrong:?}"))),
        None if words.is_empty() => Ok(String::new()),
        None => Ok(format!("{keyword} {}\n", words.join(" "))),
    }
}

fn read(path: &str) -> Result<String> {
    let path = Path::new(path);
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::io("read", path, error)),
    }
}
