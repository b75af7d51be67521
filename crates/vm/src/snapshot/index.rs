//! The index of a snapshot: which page of memory and disk is where.
//!
//! ```text
//!   "proasnp1"
//!   count, ids of packs          16 bytes each
//!   count, frames                pack u32, blocks u32, offset u64, length u32, 0 u32, SHA-256: 56 bytes each
//!   count, blocks                frame u32, slot u32, SHA-256 of the page: 40 bytes each
//!   count, runs of memory        page u64, count u32, block u32: 16 bytes each
//!   count, runs of the disk      the same
//! ```
//!
//! Numbers are little-endian, counts u64. A frame is a group of pages, compressed together; a block is one of them. A
//! run says that so many pages from this one on are so many blocks from that one on, or all zeros.

use super::PAGE;

const MAGIC: &[u8; 8] = b"proasnp1";
/// Instead of a block: the pages are zeros.
pub const ZEROS: u32 = u32::MAX;
/// Pages of a frame at most.
pub const FRAME_PAGES: usize = 64;
const PACK: usize = 16;
const FRAME: usize = 56;
const BLOCK: usize = 40;
const RUN: usize = 16;

/// The name of a pack: random.
pub type PackId = [u8; PACK];
/// A SHA-256.
pub type Hash = [u8; 32];

/// Where a group of pages is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub pack: u32,
    /// Pages in it.
    pub blocks: u32,
    pub offset: u64,
    /// Bytes, compressed.
    pub length: u32,
    /// Of these.
    pub sha256: Hash,
}

/// Where a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    pub frame: u32,
    pub slot: u32,
    pub sha256: Hash,
}

/// Pages that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub page: u64,
    pub count: u32,
    /// The first of as many, or [`ZEROS`].
    pub block: u32,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    pub packs: Vec<PackId>,
    pub frames: Vec<Frame>,
    pub blocks: Vec<Block>,
    pub memory: Vec<Run>,
    pub disk: Vec<Run>,
}

impl Index {
    /// As it is on disk.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let count = |bytes: &mut Vec<u8>, count: usize| bytes.extend((count as u64).to_le_bytes());
        count(&mut bytes, self.packs.len());
        self.packs.iter().for_each(|pack| bytes.extend(pack));
        count(&mut bytes, self.frames.len());
        for frame in &self.frames {
            bytes.extend(frame.pack.to_le_bytes());
            bytes.extend(frame.blocks.to_le_bytes());
            bytes.extend(frame.offset.to_le_bytes());
            bytes.extend(u64::from(frame.length).to_le_bytes());
            bytes.extend(frame.sha256);
        }
        count(&mut bytes, self.blocks.len());
        for block in &self.blocks {
            bytes.extend(block.frame.to_le_bytes());
            bytes.extend(block.slot.to_le_bytes());
            bytes.extend(block.sha256);
        }
        for runs in [&self.memory, &self.disk] {
            count(&mut bytes, runs.len());
            for run in runs {
                bytes.extend(run.page.to_le_bytes());
                bytes.extend(run.count.to_le_bytes());
                bytes.extend(run.block.to_le_bytes());
            }
        }
        bytes
    }

    /// Reads it; what is wrong with it otherwise.
    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut rest = bytes.strip_prefix(MAGIC).ok_or("it is no index of a snapshot")?;
        let packs = records(&mut rest, |bytes: &[u8; PACK]| *bytes)?;
        let frames = records(&mut rest, frame)?;
        let blocks = records(&mut rest, block)?;
        let memory = records(&mut rest, run)?;
        let disk = records(&mut rest, run)?;
        let index = Self { packs, frames, blocks, memory, disk };
        if !rest.is_empty() {
            return Err("it is longer than it says");
        }
        index.check().map(|()| index)
    }

    fn check(&self) -> Result<(), &'static str> {
        let is_frame = |frame: &Frame| {
            (frame.pack as usize) < self.packs.len() && (1..=FRAME_PAGES as u32).contains(&frame.blocks)
        };
        let is_block = |block: &Block| {
            self.frames.get(block.frame as usize).is_some_and(|frame| block.slot < frame.blocks)
        };
        let is_run = |run: &Run| {
            let end = u64::from(run.block) + u64::from(run.count);
            run.block == ZEROS || end <= self.blocks.len() as u64
        };
        if !self.frames.iter().all(is_frame) {
            return Err("a frame of it is in no pack");
        }
        if !self.blocks.iter().all(is_block) {
            return Err("a block of it is in no frame");
        }
        if !self.memory.iter().chain(&self.disk).all(is_run) {
            return Err("a run of it has no blocks");
        }
        Ok(())
    }

    /// Pages of these runs.
    pub fn pages(runs: &[Run]) -> u64 {
        runs.iter().map(|run| u64::from(run.count)).sum()
    }

    /// Whether a run ends beyond so many bytes.
    pub fn exceeds(runs: &[Run], bytes: u64) -> bool {
        let end = |run: &Run| run.page.saturating_add(u64::from(run.count)).saturating_mul(PAGE as u64);
        runs.iter().any(|run| end(run) > bytes)
    }
}

/// A count and as many records; what says that there are more than the bytes can hold is not believed.
fn records<T, const SIZE: usize>(
    rest: &mut &[u8],
    read: impl Fn(&[u8; SIZE]) -> T,
) -> Result<Vec<T>, &'static str> {
    let short = "it is cut off";
    let (count, after) = rest.split_first_chunk().ok_or(short)?;
    let length = usize::try_from(u64::from_le_bytes(*count)).ok().and_then(|count| count.checked_mul(SIZE));
    let (bytes, after) = length.and_then(|length| after.split_at_checked(length)).ok_or(short)?;
    *rest = after;
    Ok(bytes.chunks_exact(SIZE).filter_map(|bytes| bytes.first_chunk()).map(read).collect())
}

fn frame(bytes: &[u8; FRAME]) -> Frame {
    Frame {
        pack: number(bytes, 0),
        blocks: number(bytes, 4),
        offset: long(bytes, 8),
        length: number(bytes, 16),
        sha256: hash(bytes, 24),
    }
}

fn block(bytes: &[u8; BLOCK]) -> Block {
    Block { frame: number(bytes, 0), slot: number(bytes, 4), sha256: hash(bytes, 8) }
}

fn run(bytes: &[u8; RUN]) -> Run {
    Run { page: long(bytes, 0), count: number(bytes, 8), block: number(bytes, 12) }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn hash(bytes: &[u8], at: usize) -> Hash {
    bytes[at..].first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        Index {
            packs: vec![[7; PACK], [8; PACK]],
            frames: vec![Frame { pack: 1, blocks: 2, offset: 5, length: 9, sha256: [1; 32] }],
            blocks: (0..2).map(|slot| Block { frame: 0, slot, sha256: [slot as u8; 32] }).collect(),
            memory: vec![Run { page: 3, count: 2, block: 0 }, Run { page: 9, count: 4, block: ZEROS }],
            disk: vec![Run { page: 1 << 40, count: 1, block: 1 }],
        }
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let index = index();
        assert_eq!(Index::decode(&index.encode()).unwrap(), index);
        assert_eq!(Index::pages(&index.memory), 6);
        assert!(
            Index::exceeds(&index.memory, 12 * PAGE as u64)
                && !Index::exceeds(&index.memory, 13 * PAGE as u64)
        );
        assert!(Index::exceeds(&[Run { page: u64::MAX, count: 1, block: 0 }], u64::MAX - 1));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let bytes = index().encode();
        for length in 0..bytes.len() {
            assert!(Index::decode(&bytes[..length]).is_err(), "{length}");
        }
        assert_eq!(Index::decode(&[&bytes[..], &[0]].concat()), Err("it is longer than it says"));
        let mut endless = bytes.clone();
        endless[8..16].fill(0xff);
        assert_eq!(Index::decode(&endless), Err("it is cut off"));
        let wrong = |change: &dyn Fn(&mut Index)| {
            let mut index = index();
            change(&mut index);
            Index::decode(&index.encode()).unwrap_err()
        };
        assert_eq!(wrong(&|index| index.frames[0].pack = 2), "a frame of it is in no pack");
        assert_eq!(wrong(&|index| index.frames[0].blocks = 65), "a frame of it is in no pack");
        assert_eq!(wrong(&|index| index.blocks[1].slot = 2), "a block of it is in no frame");
        assert_eq!(wrong(&|index| index.memory[0].count = 3), "a run of it has no blocks");
    }
}
