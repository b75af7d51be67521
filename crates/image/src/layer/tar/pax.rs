//! Records of a pax extended header: `LENGTH KEY=VALUE\n`, one after the other.

use super::sparse::Segment;

/// What the records of one extended header say. Empty values mean "as the plain header says".
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Pax {
    /// `path`, or `GNU.sparse.name`, which is the real one.
    pub path: Option<Vec<u8>>,
    /// `linkpath`.
    pub link: Option<Vec<u8>>,
    /// `uid`.
    pub uid: Option<u64>,
    /// `gid`.
    pub gid: Option<u64>,
    /// `size`: bytes stored.
    pub size: Option<u64>,
    /// `mtime`: seconds and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// `SCHILY.xattr.*`, in the order seen, the last of a name only.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `GNU.sparse.*`.
    pub sparse: Sparse,
}

/// GNU's sparse records, of format 0.0, 0.1 or 1.0.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Sparse {
    /// `GNU.sparse.name` was there.
    named: bool,
    /// The map is at the beginning of the data (format 1.0).
    pub in_data: bool,
    /// Bytes of the file with its holes.
    pub size: Option<u64>,
    /// The map of format 0.0 or 0.1.
    pub map: Option<Vec<Segment>>,
    /// `GNU.sparse.offset`, waiting for its `GNU.sparse.numbytes`.
    offset: Option<u64>,
}

impl Pax {
    /// Reads all records.
    pub fn parse(mut bytes: &[u8]) -> Result<Self, &'static str> {
        let mut pax = Self::default();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or("bad pax record")?;
            pax.set(key, value).ok_or("bad value in a pax record")?;
            bytes = rest;
        }
        if pax.sparse.offset.is_some() {
            return Err("sparse map ends in the middle");
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            return self.set_xattr(name, value);
        }
        if value.is_empty() {
            return Some(());
        }
        match key {
            b"path" if !self.sparse.named => self.path = Some(name(value)?),
            b"linkpath" => self.link = Some(name(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"size" => self.size = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.set_sparse(key, value)?;
                }
            }
        }
        Some(())
    }

    fn set_xattr(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let key = name(key)?;
        match self.xattrs.iter_mut().find(|(k, _)| *k == key) {
            Some(old) => old.1 = value.to_vec(),
            None => self.xattrs.push((key, value.to_vec())),
        }
        Some(())
    }

    fn set_sparse(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let sparse = &mut self.sparse;
        match key {
            b"name" => {
                sparse.named = true;
                self.path = Some(name(value)?);
            }
            b"major" => sparse.in_data = decimal(value)? == 1,
            b"size" | b"realsize" => sparse.size = Some(decimal(value)?),
            b"numblocks" => drop(sparse.map.get_or_insert_default()),
            b"offset" if sparse.offset.is_none() => sparse.offset = Some(decimal(value)?),
            b"numbytes" => {
                let segment = Segment { offset: sparse.offset.take()?, len: decimal(value)? };
                sparse.map.get_or_insert_default().push(segment);
            }
            b"map" => sparse.map = Some(map(value)?),
            b"offset" => return None,
            _ => {}
        }
        Some(())
    }
}

/// Splits off one record.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&b| b == b' ')?;
    let len: usize = decimal(&bytes[..space])?.try_into().ok()?;
    let body = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|&b| b == b'=')?;
    (equals > 0).then(|| (&body[..equals], &body[equals + 1..], &bytes[len..]))
}

/// A name: anything but nothing, and no NUL.
fn name(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty() && !value.contains(&0)).then(|| value.to_vec())
}

/// A decimal number without a sign.
pub fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, &digit| match digit {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// `-1.25` is 2 s before 1970 and 750 ms: nanoseconds always count forward.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|&b| b == b'.').unwrap_or(text.len());
    let seconds = i64::try_from(decimal(&text[..dot])?).ok()?;
    let mut nanos = 0;
    let fraction = text.get(dot + 1..).unwrap_or_default();
    for (i, digit) in fraction.iter().enumerate() {
        if !digit.is_ascii_digit() {
            return None;
        }
        if i < 9 {
            nanos += u32::from(digit - b'0') * 10u32.pow(8 - i as u32);
        }
    }
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

/// `offset,length,offset,length…`
fn map(text: &[u8]) -> Option<Vec<Segment>> {
    let mut numbers = text.split(|&b| b == b',').map(decimal);
    let mut segments = Vec::new();
    while let Some(offset) = numbers.next() {
        segments.push(Segment { offset: offset?, len: numbers.next()?? });
    }
    Some(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let pax = Pax::parse(b"12 path=a b\n22 mtime=1700000000.5\n24 SCHILY.xattr.user.a=\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a b"[..]));
        assert_eq!(pax.mtime, Some((1_700_000_000, 500_000_000)));
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), Vec::new())]);
        for bad in [&b"5 a=b"[..], b"99 a=b\n", b"6 abc\n", b"6 =bc\n", b"x a=b\n", b"12 path=a\0b\n"] {
            assert!(Pax::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn times() {
        assert_eq!(time(b"1"), Some((1, 0)));
        assert_eq!(time(b"1.123456789999"), Some((1, 123_456_789)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"1.x"), None);
        assert_eq!(time(b""), None);
    }

    #[test]
    fn sparse_maps() {
        let pax = Pax::parse(b"26 GNU.sparse.map=0,5,9,1\n22 GNU.sparse.size=10\n").unwrap();
        let want = [Segment { offset: 0, len: 5 }, Segment { offset: 9, len: 1 }];
        assert_eq!(pax.sparse.map.as_deref(), Some(&want[..]));
        assert_eq!(pax.sparse.size, Some(10));
        assert!(Pax::parse(b"24 GNU.sparse.map=0,5,9\n").is_err());
        assert!(Pax::parse(b"24 GNU.sparse.offset=12\n").is_err());
    }
}
