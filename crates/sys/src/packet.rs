//! Packets of IPv4 on one interface, with the hardware's address of who has sent them (`packet(7)`).
//!
//! The kernel makes the frame's head, so its source is always the interface's own address.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::process::Insn;

/// Bytes of a hardware's address.
const MAC: usize = 6;
/// What the kernel knows the protocol by: in the network's order.
const IP4: u16 = (libc::ETH_P_IP as u16).to_be();

/// A socket that has the packets of an interface which a classic BPF program keeps: it sees them from IP's head on, and
/// cannot be taken away again. It never waits.
///
/// # Errors
/// There is no such interface, the kernel has no such sockets, or the caller lacks `CAP_NET_RAW`.
pub fn open(interface: u32, keep: &[Insn]) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // Of no protocol yet: it hears nothing before it is bound.
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let length = u16::try_from(keep.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program =
        libc::sock_fprog { len: length, filter: keep.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    // SAFETY: `Insn` has the layout of `sock_filter`; the kernel copies the program and does not write to it.
    let attached = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if attached == -1 {
        return Err(io::Error::last_os_error());
    }
    crate::net::set_number(&socket, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, 1)?;
    let address = place(interface, [0; MAC]);
    // SAFETY: the kernel reads one `sockaddr_ll`, which lives through the call.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), LENGTH) };
    if bound == -1 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// Receives a packet: its length, and whose frame it was in.
///
/// # Errors
/// There is none, or the interface is down or gone.
pub fn receive(socket: impl AsFd, packet: &mut [u8]) -> io::Result<(usize, [u8; MAC])> {
    // SAFETY: plain data for which zero is valid.
    let mut from: libc::sockaddr_ll = unsafe { zeroed() };
    let mut from_length = LENGTH;
    // SAFETY: the kernel writes no more than either has room for, which it is told.
    let length = unsafe {
        libc::recvfrom(
            socket.as_fd().as_raw_fd(),
            packet.as_mut_ptr().cast(),
            packet.len(),
            0,
            (&raw mut from).cast(),
            &raw mut from_length,
        )
    };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let [a, b, c, d, e, f, ..] = from.sll_addr;
    Ok((length, [a, b, c, d, e, f]))
}

/// Sends a packet, from IP's head on, to a neighbour.
///
/// # Errors
/// The interface is down or gone, or its queue is full.
pub fn send(socket: impl AsFd, packet: &[u8], interface: u32, to: [u8; MAC]) -> io::Result<()> {
    let address = place(interface, to);
    // SAFETY: the kernel reads the packet and one `sockaddr_ll`, which live through the call.
    let length = unsafe {
        libc::sendto(
            socket.as_fd().as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const address).cast(),
            LENGTH,
        )
    };
    if length == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

fn place(interface: u32, mac: [u8; MAC]) -> libc::sockaddr_ll {
    // SAFETY: plain data for which zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = IP4;
    address.sll_ifindex = interface as i32;
    address.sll_halen = MAC as u8;
    address.sll_addr[..MAC].copy_from_slice(&mac);
    address
}
