//! Listening sockets of a network: on the host's addresses in it, and only by its bridge; and the bridge's own.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;

use proa_sys::net::bind_to_device;
use proa_sys::packet;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, netdevice, socket_with, sockopt};

use crate::dhcp;
use crate::update::Transport;

/// Where a server of names listens.
const PORT: u16 = 53;
/// Bytes of packets that wait to be read: some thousands.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// The number of an interface; another of the same name has another.
///
/// # Errors
/// There is none.
pub fn interface(name: &str) -> io::Result<u32> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    Ok(netdevice::name_to_index(&socket, name)?)
}

/// Sockets for all of the addresses, and what they are.
///
/// # Errors
/// There is no such interface, or somebody else listens there.
pub fn open(gateways: &[IpAddr], bridge: &str) -> io::Result<Vec<(Transport, OwnedFd)>> {
    let mut sockets = Vec::new();
    for address in gateways {
        sockets.push((Transport::Udp, socket(*address, bridge, SocketType::DGRAM)?));
        sockets.push((Transport::Tcp, socket(*address, bridge, SocketType::STREAM)?));
    }
    Ok(sockets)
}

/// The socket that has what asks for an address on a bridge.
///
/// # Errors
/// The kernel has no sockets of packets.
pub fn open_bridge(index: u32) -> io::Result<(Transport, OwnedFd)> {
    Ok((Transport::Bridge, packet::open(index, &dhcp::keep())?))
}

fn socket(address: IpAddr, bridge: &str, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    bind_to_device(&socket, bridge)?;
    // The bridge may get its address a moment later; and a server for all of the host's addresses may be there.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    let place = match address {
        IpAddr::V4(_) => {
            sockopt::set_ip_freebind(&socket, true)?;
            SocketAddr::new(address, PORT)
        }
        IpAddr::V6(v6) => {
            sockopt::set_ipv6_v6only(&socket, true)?;
            sockopt::set_ipv6_freebind(&socket, true)?;
            let scope = if v6.is_unicast_link_local() { interface(bridge)? } else { 0 };
            SocketAddrV6::new(v6, PORT, 0, scope).into()
        }
    };
    bind(&socket, &place)?;
    if kind == SocketType::STREAM {
        listen(&socket, BACKLOG)?;
    } else if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
        // In a user namespace that is more than allowed, and the usual size has to do.
        sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
    }
    Ok(socket)
}
