//! Makes a snapshot of raw copies: what differs from the base, each page once, compressed.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use proa_protocol::snapshot::{
    BASE_FILE, GuestShape, INFO_FILE, Pack, RAW_DISK, RAW_MEMORY, RAW_STATE, SHAPE_FILE, SnapshotInfo,
};
use proa_protocol::time::now_ns;
use sha2::{Digest, Sha256};

use super::index::{Block, FRAME_PAGES, Frame, Hash, Index, PackId, Run, ZEROS};
use super::{FORMAT, INDEX_FILE, MOST_STATE, PACK_PREFIX, PAGE, STATE_FILE, bad};
use crate::VmError;
use crate::disk::next_data;
use crate::store::{base_identity, hex};

/// Fast enough for a disk, and small.
const LEVEL: i32 = 3;

/// Makes the directory of raw copies a snapshot, on disk when this returns.
///
/// # Errors
/// They are no raw copies, or something cannot be read or written.
pub fn pack(wanted: &Pack) -> Result<(), VmError> {
    let directory = &wanted.directory;
    let failed = |error: io::Error| VmError::io(directory)(error);
    let shape = directory.join(SHAPE_FILE);
    let text = fs::read(&shape).map_err(VmError::io(&shape))?;
    let shape: GuestShape = serde_json::from_slice(&text).map_err(|error| bad(&shape, error.to_string()))?;
    let base = File::open(directory.join(BASE_FILE)).map_err(failed)?;
    let parent = wanted.parent.as_deref().and_then(Parent::open).unwrap_or_default();
    let mut packer = Packer::new(directory, parent).map_err(failed)?;
    let memory = packer.memory(&base).map_err(failed)?;
    let (disk, disk_size) = packer.disk().map_err(failed)?;
    let index = packer.finish(memory, disk).map_err(failed)?;
    let info = SnapshotInfo {
        format: FORMAT,
        shape,
        made_ns: now_ns(),
        memory_pages: Index::pages(&index.memory),
        disk_pages: Index::pages(&index.disk),
        disk_size,
        state_sha256: write_state(directory).map_err(failed)?,
        index_sha256: write(&directory.join(INDEX_FILE), &index.encode()).map_err(failed)?,
        base_identity: base_identity(&base.metadata().map_err(failed)?),
    };
    // It may be a copy that nobody else has seen to the disk.
    base.sync_all().map_err(failed)?;
    write(&directory.join(INFO_FILE), &serde_json::to_vec_pretty(&info).unwrap_or_default())
        .map_err(failed)?;
    for raw in [RAW_MEMORY, RAW_DISK, RAW_STATE, SHAPE_FILE] {
        fs::remove_file(directory.join(raw)).map_err(failed)?;
    }
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

/// A snapshot whose pages need not be kept again.
#[derive(Default)]
struct Parent {
    directory: PathBuf,
    index: Index,
    blocks: HashMap<Hash, u32>,
}

impl Parent {
    /// Nothing where it is not what it was: then it is no help.
    fn open(directory: &Path) -> Option<Self> {
        let info = fs::read(directory.join(INFO_FILE)).ok()?;
        let info: SnapshotInfo = serde_json::from_slice(&info).ok()?;
        let bytes = fs::read(directory.join(INDEX_FILE)).ok()?;
        if info.format != FORMAT || hex(&Sha256::digest(&bytes)) != info.index_sha256 {
            return None;
        }
        let index = Index::decode(&bytes).ok()?;
        let numbered = index.blocks.iter().zip(0..).map(|(block, number)| (block.sha256, number));
        Some(Self { directory: directory.to_owned(), blocks: numbered.collect(), index })
    }
}

/// A snapshot in the making.
struct Packer<'dir> {
    directory: &'dir Path,
    parent: Parent,
    index: Index,
    known: HashMap<Hash, u32>,
    /// Numbers, here, of the parent's packs and frames that are used.
    packs: HashMap<u32, u32>,
    frames: HashMap<u32, u32>,
    /// The pack that is written, and its length.
    pack: File,
    length: u64,
    /// The frame that is being filled: its number, and the pages in it.
    filled: u32,
    open: Vec<u8>,
}

/// The first pack of a snapshot is its own.
const OWN: u32 = 0;

impl<'dir> Packer<'dir> {
    fn new(directory: &'dir Path, parent: Parent) -> io::Result<Self> {
        let mut id = PackId::default();
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
        let pack = create(&directory.join(pack_name(&id)))?;
        let index = Index { packs: vec![id], ..Index::default() };
        let (known, packs, frames) = (HashMap::new(), HashMap::new(), HashMap::new());
        let open = Vec::with_capacity(FRAME_PAGES * PAGE);
        Ok(Self { directory, parent, index, known, packs, frames, pack, length: 0, filled: 0, open })
    }

    /// The pages of memory that are not what they are in the base.
    fn memory(&mut self, base: &File) -> io::Result<Vec<Run>> {
        let mut raw = BufReader::with_capacity(1 << 20, File::open(self.directory.join(RAW_MEMORY))?);
        let read_number = |raw: &mut BufReader<File>| {
            let mut bytes = [0; 8];
            raw.read_exact(&mut bytes).map(|()| u64::from_le_bytes(bytes))
        };
        let count = read_number(&mut raw)?;
        let pages = (0..count).map(|_| read_number(&mut raw)).collect::<io::Result<Vec<u64>>>()?;
        let head = (pages.len() + 1) * 8;
        io::copy(&mut raw.by_ref().take((head.next_multiple_of(PAGE) - head) as u64), &mut io::sink())?;
        let (mut runs, mut page, mut was) = (Vec::new(), [0; PAGE], [0; PAGE]);
        for number in pages {
            raw.read_exact(&mut page)?;
            base.read_exact_at(&mut was, number * PAGE as u64)?;
            if page != was {
                let block = if page == [0; PAGE] { ZEROS } else { self.add(&page)? };
                extend(&mut runs, number, block);
            }
        }
        Ok(runs)
    }

    /// The pages of the disk that hold something, and its size.
    fn disk(&mut self) -> io::Result<(Vec<Run>, u64)> {
        let raw = File::open(self.directory.join(RAW_DISK))?;
        let size = raw.metadata()?.len();
        let (mut runs, mut page, mut position) = (Vec::new(), [0; PAGE], 0);
        while let Some((start, end)) = next_data(&raw, position)? {
            for number in start / PAGE as u64..end.div_ceil(PAGE as u64) {
                let at = number * PAGE as u64;
                let length = size.saturating_sub(at).min(PAGE as u64) as usize;
                page[length..].fill(0);
                raw.read_exact_at(&mut page[..length], at)?;
                if page != [0; PAGE] {
                    let block = self.add(&page)?;
                    extend(&mut runs, number, block);
                }
            }
            position = end;
        }
        Ok((runs, size))
    }

    /// The number of the block with this content.
    fn add(&mut self, page: &[u8; PAGE]) -> io::Result<u32> {
        let sha256: Hash = Sha256::digest(page).into();
        if let Some(&number) = self.known.get(&sha256) {
            return Ok(number);
        }
        let number = u32::try_from(self.index.blocks.len()).map_err(io::Error::other)?;
        if number == ZEROS {
            return Err(io::Error::other("more pages than a snapshot can have"));
        }
        let block = match self.parent.blocks.get(&sha256) {
            Some(&theirs) => self.adopt(theirs as usize),
            None => self.append(page, sha256)?,
        };
        self.index.blocks.push(block);
        self.known.insert(sha256, number);
        Ok(number)
    }

    /// A block of the parent's.
    fn adopt(&mut self, number: usize) -> Block {
        let block = self.parent.index.blocks[number];
        let frame = self.parent.index.frames[block.frame as usize];
        let Self { index, packs, frames, parent, .. } = self;
        let ours = *frames.entry(block.frame).or_insert_with(|| {
            let pack = *packs.entry(frame.pack).or_insert_with(|| {
                index.packs.push(parent.index.packs[frame.pack as usize]);
                index.packs.len() as u32 - 1
            });
            index.frames.push(Frame { pack, ..frame });
            index.frames.len() as u32 - 1
        });
        Block { frame: ours, ..block }
    }

    /// A block of our own, in the frame that is being filled.
    fn append(&mut self, page: &[u8; PAGE], sha256: Hash) -> io::Result<Block> {
        if self.open.len() == FRAME_PAGES * PAGE {
            self.close()?;
        }
        if self.open.is_empty() {
            // Frames of the parent's may come between this and the next of our own.
            self.filled = self.index.frames.len() as u32;
            self.index.frames.push(Frame { pack: OWN, blocks: 0, offset: 0, length: 0, sha256: [0; 32] });
        }
        let slot = (self.open.len() / PAGE) as u32;
        self.open.extend_from_slice(page);
        Ok(Block { frame: self.filled, slot, sha256 })
    }

    fn close(&mut self) -> io::Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let bytes = zstd::bulk::compress(&self.open, LEVEL)?;
        self.pack.write_all(&bytes)?;
        self.index.frames[self.filled as usize] = Frame {
            pack: OWN,
            blocks: (self.open.len() / PAGE) as u32,
            offset: self.length,
            length: u32::try_from(bytes.len()).map_err(io::Error::other)?,
            sha256: Sha256::digest(&bytes).into(),
        };
        self.length += bytes.len() as u64;
        self.open.clear();
        Ok(())
    }

    /// Writes what is left, and shares the parent's packs that are used.
    fn finish(mut self, memory: Vec<Run>, disk: Vec<Run>) -> io::Result<Index> {
        self.close()?;
        self.pack.sync_all()?;
        for id in &self.index.packs[1..] {
            let name = pack_name(id);
            fs::hard_link(self.parent.directory.join(&name), self.directory.join(&name))?;
        }
        Ok(Index { memory, disk, ..self.index })
    }
}

/// Name of a pack's file.
pub(super) fn pack_name(id: &PackId) -> String {
    format!("{PACK_PREFIX}{}", hex(id))
}

/// Adds a page to the last run, or begins another.
fn extend(runs: &mut Vec<Run>, page: u64, block: u32) {
    if let Some(last) = runs.last_mut() {
        let follows = last.page + u64::from(last.count) == page && last.count < u32::MAX;
        let goes_on = match last.block {
            ZEROS => block == ZEROS,
            first => block != ZEROS && first.checked_add(last.count) == Some(block),
        };
        if follows && goes_on {
            last.count += 1;
            return;
        }
    }
    runs.push(Run { page, count: 1, block });
}

fn write_state(directory: &Path) -> io::Result<String> {
    let raw = File::open(directory.join(RAW_STATE))?;
    let mut state = Vec::new();
    raw.take(MOST_STATE as u64).read_to_end(&mut state)?;
    write(&directory.join(STATE_FILE), &zstd::bulk::compress(&state, LEVEL)?)
}

/// Writes a file to the disk; its checksum.
fn write(path: &Path, bytes: &[u8]) -> io::Result<String> {
    let mut file = create(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(hex(&Sha256::digest(bytes)))
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}
