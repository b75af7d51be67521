//! The 512 bytes of a tar header: v7, ustar, GNU and star.

/// Bytes of a header, and the unit everything in an archive is padded to.
pub const BLOCK: usize = 512;

/// One header, not yet interpreted.
#[derive(Clone)]
pub struct Header(pub [u8; BLOCK]);

impl Header {
    /// Whether all bytes are zero, as at an archive's end.
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|&b| b == 0)
    }

    /// Whether the header's sum is right, the bytes taken as unsigned, or as signed as old tars did.
    pub fn sum_is_right(&self) -> bool {
        let Some(want) = number(&self.0[148..156]) else { return false };
        let blank = 8 * i64::from(b' ');
        let rest = || self.0[..148].iter().chain(&self.0[156..]);
        let unsigned: i64 = blank + rest().map(|&b| i64::from(b)).sum::<i64>();
        if unsigned == want {
            return true;
        }
        blank + rest().map(|&b| i64::from(b.cast_signed())).sum::<i64>() == want
    }

    /// The entry's type.
    pub fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The name, with ustar's prefix before it.
    pub fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix: &[u8] = if &self.0[257..263] != b"ustar\0" {
            b""
        } else if &self.0[508..512] == b"tar\0" {
            text(&self.0[345..476])
        } else {
            text(&self.0[345..500])
        };
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    /// The link's target.
    pub fn link(&self) -> &[u8] {
        text(&self.0[157..257])
    }

    /// Mode bits, type included if the archiver put it there.
    pub fn mode(&self) -> Option<i64> {
        number(&self.0[100..108])
    }

    /// Owner.
    pub fn uid(&self) -> Option<i64> {
        number(&self.0[108..116])
    }

    /// Group.
    pub fn gid(&self) -> Option<i64> {
        number(&self.0[116..124])
    }

    /// Bytes that follow.
    pub fn size(&self) -> Option<u64> {
        number(&self.0[124..136])?.try_into().ok()
    }

    /// Seconds since 1970.
    pub fn mtime(&self) -> Option<i64> {
        number(&self.0[136..148])
    }

    /// Major and minor number of a device.
    pub fn device(&self) -> Option<(i64, i64)> {
        Some((number(&self.0[329..337])?, number(&self.0[337..345])?))
    }
}

/// The bytes before the first NUL.
fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}

/// A number: octal text, or base 256 if the first bit is set. Nothing at all is 0.
pub fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        return base256(field);
    }
    let blank = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| !blank(b)).unwrap_or(field.len());
    let digits = &field[start..];
    let digits = &digits[..digits.iter().position(blank).unwrap_or(digits.len())];
    digits.iter().try_fold(0i64, |sum, &digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

fn base256(field: &[u8]) -> Option<i64> {
    // The first byte's top bit marks the encoding, the next is the sign.
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] } else { field[0] & 0x7f };
    let start = if negative { -1i64 } else { 0 };
    std::iter::once(first).chain(field[1..].iter().copied()).try_fold(start, |sum, byte| {
        let shifted = sum.checked_mul(256)?;
        Some(shifted | i64::from(byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"77777777"), Some(0o77777777));
        assert_eq!(number(b"0000844\0"), None);
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\x02"), Some(258));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff"), Some(-1));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\x00"), Some(-256));
        assert_eq!(number(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
    }

    #[test]
    fn sums() {
        let mut header = Header([0; BLOCK]);
        assert!(header.is_zero());
        header.0[0] = 0xe4;
        let unsigned = 8 * 32 + 0xe4;
        header.0[148..156].copy_from_slice(format!("{unsigned:06o}\0 ").as_bytes());
        assert!(header.sum_is_right());
        let signed = 8 * 32 + 0xe4 - 256;
        header.0[148..156].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
        assert!(header.sum_is_right());
        header.0[1] = 1;
        assert!(!header.sum_is_right());
    }
}
