//! Messages of DHCP as far as they are looked at: fixed fields (RFC 2131, section 2), a list of options (RFC 2132), and the
//! heads of IP and UDP around them. Every length is checked against what is there; nothing points anywhere.

use std::net::Ipv4Addr;

use proa_sys::process::Insn;

/// Where a server is asked.
pub(super) const SERVER_PORT: u16 = 67;
/// Where a client hears.
pub(super) const CLIENT_PORT: u16 = 68;

const IP_HEAD: usize = 20;
const UDP_HEAD: usize = 8;
const UDP: u8 = 17;
/// Bytes before the options, with the four that say that there are any.
const FIXED: usize = 240;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// What every client takes, from IP's head on. Nothing that an endpoint must know is longer.
const MOST: usize = 576;
/// Shortest that every client takes: that of BOOTP.
const LEAST: usize = 300;
/// The flag of clients that hear nothing that is sent to an address which they do not have yet.
const DEAF: u8 = 0x80;

/// Numbers of options.
pub(super) mod option {
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const NAMES: u8 = 6;
    pub const HOSTNAME: u8 = 12;
    pub const DOMAIN: u8 = 15;
    pub const MTU: u8 = 26;
    pub const WISHED: u8 = 50;
    pub const LEASE: u8 = 51;
    pub const KIND: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const CLIENT: u8 = 61;
    pub const SEARCH: u8 = 119;
    pub const PADDING: u8 = 0;
    pub const END: u8 = 255;
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Who can give me an address?
    Discover = 1,
    /// This one.
    Offer = 2,
    /// I take it, or still have it.
    Request = 3,
    /// So it is.
    Ack = 5,
    /// It is not yours.
    Nak = 6,
    /// I have an address, and ask for the rest.
    Inform = 8,
}

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// What it wants.
    pub kind: Kind,
    /// Who it says that it is.
    pub mac: [u8; 6],
    /// Its number for the exchange.
    pub id: [u8; 4],
    /// Whether it hears only what is sent to all.
    pub is_deaf: bool,
    flags: [u8; 2],
    /// The address that it uses.
    pub has: Ipv4Addr,
    /// The address that it would like.
    pub wished: Option<Ipv4Addr>,
    /// Whose offer it takes.
    pub server: Option<Ipv4Addr>,
    /// What it calls itself, and wants to see again (RFC 6842).
    pub client: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    /// Reads one that came from a client by itself.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let fixed = bytes.get(..FIXED)?;
        // A request, on Ethernet, through no relay.
        let is_ours = fixed[..3] == [1, 1, 6] && fixed[24..28] == [0; 4] && fixed[236..] == MAGIC;
        if !is_ours {
            return None;
        }
        let mut request = Self {
            kind: Kind::Discover,
            mac: fixed[28..34].try_into().ok()?,
            id: fixed[4..8].try_into().ok()?,
            is_deaf: fixed[10] & DEAF != 0,
            flags: [fixed[10], fixed[11]],
            has: address(&fixed[12..16])?,
            wished: None,
            server: None,
            client: None,
        };
        let mut kind = None;
        let mut rest = &bytes[FIXED..];
        while let Some((number, value)) = next(&mut rest)? {
            match number {
                option::KIND => kind = Some(*value.first()?),
                option::WISHED => request.wished = Some(address(value)?),
                option::SERVER => request.server = Some(address(value)?),
                option::CLIENT => request.client = Some(value),
                _ => {}
            }
        }
        request.kind = match kind? {
            1 => Kind::Discover,
            3 => Kind::Request,
            8 => Kind::Inform,
            _ => return None,
        };
        Some(request)
    }
}

/// The next option, `Some(None)` at the end of them, `None` where one is longer than what is left.
fn next<'a>(rest: &mut &'a [u8]) -> Option<Option<(u8, &'a [u8])>> {
    loop {
        match **rest {
            // Many clients leave the end out.
            [] | [option::END, ..] => return Some(None),
            [option::PADDING, ref after @ ..] => *rest = after,
            [number, length, ref after @ ..] => {
                let (value, after) = after.split_at_checked(length.into())?;
                *rest = after;
                return Some(Some((number, value)));
            }
            [_] => return None,
        }
    }
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

/// What is in a packet of UDP to a server's port, from IP's head on, and where that was sent. The checksum of UDP is not
/// looked at: between a guest and its host nobody computes it.
pub fn datagram(packet: &[u8]) -> Option<(Ipv4Addr, &[u8])> {
    let head = packet.get(..IP_HEAD)?;
    let length = usize::from(head[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let is_whole = u16::from_be_bytes([head[6], head[7]]) & 0x3fff == 0;
    if head[0] >> 4 != 4 || head[9] != UDP || !is_whole || length < IP_HEAD {
        return None;
    }
    let udp = packet.get(..total)?.get(length..)?;
    let [_, _, a, b, c, d, _, _, ..] = *udp else { return None };
    let payload = udp.get(UDP_HEAD..u16::from_be_bytes([c, d]).into())?;
    (u16::from_be_bytes([a, b]) == SERVER_PORT).then_some((address(&head[16..20])?, payload))
}

/// The program that keeps these packets of those that an interface has: the process that reads them is woken for no
/// other.
pub fn keep() -> Vec<Insn> {
    const BYTE: u16 = 0x30;
    const HALF: u16 = 0x28;
    const HALF_BEHIND: u16 = 0x48;
    const AND: u16 = 0x54;
    const HEAD_LENGTH: u16 = 0xb1;
    const EQUAL: u16 = 0x15;
    const ANY_BIT: u16 = 0x45;
    const RETURN: u16 = 0x06;
    let insn = |code, jt, jf, k| Insn { code, jt, jf, k };
    vec![
        insn(BYTE, 0, 0, 0),
        insn(AND, 0, 0, 0xf0),
        insn(EQUAL, 0, 8, 0x40),
        insn(BYTE, 0, 0, 9),
        insn(EQUAL, 0, 6, UDP.into()),
        insn(HALF, 0, 0, 6),
        insn(ANY_BIT, 4, 0, 0x3fff),
        insn(HEAD_LENGTH, 0, 0, 0),
        insn(HALF_BEHIND, 0, 0, 2),
        insn(EQUAL, 0, 1, SERVER_PORT.into()),
        insn(RETURN, 0, 0, u32::MAX),
        insn(RETURN, 0, 0, 0),
    ]
}

/// An answer that is being written.
#[derive(Debug)]
pub(super) struct Options(Vec<u8>);

impl Options {
    /// An answer to a request, with the address that the client has, and the one that it is given.
    pub fn begin(request: &Request, has: Ipv4Addr, given: Ipv4Addr) -> Self {
        let mut bytes = vec![0; FIXED];
        bytes[..3].copy_from_slice(&[2, 1, 6]);
        bytes[4..8].copy_from_slice(&request.id);
        bytes[10..12].copy_from_slice(&request.flags);
        bytes[12..16].copy_from_slice(&has.octets());
        bytes[16..20].copy_from_slice(&given.octets());
        bytes[28..34].copy_from_slice(&request.mac);
        bytes[236..].copy_from_slice(&MAGIC);
        Self(bytes)
    }

    /// Adds an option. One that is empty is none, and one that does not fit is left out.
    pub fn add(&mut self, number: u8, value: &[u8]) {
        let length = self.0.len() + 2 + value.len();
        if let Ok(bytes) = u8::try_from(value.len())
            && bytes > 0
            && length < MOST - IP_HEAD - UDP_HEAD
        {
            self.0.extend([number, bytes]);
            self.0.extend(value);
        }
    }

    /// The whole message.
    pub fn end(mut self) -> Vec<u8> {
        self.0.push(option::END);
        let length = self.0.len().max(LEAST);
        self.0.resize(length, 0);
        self.0
    }
}

/// A packet of UDP, from IP's head on.
pub fn wrap(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let udp_length = (UDP_HEAD + payload.len()) as u16;
    let mut packet = vec![0x45, 0xc0];
    packet.extend((IP_HEAD as u16 + udp_length).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    packet.extend(from.0.octets());
    packet.extend(to.0.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    let mut udp = Vec::with_capacity(udp_length.into());
    udp.extend(from.1.to_be_bytes());
    udp.extend(to.1.to_be_bytes());
    udp.extend(udp_length.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let pseudo = [&packet[12..20], &[0, UDP], &udp_length.to_be_bytes(), &udp].concat();
    let sum = match checksum(&pseudo) {
        // None says that there is none.
        [0, 0] => [0xff, 0xff],
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum);
    packet.extend(udp);
    packet
}

/// The internet's checksum (RFC 1071).
pub(super) fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte));
    let sum: u32 = bytes.chunks(2).map(word).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes()
}
