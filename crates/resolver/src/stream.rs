//! Messages over TCP: each has its length, 16 bits, before it. One at a time, both ways.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

/// How far a message has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not all of it yet.
    Waits,
    /// All of it.
    Done,
    /// The other side has closed, or the connection is broken, or what is announced is longer than allowed.
    Over,
}

/// Receives one message.
#[derive(Debug)]
pub struct Incoming {
    bytes: Vec<u8>,
    limit: usize,
}

impl Incoming {
    /// Takes messages of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit }
    }

    /// Reads what there is, and not beyond this message.
    pub fn read(&mut self, stream: &mut TcpStream) -> Progress {
        loop {
            let wanted = match self.length() {
                None => 2,
                Some(length) if length > self.limit => return Progress::Over,
                Some(length) => 2 + length,
            };
            if self.bytes.len() >= 2 && self.bytes.len() == wanted {
                return Progress::Done;
            }
            let have = self.bytes.len();
            let mut piece = [0; 4096];
            let room = (wanted - have).min(piece.len());
            match stream.read(&mut piece[..room]) {
                Ok(0) => return Progress::Over,
                Ok(count) => self.bytes.extend(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waits,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Progress::Over,
            }
        }
    }

    /// The message, once it is done; the next may come then.
    pub fn take(&mut self) -> Vec<u8> {
        let mut message = std::mem::take(&mut self.bytes);
        message.drain(..2.min(message.len()));
        message
    }

    fn length(&self) -> Option<usize> {
        let length = self.bytes.get(..2)?;
        Some(usize::from(u16::from_be_bytes([length[0], length[1]])))
    }
}

/// Sends one message.
#[derive(Debug)]
pub struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    /// This message, of at most 65,535 bytes.
    pub fn new(message: &[u8]) -> Self {
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
        let mut bytes = Vec::with_capacity(2 + message.len());
        bytes.extend(length.to_be_bytes());
        bytes.extend(&message[..usize::from(length)]);
        Self { bytes, sent: 0 }
    }

    /// Writes what the connection takes.
    pub fn write(&mut self, stream: &mut TcpStream) -> Progress {
        while self.sent < self.bytes.len() {
            match stream.write(&self.bytes[self.sent..]) {
                Ok(0) => return Progress::Over,
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waits,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Progress::Over,
            }
        }
        Progress::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn messages_come_one_by_one_however_they_are_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        let mut incoming = Incoming::new(5);
        assert_eq!(Outgoing::new(b"hello").write(&mut ours), Progress::Done);
        ours.write_all(&[0, 0, 0, 6]).unwrap();
        assert_eq!(incoming.read(&mut theirs), Progress::Done);
        assert_eq!(incoming.take(), b"hello");
        assert_eq!(incoming.read(&mut theirs), Progress::Done);
        assert_eq!(incoming.take(), b"");
        assert_eq!(incoming.read(&mut theirs), Progress::Over);
    }
}
