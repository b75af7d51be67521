//! A small synchronous netlink socket (`netlink(7)`), and how its messages are put together.
//!
//! Only what Proa asks of `rtnetlink(7)` and nftables has a name here. The kernel's answers are the only ones that are
//! read; what does not fit their shape is an error.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// `RTM_NEWLINK`, in an answer too.
pub const NEW_LINK: u16 = 16;
/// `RTM_GETLINK`
pub const GET_LINK: u16 = 18;
/// `RTM_NEWADDR`, in an answer too.
pub const NEW_ADDRESS: u16 = 20;
/// `RTM_GETADDR`
pub const GET_ADDRESS: u16 = 22;
/// `NLM_F_ACK`: answer, be it only that all is well.
pub const ACK: u16 = 0x4;
/// `NLM_F_DUMP`: all of them.
pub const DUMP: u16 = 0x300;
/// `NLM_F_CREATE | NLM_F_EXCL`: a new one.
pub const CREATE: u16 = 0x600;

/// `struct ifinfomsg`: family, type, index, flags, mask of flags.
pub const LINK_HEAD: usize = 16;
/// `IFLA_NET_NS_FD`: into which network namespace.
pub const IFLA_NET_NS_FD: u16 = 28;
/// `IFF_UP`: switched on.
pub const IFF_UP: u32 = 1;

const IFLA_IFNAME: u16 = 3;
const REQUEST: u16 = 0x1;
/// `NFNL_MSG_BATCH_BEGIN`
const BATCH_BEGIN: u16 = 16;
/// `NFNL_MSG_BATCH_END`
const BATCH_END: u16 = 17;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `struct nlmsghdr`: length, type, flags, sequence number, port.
const HEAD: usize = 16;
/// The kernel's answers are at most 32 KiB long.
const BUFFER: usize = 64 * 1024;

/// A socket, of the network namespace it was made in.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// One object of an answer: its type, and what follows the header.
pub type Object = (u16, Vec<u8>);

impl Netlink {
    /// For interfaces, addresses and routes.
    ///
    /// # Errors
    /// The kernel gives no socket.
    pub fn route() -> Result<Self, Errno> {
        Self::open(None)
    }

    /// The same of another network namespace, in which the calling thread is for a moment.
    ///
    /// # Errors
    /// Which call failed, and why.
    pub fn route_of(namespace: BorrowedFd) -> Result<Self, (&'static str, Errno)> {
        let enter = |fd: BorrowedFd| move_into_link_name_space(fd, Some(LinkNameSpaceType::Network));
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let back = open("/proc/thread-self/ns/net", flags, Mode::empty())
            .map_err(|errno| ("open the network namespace", errno))?;
        enter(namespace).map_err(|errno| ("enter the network namespace", errno))?;
        let route = Self::route();
        enter(back.as_fd()).map_err(|errno| ("leave the network namespace", errno))?;
        route.map_err(|errno| ("netlink", errno))
    }

    /// The number and the flags of the interface of this name; `NODEV` if there is none.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn link(&mut self, name: &str) -> Result<(u32, u32), Errno> {
        let mut body = link(0, 0);
        named(&mut body, name);
        let links = self.ask(GET_LINK, ACK, &body)?;
        let found = links.iter().find(|(kind, link)| *kind == NEW_LINK && link.len() >= LINK_HEAD);
        found.map(|(_, link)| (number(link, 4), number(link, 8))).ok_or(Errno::NODEV)
    }

    /// For the firewall.
    ///
    /// # Errors
    /// The kernel gives no socket, or has no netfilter.
    pub fn netfilter() -> Result<Self, Errno> {
        Self::open(Some(NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> Result<Self, Errno> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks, and waits for the whole answer.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<Vec<Object>, Errno> {
        let mut message = Vec::with_capacity(HEAD + body.len());
        self.write(&mut message, kind, flags, body);
        send(&self.socket, &message, SendFlags::empty())?;
        let (mut objects, mut buffer) = (Vec::new(), vec![0; BUFFER]);
        loop {
            if self.read(self.receive(&mut buffer)?, &mut objects)? {
                return Ok(objects);
            }
        }
    }

    /// Sends several requests in one message, each with [`ACK`] among its flags if it is to be waited for.
    ///
    /// # Errors
    /// The place of the first that failed, and why; for routing, the others were done all the same.
    pub fn order(&mut self, requests: &[Request]) -> Result<(), (usize, Errno)> {
        let first = self.sequence + 1;
        let mut message = Vec::new();
        for request in requests {
            self.write(&mut message, request.kind, request.flags, &request.body);
        }
        send(&self.socket, &message, SendFlags::empty()).map_err(|errno| (0, errno))?;
        let mut waits = requests.iter().filter(|request| request.flags & ACK != 0).count();
        let (mut failed, mut buffer): (Option<(usize, Errno)>, _) = (None, vec![0; BUFFER]);
        while waits > 0 {
            let answer = self.receive(&mut buffer).map_err(|errno| (0, errno))?;
            for (sequence, errno) in acknowledgements(answer) {
                let Some(place) = sequence.checked_sub(first).map(|place| place as usize) else { continue };
                let Some(request) = requests.get(place) else { continue };
                waits -= usize::from(request.flags & ACK != 0);
                if let Some(errno) = errno
                    && failed.is_none_or(|(earlier, _)| place < earlier)
                {
                    failed = Some((place, errno));
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Sends several requests of a netfilter subsystem as one transaction: all of them are done, or none.
    ///
    /// # Errors
    /// The place of the first that failed, and why; 0 where the kernel refuses the transaction as a whole.
    pub fn transact(&mut self, subsystem: u8, requests: &[Request]) -> Result<(), (usize, Errno)> {
        let Some(last) = requests.len().checked_sub(1) else { return Ok(()) };
        // `struct nfgenmsg`: family, version, subsystem.
        let frame = [0, 0, 0, subsystem];
        let mut message = Vec::new();
        self.write(&mut message, BATCH_BEGIN, 0, &frame);
        let begin = self.sequence;
        for (place, request) in requests.iter().enumerate() {
            let answered = if place == last { ACK } else { 0 };
            self.write(&mut message, request.kind, request.flags | answered, &request.body);
        }
        self.write(&mut message, BATCH_END, 0, &frame);
        send(&self.socket, &message, SendFlags::empty()).map_err(|errno| (0, errno))?;
        // Errors come in the order of the requests, asked for or not, before the last one's answer.
        let mut buffer = vec![0; BUFFER];
        loop {
            let answer = self.receive(&mut buffer).map_err(|errno| (0, errno))?;
            for (sequence, errno) in acknowledgements(answer) {
                let Some(number) = sequence.checked_sub(begin).map(|number| number as usize) else {
                    continue;
                };
                match errno {
                    Some(errno) => return Err((number.saturating_sub(1), errno)),
                    None if number == last + 1 => return Ok(()),
                    None => {}
                }
            }
        }
    }

    fn write(&mut self, message: &mut Vec<u8>, kind: u16, flags: u16, body: &[u8]) {
        self.sequence += 1;
        message.extend(((HEAD + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((REQUEST | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        message.resize(aligned(message.len()), 0);
    }

    /// The next part of an answer. Sockets are kept for long, so the buffer is not theirs.
    fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
        let (length, _) = rustix::io::retry_on_intr(|| recv(&self.socket, &mut *buffer, RecvFlags::empty()))?;
        Ok(&buffer[..length])
    }

    /// Reads messages; whether the last of the answer was among them.
    fn read(&self, mut rest: &[u8], objects: &mut Vec<Object>) -> Result<bool, Errno> {
        while rest.len() >= HEAD {
            let length = number(rest, 0) as usize;
            let message = rest.get(HEAD..length).ok_or(Errno::BADMSG)?;
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            let is_ours = number(rest, 8) == self.sequence;
            rest = rest.get(aligned(length)..).unwrap_or_default();
            match kind {
                _ if !is_ours => {}
                // An error of 0 is an acknowledgement.
                ERROR | DONE => {
                    let code = message.get(..4).map_or(0, |_| number(message, 0) as i32);
                    return if code == 0 { Ok(true) } else { Err(Errno::from_raw_os_error(-code)) };
                }
                kind => objects.push((kind, message.to_vec())),
            }
        }
        Ok(false)
    }
}

/// One of several requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Its type.
    pub kind: u16,
    /// Flags beside `NLM_F_REQUEST`.
    pub flags: u16,
    /// What follows the header.
    pub body: Vec<u8>,
}

/// Sequence numbers of what is acknowledged, with the error if there was one.
fn acknowledgements(mut rest: &[u8]) -> Vec<(u32, Option<Errno>)> {
    let mut found = Vec::new();
    while rest.len() >= HEAD {
        let length = number(rest, 0) as usize;
        let kind = u16::from_ne_bytes([rest[4], rest[5]]);
        if let Some(message) = rest.get(HEAD..length)
            && kind == ERROR
            && message.len() >= 4
        {
            let code = number(message, 0) as i32;
            found.push((number(rest, 8), (code != 0).then(|| Errno::from_raw_os_error(-code))));
        }
        rest = rest.get(aligned(length.max(HEAD))..).unwrap_or_default();
    }
    found
}

/// The fixed part of a message about an interface, which sets these flags.
pub fn link(index: u32, flags: u32) -> Vec<u8> {
    [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), flags.to_ne_bytes()].concat()
}

/// Appends an interface's name.
pub fn named(body: &mut Vec<u8>, name: &str) {
    attribute(body, IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
}

/// Appends an attribute.
pub fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend(((4 + value.len()) as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(aligned(body.len()), 0);
}

/// The attributes of an object, of which a fixed part of this length comes first.
pub fn attributes(object: &[u8], fixed: usize) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    let mut rest = object.get(fixed..).unwrap_or_default();
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        // The upper bits tell how it is written.
        let kind = u16::from_ne_bytes([rest[2], rest[3]]) & 0x3fff;
        let Some(value) = rest.get(4..length) else { break };
        found.push((kind, value));
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    found
}

/// The 32 bits at an offset, which must be there.
pub fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let mut body = vec![9; 8];
        attribute(&mut body, 3, b"eth0\0");
        attribute(&mut body, 28, &7_u32.to_ne_bytes());
        assert_eq!(body.len(), 8 + 12 + 8);
        assert_eq!(attributes(&body, 8), [(3, &b"eth0\0"[..]), (28, &7_u32.to_ne_bytes())]);
        // What is cut short, or lies about its length, is not read.
        assert_eq!(attributes(&body[..body.len() - 1], 8).len(), 1);
        assert!(attributes(&[1, 0, 3, 0], 0).is_empty());
        assert!(attributes(&[], 16).is_empty());
    }

    #[test]
    fn the_kernel_answers() {
        let mut route = Netlink::route().unwrap();
        let links = route.ask(GET_LINK, DUMP, &[0; 16]).unwrap();
        let is_loopback =
            |(kind, link): &Object| *kind == NEW_LINK && attributes(link, 16).contains(&(3, &b"lo\0"[..]));
        assert!(links.iter().any(is_loopback));
        let mut body = vec![0; 16];
        attribute(&mut body, 3, b"no-such-link\0");
        assert_eq!(route.ask(GET_LINK, ACK, &body).unwrap_err(), Errno::NODEV);
    }
}
