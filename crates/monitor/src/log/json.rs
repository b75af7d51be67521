//! Docker's json-file format, one object a line.
//!
//! ```text
//!   {"log":"text\n","stream":"stdout","attrs":{"label":"value"},"time":"2026-11-18T11:06:40.123456789Z"}
//! ```
//!
//! Text is escaped as Docker escapes it; bytes that are not UTF-8 become U+FFFD. Without attributes there is no
//! `attrs`.

use std::collections::BTreeMap;

use super::{Ends, Entry};
use crate::clock::Rfc3339;

/// Writes lines as objects.
#[derive(Default)]
pub struct Json {
    clock: Rfc3339,
    /// `"attrs":{…},`, or nothing.
    attributes: Vec<u8>,
}

impl Json {
    /// Objects with these attributes.
    pub fn new(attributes: &BTreeMap<String, String>) -> Self {
        let mut text = Vec::new();
        if !attributes.is_empty() {
            text.extend_from_slice(b"\"attrs\":");
            // Texts always serialize.
            text.extend(serde_json::to_vec(attributes).unwrap_or_default());
            text.push(b',');
        }
        Self { clock: Rfc3339::default(), attributes: text }
    }

    /// Appends the object of a line.
    pub fn append(&mut self, entry: &Entry, out: &mut Vec<u8>) {
        out.reserve(entry.text.len() + self.attributes.len() + 128);
        out.extend_from_slice(b"{\"log\":\"");
        escape(entry.text, out);
        let newline = entry.ends == Ends::Line;
        out.extend_from_slice(if newline { b"\\n\",\"stream\":\"" } else { b"\",\"stream\":\"" });
        out.extend_from_slice(entry.stream_name().as_bytes());
        out.extend_from_slice(b"\",");
        out.extend_from_slice(&self.attributes);
        out.extend_from_slice(b"\"time\":\"");
        self.clock.append(entry.at_ns, out);
        out.extend_from_slice(b"\"}\n");
    }
}

/// Appends a JSON string's inside.
fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        escape_text(chunk.valid().as_bytes(), out);
        // Docker replaces each bad byte, not each bad sequence.
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

fn escape_text(text: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut plain = 0;
    let mut at = 0;
    while at < text.len() {
        let byte = text[at];
        let separator = byte == 0xe2 && matches!(text.get(at + 1..at + 3), Some([0x80, 0xa8 | 0xa9]));
        if !PLAIN[byte as usize] || separator {
            out.extend_from_slice(&text[plain..at]);
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                0xe2 => {
                    // U+2028 and U+2029 end a line in JavaScript.
                    out.extend_from_slice(if text[at + 2] == 0xa8 { b"\\u2028" } else { b"\\u2029" });
                    at += 2;
                }
                _ => {
                    let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                    out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
                }
            }
            plain = at + 1;
        }
        at += 1;
    }
    out.extend_from_slice(&text[plain..]);
}

/// Bytes that stand for themselves.
const PLAIN: [bool; 256] = {
    let mut plain = [true; 256];
    let mut byte = 0;
    while byte < 0x20 {
        plain[byte] = false;
        byte += 1;
    }
    let special = b"\"\\<>&";
    let mut at = 0;
    while at < special.len() {
        plain[special[at] as usize] = false;
        at += 1;
    }
    plain
};
