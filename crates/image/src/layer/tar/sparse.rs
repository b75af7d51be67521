//! Where a sparse file's bytes are.

use super::header::{BLOCK, number};
use super::pax::decimal;

/// Most pieces of one sparse file.
pub const MAX_SEGMENTS: usize = 1 << 20;

/// A run of stored bytes in a file; between the runs are holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

impl Segment {
    /// The byte after the last.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// Checks that the segments are in order, inside `size`, and hold exactly `stored` bytes; drops empty ones.
pub fn checked(mut segments: Vec<Segment>, size: u64, stored: u64) -> Option<Vec<Segment>> {
    let mut end = 0;
    let mut sum = 0u64;
    for segment in &segments {
        if segment.offset < end {
            return None;
        }
        end = segment.offset.checked_add(segment.len)?;
        sum = sum.checked_add(segment.len)?;
    }
    segments.retain(|segment| segment.len > 0);
    (end <= size && sum == stored).then_some(segments)
}

/// Adds the entries of an old GNU map (in a header, or in a block that follows it) until the first unused one.
pub fn push_old(segments: &mut Vec<Segment>, field: &[u8]) -> Option<()> {
    for entry in field.chunks_exact(24) {
        if entry[0] == 0 {
            break;
        }
        let offset = number(&entry[..12])?.try_into().ok()?;
        segments.push(Segment { offset, len: number(&entry[12..])?.try_into().ok()? });
    }
    Some(())
}

/// The map of format 1.0 as its blocks arrive: decimal lines, the first of which is the number of segments.
#[derive(Default)]
pub struct DataMap {
    line: Vec<u8>,
    expected: Option<usize>,
    offset: Option<u64>,
    segments: Vec<Segment>,
}

impl DataMap {
    /// Takes one block; gives the map once it is whole.
    pub fn push(&mut self, block: &[u8; BLOCK]) -> Result<Option<Vec<Segment>>, &'static str> {
        for &byte in block {
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() > 20 {
                    return Err("bad number in a sparse map");
                }
                continue;
            }
            let value = decimal(&self.line).ok_or("bad number in a sparse map")?;
            self.line.clear();
            if self.line_is_last(value)? {
                return Ok(Some(std::mem::take(&mut self.segments)));
            }
        }
        Ok(None)
    }

    fn line_is_last(&mut self, value: u64) -> Result<bool, &'static str> {
        match (self.expected, self.offset.take()) {
            (None, _) => {
                let count = usize::try_from(value).ok().filter(|&count| count <= MAX_SEGMENTS);
                self.expected = Some(count.ok_or("sparse map too long")?);
            }
            (Some(_), None) => self.offset = Some(value),
            (Some(_), Some(offset)) => self.segments.push(Segment { offset, len: value }),
        }
        Ok(self.offset.is_none() && self.expected == Some(self.segments.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seg(offset: u64, len: u64) -> Segment {
        Segment { offset, len }
    }

    #[test]
    fn checks() {
        assert_eq!(checked(vec![seg(0, 3), seg(9, 1), seg(20, 0)], 20, 4), Some(vec![seg(0, 3), seg(9, 1)]));
        assert_eq!(checked(vec![seg(3, 3), seg(5, 1)], 20, 4), None);
        assert_eq!(checked(vec![seg(0, 3)], 2, 3), None);
        assert_eq!(checked(vec![seg(0, 3)], 20, 4), None);
        assert_eq!(checked(vec![seg(u64::MAX, 3)], 20, 3), None);
    }

    #[test]
    fn map_in_data() {
        let mut block = [0; BLOCK];
        block[..16].copy_from_slice(b"2\n0\n5\n100\n7\njunk");
        assert_eq!(DataMap::default().push(&block), Ok(Some(vec![seg(0, 5), seg(100, 7)])));
        block[..2].copy_from_slice(b"0\n");
        assert_eq!(DataMap::default().push(&block), Ok(Some(vec![])));
        assert!(DataMap::default().push(&[b'1'; BLOCK]).is_err());
        block[..9].copy_from_slice(b"99999999\n");
        assert!(DataMap::default().push(&block).is_err());
    }
}
