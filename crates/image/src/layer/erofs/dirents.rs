//! The blocks of a directory: entries at the front, their names behind them, sorted as bytes throughout.

use super::format::{BLOCK, DIRENT};
use crate::layer::tree::{Dir, NodeId};

/// Cuts a directory's sorted names into blocks as a reader will see them.
struct Blocks {
    full: u64,
    used: usize,
}

/// Bytes of the directory: whole blocks, and what is in the last, partial one.
pub fn size(dir: &Dir) -> u64 {
    let mut blocks = Blocks { full: 0, used: 0 };
    for (name, _) in names(dir, 0) {
        blocks.add(name.len());
    }
    blocks.full * BLOCK + blocks.used as u64
}

impl Blocks {
    /// Takes the next name; true if it begins a new block.
    fn add(&mut self, name: usize) -> bool {
        let fits = self.used + DIRENT + name <= BLOCK as usize;
        if !fits {
            self.full += 1;
            self.used = 0;
        }
        self.used += DIRENT + name;
        !fits
    }
}

/// All names with their nodes, `.` and `..` where they sort.
fn names(dir: &Dir, own: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
    let mut dots = [(&b"."[..], own), (&b".."[..], dir.parent())].into_iter().peekable();
    let mut children = dir.children.iter().map(|(name, &id)| (&**name, id)).peekable();
    std::iter::from_fn(move || match (dots.peek(), children.peek()) {
        (Some(dot), Some(child)) if child.0 < dot.0 => children.next(),
        (Some(_), _) => dots.next(),
        (None, _) => children.next(),
    })
}

/// The directory's content. `describe` gives a node's inode number and file type.
pub fn encode(dir: &Dir, own: NodeId, describe: impl Fn(NodeId) -> (u64, u8)) -> Vec<u8> {
    let mut out = Vec::with_capacity(size(dir) as usize);
    let mut block: Vec<(&[u8], NodeId)> = Vec::new();
    let mut blocks = Blocks { full: 0, used: 0 };
    for (name, id) in names(dir, own) {
        if blocks.add(name.len()) {
            encode_block(&block, &mut out, &describe);
            out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
            block.clear();
        }
        block.push((name, id));
    }
    encode_block(&block, &mut out, &describe);
    out
}

fn encode_block(block: &[(&[u8], NodeId)], out: &mut Vec<u8>, describe: &impl Fn(NodeId) -> (u64, u8)) {
    let mut name_at = block.len() * DIRENT;
    for (name, id) in block {
        let (number, file_type) = describe(*id);
        out.extend(number.to_le_bytes());
        out.extend((name_at as u16).to_le_bytes());
        out.extend([file_type, 0]);
        name_at += name.len();
    }
    for (name, _) in block {
        out.extend_from_slice(name);
    }
}
