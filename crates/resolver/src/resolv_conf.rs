//! The servers that the host asks, as `resolv.conf(5)` names them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Where a server listens.
const PORT: u16 = 53;
/// Most servers that are taken.
const MAX_SERVERS: usize = 3;

/// Reads the file's text. Where it names none, the host asks itself.
pub fn parse(text: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = text.lines().filter_map(server).take(MAX_SERVERS).collect();
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, PORT).into());
    }
    servers
}

fn server(line: &str) -> Option<SocketAddr> {
    let mut words = line.split_ascii_whitespace();
    if words.next()? != "nameserver" {
        return None;
    }
    let text = words.next()?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((address, PORT).into());
    }
    let (address, scope) = text.split_once('%')?;
    let address: Ipv6Addr = address.parse().ok()?;
    Some(SocketAddrV6::new(address, PORT, 0, scope_id(scope)?).into())
}

/// The number of the interface that a link's own address is of.
fn scope_id(scope: &str) -> Option<u32> {
    let is_name = !scope.is_empty() && !scope.contains('/') && !scope.starts_with('.');
    let read = || std::fs::read_to_string(format!("/sys/class/net/{scope}/ifindex")).ok();
    scope.parse().ok().or_else(|| is_name.then(read)??.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_and_all_else_is_not() {
        let text = "# c\nsearch lan\nnameserver 10.0.0.1\n nameserver  fd00::1 # x\nnameserver what\n\
                    nameserver fe80::1%7\noptions ndots:1\nnameserver 10.0.0.4\n";
        let servers: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.1:53", "[fd00::1]:53", "[fe80::1%7]:53"]);
        assert_eq!(parse(""), ["127.0.0.1:53".parse().unwrap()]);
        assert_eq!(parse("nameserver fe80::1%../../x\n"), ["127.0.0.1:53".parse().unwrap()]);
    }
}
