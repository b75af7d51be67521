//! Frames: a 12-byte header and a payload.
//!
//! ```text
//!   0        4          8      9          12
//!   ├ length ┼ channel ─┼ kind ┼ reserved ┼ payload (length bytes) …
//!   u32 LE    u32 LE     u8     0 0 0
//! ```
//!
//! The layout is frozen: a test holds its bytes.

use std::io::{self, Read, Write};

/// Bytes of a frame's header.
pub const HEADER: usize = 12;
/// Most payload bytes of a stream frame.
pub const MAX_STREAM: usize = 64 * 1024;
/// Most payload bytes of a request or response.
pub const MAX_MESSAGE: usize = 1024 * 1024;
/// Stream bytes a sender may have on the way on one channel before it must wait for credit.
pub const WINDOW: u32 = 256 * 1024;

/// What a frame's payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// JSON [`crate::message::Request`].
    Request = 1,
    /// JSON [`crate::message::Response`].
    Response = 2,
    /// Bytes for the process's standard input; none at all is end of file.
    Stdin = 3,
    /// Bytes of the process's standard output, or of its terminal.
    Stdout = 4,
    /// Bytes of the process's standard error.
    Stderr = 5,
    /// Bytes of an archive, either way; none at all is its end.
    Data = 6,
    /// Stream bytes consumed by the receiver, as u32 LE.
    Credit = 7,
    /// This side sends nothing more on the channel and forgets it.
    Close = 8,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Stdin,
            4 => Self::Stdout,
            5 => Self::Stderr,
            6 => Self::Data,
            7 => Self::Credit,
            8 => Self::Close,
            _ => return None,
        })
    }

    /// Whether the payload counts against the channel's window.
    pub fn is_stream(self) -> bool {
        matches!(self, Self::Stdin | Self::Stdout | Self::Stderr | Self::Data)
    }

    fn max_payload(self) -> usize {
        match self {
            Self::Request | Self::Response => MAX_MESSAGE,
            Self::Stdin | Self::Stdout | Self::Stderr | Self::Data => MAX_STREAM,
            Self::Credit => 4,
            Self::Close => 0,
        }
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Conversation it belongs to; 0 on a unix socket.
    pub channel: u32,
    /// What the payload is.
    pub kind: Kind,
    /// The payload.
    pub payload: Vec<u8>,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The kind byte names no kind.
    #[error("frame of unknown kind {0}")]
    UnknownKind(u8),
    /// The payload is longer than its kind allows.
    #[error("{kind:?} frame of {length} bytes, more than the {max} allowed")]
    TooLong {
        /// The frame's kind.
        kind: Kind,
        /// Announced length.
        length: usize,
        /// Most that is allowed.
        max: usize,
    },
    /// The reserved bytes are not zero.
    #[error("frame with non-zero reserved bytes")]
    Reserved,
    /// A credit frame whose payload is not four bytes.
    #[error("credit frame of {0} bytes")]
    BadCredit(usize),
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

impl Frame {
    /// A frame of any kind.
    pub fn new(channel: u32, kind: Kind, payload: Vec<u8>) -> Self {
        Self { channel, kind, payload }
    }

    /// A credit frame for `bytes` consumed.
    pub fn credit(channel: u32, bytes: u32) -> Self {
        Self::new(channel, Kind::Credit, bytes.to_le_bytes().to_vec())
    }

    /// The end of a channel.
    pub fn close(channel: u32) -> Self {
        Self::new(channel, Kind::Close, Vec::new())
    }

    /// The bytes granted by a credit frame; 0 for any other.
    pub fn credited(&self) -> u32 {
        match (self.kind, <[u8; 4]>::try_from(self.payload.as_slice())) {
            (Kind::Credit, Ok(bytes)) => u32::from_le_bytes(bytes),
            _ => 0,
        }
    }

    /// The bytes that go before the payload.
    pub fn header(&self) -> [u8; HEADER] {
        let [l0, l1, l2, l3] = (self.payload.len() as u32).to_le_bytes();
        let [c0, c1, c2, c3] = self.channel.to_le_bytes();
        [l0, l1, l2, l3, c0, c1, c2, c3, self.kind as u8, 0, 0, 0]
    }

    /// Appends the frame's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        debug_assert!(self.payload.len() <= self.kind.max_payload());
        out.reserve(HEADER + self.payload.len());
        out.extend_from_slice(&self.header());
        out.extend_from_slice(&self.payload);
    }

    /// Writes the frame in one call of `write_all`.
    pub fn write_to(&self, mut writer: impl Write) -> io::Result<()> {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        writer.write_all(&bytes)
    }

    /// Reads one frame, blocking; `None` at the end of the stream between frames.
    pub fn read_from(mut reader: impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER];
        loop {
            match reader.read(&mut header[..1]) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        reader.read_exact(&mut header[1..])?;
        let (length, channel, kind) = parse_header(&header)?;
        let mut payload = vec![0; length];
        reader.read_exact(&mut payload)?;
        Ok(Some(Self { channel, kind, payload }))
    }
}

fn parse_header(header: &[u8; HEADER]) -> Result<(usize, u32, Kind), FrameError> {
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let kind = Kind::from_byte(header[8]).ok_or(FrameError::UnknownKind(header[8]))?;
    if header[9..] != [0, 0, 0] {
        return Err(FrameError::Reserved);
    }
    let length = word(0) as usize;
    if length > kind.max_payload() {
        return Err(FrameError::TooLong { kind, length, max: kind.max_payload() });
    }
    if kind == Kind::Credit && length != 4 {
        return Err(FrameError::BadCredit(length));
    }
    Ok((length, word(4), kind))
}

/// Finds frames in bytes that arrive in pieces, for non-blocking readers.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if it has arrived.
    ///
    /// # Errors
    /// The bytes are not a frame; the stream cannot be trusted any further.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let bytes = &self.buffer[self.start..];
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let (length, channel, kind) = parse_header(header)?;
        let Some(payload) = bytes.get(HEADER..HEADER + length) else { return Ok(None) };
        let frame = Frame { channel, kind, payload: payload.to_vec() };
        self.start += HEADER + length;
        if self.start == self.buffer.len() {
            // An idle connection keeps no buffer: monitors live long and must stay small.
            self.buffer = Vec::new();
            self.start = 0;
        }
        Ok(Some(frame))
    }

    /// Bytes held that are not yet a whole frame.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_frozen() {
        let mut bytes = Vec::new();
        Frame::new(7, Kind::Stdout, b"hi".to_vec()).encode(&mut bytes);
        assert_eq!(bytes, [2, 0, 0, 0, 7, 0, 0, 0, 4, 0, 0, 0, b'h', b'i']);
        bytes.clear();
        Frame::credit(1, 0x0102).encode(&mut bytes);
        assert_eq!(bytes, [4, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 2, 1, 0, 0]);
    }

    #[test]
    fn decoder_joins_pieces_and_keeps_order() {
        let frames = [
            Frame::new(0, Kind::Request, b"{}".to_vec()),
            Frame::close(3),
            Frame::new(9, Kind::Data, vec![5; MAX_STREAM]),
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        let mut decoder = Decoder::new();
        let mut seen = Vec::new();
        for piece in bytes.chunks(7) {
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame().unwrap() {
                seen.push(frame);
            }
        }
        assert_eq!(seen, frames);
        assert_eq!(decoder.pending(), 0);
    }

    #[test]
    fn bad_headers_are_refused_before_memory_is_reserved() {
        let header = |length: u32, kind: u8, reserved: u8| {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.extend_from_slice(&[0, 0, 0, 0, kind, reserved, 0, 0]);
            bytes
        };
        let refuse = |bytes: Vec<u8>| {
            let mut decoder = Decoder::new();
            decoder.push(&bytes);
            assert!(Frame::read_from(bytes.as_slice()).is_err());
            decoder.next_frame().unwrap_err()
        };
        assert_eq!(refuse(header(0, 99, 0)), FrameError::UnknownKind(99));
        assert_eq!(refuse(header(0, 8, 1)), FrameError::Reserved);
        assert_eq!(refuse(header(3, 7, 0)), FrameError::BadCredit(3));
        assert!(matches!(refuse(header(u32::MAX, 1, 0)), FrameError::TooLong { .. }));
        assert!(matches!(refuse(header(1, 8, 0)), FrameError::TooLong { .. }));
    }

    #[test]
    fn reading_ends_cleanly_only_between_frames() {
        assert_eq!(Frame::read_from(&[][..]).unwrap(), None);
        assert!(Frame::read_from(&[1, 0, 0, 0][..]).is_err());
    }
}
