//! Sparse files: which chunk size wastes least, and where the chunks are.
//!
//! Small chunks follow the holes closely and need a long table; large ones the opposite. A file of one
//! tebibyte with one byte in it has a table of one entry a chunk, so the size is chosen for each file. What
//! pads a chunk costs the table's price only in part: it becomes a hole in the image's file.

use super::format::{BLOCK, NULL_BLOCK};
use crate::layer::tar::Segment;

/// Largest chunk, as a power of two of blocks, that the format can say.
const MAX_BITS: u32 = 31;
/// Bytes of padding that are as bad as one byte of table.
const PADDING: u64 = 64;

/// How one sparse file is laid out.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunks {
    /// Blocks in a chunk, as a power of two.
    pub bits: u32,
    /// Chunks of the file.
    pub count: u64,
    /// Chunks that are there, in order and apart.
    pub runs: Vec<Run>,
}

/// Chunks that stand one after the other in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// The image's block where they begin.
    pub block: u32,
}

impl Chunks {
    /// The layout that takes least room, its runs not yet placed; `None` if plain blocks are as good.
    pub fn plan(size: u64, segments: &[Segment]) -> Option<Self> {
        let stored: u64 = segments.iter().map(|segment| segment.len).sum();
        if stored == size {
            return None;
        }
        let cost = |bits: u32| {
            let chunk = BLOCK << bits;
            let table = 4 * size.div_ceil(chunk);
            let data: u64 = runs(segments, chunk).map(|run| run_bytes(&run, chunk, size)).sum();
            (table.saturating_add(stored + (data - stored) / PADDING), table.saturating_add(data))
        };
        let bits = (0..=MAX_BITS).min_by_key(|&bits| cost(bits).0)?;
        if cost(bits).1 >= size.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX) {
            return None;
        }
        let chunk = BLOCK << bits;
        Some(Self { bits, count: size.div_ceil(chunk), runs: runs(segments, chunk).collect() })
    }

    /// Bytes of a chunk.
    pub fn chunk(&self) -> u64 {
        BLOCK << self.bits
    }

    /// Bytes the run takes in the image.
    pub fn run_bytes(&self, run: &Run, size: u64) -> u64 {
        run_bytes(run, self.chunk(), size)
    }

    /// Bytes of the table.
    pub fn table_bytes(&self) -> u64 {
        4 * self.count
    }

    /// The table, a piece at a time: blocks of chunks, or a count of holes.
    pub fn table(&self) -> impl Iterator<Item = Piece> {
        let mut next = 0;
        let step = 1u64 << self.bits;
        let last = Run { first: self.count, count: 0, block: 0 };
        self.runs.iter().copied().chain([last]).flat_map(move |run| {
            let holes = run.first - next;
            next = run.first + run.count;
            let blocks = (0..run.count).map(move |i| Piece::Chunk(run.block + (i * step) as u32));
            std::iter::once(Piece::Holes(holes)).chain(blocks)
        })
    }
}

/// A part of a chunk table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// That many holes.
    Holes(u64),
    /// A chunk at this block.
    Chunk(u32),
}

impl Piece {
    /// Entries and what each of them is.
    pub fn entries(self) -> (u64, u32) {
        match self {
            Self::Holes(count) => (count, NULL_BLOCK),
            Self::Chunk(block) => (1, block),
        }
    }
}

/// The chunks that the segments touch.
fn runs(segments: &[Segment], chunk: u64) -> impl Iterator<Item = Run> {
    let mut touched = segments.iter().map(move |segment| {
        let first = segment.offset / chunk;
        Run { first, count: (segment.end() - 1) / chunk - first + 1, block: 0 }
    });
    let mut open: Option<Run> = None;
    std::iter::from_fn(move || {
        loop {
            match (open.as_mut(), touched.next()) {
                (None, next @ Some(_)) => open = next,
                (Some(run), Some(next)) if next.first <= run.first + run.count => {
                    run.count = run.count.max(next.first + next.count - run.first);
                }
                (_, next) => return std::mem::replace(&mut open, next),
            }
        }
    })
}

/// The file's last chunk ends with the file's last block.
fn run_bytes(run: &Run, chunk: u64, size: u64) -> u64 {
    let start = run.first * chunk;
    (run.count.saturating_mul(chunk)).min((size - start).next_multiple_of(BLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seg(offset: u64, len: u64) -> Segment {
        Segment { offset, len }
    }

    #[test]
    fn a_file_without_holes_is_plain() {
        assert_eq!(Chunks::plan(100_000, &[seg(0, 100_000)]), None);
        assert_eq!(Chunks::plan(8192, &[seg(10, 4), seg(5000, 1)]), None);
    }

    #[test]
    fn a_huge_hole_costs_little() {
        let chunks = Chunks::plan(1 << 40, &[seg(1 << 39, 1)]).unwrap();
        assert_eq!(chunks.runs.len(), 1);
        assert!(chunks.run_bytes(&chunks.runs[0], 1 << 40) < 64 << 20);
        assert!(chunks.table_bytes() < 1 << 20);
        let hole = Chunks::plan(i64::MAX as u64, &[]).unwrap();
        assert!(hole.table_bytes() <= 4 << 20 && hole.runs.is_empty());
    }

    #[test]
    fn neighbours_share_a_run() {
        let segments = [seg(0, 1), seg(4096, 4096), seg(1 << 30, 5000)];
        let mut chunks = Chunks::plan((1 << 30) + 5000, &segments).unwrap();
        assert_eq!(chunks.runs.len(), 2);
        chunks.runs[0].block = 7;
        chunks.runs[1].block = 100;
        let entries: u64 = chunks.table().map(|piece| piece.entries().0).sum();
        assert_eq!(entries, chunks.count);
        let blocks: Vec<_> = chunks.table().filter(|piece| matches!(piece, Piece::Chunk(_))).collect();
        assert_eq!(blocks[0], Piece::Chunk(7));
    }
}
