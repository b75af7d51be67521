//! Where inode records stand: none that fits a block crosses a block's end, and gaps are filled by later ones.

use super::format::{BLOCK, SLOT};

/// Blocks that are looked at for a gap. More would save little and move neighbours apart.
const OPEN: usize = 8;

/// Hands out places in the metadata area.
pub struct Places {
    /// The area's end, a multiple of the block.
    end: u64,
    /// Where free space at a block's end begins, and how much it is.
    open: Vec<(u64, u64)>,
}

impl Places {
    /// An empty area. Its first slot stays unused, since inode number 0 means "none" to some programs.
    pub fn new() -> Self {
        Self { end: BLOCK, open: vec![(SLOT, BLOCK - SLOT)] }
    }

    /// A place for a record of `bytes`, counted from the area's beginning.
    pub fn take(&mut self, bytes: u64) -> u64 {
        let bytes = bytes.next_multiple_of(SLOT);
        if let Some(found) = self.open.iter().position(|&(_, free)| bytes <= free) {
            let (at, free) = self.open[found];
            self.open[found] = (at + bytes, free - bytes);
            if free == bytes {
                self.open.remove(found);
            }
            return at;
        }
        let at = self.end;
        self.end = (at + bytes).next_multiple_of(BLOCK);
        if at + bytes < self.end {
            if self.open.len() == OPEN {
                let fullest = (0..OPEN).min_by_key(|&i| self.open[i].1).unwrap_or(0);
                self.open.remove(fullest);
            }
            self.open.push((at + bytes, self.end - at - bytes));
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_stay_in_a_block_and_apart() {
        let mut places = Places::new();
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for i in 0..5000u64 {
            let bytes = 32 + i * 7919 % 3000 + if i % 500 == 0 { 9000 } else { 0 };
            let at = places.take(bytes);
            assert!(at >= SLOT && at.is_multiple_of(SLOT));
            assert!(bytes > BLOCK || at / BLOCK == (at + bytes - 1) / BLOCK);
            assert!(bytes <= BLOCK || at.is_multiple_of(BLOCK));
            taken.push((at, at + bytes));
        }
        taken.sort_unstable();
        assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        let used: u64 = taken.iter().map(|(start, end)| end - start).sum();
        assert!(places.end < used * 5 / 4, "{} for {used}", places.end);
    }
}
