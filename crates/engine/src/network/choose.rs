//! Subnets: those that were asked for, checked, and free ones where none were.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::rand::{GetRandomFlags, getrandom};

use super::{NetworkRecord, SubnetConfig};
use crate::error::{Error, Result};

/// Where subnets come from by themselves: each is a `/20`, 4094 addresses, of the range that RFC 1918 sets aside
/// and that routers at home and in offices use least.
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12);
const LENGTH: u8 = 20;
/// Not from the pool's start, where other engines take theirs.
const FIRST: usize = 128;

/// Gives the network subnets where it has none, and each subnet a gateway; refuses what others have.
pub(super) fn complete(record: &mut NetworkRecord, others: &[NetworkRecord]) -> Result<()> {
    let mut taken: Vec<IpNet> =
        others.iter().flat_map(|other| &other.subnets).map(|config| config.subnet).collect();
    taken.extend(routes());
    let has = |record: &NetworkRecord, four: bool| {
        record.subnets.iter().any(|config| config.subnet.addr().is_ipv4() == four)
    };
    if !has(record, true) {
        let subnet = free_subnet(&taken)?;
        record.subnets.insert(0, SubnetConfig::new(IpNet::V4(subnet)));
    }
    if record.ipv6 && !has(record, false) {
        record.subnets.push(SubnetConfig::new(IpNet::V6(unique_local()?)));
    }
    let is_macvlan = record.driver == proa_protocol::network::Driver::Macvlan;
    let mut seen = [false; 2];
    for config in &mut record.subnets {
        let place = usize::from(config.subnet.addr().is_ipv6());
        if std::mem::replace(&mut seen[place], true) {
            return Err(Error::invalid("a network has at most one subnet of each IP version"));
        }
        config.check()?;
        // That of a macvlan is the network outside, which the host has a route to.
        if let Some(other) = taken.iter().find(|other| !is_macvlan && overlap(other, &config.subnet)) {
            return Err(Error::Conflict {
                message: format!(
                    "subnet {} overlaps with {other}, which this host has a route to",
                    config.subnet
                ),
                hint: "choose another with --subnet, or leave it out".into(),
            });
        }
    }
    Ok(())
}

impl SubnetConfig {
    /// A subnet with nothing else said.
    pub fn new(subnet: IpNet) -> Self {
        Self {
            subnet: subnet.trunc(),
            gateway: None,
            range: None,
            reserved: std::collections::BTreeMap::new(),
        }
    }

    fn check(&mut self) -> Result<()> {
        let least = if self.subnet.addr().is_ipv4() { 30 } else { 126 };
        if self.subnet.prefix_len() > least {
            return Err(Error::invalid(format!("subnet {} has no room for instances", self.subnet)));
        }
        let gateway = *self.gateway.get_or_insert_with(|| address_at(&self.subnet, 1));
        let named = std::iter::once(gateway).chain(self.reserved.values().copied());
        if let Some(outside) = named.into_iter().find(|address| !self.subnet.contains(address)) {
            return Err(Error::invalid(format!("{outside} is not in subnet {}", self.subnet)));
        }
        if let Some(range) = self.range.filter(|range| !self.subnet.contains(range)) {
            return Err(Error::invalid(format!("--ip-range {range} is not in subnet {}", self.subnet)));
        }
        Ok(())
    }
}

/// The address at an offset from a subnet's first.
pub(super) fn address_at(subnet: &IpNet, offset: u64) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits().wrapping_add(offset as u32)).into(),
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits().wrapping_add(offset.into())).into(),
    }
}

/// How far an address is from its subnet's first; `None` beyond what a database's number holds.
pub(super) fn offset_of(subnet: &IpNet, address: IpAddr) -> Option<u64> {
    match (subnet.network(), address) {
        (IpAddr::V4(first), IpAddr::V4(address)) => {
            Some(u64::from(address.to_bits().checked_sub(first.to_bits())?))
        }
        (IpAddr::V6(first), IpAddr::V6(address)) => {
            let offset = address.to_bits().checked_sub(first.to_bits())?;
            u64::try_from(offset).ok().filter(|offset| i64::try_from(*offset).is_ok())
        }
        _ => None,
    }
}

fn free_subnet(taken: &[IpNet]) -> Result<Ipv4Net> {
    let pool: Vec<Ipv4Net> =
        POOL.subnets(LENGTH).map(Iterator::collect).map_err(|error| Error::invalid(error.to_string()))?;
    let (low, high) = pool.split_at(FIRST);
    let is_free = |subnet: &&Ipv4Net| !taken.iter().any(|other| overlap(other, &IpNet::V4(**subnet)));
    high.iter().chain(low).find(is_free).copied().ok_or_else(|| {
        Error::conflict(
            format!("no subnet of {POOL} is free"),
            "name one with --subnet, or `proa network prune`",
        )
    })
}

/// A random /64 of RFC 4193.
fn unique_local() -> Result<Ipv6Net> {
    let mut bytes = [0; 16];
    getrandom(&mut bytes[1..6], GetRandomFlags::empty())
        .map_err(|errno| Error::io("read", std::path::Path::new("/dev/urandom"), errno))?;
    bytes[0] = 0xfd;
    Ipv6Net::new(Ipv6Addr::from(bytes), 64).map_err(|error| Error::invalid(error.to_string()))
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    // A default route leads everywhere, and says nothing of who is there.
    one.prefix_len() > 0 && (one.contains(other) || other.contains(one))
}

/// Where the host knows a way to.
fn routes() -> Vec<IpNet> {
    let version_4 = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let version_6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let routes_4 = version_4.lines().skip(1).filter_map(route_4).map(IpNet::V4);
    // Link-local and multicast prefixes are everywhere.
    let routes_6 = version_6.lines().filter_map(route_6).filter(|net| net.addr().segments()[0] < 0xfe00);
    routes_4.chain(routes_6.map(IpNet::V6)).collect()
}

/// Interface, destination, gateway, flags, three numbers, mask: hexadecimal in the host's order of bytes.
fn route_4(line: &str) -> Option<Ipv4Net> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::from_be);
    let (address, mask) = (number(fields.get(1)?)?, number(fields.get(7)?)?);
    Ipv4Net::with_netmask(Ipv4Addr::from_bits(address), Ipv4Addr::from_bits(mask)).ok()
}

/// Destination and the length of its prefix, hexadecimal.
fn route_6(line: &str) -> Option<Ipv6Net> {
    let mut fields = line.split_whitespace();
    let address = u128::from_str_radix(fields.next()?, 16).ok()?;
    let length = u8::from_str_radix(fields.next()?, 16).ok()?;
    Ipv6Net::new(Ipv6Addr::from_bits(address), length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_free_subnet_is_one_that_nobody_has() {
        assert_eq!(free_subnet(&[net("0.0.0.0/0")]).unwrap().to_string(), "172.24.0.0/20");
        let taken = [net("172.24.0.0/14"), net("172.28.7.0/24")];
        assert_eq!(free_subnet(&taken).unwrap().to_string(), "172.28.16.0/20");
        assert!(free_subnet(&[net("172.16.0.0/12")]).is_err());
    }

    #[test]
    fn subnets_are_checked_and_have_gateways() {
        let with = |config: SubnetConfig| {
            let mut record = NetworkRecord { subnets: vec![config], ..NetworkRecord::default() };
            complete(&mut record, &[]).map(|()| record)
        };
        let record = with(SubnetConfig::new(net("198.18.7.9/24"))).unwrap();
        assert_eq!(record.subnets[0].subnet, net("198.18.7.0/24"));
        assert_eq!(record.subnets[0].gateway, Some("198.18.7.1".parse().unwrap()));
        assert!(with(SubnetConfig::new(net("198.18.7.0/31"))).is_err());
        let outside = Some("10.9.9.9".parse().unwrap());
        assert!(with(SubnetConfig { gateway: outside, ..SubnetConfig::new(net("198.18.7.0/24")) }).is_err());
        let both = with(SubnetConfig::new(net("fd00:7::/64"))).unwrap();
        assert_eq!(both.subnets.len(), 2);
        let mut again = NetworkRecord {
            subnets: vec![SubnetConfig::new(net("198.18.7.128/25"))],
            ..NetworkRecord::default()
        };
        assert!(complete(&mut again, &[record]).unwrap_err().to_string().contains("overlaps"));
    }

    #[test]
    fn offsets_are_taken_back() {
        for (subnet, address) in [("10.1.16.0/20", "10.1.17.3"), ("fd00::/64", "fd00::1:2")] {
            let (subnet, address): (IpNet, IpAddr) = (net(subnet), address.parse().unwrap());
            assert_eq!(address_at(&subnet, offset_of(&subnet, address).unwrap()), address);
        }
        assert_eq!(offset_of(&net("fd00::/64"), "fd00::8000:0:0:1".parse().unwrap()), None);
    }

    #[test]
    fn routes_of_the_kernel_are_read() {
        let line = "eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0";
        assert_eq!(route_4(line).unwrap().to_string(), "192.168.0.0/24");
        let line = "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 0 0 0 0 eth0";
        assert_eq!(route_6(line).unwrap().to_string(), "fd00::/64");
        assert!(route_4("Iface Destination").is_none());
    }
}
