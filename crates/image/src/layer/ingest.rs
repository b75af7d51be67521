//! The one pass: each tar entry becomes a change of the tree, each file's data goes to the store.

use std::io::Read;

use super::tar::{Archive, Entry, EntryKind};
use super::tree::{self, Kind, Meta, Tree, Xattrs};
use super::{LayerError, LayerInfo, LeftOut, Limits};

/// Where file data goes while the tar is read, and the whole tree at the end.
pub trait Store: Sized {
    /// What is kept of a file's data, to find it again.
    type Content;

    /// Takes the data of the archive's current entry. `xattrs` is what the file's attributes will be.
    fn put<R: Read>(
        &mut self,
        archive: &mut Archive<'_, R>,
        entry: &Entry,
        xattrs: &Xattrs,
    ) -> Result<Self::Content, LayerError>;

    /// Writes the sealed tree, whose reachable nodes are `order`; gives the bytes it takes on disk.
    fn finish(self, tree: &Tree<Self::Content>, order: &[tree::NodeId])
    -> Result<(u64, LeftOut), LayerError>;
}

/// What the names of an archive mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Some are whiteouts.
    Layer,
    /// All are files.
    Files,
}

/// Reads the stream to its end and makes the layer.
pub fn run<S: Store>(
    tar: impl Read,
    mut store: S,
    limits: &Limits,
    meaning: Meaning,
) -> Result<LayerInfo, LayerError> {
    let mut archive = Archive::new(tar, limits);
    let mut ingest =
        Ingest { tree: Tree::new(limits, meaning), limits, meaning, devices: 0, path: Vec::new() };
    let mut count = 0;
    while let Some(entry) = archive.next()? {
        count += 1;
        if count > limits.max_entries {
            return Err(LayerError::Limit { what: "entries", max: limits.max_entries });
        }
        ingest.entry(entry, &mut archive, &mut store)?;
    }
    let uncompressed_size = archive.drain()?;
    let devices = ingest.devices;
    let mut tree = ingest.tree;
    let order = tree.seal()?;
    let opaque_root = tree.opaque_root();
    let (size_on_disk, mut left_out) = store.finish(&tree, &order)?;
    left_out.devices += devices;
    Ok(LayerInfo { size_on_disk, uncompressed_size, entries: order.len() as u64, opaque_root, left_out })
}

struct Ingest<'a, C> {
    tree: Tree<C>,
    limits: &'a Limits,
    meaning: Meaning,
    /// Device nodes that are no layer's.
    devices: u64,
    /// The current entry's path, cleaned.
    path: Vec<u8>,
}

impl<C> Ingest<'_, C> {
    fn entry<R: Read>(
        &mut self,
        entry: Entry,
        archive: &mut Archive<'_, R>,
        store: &mut impl Store<Content = C>,
    ) -> Result<(), LayerError> {
        let mut path = std::mem::take(&mut self.path);
        if !tree::clean(&entry.path, &mut path) {
            return Err(LayerError::entry(&entry.path, "leads out of the layer"));
        }
        let (parent, name) = tree::split(&path);
        let done = if path.is_empty() {
            self.root(entry)
        } else if self.meaning == Meaning::Files {
            self.node(parent, name, entry, archive, store)
        } else if is_bookkeeping(parent, name) {
            Ok(())
        } else if let Some(hidden) = name.strip_prefix(b".wh.") {
            self.whiteout(parent, hidden, &entry)
        } else {
            self.node(parent, name, entry, archive, store)
        };
        self.path = path;
        done
    }

    fn root(&mut self, mut entry: Entry) -> Result<(), LayerError> {
        if entry.kind != EntryKind::Directory {
            return Err(LayerError::entry(&entry.path, "the layer's root must be a directory"));
        }
        let meta = self.meta(&mut entry)?;
        self.tree.set_root(meta);
        Ok(())
    }

    fn whiteout(&mut self, parent: &[u8], hidden: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let dir = self.tree.make_parents(parent)?;
        if hidden == b".wh..opq" {
            self.tree.set_opaque(dir);
            return Ok(());
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." || hidden.contains(&0) {
            return Err(LayerError::entry(&entry.path, "a whiteout of no name"));
        }
        let meta = Meta { mtime: entry.mtime, ..Meta::default() };
        self.tree.whiteout(dir, hidden, meta)
    }

    fn node<R: Read>(
        &mut self,
        parent: &[u8],
        name: &[u8],
        mut entry: Entry,
        archive: &mut Archive<'_, R>,
        store: &mut impl Store<Content = C>,
    ) -> Result<(), LayerError> {
        self.tree.check_name(name)?;
        if self.meaning == Meaning::Files && matches!(entry.kind, EntryKind::Char | EntryKind::Block) {
            self.devices += 1;
            return Ok(());
        }
        if entry.kind == EntryKind::HardLink {
            return self.hard_link(parent, name, &entry);
        }
        let meta = self.meta(&mut entry)?;
        let dir = self.tree.make_parents(parent)?;
        let (major, minor) = entry.device;
        let kind = match entry.kind {
            EntryKind::File => {
                let content = store.put(archive, &entry, self.tree.xattrs(&meta))?;
                // Sparse files are remembered piece by piece.
                self.tree.charge(24 * (entry.segments.len() - entry.segments.len().min(1)))?;
                Kind::File(entry.size, content)
            }
            EntryKind::Directory => Kind::Dir(Box::default()),
            EntryKind::Symlink => Kind::Symlink(self.target(&entry)?),
            EntryKind::Char => Kind::Char(major, minor),
            EntryKind::Block => Kind::Block(major, minor),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::HardLink => unreachable!("handled above"),
        };
        self.tree.insert(dir, name, meta, kind)?;
        Ok(())
    }

    fn target(&mut self, entry: &Entry) -> Result<Box<[u8]>, LayerError> {
        if entry.link.is_empty() || entry.link.len() > 4095 || entry.link.contains(&0) {
            return Err(LayerError::entry(&entry.path, "a symbolic link with an impossible target"));
        }
        self.tree.charge(entry.link.len())?;
        Ok(entry.link.as_slice().into())
    }

    fn hard_link(&mut self, parent: &[u8], name: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let mut target = Vec::new();
        if !tree::clean(&entry.link, &mut target) {
            return Err(LayerError::entry(&entry.path, "a hard link that leads out of the layer"));
        }
        let (target_parent, target_name) = tree::split(&target);
        let found = self.tree.find_dir(target_parent)?.and_then(|dir| self.tree.dir(dir));
        let Some(id) = found.and_then(|dir| dir.children.get(target_name).copied()) else {
            let target = entry.link.escape_ascii();
            let reason = format!("a hard link to \"{target}\", which is not before it in this layer");
            return Err(LayerError::entry(&entry.path, reason));
        };
        if self.tree.dir(id).is_some() {
            return Err(LayerError::entry(&entry.path, "a hard link to a directory"));
        }
        let dir = self.tree.make_parents(parent)?;
        self.tree.link(dir, name, id)
    }

    fn meta(&mut self, entry: &mut Entry) -> Result<Meta, LayerError> {
        let bytes: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > self.limits.max_xattr_bytes {
            let max = self.limits.max_xattr_bytes as u64;
            return Err(LayerError::Limit { what: "bytes of attributes on one file", max });
        }
        let mut kept = Vec::new();
        for (name, value) in std::mem::take(&mut entry.xattrs) {
            if keep_xattr(entry, &name, &value)? {
                kept.push((name, value));
            }
        }
        kept.sort();
        let xattrs = self.tree.intern(kept)?;
        // What a symbolic link's mode is, no system asks: on Linux it has all bits.
        let mode = if entry.kind == EntryKind::Symlink { 0o777 } else { entry.mode };
        Ok(Meta { mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs })
    }
}

/// Names that aufs left in old images; the mark of an opaque directory is not one of them.
fn is_bookkeeping(parent: &[u8], name: &[u8]) -> bool {
    let own = |name: &[u8]| name.starts_with(b".wh..wh.");
    (own(name) && name != b".wh..wh..opq") || parent.split(|&b| b == b'/').any(own)
}

/// Whether an attribute belongs in the layer. What the system could not hold is left out, as Docker does.
fn keep_xattr(entry: &Entry, name: &[u8], value: &[u8]) -> Result<bool, LayerError> {
    for namespace in [&b"trusted.overlay."[..], b"user.overlay."] {
        if name.starts_with(namespace) {
            let reason = format!("has the attribute {}, which only overlayfs may set", name.escape_ascii());
            return Err(LayerError::entry(&entry.path, reason));
        }
    }
    let plain = matches!(entry.kind, EntryKind::File | EntryKind::Directory);
    let known = match name {
        b"security.capability" => entry.kind == EntryKind::File,
        b"system.posix_acl_access" => plain,
        b"system.posix_acl_default" => entry.kind == EntryKind::Directory,
        _ if name.starts_with(b"user.") => plain && name.len() > 5,
        _ => name.starts_with(b"trusted.") && name.len() > 8,
    };
    if known && (name.len() > 255 || value.len() > usize::from(u16::MAX)) {
        return Err(LayerError::entry(&entry.path, "has an attribute longer than Linux allows"));
    }
    Ok(known)
}
