//! Queries and answers, by hand.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use proa_resolver::wire::encode;

/// Longest that an answer may take.
pub const LIMIT: Duration = Duration::from_secs(20);

pub const A: u16 = 1;
pub const PTR: u16 = 12;
pub const TXT: u16 = 16;
pub const AAAA: u16 = 28;

/// An answer, as far as tests look at it.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub rcode: u8,
    pub truncated: bool,
    pub records: Vec<Vec<u8>>,
}

impl Answer {
    /// What says that there is nothing, for this reason.
    pub fn empty(rcode: u8) -> Self {
        Self { rcode, truncated: false, records: Vec::new() }
    }

    /// What holds these addresses.
    pub fn addresses(addresses: &[&str]) -> Self {
        let octets = |address: &&str| match address.parse().unwrap() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        Self { rcode: 0, truncated: false, records: addresses.iter().map(octets).collect() }
    }
}

/// A query for a name.
pub fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    packet.extend(encode(name).unwrap());
    packet.extend(kind.to_be_bytes());
    packet.extend([0, 1]);
    packet
}

/// An answer of a server's, with one record.
pub fn respond(query: &[u8], data: &[u8]) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer[7] = 1;
    answer.extend([0xc0, 12]);
    answer.extend(&query[query.len() - 4..]);
    answer.extend([0, 0, 0, 60]);
    answer.extend((data.len() as u16).to_be_bytes());
    answer.extend(data);
    answer
}

/// Reads an answer to a query, which must repeat its question byte for byte.
pub fn read(query: &[u8], answer: &[u8]) -> Answer {
    assert_eq!(answer[..2], query[..2], "another identifier");
    assert!(answer[2] & 0x80 != 0, "not an answer");
    assert_eq!(answer[12..query.len()], query[12..], "another question");
    let mut at = query.len();
    let mut records = Vec::new();
    for _ in 0..u16::from_be_bytes([answer[6], answer[7]]) {
        assert_eq!(answer[at..at + 2], [0xc0, 12], "not the question's name");
        let length = usize::from(u16::from_be_bytes([answer[at + 10], answer[at + 11]]));
        records.push(answer[at + 12..at + 12 + length].to_vec());
        at += 12 + length;
    }
    Answer { rcode: answer[3] & 0xf, truncated: answer[2] & 2 != 0, records }
}

/// Asks by UDP, again each second.
pub fn ask(socket: &UdpSocket, server: SocketAddr, name: &str, kind: u16) -> Answer {
    let query = query(0x4321, name, kind);
    socket.set_read_timeout(Some(Duration::from_secs(6))).unwrap();
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        // A route may be missing for a moment.
        let _ = socket.send_to(&query, server);
        let mut buffer = [0; 4096];
        if let Ok((length, from)) = socket.recv_from(&mut buffer)
            && buffer[..2] == query[..2]
        {
            assert_eq!(from, server);
            return read(&query, &buffer[..length]);
        }
    }
    panic!("no answer for {name} from {server}");
}

/// Asks by TCP.
pub fn ask_stream(stream: &mut TcpStream, name: &str, kind: u16) -> Answer {
    let query = query(0x1234, name, kind);
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut message = (query.len() as u16).to_be_bytes().to_vec();
    message.extend(&query);
    // In two pieces.
    stream.write_all(&message[..5]).unwrap();
    stream.write_all(&message[5..]).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    read(&query, &answer)
}
