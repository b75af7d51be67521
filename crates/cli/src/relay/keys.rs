//! Detach keys: what to type to leave a terminal and let the process run on.

use crate::error::Failure;

/// Reads `ctrl-p,ctrl-q`, `ctrl-x,q` and the like.
///
/// # Errors
/// A key is none.
pub fn parse(text: &str) -> Result<Vec<u8>, Failure> {
    let key = |key: &str| match key.as_bytes() {
        [byte] => Some(*byte),
        _ => {
            let control = key.to_ascii_lowercase();
            match control.strip_prefix("ctrl-")?.as_bytes() {
                [letter @ b'a'..=b'z'] => Some(letter - b'a' + 1),
                b"@" => Some(0),
                b"[" => Some(27),
                b"\\" => Some(28),
                b"]" => Some(29),
                b"^" => Some(30),
                b"_" => Some(31),
                _ => None,
            }
        }
    };
    let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
    keys.ok_or_else(|| {
        Failure::usage(format!("invalid detach keys {text:?}"))
            .with_hint("characters or ctrl-LETTER, as ctrl-p,ctrl-q")
    })
}

/// Finds the keys in what is typed, however it is cut into pieces.
#[derive(Debug)]
pub struct Scanner {
    keys: Vec<u8>,
    matched: usize,
}

impl Scanner {
    /// Looks for these keys; for none, finds nothing.
    pub fn new(keys: Vec<u8>) -> Self {
        Self { keys, matched: 0 }
    }

    /// Takes the keys out of `bytes`, and all that follows them; true if they were there. A beginning of the keys
    /// is held back until it is known whether it goes on.
    pub fn scan(&mut self, bytes: &mut Vec<u8>) -> bool {
        if self.keys.is_empty() {
            return false;
        }
        let mut passed = Vec::with_capacity(bytes.len() + self.matched);
        for &byte in bytes.iter() {
            if byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    *bytes = passed;
                    return true;
                }
                continue;
            }
            passed.extend_from_slice(&self.keys[..self.matched]);
            self.matched = 0;
            if byte == self.keys[0] {
                self.matched = 1;
            } else {
                passed.push(byte);
            }
        }
        *bytes = passed;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read() {
        assert_eq!(parse("ctrl-p,ctrl-q").unwrap(), [16, 17]);
        assert_eq!(parse("CTRL-X,a").unwrap(), [24, b'a']);
        assert_eq!(parse("ctrl-]").unwrap(), [29]);
        for text in ["", "ctrl-", "ctrl-pp", "ab", "a,,b"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    fn type_in(pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut scanner = Scanner::new(vec![16, 17]);
        let mut passed = Vec::new();
        for piece in pieces {
            let mut bytes = piece.to_vec();
            let found = scanner.scan(&mut bytes);
            passed.extend(bytes);
            if found {
                return (passed, true);
            }
        }
        (passed, false)
    }

    #[test]
    fn keys_are_found_in_pieces() {
        assert_eq!(type_in(&[b"ab\x10\x11cd"]), (b"ab".to_vec(), true));
        assert_eq!(type_in(&[b"ab\x10", b"\x11"]), (b"ab".to_vec(), true));
        assert_eq!(type_in(&[b"ab\x10", b"c"]), (b"ab\x10c".to_vec(), false));
        assert_eq!(type_in(&[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
        assert_eq!(type_in(&[b"\x11\x10"]), (b"\x11".to_vec(), false));
        assert!(!Scanner::new(Vec::new()).scan(&mut b"\x10\x11".to_vec()));
    }
}
