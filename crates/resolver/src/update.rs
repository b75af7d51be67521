//! What the steward tells the server: what changed, one message each, with the sockets that belong to it.

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipnet::IpNet;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::dhcp::Lease;

/// Longest message: [`Entry`]'s limits in JSON.
const MAX_MESSAGE: usize = 128 * 1024;
/// Most sockets with one message: UDP and TCP of each IP version, and the bridge's packets.
const MAX_SOCKETS: usize = 5;

/// A change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Update {
    /// A network is there, or has changed. Its sockets come along; without any, it keeps those it has.
    Network(Segment),
    /// A network is gone, with its endpoints.
    Gone(String),
    /// An endpoint is there, has changed, or is gone.
    Endpoint {
        /// The network's id.
        network: String,
        /// The instance's id.
        instance: String,
        /// What is known of it; `None` when it is gone.
        entry: Option<Entry>,
    },
    /// The servers that the host asks.
    Servers(Vec<SocketAddr>),
}

/// A network, as far as names are concerned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Its id.
    pub id: String,
    /// Its name, which is the suffix of its instances' names too.
    pub name: String,
    /// Whether it is cut off from outside.
    pub internal: bool,
    /// Its addresses.
    pub subnets: Vec<IpNet>,
    /// The host's addresses in it, where the server listens.
    pub gateways: Vec<IpAddr>,
    /// By which instances reach the host, where that is not by the gateways.
    #[serde(default)]
    pub hosts: Vec<IpAddr>,
    /// The bridge's number, for what is sent by it to a neighbour.
    #[serde(default)]
    pub bridge: u32,
    /// What the sockets that come along are, in their order.
    pub sockets: Vec<Transport>,
}

/// What a listening socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// UDP
    Udp,
    /// TCP
    Tcp,
    /// Packets of the bridge that ask for an address.
    Bridge,
}

/// An endpoint, as far as names are concerned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is called; the first is its own, by which its addresses are answered.
    pub names: Vec<String>,
    /// Where it is.
    pub addresses: Vec<IpAddr>,
    /// The servers it wants asked.
    pub servers: Vec<IpAddr>,
    /// What it is told when it asks for its address.
    pub lease: Option<Lease>,
}

impl Entry {
    /// Most names of an endpoint.
    pub const MAX_NAMES: usize = 256;
    /// Most addresses, and most servers, of an endpoint.
    pub const MAX_ADDRESSES: usize = 16;
    /// Most domains in which names are looked for.
    pub const MAX_DOMAINS: usize = 16;
}

/// A pair of connected ends: the steward's and the server's.
///
/// # Errors
/// No descriptor is left.
pub fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Tells the server.
///
/// # Errors
/// It is gone.
pub fn send(channel: &OwnedFd, update: &Update, sockets: &[OwnedFd]) -> io::Result<()> {
    let message = serde_json::to_vec(update)?;
    let sockets: Vec<BorrowedFd> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let parts = [IoSlice::new(&message)];
    rustix::io::retry_on_intr(|| sendmsg(channel, &parts, &mut ancillary, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// The next change; `None` when the steward is gone.
///
/// # Errors
/// `WouldBlock` where there is none yet. A message that cannot be read.
pub fn receive(channel: &OwnedFd) -> io::Result<Option<(Update, Vec<OwnedFd>)>> {
    let mut message = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(channel, &mut [IoSliceMut::new(&mut message)], &mut ancillary, flags)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::other("a message to the server is too long"));
    }
    let mut sockets = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            sockets.extend(descriptors);
        }
    }
    Ok(Some((serde_json::from_slice(&message[..received.bytes])?, sockets)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_entry_arrives_with_its_sockets() {
        let (steward, server) = channel().unwrap();
        let entry = Entry {
            names: vec!["n".repeat(253); Entry::MAX_NAMES],
            addresses: vec!["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap(); Entry::MAX_ADDRESSES],
            servers: vec!["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap(); Entry::MAX_ADDRESSES],
            lease: Some(Lease {
                mac: [0xff; 6],
                address: [255; 4].into(),
                prefix: 32,
                server: [255; 4].into(),
                router: Some([255; 4].into()),
                mtu: u16::MAX,
                hostname: "h".repeat(253),
                search: vec!["s".repeat(253); Entry::MAX_DOMAINS],
            }),
        };
        let update =
            Update::Endpoint { network: "n".repeat(64), instance: "i".repeat(64), entry: Some(entry) };
        let sockets: Vec<OwnedFd> = (0..MAX_SOCKETS).map(|_| channel().unwrap().0).collect();
        send(&steward, &update, &sockets).unwrap();
        let (got, with) = receive(&server).unwrap().unwrap();
        assert_eq!((got, with.len()), (update, MAX_SOCKETS));
        assert_eq!(receive(&server).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(steward);
        assert!(receive(&server).unwrap().is_none());
    }
}
