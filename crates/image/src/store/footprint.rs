//! What images have on disk.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use proa_oci::reference::Digest;
use proa_sys::trees;

use super::{ImageId, Store};
use crate::error::Result;
use crate::layer::LayerForm;

/// Bytes of a block, of which a file says how many it has.
const BLOCK: u64 = 512;

impl Store {
    /// The image's files and unpacked directories, with the bytes of each on disk: blobs, layers, copies of layers. Other
    /// images may have the same ones.
    ///
    /// # Errors
    /// The database or the directory of layers cannot be read.
    pub fn footprint(&self, image: &ImageId) -> Result<BTreeMap<PathBuf, u64>> {
        let mut paths = Vec::new();
        let digests = "SELECT digest FROM image_blobs WHERE image = ?1";
        for digest in self.strings(digests, image.as_str())? {
            paths.push(self.layout.blob(&digest.parse()?));
        }
        let diff_ids = "SELECT diff_id FROM image_layers WHERE image = ?1";
        for diff_id in self.strings(diff_ids, image.as_str())? {
            let diff_id: Digest = diff_id.parse()?;
            paths.extend(
                [LayerForm::Erofs, LayerForm::Directory].map(|form| self.layout.layer(&diff_id, form)),
            );
            paths.extend(self.layout.kept_layers(&diff_id)?);
        }
        let sized = paths.into_iter().map(|path| {
            let bytes = size_of(&path);
            (path, bytes)
        });
        Ok(sized.filter(|(_, bytes)| *bytes > 0).collect())
    }
}

/// Nothing for what is not there.
fn size_of(path: &Path) -> u64 {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => metadata.blocks() * BLOCK + trees::disk_usage(path),
        Ok(metadata) => metadata.blocks() * BLOCK,
        Err(_) => 0,
    }
}
