//! Interfaces of the host that move into the container (`linux.netDevices`).
//!
//! The runtime asks for the move from its own network namespace, with the new name in the same request, so that
//! there is no moment at which the interface has a name that is not its own. The kernel takes addresses away on
//! the way: those that somebody has set for good, and that are valid everywhere, are set again from inside. Nothing
//! is moved back: when the container's network namespace goes, physical interfaces return by themselves.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use proa_oci::runtime::{Linux, NamespaceKind, NetDevice};
use proa_sys::netlink::{
    ACK, CREATE, DUMP, GET_ADDRESS, GET_LINK, IFF_UP, IFLA_NET_NS_FD, LINK_HEAD, NEW_ADDRESS, NEW_LINK,
    Netlink, Object, attribute, attributes, link, named, number,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::plan::has_own;
use crate::{Error, Result};

/// Longest name, without its end.
const MAX_NAME: usize = 15;
/// `struct ifaddrmsg`: family, prefix, flags, scope, index.
const ADDRESS_HEAD: usize = 8;
const IFLA_NEW_IFINDEX: u16 = 49;
const IFA_LABEL: u16 = 3;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_F_PERMANENT: u32 = 0x80;
/// Flags that whoever sets an address may choose: no duplicate detection, home, managed temporaries, no route for
/// its prefix, joining of multicast groups.
const IFA_F_CHOSEN: u32 = 0x02 | 0x10 | 0x100 | 0x200 | 0x400;

/// Checks names, and that there is a network namespace to move to.
pub(crate) fn check(linux: &Linux) -> Result<()> {
    if linux.net_devices.is_empty() {
        return Ok(());
    }
    if !has_own(linux, NamespaceKind::Network) {
        return Err(Error::invalid("netDevices need a network namespace of the container's own"));
    }
    for (name, device) in &linux.net_devices {
        let inside = inside(name, device);
        let invalid =
            |name: &str| Err(Error::invalid(format!("netDevices: '{name}' is no interface's name")));
        if !is_name(name) || name.contains('%') {
            return invalid(name);
        }
        if !is_name(inside) || inside.contains('%') && !is_template(inside) {
            return invalid(inside);
        }
    }
    Ok(())
}

/// As the kernel has it.
fn is_name(name: &str) -> bool {
    let is_bad = |byte: u8| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace();
    !name.is_empty() && name.len() <= MAX_NAME && name != "." && name != ".." && !name.bytes().any(is_bad)
}

/// The kernel puts a number that is free in the place of `%d`.
fn is_template(name: &str) -> bool {
    name.matches('%').count() == 1 && name.contains("%d")
}

fn inside<'a>(name: &'a str, device: &'a NetDevice) -> &'a str {
    device.name.as_deref().filter(|name| !name.is_empty()).unwrap_or(name)
}

/// Moves the interfaces into the network namespace of a process that has set up its own.
pub(crate) fn move_all(linux: &Linux, pid: u32) -> Result<()> {
    if linux.net_devices.is_empty() {
        return Ok(());
    }
    let path = format!("/proc/{pid}/ns/net");
    let target = open(&path)?;
    let mut here = Netlink::route().map_err(|errno| Error::call("netlink", errno))?;
    let there = Netlink::route_of(target.as_fd()).map_err(|(call, errno)| Error::call(call, errno));
    let mut there = there.map_err(|error| error.context(&path))?;
    // All of them are looked at before any of them moves.
    let mut indexes = Vec::new();
    for (name, device) in &linux.net_devices {
        let context = |error: Error| error.context(format!("netDevices: {name}"));
        indexes.push(find(&mut here, name).map_err(context)?);
        must_be_free(&mut there, inside(name, device)).map_err(context)?;
    }
    for ((name, device), index) in linux.net_devices.iter().zip(indexes) {
        move_one(&mut here, &mut there, &target, index, inside(name, device))
            .map_err(|error| error.context(format!("netDevices: {name}")))?;
    }
    Ok(())
}

fn open(path: &str) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::at(path, errno))
}

fn find(here: &mut Netlink, name: &str) -> Result<u32> {
    here.link(name).map(|(index, _)| index).map_err(|errno| match errno {
        Errno::NODEV => Error::invalid("the host has no interface of this name"),
        errno => Error::call("find the interface", errno),
    })
}

fn must_be_free(there: &mut Netlink, name: &str) -> Result<()> {
    match there.link(name) {
        _ if is_template(name) => Ok(()),
        Err(Errno::NODEV) => Ok(()),
        Ok(_) => Err(Error::invalid(format!(
            "the container has an interface '{name}' already: choose another name, or a template as 'eth%d'"
        ))),
        Err(errno) => Err(Error::call("find the interface", errno)),
    }
}

fn move_one(here: &mut Netlink, there: &mut Netlink, target: &OwnedFd, index: u32, name: &str) -> Result<()> {
    // Before the move, which takes them away.
    let addresses = lasting_addresses(here, index)?;
    let taken = indexes(there)?;
    // By its number it is found again, whatever the kernel makes of a template.
    let new_index = if taken.contains(&index) { taken.iter().max().map_or(1, |max| max + 1) } else { index };
    let mut body = link(index, 0);
    named(&mut body, name);
    attribute(&mut body, IFLA_NET_NS_FD, &target.as_raw_fd().to_ne_bytes());
    attribute(&mut body, IFLA_NEW_IFINDEX, &new_index.to_ne_bytes());
    here.ask(NEW_LINK, ACK, &body).map_err(|errno| match errno {
        Errno::INVAL => Error::invalid("this interface belongs to its network namespace and cannot move"),
        errno => Error::call("move the interface", errno),
    })?;
    for address in addresses {
        there
            .ask(NEW_ADDRESS, ACK | CREATE, &again(&address, new_index))
            .map_err(|errno| Error::call("set its address again", errno))?;
    }
    there
        .ask(NEW_LINK, ACK, &link(new_index, IFF_UP))
        .map(drop)
        .map_err(|errno| Error::call("switch the interface on", errno))
}

fn indexes(route: &mut Netlink) -> Result<Vec<u32>> {
    let links =
        route.ask(GET_LINK, DUMP, &[0; LINK_HEAD]).map_err(|errno| Error::call("list interfaces", errno))?;
    Ok(links.iter().filter(|(_, link)| link.len() >= LINK_HEAD).map(|(_, link)| number(link, 4)).collect())
}

/// Addresses that were set for good, and are valid everywhere.
fn lasting_addresses(route: &mut Netlink, index: u32) -> Result<Vec<Vec<u8>>> {
    let all = route
        .ask(GET_ADDRESS, DUMP, &[0; ADDRESS_HEAD])
        .map_err(|errno| Error::call("list addresses", errno))?;
    let is_lasting = |(kind, address): &Object| {
        *kind == NEW_ADDRESS
            && address.len() >= ADDRESS_HEAD
            && number(address, 4) == index
            && address[3] == 0
            && flags(address) & IFA_F_PERMANENT != 0
    };
    Ok(all.into_iter().filter(is_lasting).map(|(_, address)| address).collect())
}

fn flags(address: &[u8]) -> u32 {
    let all = attributes(address, ADDRESS_HEAD).into_iter().find(|(kind, _)| *kind == IFA_FLAGS);
    all.filter(|(_, value)| value.len() == 4).map_or(u32::from(address[2]), |(_, value)| number(value, 0))
}

/// The request that sets an address again, with all that belongs to it but what names the interface or says how old
/// it is.
fn again(address: &[u8], index: u32) -> Vec<u8> {
    let mut body = vec![address[0], address[1], 0, address[3]];
    body.extend(index.to_ne_bytes());
    for (kind, value) in attributes(address, ADDRESS_HEAD) {
        if !matches!(kind, IFA_LABEL | IFA_CACHEINFO | IFA_FLAGS) {
            attribute(&mut body, kind, value);
        }
    }
    attribute(&mut body, IFA_FLAGS, &(flags(address) & IFA_F_CHOSEN).to_ne_bytes());
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_oci::runtime::Namespace;

    fn linux(name: &str, inside: Option<&str>) -> Linux {
        let mut linux = Linux::default();
        linux.namespaces.push(Namespace { kind: NamespaceKind::Network, path: None });
        linux.net_devices.insert(name.into(), NetDevice { name: inside.map(ToOwned::to_owned) });
        linux
    }

    #[test]
    fn names_are_the_kernels() {
        for (name, inside) in [("eth0", None), ("eth0", Some("net%d")), ("a.b-c", Some("x"))] {
            check(&linux(name, inside)).unwrap();
        }
        for (name, inside) in [
            ("", None),
            ("a/b", None),
            ("a b", None),
            ("eth%d", None),
            ("0123456789abcdef", None),
            ("eth0", Some("..")),
            ("eth0", Some("a%s")),
            ("eth0", Some("a%d%d")),
        ] {
            assert!(check(&linux(name, inside)).is_err(), "{name} {inside:?}");
        }
        let hosts = Linux { namespaces: Vec::new(), ..linux("eth0", None) };
        assert!(check(&hosts).unwrap_err().to_string().contains("network namespace"));
    }

    #[test]
    fn an_address_is_set_again_without_its_age_and_label() {
        let mut address = vec![2, 24, 0x80, 0, 7, 0, 0, 0];
        attribute(&mut address, 2, &[10, 0, 0, 1]);
        attribute(&mut address, IFA_LABEL, b"eth0\0");
        attribute(&mut address, IFA_CACHEINFO, &[1; 16]);
        attribute(&mut address, IFA_FLAGS, &(IFA_F_PERMANENT | 0x200).to_ne_bytes());
        let body = again(&address, 9);
        assert_eq!((body[1], number(&body, 4)), (24, 9));
        let expected: [(u16, &[u8]); 2] = [(2, &[10, 0, 0, 1]), (IFA_FLAGS, &0x200_u32.to_ne_bytes())];
        assert_eq!(attributes(&body, ADDRESS_HEAD), expected);
    }
}
