//! Layers: from a tar stream to a read-only file tree, in one pass.
//!
//! ```text
//!   tar bytes ─▶ tar::Archive ─▶ ingest ─▶ tree::Tree   names, metadata, whiteouts (memory, bounded)
//!                    │                        │
//!                    └── file data ─▶ Store ◀─┘ written as it arrives; the tree is written at the end
//!                                      ├ erofs::Image      one file, mounted or given to a VM as a disk
//!                                      └ dir::Unpacked     a directory, where EROFS can't be mounted
//! ```
//!
//! Both forms are made from the same tree, so they mean the same. What the tar says becomes what overlayfs
//! understands:
//!
//! - `.wh.NAME` is a character device 0:0 named `NAME`, unless the layer itself has a `NAME`; if that is a
//!   directory it is made opaque. `.wh..wh..opq` makes its directory opaque (`trusted.overlay.opaque=y`). The
//!   order of the entries does not matter, as the image specification asks.
//! - Other `.wh..wh.` names are aufs's own bookkeeping and are ignored.
//! - Attributes `trusted.overlay.*` and `user.overlay.*` in the tar are an error: an image must not tell
//!   overlayfs where to look. Of `security.*` only `security.capability` is kept; the rest are labels of the
//!   host that made the image.
//! - A name is cleaned as Docker does it: `/a` is `a`, `a/../b` is `b`, `../a` is an error. A symbolic link on
//!   the way to a name is followed inside the layer only, never on the host.
//! - The last entry of a name wins; a directory entry over a directory replaces its metadata and keeps what
//!   is in it. Directories nobody named are 0755, root's, from 1970; merged, they cover the metadata of those
//!   below, as with Docker's overlay2, since a layer is made without a look at others.
//! - A hard link takes nothing but its target from its entry; the target must have come before, in the layer.
//!
//! The same tar gives the same bytes.

mod dir;
pub mod erofs;
mod error;
mod ingest;
mod tar;
mod tree;

use std::io::Read;
use std::path::Path;

pub use error::LayerError;
use ingest::Meaning;

use crate::decompress::Decompressor;

/// What a layer is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerForm {
    /// An EROFS image: one file.
    Erofs,
    /// An unpacked directory, with overlayfs's whiteouts. Made in a user namespace, it holds what can be made
    /// there: no device nodes, and files of the ids that are mapped.
    Directory,
}

impl LayerForm {
    /// The form that this process can use: EROFS cannot be mounted in a user namespace.
    pub fn usable() -> Self {
        if proa_sys::userns::is_initial() { Self::Erofs } else { Self::Directory }
    }
}

/// Ids of a container that are root's where its layers are unpacked; those below them move up by one to make room.
/// With 1000, a file of 1000 in the tar is root's, one of 0 belongs to 1, one of 999 to 1000, and one of 1001 to 1001.
/// By default all stay as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeptIds {
    /// Of the user.
    pub uid: u32,
    /// Of the group.
    pub gid: u32,
}

impl KeptIds {
    /// Whom a file of the tar belongs to on disk.
    pub fn outside(self, uid: u32, gid: u32) -> (u32, u32) {
        let moved = |kept: u32, id: u32| match id {
            id if id == kept => 0,
            id if id < kept => id + 1,
            id => id,
        };
        (moved(self.uid, uid), moved(self.gid, gid))
    }
}

/// What a conversion made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerInfo {
    /// Bytes the layer takes on disk; holes are not counted.
    pub size_on_disk: u64,
    /// Bytes of the tar stream.
    pub uncompressed_size: u64,
    /// Files, directories and whiteouts in the layer, each inode once.
    pub entries: u64,
    /// The layer's root is opaque: it hides everything below it. Overlayfs does not look at this mark on a
    /// layer's root, so who mounts the layer must leave out those below.
    pub opaque_root: bool,
    /// What this process could not make.
    pub left_out: LeftOut,
}

/// What a directory made in a user namespace lacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Device nodes: an instance has those that it is given in `/dev`.
    pub devices: u64,
    /// Attributes `trusted.*`, which nothing in an instance could read anyway.
    pub attributes: u64,
}

/// How much one layer may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most entries, counting the directories that no entry names.
    pub max_entries: u64,
    /// Most bytes of the tar stream, and most bytes of the layer that is made of it.
    pub max_uncompressed: u64,
    /// Longest path, in bytes.
    pub max_path: usize,
    /// Most bytes of one entry's extended attributes, names included.
    pub max_xattr_bytes: usize,
    /// Most bytes of memory for the tree: names, link targets, attributes, maps of sparse files.
    pub max_memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_entries: 2_000_000,
            max_uncompressed: 256 << 30,
            max_path: 4096,
            max_xattr_bytes: 256 << 10,
            max_memory: 1 << 30,
        }
    }
}

/// Reads an uncompressed tar stream to its end, bytes after the archive included, and writes the layer.
///
/// `dest` must not exist; it is neither synced nor renamed here, and is gone again if this fails. A directory
/// is unpacked with the help of a second one beside it, `<dest>.files`.
pub fn convert(
    tar: impl Read,
    dest: &Path,
    form: LayerForm,
    limits: &Limits,
) -> Result<LayerInfo, LayerError> {
    match form {
        LayerForm::Erofs => {
            let image = erofs::Image::create(dest, limits.max_uncompressed)?;
            ingest::run(tar, image, limits, Meaning::Layer).inspect_err(|_| drop(std::fs::remove_file(dest)))
        }
        LayerForm::Directory => unpack(tar, dest, KeptIds::default(), limits),
    }
}

/// As [`convert`] to a directory, with owners moved.
pub fn unpack(tar: impl Read, dest: &Path, kept: KeptIds, limits: &Limits) -> Result<LayerInfo, LayerError> {
    let unpacked = dir::Unpacked::create(dest, limits.max_uncompressed, kept)?;
    ingest::run(tar, unpacked, limits, Meaning::Layer).inspect_err(|_| dir::remove(dest))
}

/// Unpacks an archive of files that is no layer, compressed or not, into the directory `dest`, which must not exist and
/// is gone again if this fails. Names that mean something in a layer are names like others here.
pub fn unpack_files(archive: impl std::io::BufRead, dest: &Path) -> Result<LayerInfo, LayerError> {
    let limits = Limits::default();
    let unpacked = dir::Unpacked::create(dest, limits.max_uncompressed, KeptIds::default())?;
    let tar = Decompressor::new(archive).map_err(LayerError::Read);
    tar.and_then(|tar| ingest::run(tar, unpacked, &limits, Meaning::Files)).inspect_err(|_| dir::remove(dest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_has_a_place_of_its_own() {
        let kept = KeptIds { uid: 1000, gid: 5 };
        let seen: Vec<_> = [0, 1, 5, 6, 999, 1000, 1001, 65534].map(|id| kept.outside(id, id)).into();
        let expected = [(1, 1), (2, 2), (6, 0), (7, 6), (1000, 999), (0, 1000), (1001, 1001), (65534, 65534)];
        assert_eq!(seen, expected);
        assert_eq!(KeptIds::default().outside(0, 7), (0, 7));
    }
}
