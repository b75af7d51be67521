//! Reads an image back and checks that it is whole: what a kernel, or the writer's tests, rely on.
//!
//! Every inode that the root leads to is read once. Checked are the superblock and its sum, that everything
//! stands inside the image and no two inodes share blocks, that names are sorted and sound, that `.` and `..`
//! and the counts of links are right, and that attributes can be read. File data is not read.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::format::{self, BLOCK, DIRENT, Inode, Layout, NULL_BLOCK, SLOT, Super};
use crate::layer::LayerError;

/// What an image holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Inodes, each once.
    pub inodes: u64,
    /// Bytes of all files, holes counted.
    pub file_bytes: u64,
    /// The root is marked opaque.
    pub opaque_root: bool,
}

/// Checks the image at `path`.
pub fn check(path: &Path) -> Result<Summary, LayerError> {
    let file = File::open(path).map_err(LayerError::write(path, "open the layer"))?;
    let corrupt = |reason: String| LayerError::Corrupt { path: path.to_owned(), reason };
    Checker::new(file).and_then(Checker::run).map_err(corrupt)
}

type Checked<T> = Result<T, String>;

struct Checker {
    file: File,
    sb: Super,
    summary: Summary,
    /// Names found so far of inodes that are no directories, and the count their inode gives.
    links: HashMap<u64, (u32, u32)>,
    dirs: HashSet<u64>,
    /// First and last-plus-one blocks in use.
    extents: Vec<(u64, u64)>,
}

/// An inode and where its record goes on.
struct Record {
    inode: Inode,
    number: u64,
    /// Byte after the attributes.
    rest: u64,
}

/// Whether an image is there and as long as it says itself. What it takes on disk does not tell, since it has holes.
pub fn is_whole(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| superblock(&file).is_ok())
}

fn superblock(file: &File) -> Checked<Super> {
    let mut block = vec![0; BLOCK as usize];
    file.read_exact_at(&mut block, 0).map_err(|error| format!("superblock: {error}"))?;
    let sb = Super::decode(&block).ok_or("bad superblock")?;
    let len = file.metadata().map_err(|error| error.to_string())?.len();
    if len != u64::from(sb.blocks) * BLOCK || sb.meta >= sb.blocks {
        return Err("its length is not what the superblock says".into());
    }
    Ok(sb)
}

impl Checker {
    fn new(file: File) -> Checked<Self> {
        let sb = superblock(&file)?;
        Ok(Self {
            file,
            sb,
            summary: Summary::default(),
            links: HashMap::new(),
            dirs: HashSet::new(),
            extents: Vec::new(),
        })
    }

    fn run(mut self) -> Checked<Summary> {
        let root = u64::from(self.sb.root);
        let mut todo = vec![(root, root)];
        self.dirs.insert(root);
        while let Some((number, parent)) = todo.pop() {
            self.directory(number, parent, &mut todo)?;
        }
        if let Some((number, _)) = self.links.iter().find(|(_, (found, said))| found != said) {
            return Err(format!("inode {number} has a wrong count of links"));
        }
        self.summary.inodes = (self.dirs.len() + self.links.len()) as u64;
        if self.summary.inodes != self.sb.inodes {
            return Err("a wrong count of inodes".into());
        }
        self.extents.sort_unstable();
        if self.extents.windows(2).any(|pair| pair[0].1 > pair[1].0) {
            return Err("two inodes share blocks".into());
        }
        Ok(self.summary)
    }

    fn read(&self, at: u64, bytes: u64) -> Checked<Vec<u8>> {
        let end = at.checked_add(bytes).filter(|&end| end <= u64::from(self.sb.blocks) * BLOCK);
        end.ok_or("something stands outside of the image")?;
        let mut buffer = vec![0; bytes as usize];
        self.file.read_exact_at(&mut buffer, at).map_err(|error| error.to_string())?;
        Ok(buffer)
    }

    fn record(&self, number: u64) -> Checked<Record> {
        let place = number.checked_mul(SLOT).and_then(|at| at.checked_add(u64::from(self.sb.meta) * BLOCK));
        let at = place.ok_or("an impossible inode number")?;
        let room = (u64::from(self.sb.blocks) * BLOCK).saturating_sub(at).min(64);
        let raw = self.read(at, room)?;
        let (inode, bytes) =
            Inode::decode(&raw, self.sb.time).ok_or_else(|| format!("bad inode {number}"))?;
        let xattrs = self.read(at + bytes, inode.xattr_bytes)?;
        format::decode_xattrs(&xattrs).ok_or_else(|| format!("bad attributes of inode {number}"))?;
        Ok(Record { rest: at + bytes + inode.xattr_bytes, inode, number })
    }

    /// Notes blocks as used.
    fn claim(&mut self, first: u32, bytes: u64) -> Checked<()> {
        let (first, count) = (u64::from(first), bytes.div_ceil(BLOCK));
        if count == 0 {
            return Ok(());
        }
        if first == 0 || first + count > u64::from(self.sb.blocks) {
            return Err("blocks outside of the image".into());
        }
        self.extents.push((first, first + count));
        Ok(())
    }

    /// Checks where a record's data is; gives all of it if asked to.
    fn data(&mut self, record: &Record, wanted: bool) -> Checked<Vec<u8>> {
        let inode = &record.inode;
        let tail = if inode.layout == Layout::Inline { inode.size % BLOCK } else { 0 };
        if tail > 0 && record.rest / BLOCK != (record.rest + tail - 1) / BLOCK {
            return Err(format!("the tail of inode {} crosses a block's end", record.number));
        }
        if inode.layout == Layout::Chunks {
            self.chunks(record)?;
            return Ok(Vec::new());
        }
        let whole = inode.size - tail;
        self.claim(inode.place, whole)?;
        let mut data = self.read(record.rest, tail)?;
        if wanted {
            let mut blocks = self.read(u64::from(inode.place) * BLOCK, whole)?;
            blocks.append(&mut data);
            data = blocks;
        }
        Ok(data)
    }

    fn chunks(&mut self, record: &Record) -> Checked<()> {
        let (bits, size) = (record.inode.place, record.inode.size);
        if bits > 31 || !self.sb.chunked || record.inode.mode & 0o170_000 != 0o100_000 {
            return Err(format!("inode {} has impossible chunks", record.number));
        }
        let chunk = BLOCK << bits;
        let table = self.read(record.rest, 4 * size.div_ceil(chunk))?;
        for (i, entry) in table.chunks_exact(4).enumerate() {
            let block = format::u32_at(entry, 0).unwrap_or(NULL_BLOCK);
            if block != NULL_BLOCK {
                self.claim(block, chunk.min(size - i as u64 * chunk))?;
            }
        }
        Ok(())
    }

    fn directory(&mut self, number: u64, parent: u64, todo: &mut Vec<(u64, u64)>) -> Checked<()> {
        let record = self.record(number)?;
        if record.inode.mode & 0o170_000 != 0o040_000 {
            return Err(format!("inode {number} should be a directory"));
        }
        if number == u64::from(self.sb.root) {
            let at = record.rest - record.inode.xattr_bytes;
            let set = format::decode_xattrs(&self.read(at, record.inode.xattr_bytes)?).unwrap_or_default();
            self.summary.opaque_root = set.iter().any(|(name, _)| name == b"trusted.overlay.opaque");
        }
        let data = self.data(&record, true)?;
        let mut subdirs = 2;
        let mut dots = 0;
        for (name, child, file_type) in names(&data).ok_or_else(|| format!("bad directory {number}"))? {
            match &*name {
                b"." | b".." => {
                    dots += 1;
                    if child != if name.len() == 1 { number } else { parent } {
                        return Err(format!("directory {number} has a wrong . or .."));
                    }
                }
                _ if file_type == 2 => {
                    subdirs += 1;
                    if !self.dirs.insert(child) {
                        return Err(format!("directory {child} has two names"));
                    }
                    todo.push((child, number));
                }
                _ => self.leaf(child, file_type)?,
            }
        }
        if dots != 2 || subdirs != record.inode.links {
            return Err(format!("directory {number} has a wrong count of links, or no . or .."));
        }
        Ok(())
    }

    fn leaf(&mut self, number: u64, file_type: u8) -> Checked<()> {
        if let Some((found, _)) = self.links.get_mut(&number) {
            *found += 1;
            return Ok(());
        }
        let record = self.record(number)?;
        let inode = &record.inode;
        let want = [0, 0o100, 0o040, 0o020, 0o060, 0o010, 0, 0o120].get(usize::from(file_type)).copied();
        if want.unwrap_or(0) << 9 != inode.mode & 0o170_000 {
            return Err(format!("inode {number} is not what its directory says"));
        }
        self.links.insert(number, (1, inode.links));
        match file_type {
            1 => {
                self.summary.file_bytes += inode.size;
                self.data(&record, false)?;
            }
            7 => {
                let target = self.data(&record, true)?;
                if target.is_empty() || target.len() as u64 != inode.size || target.contains(&0) {
                    return Err(format!("inode {number} is a bad symbolic link"));
                }
            }
            _ if inode.size > 0 => return Err(format!("inode {number} has data that it can't have")),
            _ => {}
        }
        Ok(())
    }
}

/// A name, its inode's number and file type.
type Name = (Vec<u8>, u64, u8);

/// The names of a directory, if they are sound and sorted.
fn names(data: &[u8]) -> Option<Vec<Name>> {
    let mut found: Vec<Name> = Vec::new();
    for block in data.chunks(BLOCK as usize) {
        let first = usize::from(format::u16_at(block, 8)?);
        if first == 0 || !first.is_multiple_of(DIRENT) {
            return None;
        }
        let count = first / DIRENT;
        for i in 0..count {
            let at = i * DIRENT;
            let start = usize::from(format::u16_at(block, at + 8)?);
            let end = if i + 1 < count {
                usize::from(format::u16_at(block, at + DIRENT + 8)?)
            } else {
                block.iter().rposition(|&byte| byte != 0)? + 1
            };
            let name = block.get(start..end)?;
            let sound = (1..=255).contains(&name.len()) && !name.contains(&0) && !name.contains(&b'/');
            if !sound || found.last().is_some_and(|last| *last.0 >= *name) {
                return None;
            }
            found.push((name.to_vec(), format::u64_at(block, at)?, *block.get(at + 10)?));
        }
    }
    Some(found)
}
