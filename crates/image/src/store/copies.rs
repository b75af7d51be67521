//! Copies of layers in another form than they have in the store, which is that of unpacked directories.
//!
//! * For an ordinary user's containers that keep the user's id: the kernel maps owners of a mount for root alone. Where a
//!   user namespace inside the user's own gives ids another meaning, the files of a layer must belong to others on
//!   disk, and are unpacked once more for each [`KeptIds`] that a container asks for.
//! * For an ordinary user's virtual machines, whose disks are EROFS images: the guest's kernel mounts them.
//!
//! A copy is made of the layer's blob. It has no row: it is there when its file or directory is, which is made in a
//! session's directory, made durable and renamed to its place like every layer. It is known as long as its layer is,
//! and is deleted with it, before it.

use std::fs::File;
use std::path::PathBuf;

use proa_oci::reference::Digest;

use super::{Image, LayerFile, Session, Store};
use crate::error::{Error, Result};
use crate::ingest::{self, Job};
use crate::layer::{KeptIds, LayerForm, Limits};
use crate::layout::{LockFile, publish};

/// What a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerCopy {
    /// A directory with other owners.
    Keeping(KeptIds),
    /// An EROFS image.
    Image,
}

impl LayerCopy {
    fn form(self) -> (LayerForm, KeptIds) {
        match self {
            Self::Keeping(kept) => (LayerForm::Directory, kept),
            Self::Image => (LayerForm::Erofs, KeptIds::default()),
        }
    }
}

impl Store {
    /// The image's layers as such copies; what is not there is made. Whoever calls has recorded its use of the image,
    /// so that no layer goes meanwhile.
    ///
    /// # Errors
    /// A layer's blob is missing or damaged, a file belongs to an id that is not mapped, or the disk is full.
    pub fn copies(&self, image: &Image, copy: LayerCopy) -> Result<Vec<LayerFile>> {
        let (form, _) = copy.form();
        let find = |layer: &LayerFile| {
            let path = self.copy_path(&layer.diff_id, copy);
            if !path.exists() {
                self.make_copy(image, &layer.diff_id, copy)?;
            }
            Ok(LayerFile { diff_id: layer.diff_id.clone(), path, form })
        };
        image.layers.iter().map(find).collect()
    }

    fn copy_path(&self, diff_id: &Digest, copy: LayerCopy) -> PathBuf {
        match copy {
            LayerCopy::Keeping(kept) => self.layout.kept_layer(diff_id, kept),
            LayerCopy::Image => self.layout.layer(diff_id, LayerForm::Erofs),
        }
    }

    /// Makes one, or waits while another process does.
    fn make_copy(&self, image: &Image, diff_id: &Digest, copy: LayerCopy) -> Result<()> {
        let place = self.copy_path(diff_id, copy);
        let name = place.file_name().unwrap_or_default();
        let _lock = LockFile::take(&self.layout.locks().join(name))?;
        if place.exists() {
            return Ok(());
        }
        let session = Session::begin(self)?;
        let (blob, size) = self.blob_of(image, diff_id)?;
        let temp = session.temp("copy.layer");
        let (form, kept) = copy.form();
        let job = Job {
            blob: &blob,
            size,
            blob_file: None,
            layer: Some((&temp, form)),
            kept,
            algorithm: diff_id.algorithm(),
            limits: &Limits::default(),
        };
        let path = self.layout.blob(&blob);
        let made = ingest::make(&job, File::open(&path).map_err(Error::io(&path))?, &mut |_| Ok(()))?;
        if made.diff_id != *diff_id {
            let (expected, actual) = (diff_id.clone(), made.diff_id);
            return Err(Error::WrongDiffId { blob, expected, actual });
        }
        publish(&temp, &place)
    }

    /// A blob of the image that unpacks to the layer, and its size.
    fn blob_of(&self, image: &Image, diff_id: &Digest) -> Result<(Digest, u64)> {
        let sql = "SELECT digest FROM image_blobs WHERE image = ?1";
        for text in self.strings(sql, image.id.as_str())? {
            let blob: Digest = text.parse()?;
            if let Some(row) = self.blob(&blob)?.filter(|row| row.diff_id.as_ref() == Some(diff_id)) {
                return Ok((blob, row.size));
            }
        }
        let what = format!("the blob of layer {diff_id} is missing");
        Err(Error::Damaged { image: image.id.to_string(), what })
    }
}
