//! The format of Docker's driver `local`, as `proa_protocol::log` describes it.

use super::{Ends, Entry};

/// Wire types of protobuf in the low bits, field numbers above them.
const SOURCE: u8 = 1 << 3 | 2;
const TIME: u8 = 2 << 3;
const LINE: u8 = 3 << 3 | 2;
const PARTIAL: u8 = 4 << 3;

/// Appends the record of a line.
pub fn append(entry: &Entry, out: &mut Vec<u8>) {
    out.reserve(entry.text.len() + 48);
    let begin = out.len();
    out.extend_from_slice(&[0; 4]);
    bytes(SOURCE, entry.stream_name().as_bytes(), out);
    out.push(TIME);
    number(entry.at_ns as u64, out);
    bytes(LINE, entry.text, out);
    if entry.ends != Ends::Line {
        out.extend_from_slice(&[PARTIAL, 1]);
    }
    let length = (out.len() - begin - 4) as u32;
    out[begin..begin + 4].copy_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
}

fn bytes(key: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(key);
    number(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Seven bits a byte, the lowest first.
fn number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_frozen() {
        let mut out = Vec::new();
        append(&Entry { stderr: false, at_ns: 300, text: b"hi", ends: Ends::Line }, &mut out);
        let record = b"\x0a\x06stdout\x10\xac\x02\x1a\x02hi";
        let expected = [&[0, 0, 0, 15], &record[..], &[0, 0, 0, 15]].concat();
        assert_eq!(out, expected);
        out.clear();
        append(&Entry { stderr: true, at_ns: 1, text: b"x", ends: Ends::Split }, &mut out);
        assert!(out.windows(2).any(|pair| pair == [PARTIAL, 1]));
    }
}
