//! Elements that come and go, in the kernel's own messages: no program is started for them.

use proa_sys::netlink::{ACK, Netlink, Request, attribute};
use rustix::io::Errno;

use super::element::Element;
use super::{Error, Family, nft, value};

/// `NFNL_SUBSYS_NFTABLES`
const NFTABLES: u8 = 10;
const NEW_TABLE: u8 = 0;
const DELETE_TABLE: u8 = 2;
const GET_CHAIN: u8 = 4;
const NEW_ELEMENT: u8 = 12;
const DELETE_ELEMENT: u8 = 14;
/// `NFT_MSG_DESTROYSETELEM`: deletes what may be gone; Linux 6.3.
const DESTROY_ELEMENT: u8 = 30;
/// `NLM_F_CREATE` without `NLM_F_EXCL`: one that is there already will do.
const CREATE: u16 = 0x400;
/// `NLA_F_NESTED`
const NESTED: u16 = 0x8000;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, and `NFTA_SET_ELEM_LIST_TABLE`.
const TABLE: u16 = 1;

/// Adds elements, all or none; those that are there already are no error.
pub(super) fn add(netlink: &mut Netlink, name: &str, elements: &[Element]) -> Result<(), Error> {
    let requests: Vec<Request> =
        elements.iter().map(|element| request(NEW_ELEMENT, CREATE, name, element)).collect();
    netlink.transact(NFTABLES, &requests).map_err(|(place, errno)| match errno {
        Errno::NOENT => Error::NoTable { name: name.to_owned() },
        Errno::EXIST | Errno::BUSY => Error::Taken { key: value::text(&elements[place].key) },
        errno => refused("a new element", errno),
    })
}

/// Removes elements; those that are gone already are no error.
pub(super) fn remove(netlink: &mut Netlink, name: &str, elements: &[Element]) -> Result<(), Error> {
    let requests: Vec<Request> =
        elements.iter().map(|element| request(DESTROY_ELEMENT, 0, name, element)).collect();
    match netlink.transact(NFTABLES, &requests) {
        Ok(()) => Ok(()),
        Err((_, Errno::NOENT)) => Err(Error::NoTable { name: name.to_owned() }),
        // An older kernel does not know the request.
        Err((_, Errno::INVAL)) => remove_one_by_one(netlink, name, elements),
        Err((_, errno)) => Err(refused("the removal of elements", errno)),
    }
}

/// Removes elements where the kernel takes one that is gone for an error, which would undo the whole transaction.
fn remove_one_by_one(netlink: &mut Netlink, name: &str, elements: &[Element]) -> Result<(), Error> {
    if !is_installed(netlink, name)? {
        return Err(Error::NoTable { name: name.to_owned() });
    }
    for element in elements {
        match netlink.transact(NFTABLES, &[request(DELETE_ELEMENT, 0, name, element)]) {
            Ok(()) | Err((_, Errno::NOENT)) => {}
            Err((_, errno)) => return Err(refused("the removal of an element", errno)),
        }
    }
    Ok(())
}

/// Whether both tables are there, with the rules of this version.
pub(super) fn is_installed(netlink: &mut Netlink, name: &str) -> Result<bool, Error> {
    for family in [Family::Inet, Family::Bridge] {
        let mut body = header(family);
        string(&mut body, TABLE, name);
        // `NFTA_CHAIN_NAME`
        string(&mut body, 3, &nft::version());
        match netlink.ask(kind(GET_CHAIN), ACK, &body) {
            Ok(_) => {}
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(refused("the search for the tables", errno)),
        }
    }
    Ok(true)
}

/// Removes both tables; those that are gone already are no error.
pub(super) fn remove_tables(netlink: &mut Netlink, name: &str) -> Result<(), Error> {
    for family in [Family::Inet, Family::Bridge] {
        match netlink.transact(NFTABLES, &[table(DELETE_TABLE, 0, family, name)]) {
            Ok(()) | Err((_, Errno::NOENT | Errno::OPNOTSUPP | Errno::AFNOSUPPORT)) => {}
            Err((_, errno)) => return Err(refused("the removal of a table", errno)),
        }
    }
    Ok(())
}

/// Whether the kernel filters frames of bridges: makes a table for that, and takes it away in the same transaction.
pub(super) fn has_bridges(netlink: &mut Netlink, name: &str) -> Result<bool, Error> {
    let name = format!("{name}_probe");
    let requests =
        [table(NEW_TABLE, CREATE, Family::Bridge, &name), table(DELETE_TABLE, 0, Family::Bridge, &name)];
    match netlink.transact(NFTABLES, &requests) {
        Ok(()) => Ok(true),
        Err((_, Errno::OPNOTSUPP | Errno::AFNOSUPPORT)) => Ok(false),
        Err((_, errno)) => Err(refused("a table for bridges", errno)),
    }
}

/// A socket of the caller's network namespace.
pub(super) fn open() -> Result<Netlink, Error> {
    Netlink::netfilter().map_err(|errno| refused("a socket for the firewall", errno))
}

pub(super) fn refused(what: &'static str, errno: Errno) -> Error {
    Error::Kernel { what, source: errno.into() }
}

fn table(message: u8, flags: u16, family: Family, name: &str) -> Request {
    let mut body = header(family);
    string(&mut body, TABLE, name);
    Request { kind: kind(message), flags, body }
}

/// `NFTA_SET_ELEM_LIST_*`, of one element.
fn request(message: u8, flags: u16, name: &str, element: &Element) -> Request {
    let mut parts = Vec::new();
    data(&mut parts, 1, &value::bytes(&element.key));
    // What a key leads to is no part of what is to be removed.
    if message == NEW_ELEMENT && !element.data.is_empty() {
        data(&mut parts, 2, &value::bytes(&element.data));
    }
    let mut list = Vec::new();
    attribute(&mut list, 1 | NESTED, &parts);
    let mut body = header(element.family);
    string(&mut body, TABLE, name);
    string(&mut body, 2, element.set);
    attribute(&mut body, 3 | NESTED, &list);
    Request { kind: kind(message), flags, body }
}

/// `NFTA_DATA_VALUE` in an attribute of its own.
fn data(parts: &mut Vec<u8>, attribute_kind: u16, bytes: &[u8]) {
    let mut inner = Vec::new();
    attribute(&mut inner, 1, bytes);
    attribute(parts, attribute_kind | NESTED, &inner);
}

fn string(body: &mut Vec<u8>, kind: u16, text: &str) {
    attribute(body, kind, format!("{text}\0").as_bytes());
}

/// `struct nfgenmsg`
fn header(family: Family) -> Vec<u8> {
    vec![family as u8, 0, 0, 0]
}

fn kind(message: u8) -> u16 {
    u16::from_be_bytes([NFTABLES, message])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::value::Value;

    #[test]
    fn an_older_kernel_removes_elements_one_by_one() {
        let elsewhere = || {
            proa_sys::process::unshare_namespaces(0x4000_0000).expect("this test needs root");
            let mut netlink = open().unwrap();
            let element = |name: &str| Element {
                family: Family::Inet,
                set: "bridges",
                key: vec![Value::Name(name.into())],
                data: Vec::new(),
            };
            let (here, gone) = (element("br1"), element("br2"));
            let both = [gone, here.clone()];
            assert!(matches!(remove_one_by_one(&mut netlink, "proa", &both), Err(Error::NoTable { .. })));
            nft::install("proa", vec![here.clone()]).unwrap();
            remove_one_by_one(&mut netlink, "proa", &both).unwrap();
            let removal = [request(DELETE_ELEMENT, 0, "proa", &here)];
            assert_eq!(netlink.transact(NFTABLES, &removal), Err((0, Errno::NOENT)));
        };
        std::thread::spawn(elsewhere).join().unwrap();
    }
}
