//! DNS messages as far as this server must understand them (RFC 1035, RFC 6891): the header, one question, and whether
//! there is an OPT record. All else goes through unread, so that no record is too new for us.
//!
//! Nothing here follows a compression pointer: the question is the first name of a message and has nothing before it
//! to point to, and other names are only stepped over. So a loop cannot be built, and the work is bounded by the
//! message's length.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a header.
pub const HEADER: usize = 12;
/// Longest name on the wire, with the root's empty label.
const MAX_NAME: usize = 255;
/// What every client of UDP takes.
pub const PLAIN_SIZE: usize = 512;
/// Most that is sent by UDP, whatever a client says it takes: more would be cut into fragments.
pub const MAX_UDP: usize = 4096;
/// Largest message, by TCP.
pub const MAX_MESSAGE: usize = u16::MAX as usize;

const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AUTHORITATIVE: u16 = 0x0400;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const CHECKING_DISABLED: u16 = 0x0010;
const RCODE: u16 = 0x000f;

/// Type of an IPv4 address.
pub const A: u16 = 1;
/// Type of a pointer to a name.
pub const PTR: u16 = 12;
/// Type of an IPv6 address.
pub const AAAA: u16 = 28;
/// Type of EDNS's pseudo record.
const OPT: u16 = 41;
/// Type of a service's binding for HTTPS.
pub const HTTPS: u16 = 65;
/// Types that ask for a whole zone.
pub const TRANSFERS: [u16; 2] = [251, 252];
/// Type that asks for all types.
pub const ANY: u16 = 255;
/// The internet's class.
pub const INTERNET: u16 = 1;

/// How long an address may be remembered, seconds. Asking again costs an instance less than a millisecond, and an instance
/// that starts anew may have another address; 0 is avoided, since some clients take it for "no time given".
const TTL: u32 = 1;

/// Answers' codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rcode {
    /// The name exists.
    NoError = 0,
    /// The query could not be read.
    FormErr = 1,
    /// No server gave an answer.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// Not a kind of query that is served.
    NotImp = 4,
    /// Not served to this client.
    Refused = 5,
    /// EDNS of a version that is not spoken.
    BadVers = 16,
}

/// A name in lower case, its labels joined by dots, without the last dot.
#[derive(Debug, Clone, Copy)]
pub struct Name {
    text: [u8; MAX_NAME],
    length: usize,
    labels: usize,
}

impl Name {
    /// Its text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..self.length]
    }

    /// How many labels it has; none for the root.
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// Reads a name without pointers from the start of `bytes`; how many bytes it has there too.
    fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut name = Self { text: [0; MAX_NAME], length: 0, labels: 0 };
        let mut at = 0;
        loop {
            let length = usize::from(*bytes.get(at)?);
            at += 1;
            if length == 0 {
                return Some((name, at));
            }
            // Longer ones are pointers, or of kinds that nobody uses.
            let label = bytes.get(at..at + length).filter(|_| length < 64)?;
            at += length;
            if at >= MAX_NAME {
                return None;
            }
            name.push(label);
        }
    }

    fn push(&mut self, label: &[u8]) {
        if self.labels > 0 {
            self.text[self.length] = b'.';
            self.length += 1;
        }
        for byte in label {
            // A dot inside a label must not be mistaken for one between two: no name of ours has a zero.
            self.text[self.length] = if *byte == b'.' { 0 } else { byte.to_ascii_lowercase() };
            self.length += 1;
        }
        self.labels += 1;
    }
}

/// What a client says by an OPT record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    size: u16,
    version: u8,
    dnssec_ok: bool,
}

/// A query with its one question.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    id: u16,
    flags: u16,
    /// What is asked for.
    pub name: Name,
    /// The record's type.
    pub kind: u16,
    /// The record's class.
    pub class: u16,
    /// The question's bytes as they came: a client may want to see its own upper and lower case again.
    pub question: &'a [u8],
    edns: Option<Edns>,
}

/// Why a packet is no query that is answered as such.
#[derive(Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Nothing is sent back: an answer, which must not lead to another, or no message at all.
    Silent,
    /// This is sent back.
    Answered(Vec<u8>),
}

impl<'a> Query<'a> {
    /// Reads a packet of a client's.
    ///
    /// # Errors
    /// It is no query of the usual kind with one question.
    pub fn read(packet: &'a [u8]) -> Result<Self, Malformed> {
        let header = packet.get(..HEADER).ok_or(Malformed::Silent)?;
        let (id, flags) = (number(header, 0), number(header, 2));
        if flags & RESPONSE != 0 {
            return Err(Malformed::Silent);
        }
        let refuse = |rcode| Malformed::Answered(header_only(id, flags, rcode));
        if flags & OPCODE != 0 {
            return Err(refuse(Rcode::NotImp));
        }
        let broken = || refuse(Rcode::FormErr);
        if number(header, 4) != 1 {
            return Err(broken());
        }
        let (name, length) = Name::read(&packet[HEADER..]).ok_or_else(broken)?;
        let end = HEADER + length + 4;
        let question = packet.get(HEADER..end).ok_or_else(broken)?;
        let edns = find_edns(packet, end).ok_or_else(broken)?;
        let (kind, class) = (number(question, length), number(question, length + 2));
        let query = Self { id, flags, name, kind, class, question, edns };
        if edns.is_some_and(|edns| edns.version != 0) {
            return Err(Malformed::Answered(query.reply(Rcode::BadVers, &[], PLAIN_SIZE)));
        }
        Ok(query)
    }

    /// The query's identifier.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Longest answer that the client takes by UDP.
    pub fn udp_size(&self) -> usize {
        self.edns.map_or(PLAIN_SIZE, |edns| usize::from(edns.size).clamp(PLAIN_SIZE, MAX_UDP))
    }

    /// An answer of ours of at most `limit` bytes: records that do not fit are left out, and it says so.
    pub fn reply(&self, rcode: Rcode, records: &[Record], limit: usize) -> Vec<u8> {
        let mut reply = Vec::with_capacity(PLAIN_SIZE);
        let ours = RESPONSE | AUTHORITATIVE | RECURSION_AVAILABLE;
        let flags = ours | self.flags & (RECURSION_DESIRED | CHECKING_DISABLED) | rcode as u16 & RCODE;
        put(&mut reply, &[self.id, flags, 1, 0, 0, u16::from(self.edns.is_some())]);
        reply.extend(self.question);
        let room = limit.saturating_sub(if self.edns.is_some() { 11 } else { 0 });
        let mut count = 0_u16;
        for record in records {
            let before = reply.len();
            if !record.write(&mut reply) || reply.len() > room {
                reply.truncate(before);
                reply[2] |= (TRUNCATED >> 8) as u8;
                break;
            }
            count += 1;
        }
        reply[6..8].copy_from_slice(&count.to_be_bytes());
        if let Some(edns) = self.edns {
            reply.push(0);
            let (extended, asked) = ((rcode as u16 >> 4) << 8, u16::from(edns.dnssec_ok) << 15);
            put(&mut reply, &[OPT, MAX_UDP as u16, extended, asked, 0]);
        }
        reply
    }

    /// An answer without records, for a client of UDP that is to ask again by TCP.
    pub fn too_long(&self) -> Vec<u8> {
        let mut reply = self.reply(Rcode::NoError, &[], PLAIN_SIZE);
        reply[2] |= (TRUNCATED >> 8) as u8;
        reply
    }
}

/// A record of an answer; its name is the question's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An address.
    Address(IpAddr),
    /// A name, as text.
    Pointer(String),
}

impl Record {
    /// Appends the record; false where its name cannot be written.
    fn write(&self, reply: &mut Vec<u8>) -> bool {
        let (kind, data) = match self {
            Self::Address(IpAddr::V4(address)) => (A, address.octets().to_vec()),
            Self::Address(IpAddr::V6(address)) => (AAAA, address.octets().to_vec()),
            Self::Pointer(name) => match encode(name) {
                Some(name) => (PTR, name),
                None => return false,
            },
        };
        // The question's name stands right after the header.
        let to_question = 0xc000 | HEADER as u16;
        let [high, low] = [(TTL >> 16) as u16, TTL as u16];
        put(reply, &[to_question, kind, INTERNET, high, low, data.len() as u16]);
        reply.extend(data);
        true
    }
}

/// A name as it is written on the wire; `None` for one that cannot be.
pub fn encode(name: &str) -> Option<Vec<u8>> {
    let mut wire = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
        wire.push(length);
        wire.extend(label.bytes());
    }
    wire.push(0);
    (wire.len() <= MAX_NAME).then_some(wire)
}

/// The address that a reverse name stands for.
pub fn reverse(name: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(name).ok()?;
    if let Some(octets) = text.strip_suffix(".in-addr.arpa") {
        let mut parts = octets.split('.').rev();
        let mut address = [0_u8; 4];
        for octet in &mut address {
            *octet = parts.next()?.parse().ok()?;
        }
        return parts.next().is_none().then(|| Ipv4Addr::from(address).into());
    }
    let nibbles = text.strip_suffix(".ip6.arpa")?;
    let mut address = 0_u128;
    let mut count = 0;
    for nibble in nibbles.split('.').rev() {
        let digit = nibble.chars().next().filter(|_| nibble.len() == 1)?.to_digit(16)?;
        address = address << 4 | u128::from(digit);
        count += 1;
    }
    (count == 32).then(|| Ipv6Addr::from(address).into())
}

/// What a server of elsewhere said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not an answer to this question.
    Foreign,
    /// An answer that another server may know better.
    Failure,
    /// An answer.
    Answer,
}

/// Judges a packet that came from where a query was sent: whether its identifier and question are that query's.
pub fn judge(packet: &[u8], id: u16, question: &[u8]) -> Verdict {
    let Some(header) = packet.get(..HEADER) else { return Verdict::Foreign };
    let flags = number(header, 2);
    if number(header, 0) != id || flags & RESPONSE == 0 || flags & OPCODE != 0 {
        return Verdict::Foreign;
    }
    let code = flags & RCODE;
    let is_failure = code != Rcode::NoError as u16 && code != Rcode::NxDomain as u16;
    match number(header, 4) {
        // Who cannot read a question does not always repeat it.
        0 if is_failure => Verdict::Failure,
        1 => match packet.get(HEADER..HEADER + question.len()) {
            Some(same) if same.eq_ignore_ascii_case(question) => {
                if is_failure {
                    Verdict::Failure
                } else {
                    Verdict::Answer
                }
            }
            _ => Verdict::Foreign,
        },
        _ => Verdict::Foreign,
    }
}

/// Makes an answer that was judged one the client's own: its identifier, and its question as it wrote it.
pub fn adopt(packet: &mut [u8], id: u16, question: &[u8]) {
    packet[..2].copy_from_slice(&id.to_be_bytes());
    // A failure may come without the question.
    let has_question = number(packet, 4) == 1;
    if let Some(theirs) = packet.get_mut(HEADER..HEADER + question.len()).filter(|_| has_question) {
        theirs.copy_from_slice(question);
    }
}

/// Looks for an OPT record behind the question; `None` where the records are not as the header counts them.
fn find_edns(packet: &[u8], mut at: usize) -> Option<Option<Edns>> {
    let count = |place| usize::from(number(packet, place));
    let before = count(6) + count(8);
    let mut found = None;
    for place in 0..before + count(10) {
        let is_root = *packet.get(at)? == 0;
        at = skip_name(packet, at)?;
        let fixed = packet.get(at..at + 10)?;
        if number(fixed, 0) == OPT && place >= before {
            // There is at most one, and its name is the root's.
            if found.is_some() || !is_root {
                return None;
            }
            let dnssec_ok = fixed[6] & 0x80 != 0;
            found = Some(Edns { size: number(fixed, 2), version: fixed[5], dnssec_ok });
        }
        at += 10 + usize::from(number(fixed, 8));
        packet.get(..at)?;
    }
    Some(found)
}

fn skip_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return packet.get(at + 1).map(|_| at + 2),
            length if length & 0xc0 == 0 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

fn header_only(id: u16, flags: u16, rcode: Rcode) -> Vec<u8> {
    let mut reply = Vec::with_capacity(HEADER);
    let kept = flags & (OPCODE | RECURSION_DESIRED | CHECKING_DISABLED);
    put(&mut reply, &[id, RESPONSE | RECURSION_AVAILABLE | kept | rcode as u16, 0, 0, 0, 0]);
    reply
}

fn put(to: &mut Vec<u8>, numbers: &[u16]) {
    for number in numbers {
        to.extend(number.to_be_bytes());
    }
}

/// The 16 bits at an offset, which must be there.
fn number(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests;
