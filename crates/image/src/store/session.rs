//! A session: one operation that brings content into the store.

use std::path::{Path, PathBuf};

use proa_oci::image::{ImageConfig, Manifest};
use proa_oci::reference::Digest;
use rusqlite::{Connection, OptionalExtension, params};

use super::{ImageId, Store, digest, now, set_name, signed};
use crate::digest::digest_of;
use crate::error::{Error, Result};
use crate::layer::{LayerForm, LayerInfo};
use crate::layout::{TempDir, publish, remove_dead_sessions};

/// One operation that brings content into the store. What it leases stays until it ends.
#[derive(Debug)]
pub(crate) struct Session<'s> {
    store: &'s Store,
    dir: TempDir,
}

/// What is known of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlobRow {
    pub(crate) size: u64,
    /// What it unpacks to, where it is a layer that has been unpacked.
    pub(crate) diff_id: Option<Digest>,
}

/// An image whose content is in place.
#[derive(Debug)]
pub(crate) struct NewImage<'a> {
    pub(crate) manifest_digest: &'a Digest,
    pub(crate) manifest: &'a Manifest,
    pub(crate) config: &'a ImageConfig,
    /// The config as it came.
    pub(crate) config_text: &'a str,
    /// Normalized names to give it.
    pub(crate) names: &'a [String],
    /// Repository and digest by which a registry knows it.
    pub(crate) repo_digest: Option<(&'a str, &'a Digest)>,
}

impl<'s> Session<'s> {
    /// Begins a session, and clears away what sessions that died have left.
    pub(crate) fn begin(store: &'s Store) -> Result<Self> {
        remove_dead_sessions(store.layout())?;
        Ok(Self { store, dir: TempDir::create(store.layout())? })
    }

    /// Keeps collectors from this content until the session ends. To be called before looking for it.
    pub(crate) fn lease<'d>(&self, digests: impl IntoIterator<Item = &'d Digest>) -> Result<()> {
        let change = self.store.change()?;
        for digest in digests {
            let sql = "INSERT OR IGNORE INTO leases (session, digest) VALUES (?1, ?2)";
            change.execute(sql, [self.dir.name(), digest.as_str()]).map_err(self.store.failed())?;
        }
        change.commit().map_err(self.store.failed())
    }

    /// A path for something in the making.
    pub(crate) fn temp(&self, name: &str) -> PathBuf {
        self.dir.path(name)
    }

    /// Puts a small blob into the store.
    pub(crate) fn add_bytes(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        debug_assert_eq!(&digest_of(digest.algorithm(), bytes), digest);
        if self.store.blob(digest)?.is_none() {
            let temp = self.temp(digest.hex());
            std::fs::write(&temp, bytes).map_err(Error::io(&temp))?;
            self.store.add_blob(&temp, digest, bytes.len() as u64, None)?;
        }
        Ok(())
    }

    /// Makes the image known. Returns whether anything changed.
    pub(crate) fn commit(&self, new: &NewImage<'_>) -> Result<(ImageId, bool)> {
        let change = self.store.change()?;
        let changed = insert_image(&change, new).map_err(self.store.failed())?;
        change.commit().map_err(self.store.failed())?;
        Ok((new.manifest.config.digest.clone(), changed))
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // Where this fails the leases outlive the session's directory, and the collector drops them.
        let _ = self.store.db.execute("DELETE FROM leases WHERE session = ?1", [self.dir.name()]);
        self.store.settle();
    }
}

fn insert_image(db: &Connection, new: &NewImage<'_>) -> rusqlite::Result<bool> {
    let id = new.manifest.config.digest.as_str();
    let sql = "INSERT INTO images (id, manifest, config, stored) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT (id) DO UPDATE SET manifest = ?2 WHERE manifest <> ?2";
    let manifest = new.manifest_digest.as_str();
    let mut changed = db.execute(sql, params![id, manifest, new.config_text, now()])? > 0;
    db.execute("DELETE FROM image_layers WHERE image = ?1", [id])?;
    for (position, diff_id) in new.config.rootfs.diff_ids.iter().enumerate() {
        let sql = "INSERT INTO image_layers (image, position, diff_id) VALUES (?1, ?2, ?3)";
        db.execute(sql, params![id, signed(position as u64), diff_id.as_str()])?;
    }
    db.execute("DELETE FROM image_blobs WHERE image = ?1", [id])?;
    let layers = new.manifest.layers.iter().map(|layer| layer.digest.as_str());
    for blob in [manifest, id].into_iter().chain(layers) {
        db.execute("INSERT OR IGNORE INTO image_blobs (image, digest) VALUES (?1, ?2)", [id, blob])?;
    }
    for name in new.names {
        changed |= set_name(db, name, &new.manifest.config.digest)?;
    }
    if let Some((repository, digest)) = new.repo_digest {
        let sql = "INSERT INTO repo_digests (repository, digest, image) VALUES (?1, ?2, ?3)
                   ON CONFLICT (repository, digest) DO UPDATE SET image = ?3 WHERE image <> ?3";
        changed |= db.execute(sql, [repository, digest.as_str(), id])? > 0;
    }
    Ok(changed)
}

impl Store {
    /// The blob's row, where the blob is in place and whole.
    pub(crate) fn blob(&self, digest_of_blob: &Digest) -> Result<Option<BlobRow>> {
        let sql = "SELECT size, diff_id FROM blobs WHERE digest = ?1";
        let row = self.db.query_row(sql, [digest_of_blob.as_str()], |row| {
            let diff_id = match row.get_ref(1)? {
                rusqlite::types::ValueRef::Null => None,
                _ => Some(digest(row, 1)?),
            };
            Ok(BlobRow { size: super::unsigned(row, 0)?, diff_id })
        });
        let row = row.optional().map_err(self.failed())?;
        let size = std::fs::metadata(self.layout.blob(digest_of_blob)).map(|meta| meta.len());
        Ok(row.filter(|row| size.is_ok_and(|size| size == row.size)))
    }

    /// The form in which the layer is in place.
    pub(crate) fn layer_form(&self, diff_id: &Digest) -> Result<Option<LayerForm>> {
        let sql = "SELECT form FROM layers WHERE diff_id = ?1";
        let row = self.db.query_row(sql, [diff_id.as_str()], |row| row.get::<_, String>(0));
        let Some(form) = row.optional().map_err(self.failed())? else { return Ok(None) };
        let form = if form == "erofs" { LayerForm::Erofs } else { LayerForm::Directory };
        let path = self.layout.layer(diff_id, form);
        let whole = match form {
            LayerForm::Erofs => crate::layer::erofs::is_whole(&path),
            LayerForm::Directory => path.exists(),
        };
        Ok(whole.then_some(form))
    }

    /// Moves a finished blob to its place and makes it known. Its digest has been verified.
    pub(crate) fn add_blob(
        &self,
        temp: &Path,
        digest: &Digest,
        size: u64,
        diff_id: Option<&Digest>,
    ) -> Result<()> {
        let place = self.layout.blob(digest);
        // What lies there without a row of the right size is damaged.
        if std::fs::metadata(&place).is_ok_and(|meta| meta.len() != size) {
            crate::layout::remove_path(&place)?;
        }
        publish(temp, &place)?;
        let sql = "INSERT INTO blobs (digest, size, diff_id) VALUES (?1, ?2, ?3)
                   ON CONFLICT (digest) DO UPDATE SET size = ?2, diff_id = coalesce(?3, diff_id)";
        let values = params![digest.as_str(), signed(size), diff_id.map(Digest::as_str)];
        self.db.execute(sql, values).map_err(self.failed())?;
        Ok(())
    }

    /// Notes what a blob unpacks to.
    pub(crate) fn set_diff_id(&self, digest: &Digest, diff_id: &Digest) -> Result<()> {
        let sql = "UPDATE blobs SET diff_id = ?2 WHERE digest = ?1";
        self.db.execute(sql, [digest.as_str(), diff_id.as_str()]).map(drop).map_err(self.failed())
    }

    /// Moves a finished layer to its place and makes it known.
    pub(crate) fn add_layer(
        &self,
        temp: &Path,
        diff_id: &Digest,
        form: LayerForm,
        info: &LayerInfo,
    ) -> Result<()> {
        if self.layer_form(diff_id)?.is_some() {
            // Made meanwhile, from another blob with the same content, and perhaps in another form.
            return crate::layout::remove_path(temp);
        }
        publish(temp, &self.layout.layer(diff_id, form))?;
        let sql = "INSERT OR REPLACE INTO layers (diff_id, form, disk_size, tar_size, entries, opaque_root)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let form = match form {
            LayerForm::Erofs => "erofs",
            LayerForm::Directory => "directory",
        };
        let (disk, tar) = (signed(info.size_on_disk), signed(info.uncompressed_size));
        let values = params![diff_id.as_str(), form, disk, tar, signed(info.entries), info.opaque_root];
        self.db.execute(sql, values).map_err(self.failed())?;
        Ok(())
    }
}
