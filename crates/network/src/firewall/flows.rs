//! Flows of UDP that the kernel remembers from before a port was published, or from after: as long as their clients go
//! on sending, every packet takes the old way. So they are forgotten when the port changes hands.

use std::net::IpAddr;

use proa_protocol::network::{Driver, Live, Protocol, PublishedPort};
use proa_sys::netlink::{ACK, DUMP, Netlink, attribute, attributes};
use rustix::io::Errno;

use super::{Error, transaction};

/// `NFNL_SUBSYS_CTNETLINK << 8`, with `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;
const NESTED: u16 = 0x8000;
/// `struct nfgenmsg`
const HEAD: usize = 4;
/// `CTA_TUPLE_ORIG`, with `CTA_TUPLE_IP` and `CTA_TUPLE_PROTO`.
const ORIGINAL: u16 = 1;
const ADDRESSES: u16 = 1;
const TRANSPORT: u16 = 2;
/// `CTA_IP_V4_DST`, `CTA_IP_V6_DST`
const TO: [u16; 2] = [2, 4];
/// `CTA_PROTO_NUM`, `CTA_PROTO_DST_PORT`
const NUMBER: u16 = 1;
const PORT: u16 = 3;
/// `CTA_ZONE`, in which a flow is looked up, and `CTA_ID`, which tells it from a later one.
const OF_A_FLOW: [u16; 2] = [18, 12];
const FILTER: u16 = 25;
/// `CTA_FILTER_F_CTA_PROTO_NUM | CTA_FILTER_F_CTA_PROTO_DST_PORT`
const BY_PORT: u32 = 1 << 3 | 1 << 5;
const UDP: u8 = 17;

/// Forgets all flows to an instance's published ports.
pub(super) fn forget(netlink: &mut Netlink, live: &Live) -> Result<(), Error> {
    let network = &live.endpoint.network;
    if network.internal || network.driver != Driver::Bridge {
        return Ok(());
    }
    for port in live.endpoint.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        forget_port(netlink, port).map_err(|errno| transaction::refused("to forget flows of UDP", errno))?;
    }
    Ok(())
}

fn forget_port(netlink: &mut Netlink, port: &PublishedPort) -> Result<(), Errno> {
    let family = if port.host_ip.is_ipv4() { 2 } else { 10 };
    let mut query = vec![family, 0, 0, 0];
    let mut transport = Vec::new();
    attribute(&mut transport, NUMBER, &[UDP]);
    attribute(&mut transport, PORT, &port.host_port.to_be_bytes());
    nested(&mut query, ORIGINAL, |original| attribute(original, TRANSPORT | NESTED, &transport));
    nested(&mut query, FILTER, |filter| attribute(filter, 1, &BY_PORT.to_ne_bytes()));
    for (_, flow) in netlink.ask(GET, DUMP, &query)? {
        let found = attributes(&flow, HEAD);
        // An older kernel (before 5.8) tells all of them.
        let Some((_, original)) =
            found.iter().find(|(kind, original)| *kind == ORIGINAL && is_to(original, port))
        else {
            continue;
        };
        let mut removal = vec![family, 0, 0, 0];
        attribute(&mut removal, ORIGINAL | NESTED, original);
        for (kind, value) in found.iter().filter(|(kind, _)| OF_A_FLOW.contains(kind)) {
            attribute(&mut removal, *kind, value);
        }
        match netlink.ask(DELETE, ACK, &removal) {
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Whether a flow is to a published port.
fn is_to(original: &[u8], port: &PublishedPort) -> bool {
    let parts = attributes(original, 0);
    let has = |part: u16, wanted: &[u16], value: &[u8]| {
        let inner = parts.iter().filter(|(kind, _)| *kind == part).flat_map(|(_, part)| attributes(part, 0));
        inner.into_iter().any(|(kind, found)| wanted.contains(&kind) && found == value)
    };
    let is_to_address = match port.host_ip {
        address if address.is_unspecified() => true,
        IpAddr::V4(address) => has(ADDRESSES, &TO, &address.octets()),
        IpAddr::V6(address) => has(ADDRESSES, &TO, &address.octets()),
    };
    is_to_address
        && has(TRANSPORT, &[NUMBER], &[UDP])
        && has(TRANSPORT, &[PORT], &port.host_port.to_be_bytes())
}

fn nested(body: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    attribute(body, kind | NESTED, &inner);
}
