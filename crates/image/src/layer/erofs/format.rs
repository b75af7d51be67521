//! EROFS on disk: the little of it that a layer needs. All numbers are little endian.
//!
//! ```text
//!   block 0             blocks 1 …                        meta_blkaddr …                   end
//!   ├ 1024: superblock ─┼ file data ─┼ directory blocks ─┼ inode records, in 32-byte slots ┤
//!   record = inode (32 or 64) + attributes + (tail of the data | table of chunks)
//! ```
//!
//! Data comes first because it is written as it streams in; the place of an inode is its number, counted in
//! slots from `meta_blkaddr`, and everything that refers to one is written after all are placed. Only what
//! kernel 5.15 and newer read is used: blocks of 4096 bytes, plain and tail-inlined data, and, if there are
//! sparse files, chunk tables (an incompatible feature that is then declared).

use crate::layer::tree::{Meta, Xattrs};

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// Where the superblock begins.
pub const SUPER_OFFSET: usize = 1024;
/// The superblock's first bytes, and the file system's number in `statfs`.
pub const MAGIC: u32 = 0xE0F5_E1E2;
/// Unit of an inode's place.
pub const SLOT: u64 = 32;
/// Bytes of a directory entry without its name.
pub const DIRENT: usize = 12;
/// The address of a chunk that is a hole.
pub const NULL_BLOCK: u32 = u32::MAX;
/// Incompatible feature: chunk tables.
pub const FEATURE_CHUNKED: u32 = 4;
/// Compatible features: the superblock has a checksum; times are modification times.
pub const FEATURES: u32 = 1 | 2;

/// How an inode's data is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Blocks one after the other.
    Plain = 0,
    /// The same, the last, partial block in the inode's record.
    Inline = 2,
    /// A table of block addresses, one a chunk.
    Chunks = 4,
}

/// The superblock's variable fields.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Super {
    /// The root's inode number.
    pub root: u16,
    /// Inodes.
    pub inodes: u64,
    /// Time of all compact inodes.
    pub time: (i64, u32),
    /// Blocks of the image.
    pub blocks: u32,
    /// Where inode numbers count from.
    pub meta: u32,
    /// What the image is called.
    pub uuid: [u8; 16],
    /// Chunk tables are used.
    pub chunked: bool,
}

impl Super {
    /// Block 0.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        let sb = &mut block[SUPER_OFFSET..];
        put(sb, 0, &MAGIC.to_le_bytes());
        put(sb, 8, &FEATURES.to_le_bytes());
        sb[12] = BLOCK.trailing_zeros() as u8;
        put(sb, 14, &self.root.to_le_bytes());
        put(sb, 16, &self.inodes.to_le_bytes());
        put(sb, 24, &self.time.0.to_le_bytes());
        put(sb, 32, &self.time.1.to_le_bytes());
        put(sb, 36, &self.blocks.to_le_bytes());
        put(sb, 40, &self.meta.to_le_bytes());
        put(sb, 48, &self.uuid);
        put(sb, 80, &if self.chunked { FEATURE_CHUNKED } else { 0 }.to_le_bytes());
        // Over the rest of the block, this field taken as zero.
        let sum = crc32c(sb);
        put(sb, 4, &sum.to_le_bytes());
        block
    }

    /// Reads block 0; `None` if it is not of an image as made here.
    pub fn decode(block: &[u8]) -> Option<Self> {
        let sb = block.get(SUPER_OFFSET..BLOCK as usize)?;
        let mut unsummed = sb.to_vec();
        unsummed[4..8].fill(0);
        let features = u32_at(sb, 80)?;
        let sound = u32_at(sb, 0)? == MAGIC
            && u32_at(sb, 4)? == crc32c(&unsummed)
            && u32_at(sb, 8)? == FEATURES
            && u64::from(sb[12]) == u64::from(BLOCK.trailing_zeros())
            && features & !FEATURE_CHUNKED == 0;
        sound.then_some(Self {
            root: u16_at(sb, 14)?,
            inodes: u64_at(sb, 16)?,
            time: (u64_at(sb, 24)?.cast_signed(), u32_at(sb, 32)?),
            blocks: u32_at(sb, 36)?,
            meta: u32_at(sb, 40)?,
            uuid: sb[48..64].try_into().ok()?,
            chunked: features != 0,
        })
    }
}

/// An inode, in either size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// How its data is laid out.
    pub layout: Layout,
    /// Type and permissions.
    pub mode: u16,
    /// Bytes.
    pub size: u64,
    /// First block, device number or chunk format.
    pub place: u32,
    /// A number for systems with 32-bit inode numbers.
    pub number: u32,
    /// Names.
    pub links: u32,
    /// Owner and time; its permissions are not looked at.
    pub meta: Meta,
    /// Bytes of its attributes in the record.
    pub xattr_bytes: u64,
}

impl Inode {
    /// Whether 32 bytes are enough, in an image of that time.
    pub fn is_compact(meta: &Meta, size: u64, links: u32, time: (i64, u32)) -> bool {
        let short = |n: u32| n <= u32::from(u16::MAX);
        meta.mtime == time
            && short(meta.uid)
            && short(meta.gid)
            && short(links)
            && size <= u64::from(u32::MAX)
    }

    /// The inode's bytes.
    pub fn encode(&self, time: (i64, u32)) -> Vec<u8> {
        let compact = Self::is_compact(&self.meta, self.size, self.links, time);
        let mut raw = vec![0; if compact { 32 } else { 64 }];
        let format = (self.layout as u16) << 1 | u16::from(!compact);
        put(&mut raw, 0, &format.to_le_bytes());
        put(&mut raw, 2, &xattr_count(self.xattr_bytes).to_le_bytes());
        put(&mut raw, 4, &self.mode.to_le_bytes());
        put(&mut raw, 16, &self.place.to_le_bytes());
        put(&mut raw, 20, &self.number.to_le_bytes());
        if compact {
            put(&mut raw, 6, &(self.links as u16).to_le_bytes());
            put(&mut raw, 8, &(self.size as u32).to_le_bytes());
            put(&mut raw, 24, &(self.meta.uid as u16).to_le_bytes());
            put(&mut raw, 26, &(self.meta.gid as u16).to_le_bytes());
        } else {
            put(&mut raw, 8, &self.size.to_le_bytes());
            put(&mut raw, 24, &self.meta.uid.to_le_bytes());
            put(&mut raw, 28, &self.meta.gid.to_le_bytes());
            put(&mut raw, 32, &self.meta.mtime.0.to_le_bytes());
            put(&mut raw, 40, &self.meta.mtime.1.to_le_bytes());
            put(&mut raw, 44, &self.links.to_le_bytes());
        }
        raw
    }

    /// Reads an inode; gives its size in the record too.
    pub fn decode(raw: &[u8], time: (i64, u32)) -> Option<(Self, u64)> {
        let format = u16_at(raw, 0)?;
        let layout = match format >> 1 {
            0 => Layout::Plain,
            2 => Layout::Inline,
            4 => Layout::Chunks,
            _ => return None,
        };
        let xattr_bytes = match u64::from(u16_at(raw, 2)?) {
            0 => 0,
            count => 12 + 4 * (count - 1),
        };
        let mode = u16_at(raw, 4)?;
        let (place, number) = (u32_at(raw, 16)?, u32_at(raw, 20)?);
        let meta = Meta { mode: mode & 0o7777, ..Meta::default() };
        let inode = Self { layout, mode, size: 0, place, number, links: 0, meta, xattr_bytes };
        if format & 1 == 0 {
            let meta =
                Meta { uid: u16_at(raw, 24)?.into(), gid: u16_at(raw, 26)?.into(), mtime: time, ..meta };
            let (size, links) = (u32_at(raw, 8)?.into(), u16_at(raw, 6)?.into());
            return Some((Self { size, links, meta, ..inode }, 32));
        }
        let mtime = (u64_at(raw, 32)?.cast_signed(), u32_at(raw, 40)?);
        let meta = Meta { uid: u32_at(raw, 24)?, gid: u32_at(raw, 28)?, mtime, ..meta };
        Some((Self { size: u64_at(raw, 8)?, links: u32_at(raw, 44)?, meta, ..inode }, 64))
    }
}

/// The number that stands for a size of attributes in an inode.
fn xattr_count(bytes: u64) -> u16 {
    if bytes == 0 { 0 } else { ((bytes - 12) / 4 + 1) as u16 }
}

/// Attribute namespaces, the longer before those they begin with.
const NAMESPACES: [(&[u8], u8); 5] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// A set of attributes as it stands behind an inode; nothing if there are none.
pub fn encode_xattrs(set: &Xattrs) -> Vec<u8> {
    if set.is_empty() {
        return Vec::new();
    }
    // A header of 12 bytes: no filter, nothing shared.
    let mut raw = vec![0; 12];
    for (name, value) in set {
        let found = NAMESPACES.iter().find_map(|(prefix, index)| Some((name.strip_prefix(*prefix)?, *index)));
        let Some((rest, index)) = found else { continue };
        raw.extend([rest.len() as u8, index]);
        raw.extend((value.len() as u16).to_le_bytes());
        raw.extend_from_slice(rest);
        raw.extend_from_slice(value);
        raw.resize(raw.len().next_multiple_of(4), 0);
    }
    raw
}

/// The inverse of [`encode_xattrs`].
pub fn decode_xattrs(raw: &[u8]) -> Option<Xattrs> {
    let mut set = Xattrs::new();
    let mut rest = if raw.is_empty() { raw } else { raw.get(12..)? };
    while !rest.is_empty() {
        let (name, value) = (usize::from(rest[0]), usize::from(u16_at(rest, 2)?));
        let (prefix, _) = NAMESPACES.iter().find(|(_, index)| *index == rest[1])?;
        let full = [prefix, rest.get(4..4 + name)?].concat();
        set.push((full, rest.get(4 + name..4 + name + value)?.to_vec()));
        rest = rest.get((4 + name + value).next_multiple_of(4)..)?;
    }
    set.sort();
    Some(set)
}

/// Bytes [`encode_xattrs`] gives.
pub fn xattr_bytes(set: &Xattrs) -> u64 {
    encode_xattrs(set).len() as u64
}

/// A device number as the kernel packs it into 32 bits.
pub fn device(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// CRC32C as EROFS uses it: not inverted at the end.
pub fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 })
    })
}

fn put(raw: &mut [u8], at: usize, bytes: &[u8]) {
    raw[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The number at `at`.
pub fn u16_at(raw: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(raw.get(at..at + 2)?.try_into().ok()?))
}

/// The number at `at`.
pub fn u32_at(raw: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(raw.get(at..at + 4)?.try_into().ok()?))
}

/// The number at `at`.
pub fn u64_at(raw: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(raw.get(at..at + 8)?.try_into().ok()?))
}
