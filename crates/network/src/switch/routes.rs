//! What a fresh namespace of a user's needs beside bridges: its loopback interface, and a way back for the answers to
//! sockets that have the addresses of clients elsewhere.
//!
//! ```text
//!   forwarder's socket, bound to the client's address, marked ─▶ instance     the flow gets the mark
//!   instance ─▶ to the client's address: a flow with that mark ─▶ rule ─▶ table of local routes ─▶ the socket
//! ```

use proa_sys::netlink::{ACK, CREATE, Netlink, Request, attribute};

use crate::Error;
use crate::firewall;

/// On packets of the forwarders' sockets, and on their flows.
pub(crate) const MARK: u32 = 0x7072_6f61;
/// On packets that answer them.
const ANSWER: u32 = MARK + 1;
/// The table with the local routes.
const TABLE: u8 = 77;

const NEW_ROUTE: u16 = 24;
const NEW_RULE: u16 = 32;
const RTA_OIF: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const PRIORITY: u32 = 77;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTPROT_STATIC: u8 = 4;
const SCOPE_HOST: u8 = 254;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The loopback interface is the first of each namespace.
const LOOPBACK: u32 = 1;

/// Prepares the caller's namespace, which is fresh.
///
/// # Errors
/// The kernel or nft refuses.
pub(super) fn prepare() -> Result<(), Error> {
    proa_sys::net::loopback_up().map_err(Error::file("switch on", "lo"))?;
    let mut netlink = Netlink::route().map_err(Error::call("netlink"))?;
    let families: &[u8] = if crate::link::has_version_6() { &[AF_INET, AF_INET6] } else { &[AF_INET] };
    let requests: Vec<Request> =
        families.iter().flat_map(|family| [local_route(*family), rule(*family)]).collect();
    netlink.order(&requests).map_err(|(_, errno)| Error::call("route answers to clients")(errno))?;
    firewall::run_script(&script())?;
    Ok(())
}

fn script() -> String {
    format!(
        "table inet proa_switch {{\n\
         chain output {{\n type filter hook output priority mangle; policy accept;\n\
         meta mark {MARK} ct mark set {MARK}\n }}\n\
         chain prerouting {{\n type filter hook prerouting priority mangle; policy accept;\n\
         ct mark {MARK} ct direction reply meta mark set {ANSWER}\n }}\n}}\n"
    )
}

/// `struct rtmsg`: family, lengths of prefixes, type of service, table, who says so, scope, kind, flags.
fn local_route(family: u8) -> Request {
    let mut body = vec![family, 0, 0, 0, TABLE, RTPROT_STATIC, SCOPE_HOST, RTN_LOCAL, 0, 0, 0, 0];
    attribute(&mut body, RTA_OIF, &LOOPBACK.to_ne_bytes());
    Request { kind: NEW_ROUTE, flags: ACK | CREATE, body }
}

/// `struct fib_rule_hdr`: the same but for two reserved bytes, and what is done: another table is asked.
fn rule(family: u8) -> Request {
    let mut body = vec![family, 0, 0, 0, TABLE, 0, 0, RTN_UNICAST, 0, 0, 0, 0];
    attribute(&mut body, FRA_PRIORITY, &PRIORITY.to_ne_bytes());
    attribute(&mut body, FRA_FWMARK, &ANSWER.to_ne_bytes());
    Request { kind: NEW_RULE, flags: ACK | CREATE, body }
}
