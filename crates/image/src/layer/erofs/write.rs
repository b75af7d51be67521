//! The metadata of an image: directory blocks, inode records, superblock.
//!
//! Everything is placed first, since directories name inodes by their place; then it is written in order.

use std::collections::HashMap;
use std::ops::Range;

use super::chunks::Piece;
use super::format::{self, BLOCK, Inode, Layout, SLOT, Super};
use super::out::Output;
use super::place::Places;
use super::tails::Tails;
use super::{Content, dirents};
use crate::layer::LayerError;
use crate::layer::tree::{Kind, Meta, Node, NodeId, ROOT, Tree};

/// Bytes of a small inode.
const COMPACT: u64 = 32;
/// Bytes of a large inode.
pub const EXTENDED: u64 = 64;

/// An inode that has its place.
struct Placed {
    id: NodeId,
    /// From the metadata area's beginning.
    at: u64,
    layout: Layout,
    size: u64,
    /// First block of what does not stand in the record.
    block: u32,
    /// What stands in the record of directories and files, in the tails.
    tail: Range<u64>,
}

/// The writer's state.
struct Metadata<'a> {
    out: Output,
    tails: Tails,
    tree: &'a Tree<Content>,
    time: (i64, u32),
    /// Attribute sets as they stand on disk.
    xattrs: Vec<Vec<u8>>,
    placed: Vec<Placed>,
    /// Inode numbers by node.
    numbers: Vec<u64>,
}

/// Writes everything but the files' blocks, and gives the bytes the image takes on disk.
pub fn metadata(
    out: Output,
    tails: Tails,
    tree: &Tree<Content>,
    order: &[NodeId],
) -> Result<u64, LayerError> {
    let time = most_common_time(tree, order);
    let xattrs = tree.sets().iter().map(format::encode_xattrs).collect();
    let numbers = vec![0; tree.len()];
    let placed = Vec::with_capacity(order.len());
    let mut metadata = Metadata { out, tails, tree, time, xattrs, placed, numbers };
    metadata.place(order);
    metadata.write_directories()?;
    let meta = metadata.out.block();
    let uuid = metadata.write_inodes()?;
    // fsck.erofs 1.5 reads 12 bytes behind every inode, whether attributes are there or not.
    metadata.out.zeros(12)?;
    metadata.out.align(BLOCK)?;
    let superblock = Super {
        root: metadata.numbers[ROOT as usize] as u16,
        inodes: order.len() as u64,
        time,
        blocks: metadata.out.block(),
        meta,
        uuid,
        chunked: metadata.placed.iter().any(|placed| placed.layout == Layout::Chunks),
    };
    metadata.out.finish(&superblock.encode())
}

impl Metadata<'_> {
    fn place(&mut self, order: &[NodeId]) {
        let mut places = Places::new();
        for &id in order {
            let node = self.tree.node(id);
            let mut placed = describe(id, node);
            let compact = Inode::is_compact(&node.meta, placed.size, node.links, self.time);
            let fixed = if compact { COMPACT } else { EXTENDED } + self.xattr_bytes(&node.meta);
            if placed.layout == Layout::Inline && fixed + placed.size % BLOCK > BLOCK {
                placed.layout = Layout::Plain;
            }
            let rest = match (&node.kind, placed.layout) {
                (Kind::File(_, Content::Chunks(chunks)), _) => chunks.table_bytes(),
                (_, Layout::Inline) => placed.size % BLOCK,
                _ => 0,
            };
            placed.at = places.take(fixed + rest);
            self.numbers[id as usize] = placed.at / SLOT;
            self.placed.push(placed);
        }
    }

    fn xattr_bytes(&self, meta: &Meta) -> u64 {
        self.xattrs[meta.xattrs as usize].len() as u64
    }

    /// Writes what is not in the record of directories and of symbolic links that don't fit theirs.
    fn write_directories(&mut self) -> Result<(), LayerError> {
        let tree = self.tree;
        for i in 0..self.placed.len() {
            let placed = &mut self.placed[i];
            let content = match &tree.node(placed.id).kind {
                Kind::Dir(dir) => {
                    let numbers = &self.numbers;
                    dirents::encode(dir, placed.id, |id| {
                        (numbers[id as usize], file_type(&tree.node(id).kind).0)
                    })
                }
                Kind::Symlink(target) => target.to_vec(),
                _ => continue,
            };
            let tail = if placed.layout == Layout::Inline { content.len() % BLOCK as usize } else { 0 };
            let (blocks, tail) = content.split_at(content.len() - tail);
            placed.block = self.out.block();
            placed.tail = self.tails.end()..self.tails.end() + tail.len() as u64;
            self.tails.push(tail)?;
            self.out.write(blocks)?;
            self.out.align(BLOCK)?;
        }
        Ok(())
    }

    /// Writes all records in the order of their places; gives a UUID made of them.
    fn write_inodes(&mut self) -> Result<[u8; 16], LayerError> {
        self.placed.sort_unstable_by_key(|placed| placed.at);
        let start = self.out.position();
        let mut fingerprint = Fingerprint::default();
        for i in 0..self.placed.len() {
            let placed = &self.placed[i];
            let node = self.tree.node(placed.id);
            let inode = self.inode(placed, node, i as u32 + 1).encode(self.time);
            self.out.zeros(start + placed.at - self.out.position())?;
            fingerprint.add(&inode);
            self.out.write(&inode)?;
            self.out.write(&self.xattrs[node.meta.xattrs as usize])?;
            for tail in self.tails.get(placed.tail.clone())? {
                fingerprint.add(tail);
                self.out.write(tail)?;
            }
            if let Kind::File(_, Content::Chunks(chunks)) = &node.kind {
                for (count, block) in chunks.table().map(Piece::entries) {
                    for _ in 0..count {
                        self.out.write(&block.to_le_bytes())?;
                    }
                }
            }
        }
        Ok(fingerprint.uuid())
    }

    fn inode(&self, placed: &Placed, node: &Node<Content>, number: u32) -> Inode {
        let place = match &node.kind {
            Kind::Char(major, minor) | Kind::Block(major, minor) => format::device(*major, *minor),
            Kind::File(_, Content::Chunks(chunks)) => chunks.bits,
            _ => placed.block,
        };
        Inode {
            layout: placed.layout,
            mode: file_type(&node.kind).1 | node.meta.mode,
            size: placed.size,
            place,
            number,
            links: node.links,
            meta: node.meta,
            xattr_bytes: self.xattr_bytes(&node.meta),
        }
    }
}

/// What is known of an inode before it has a place.
fn describe(id: NodeId, node: &Node<Content>) -> Placed {
    let (layout, size, block, tail) = match &node.kind {
        Kind::Dir(dir) => {
            let size = dirents::size(dir);
            (inline(size), size, 0, 0..0)
        }
        Kind::File(size, Content::Plain(block)) => (Layout::Plain, *size, *block, 0..0),
        Kind::File(size, Content::Inline(block, at)) => {
            let tail = *at..*at + *size % BLOCK;
            (Layout::Inline, *size, *block, tail)
        }
        Kind::File(size, Content::Chunks(_)) => (Layout::Chunks, *size, 0, 0..0),
        Kind::Symlink(target) => (inline(target.len() as u64), target.len() as u64, 0, 0..0),
        Kind::Char(..) | Kind::Block(..) | Kind::Fifo => (Layout::Plain, 0, 0, 0..0),
    };
    Placed { id, at: 0, layout, size, block, tail }
}

fn inline(size: u64) -> Layout {
    if size.is_multiple_of(BLOCK) { Layout::Plain } else { Layout::Inline }
}

/// An inode's type in a directory entry, and in its mode.
pub fn file_type<C>(kind: &Kind<C>) -> (u8, u16) {
    match kind {
        Kind::File(..) => (1, 0o100_000),
        Kind::Dir(_) => (2, 0o040_000),
        Kind::Char(..) => (3, 0o020_000),
        Kind::Block(..) => (4, 0o060_000),
        Kind::Fifo => (5, 0o010_000),
        Kind::Symlink(_) => (7, 0o120_000),
    }
}

/// The time that saves most room; of equals, the earliest.
fn most_common_time(tree: &Tree<Content>, order: &[NodeId]) -> (i64, u32) {
    let mut counts: HashMap<(i64, u32), u32> = HashMap::new();
    for &id in order {
        *counts.entry(tree.node(id).meta.mtime).or_default() += 1;
    }
    let best = counts.into_iter().max_by_key(|&(time, count)| (count, std::cmp::Reverse(time)));
    best.map_or((0, 0), |(time, _)| time)
}

/// A hash that nobody need trust: it only keeps different layers' names apart.
#[derive(Default)]
struct Fingerprint(u64, u64);

impl Fingerprint {
    fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        for word in words.iter().chain([&last]) {
            let word = u64::from_le_bytes(*word);
            self.0 = (self.0 ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
            self.1 = (self.1.rotate_left(23) ^ word).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        }
    }

    /// As a UUID of version 8, "made some other way".
    fn uuid(self) -> [u8; 16] {
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&self.0.to_le_bytes());
        uuid[8..].copy_from_slice(&self.1.to_le_bytes());
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        uuid
    }
}
