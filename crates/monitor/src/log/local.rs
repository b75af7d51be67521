//! The format of Docker's driver `local`, as `proa_protocol::log` describes it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Ends, Entry};

/// Bytes of a length.
const LENGTH: u64 = 4;

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

/// Where the last whole record ends: a power cut may leave half of one, behind which none would be found.
pub fn whole(file: &File, size: u64) -> io::Result<u64> {
    if size == 0 {
        return Ok(0);
    }
    // Mostly the last record is whole, which its two lengths tell.
    if let Some(length) = length_at(file, size.saturating_sub(LENGTH), size)?
        && let Some(begin) = size.checked_sub(length + 2 * LENGTH)
        && length_at(file, begin, size)? == Some(length)
    {
        return Ok(size);
    }
    let mut end = 0;
    while let Some(length) = length_at(file, end, size)? {
        let next = end + length + 2 * LENGTH;
        if length_at(file, next - LENGTH, size)? != Some(length) {
            break;
        }
        end = next;
    }
    Ok(end)
}

fn length_at(file: &File, at: u64, size: u64) -> io::Result<Option<u64>> {
    if at + LENGTH > size {
        return Ok(None);
    }
    let mut bytes = [0; LENGTH as usize];
    file.read_exact_at(&mut bytes, at)?;
    Ok(Some(u32::from_be_bytes(bytes).into()))
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

    #[test]
    fn what_a_power_cut_left_is_found() {
        let entry = Entry { stderr: false, at_ns: 300, text: b"hello", ends: Ends::Line };
        let mut out = Vec::new();
        append(&entry, &mut out);
        append(&entry, &mut out);
        let file = tempfile::tempfile().unwrap();
        let ends = |length: usize| {
            file.set_len(0).unwrap();
            file.write_all_at(&out[..length], 0).unwrap();
            whole(&file, length as u64).unwrap() as usize
        };
        let one = out.len() / 2;
        assert_eq!((ends(out.len()), ends(one), ends(0)), (out.len(), one, 0));
        for cut in [1, 3, 4, 9, one - 1] {
            assert_eq!((ends(cut), ends(one + cut)), (0, one), "{cut}");
        }
    }
}
