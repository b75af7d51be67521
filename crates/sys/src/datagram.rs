//! Packets of UDP with the address of this host that they were sent to, so that an answer can come from there.

use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

use crate::net::set_number;

/// Room for one `in_pktinfo` or `in6_pktinfo` with its head, and aligned as those are.
type Control = [u64; 8];

/// Has the socket tell to which address a packet was sent (`ip(7)`, `IP_PKTINFO`; `ipv6(7)`).
///
/// # Errors
/// It is no socket of that IP version.
pub fn tell_destination(socket: impl AsFd, is_version_4: bool) -> io::Result<()> {
    let (level, name) = if is_version_4 {
        (libc::SOL_IP, libc::IP_PKTINFO)
    } else {
        (libc::SOL_IPV6, libc::IPV6_RECVPKTINFO)
    };
    set_number(socket, level, name, 1)
}

/// Receives a packet: its length, who has sent it, and to which address, where the socket tells.
///
/// # Errors
/// There is none, or one that was sent has come back as an error.
pub fn receive(socket: impl AsFd, packet: &mut [u8]) -> io::Result<(usize, SocketAddr, Option<IpAddr>)> {
    let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut control: Control = [0; 8];
    let mut part = libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() };
    // SAFETY: msghdr is plain data for which zero is valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    // SAFETY: everything that the message points to lives through the call and is as long as it says.
    let length = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: zeroed, and then written by the kernel: initialized.
    let from = address(unsafe { name.assume_init_ref() })?;
    Ok((length, from, destination(&message)))
}

/// Sends a packet, from that address where one is named; how many bytes of it were taken.
///
/// # Errors
/// There is no way, or the address is not this host's any more.
pub fn send(socket: impl AsFd, packet: &[u8], to: SocketAddr, from: Option<IpAddr>) -> io::Result<usize> {
    let mut name = storage(to);
    let mut control: Control = [0; 8];
    let mut part = libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
    // SAFETY: as above.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = match to {
        SocketAddr::V4(_) => size_of::<libc::sockaddr_in>() as libc::socklen_t,
        SocketAddr::V6(_) => size_of::<libc::sockaddr_in6>() as libc::socklen_t,
    };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    message.msg_controllen = match from {
        Some(IpAddr::V4(from)) => {
            // The kernel picks the interface.
            let source = libc::in_addr { s_addr: u32::from(from).to_be() };
            let none = libc::in_addr { s_addr: 0 };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: none };
            attach(&message, libc::SOL_IP, libc::IP_PKTINFO, info)
        }
        Some(IpAddr::V6(from)) => {
            let source = libc::in6_addr { s6_addr: from.octets() };
            let info = libc::in6_pktinfo { ipi6_addr: source, ipi6_ifindex: 0 };
            attach(&message, libc::SOL_IPV6, libc::IPV6_PKTINFO, info)
        }
        None => 0,
    } as _;
    // SAFETY: as above; the kernel reads alone.
    let length = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

/// Writes the only ancillary message; how long it is.
fn attach<T: Copy>(message: &libc::msghdr, level: i32, kind: i32, value: T) -> u32 {
    let length = size_of::<T>() as u32;
    // SAFETY: `Control` has room for the head and either value, which the caller says by `msg_controllen`, so that the
    // first head is not null and inside.
    unsafe {
        let head = libc::CMSG_FIRSTHDR(message);
        (*head).cmsg_level = level;
        (*head).cmsg_type = kind;
        (*head).cmsg_len = libc::CMSG_LEN(length) as _;
        libc::CMSG_DATA(head).cast::<T>().write_unaligned(value);
        libc::CMSG_SPACE(length)
    }
}

/// What the kernel has told of the destination. For a packet to everybody it is the address to answer from.
fn destination(message: &libc::msghdr) -> Option<IpAddr> {
    // SAFETY: the kernel has written heads as long as it says into the control buffer of this message, which is alive.
    unsafe {
        let mut head = libc::CMSG_FIRSTHDR(message);
        while let Some(found) = head.as_ref() {
            let data = libc::CMSG_DATA(head);
            match (found.cmsg_level, found.cmsg_type) {
                (libc::SOL_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    return Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into());
                }
                (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    return (!address.is_multicast()).then_some(address.into());
                }
                _ => head = libc::CMSG_NXTHDR(message, head),
            }
        }
    }
    None
}

fn address(storage: &libc::sockaddr_storage) -> io::Result<SocketAddr> {
    let start = std::ptr::from_ref(storage);
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: a `sockaddr_storage` has room for each of them and their alignment, and the family says which.
            let it = unsafe { &*start.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(it.sin_addr.s_addr));
            Ok(SocketAddrV4::new(ip, u16::from_be(it.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let it = unsafe { &*start.cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(it.sin6_addr.s6_addr);
            let port = u16::from_be(it.sin6_port);
            Ok(SocketAddrV6::new(ip, port, it.sin6_flowinfo, it.sin6_scope_id).into())
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn storage(address: SocketAddr) -> libc::sockaddr_storage {
    // SAFETY: plain data for which zero is valid.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let start = &raw mut storage;
    match address {
        SocketAddr::V4(it) => {
            let sin_addr = libc::in_addr { s_addr: u32::from(*it.ip()).to_be() };
            let (sin_family, sin_port) = (libc::AF_INET as libc::sa_family_t, it.port().to_be());
            let it = libc::sockaddr_in { sin_family, sin_port, sin_addr, sin_zero: [0; 8] };
            // SAFETY: there is room, and the alignment is that of any address.
            unsafe { start.cast::<libc::sockaddr_in>().write(it) }
        }
        SocketAddr::V6(it) => {
            let it = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: it.port().to_be(),
                sin6_flowinfo: it.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: it.ip().octets() },
                sin6_scope_id: it.scope_id(),
            };
            // SAFETY: as above.
            unsafe { start.cast::<libc::sockaddr_in6>().write(it) }
        }
    }
    storage
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    /// Asks a server that is at all addresses at two of them; the client hears those it has asked alone.
    #[test]
    fn answers_come_from_where_was_asked() {
        for (everywhere, asked) in [("0.0.0.0:0", ["127.0.0.1", "127.0.0.7"]), ("[::]:0", ["::1", "::1"])] {
            let Ok(server) = UdpSocket::bind(everywhere) else { continue };
            tell_destination(&server, everywhere.starts_with('0')).unwrap();
            let port = server.local_addr().unwrap().port();
            for asked in asked.map(|text| text.parse::<IpAddr>().unwrap()) {
                let own = if asked.is_ipv4() { "127.0.0.9:0" } else { "[::1]:0" };
                let client = UdpSocket::bind(own).unwrap();
                client.connect((asked, port)).unwrap();
                client.send(b"ask").unwrap();
                let mut packet = [0; 16];
                let (length, from, to) = receive(&server, &mut packet).unwrap();
                assert_eq!((&packet[..length], from), (&b"ask"[..], client.local_addr().unwrap()));
                assert_eq!(to, Some(asked));
                assert_eq!(send(&server, b"answer", from, to).unwrap(), 6);
                assert_eq!(client.recv(&mut packet).unwrap(), 6);
            }
        }
    }

    #[test]
    fn a_socket_that_tells_nothing_is_answered_from_where_the_kernel_likes() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"ask", server.local_addr().unwrap()).unwrap();
        let mut packet = [0; 2];
        let (length, from, to) = receive(&server, &mut packet).unwrap();
        assert_eq!((length, to), (2, None));
        assert_eq!(send(&server, b"", from, to).unwrap(), 0);
        assert!(send(&server, b"x", from, Some("192.0.2.1".parse().unwrap())).is_err());
    }
}
