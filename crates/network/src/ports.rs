//! Ports of the host that are published.
//!
//! The firewall sends what comes for them to the instance, and no socket is needed for that. But a socket that is bound,
//! and neither listens nor is read, keeps the port from other programs, and tells when one has it already. Those of an
//! ordinary user are served (`forward`): they listen, so that the kernel keeps them from others although connections of a
//! forwarder that ended may still be known.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proa_protocol::network::{Protocol, PublishedPort};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, getsockname, ipproto, listen, socket_with, sockopt,
};

use crate::Error;

/// Keeps a port for as long as it lives.
#[derive(Debug)]
pub struct Reserved(OwnedFd);

impl Reserved {
    /// The port, which the kernel picked where none was named.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn number(&self) -> Result<u16, Error> {
        let address =
            getsockname(&self.0).and_then(SocketAddr::try_from).map_err(Error::call("getsockname"))?;
        Ok(address.port())
    }
}

impl AsFd for Reserved {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Reserves a port, or any that is free where its number is 0; `is_served` says that connections are accepted at it.
///
/// # Errors
/// Somebody else has it, it is root's, or the address is not the host's.
pub fn reserve(port: &PublishedPort, is_served: bool) -> Result<Reserved, Error> {
    let address = SocketAddr::new(port.host_ip, port.host_port);
    let is_tcp = port.protocol == Protocol::Tcp;
    let bound = match bound(address, port.protocol, is_served && is_tcp) {
        // Of a forwarder that ended connections may still be known, which keep nobody from listening.
        Err(Errno::ADDRINUSE) if is_tcp && !is_served => bound(address, port.protocol, true),
        other => other,
    };
    let protocol = port.protocol.as_str();
    match bound {
        Ok(socket) => Ok(Reserved(socket)),
        Err(Errno::ADDRINUSE) => Err(Error::PortInUse { address, protocol }),
        Err(Errno::ACCESS) => Err(Error::PortReserved { address, protocol }),
        Err(Errno::PROTONOSUPPORT) => Err(Error::NoTransport { address, protocol }),
        Err(Errno::ADDRNOTAVAIL) => Err(Error::NotOurAddress { address: port.host_ip }),
        Err(errno) => {
            Err(Error::file("reserve port", format!("{address}/{protocol}"))(io::Error::from(errno)))
        }
    }
}

fn bound(address: SocketAddr, protocol: Protocol, listens: bool) -> rustix::io::Result<OwnedFd> {
    let (kind, protocol) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol))?;
    if address.is_ipv6() {
        // The same port of IPv4 is one of its own.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    sockopt::set_socket_reuseaddr(&socket, listens)?;
    bind(&socket, &address)?;
    if listens {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_port_that_somebody_has_is_refused_and_a_reserved_one_is_kept() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let host_port = other.local_addr().unwrap().port();
        let host_ip = "127.0.0.1".parse().unwrap();
        let port = PublishedPort { protocol: Protocol::Tcp, host_ip, host_port, port: 80 };
        assert!(reserve(&port, false).unwrap_err().to_string().contains("in use"));
        // The same port of another transport is free.
        let udp = reserve(&PublishedPort { protocol: Protocol::Udp, ..port }, false).unwrap();
        drop(other);
        let kept = reserve(&port, false).unwrap();
        assert!(TcpListener::bind(("127.0.0.1", host_port)).is_err());
        assert!(reserve(&port, true).is_err());
        drop((kept, udp));
        let served = reserve(&port, true).unwrap();
        assert!(reserve(&port, true).is_err());
        drop(served);
        let next = TcpListener::bind(("127.0.0.1", host_port)).unwrap();
        // A connection that this side has ended is known for a minute.
        let client = std::net::TcpStream::connect(next.local_addr().unwrap()).unwrap();
        drop(next.accept().unwrap());
        drop((client, next));
        drop(reserve(&port, false).unwrap());
        let far = PublishedPort { host_ip: "192.0.2.1".parse().unwrap(), ..port };
        assert!(reserve(&far, false).unwrap_err().to_string().contains("no address of this host"));
    }
}
