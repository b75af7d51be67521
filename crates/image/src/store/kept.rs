//! Copies of layers with other owners, for an ordinary user's containers that keep the user's id.
//!
//! The kernel maps owners of a mount for root alone. Where a user namespace inside the user's own gives ids another
//! meaning, the files of a layer must belong to others on disk: the layer is unpacked once more, from its blob,
//! for each [`KeptIds`] that a container asks for.
//!
//! A copy has no row: it is there when its directory is, which is made in a session's directory, made durable and
//! renamed to its place like every layer. It is known as long as its layer is, and is deleted with it, before it.

use std::fs::File;

use proa_oci::reference::Digest;

use super::{Image, LayerFile, Session, Store};
use crate::error::{Error, Result};
use crate::ingest::{self, Job};
use crate::layer::{KeptIds, LayerForm, Limits};
use crate::layout::{LockFile, publish};

impl Store {
    /// The image's layers with owners moved; what is not there is made. Whoever calls has recorded its use of the
    /// image, so that no layer goes meanwhile.
    ///
    /// # Errors
    /// A layer's blob is missing or damaged, a file belongs to an id that is not mapped, or the disk is full.
    pub fn layers_keeping(&self, image: &Image, kept: KeptIds) -> Result<Vec<LayerFile>> {
        let copy = |layer: &LayerFile| {
            let path = self.layout.kept_layer(&layer.diff_id, kept);
            if !path.is_dir() {
                self.make_copy(image, &layer.diff_id, kept)?;
            }
            Ok(LayerFile { diff_id: layer.diff_id.clone(), path, form: LayerForm::Directory })
        };
        image.layers.iter().map(copy).collect()
    }

    /// Makes one, or waits while another process does.
    fn make_copy(&self, image: &Image, diff_id: &Digest, kept: KeptIds) -> Result<()> {
        let place = self.layout.kept_layer(diff_id, kept);
        let name = place.file_name().unwrap_or_default();
        let _lock = LockFile::take(&self.layout.locks().join(name))?;
        if place.is_dir() {
            return Ok(());
        }
        let session = Session::begin(self)?;
        let (blob, size) = self.blob_of(image, diff_id)?;
        let temp = session.temp("copy.layer");
        let job = Job {
            blob: &blob,
            size,
            blob_file: None,
            layer: Some((&temp, LayerForm::Directory)),
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
