//! Removal of names and images, and collection of what nothing refers to.
//!
//! An image goes in two steps: first its rows, then, in a second transaction, the files nothing refers to any
//! more. A crash between the two leaves litter that the next removal or check collects.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proa_oci::reference::{Digest, Reference, familiar_repository};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{Image, ImageId, Store};
use crate::error::{Error, Result};
use crate::layer::LayerForm;
use crate::layout::{remove_dead_sessions, remove_path, session_is_dead};

/// What a removal asks its caller.
pub trait RemoveHooks {
    /// The instances that use the image, by the name their user knows.
    fn in_use(&self, id: &ImageId) -> Vec<String>;

    /// Called before a layer's file is deleted, to unmount it where it is mounted.
    ///
    /// # Errors
    /// The layer cannot be given up yet. It stays, and goes with a later collection.
    fn before_layer_delete(&self, diff_id: &Digest) -> io::Result<()>;
}

/// Nothing is in use or mounted.
impl RemoveHooks for () {
    fn in_use(&self, _: &ImageId) -> Vec<String> {
        Vec::new()
    }

    fn before_layer_delete(&self, _: &Digest) -> io::Result<()> {
        Ok(())
    }
}

/// One thing that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// A name, as users write it.
    Untagged(String),
    /// An image, by its id.
    Deleted(ImageId),
    /// A layer, by its diff id.
    Layer(Digest),
}

/// What a pruning removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Names, images and layers.
    pub removed: Vec<Removed>,
    /// Bytes that are free now.
    pub bytes: u64,
}

impl Store {
    /// Removes a name, and with its last name the image; given an id, the image and its name.
    ///
    /// `force` removes an image by its id though it has several names, and a used image's names. The content
    /// of an image that is in use is never deleted.
    ///
    /// # Errors
    /// There is no such image, it is in use, or it has several names.
    pub fn remove(&self, name_or_id: &str, force: bool, hooks: &dyn RemoveHooks) -> Result<Vec<Removed>> {
        let change = self.change()?;
        let image = self.resolve_in_change(name_or_id)?;
        let mut removed = Vec::new();
        let named = self.drop_reference(&change, &image, name_or_id, &mut removed)?;
        if !named && image.names.len() > 1 && !force {
            return Err(Error::SeveralNames { image: name_or_id.to_owned(), count: image.names.len() });
        }
        let references = self.references(&change, &image.id)?;
        if !named || references == 0 {
            let users = hooks.in_use(&image.id);
            if !users.is_empty() && (!force || (removed.is_empty() && image.names.is_empty())) {
                return Err(Error::InUse { image: name_or_id.to_owned(), users: users.join(", ") });
            }
            self.drop_names(&change, &image.id, &mut removed)?;
            if users.is_empty() {
                delete_image(&change, &image.id).map_err(self.failed())?;
                removed.push(Removed::Deleted(image.id.clone()));
            }
        }
        change.commit().map_err(self.failed())?;
        removed.extend(self.collect(hooks)?.removed);
        Ok(removed)
    }

    /// Removes images that have no name, or with `all` every image that no instance uses.
    ///
    /// # Errors
    /// The database or a file cannot be changed.
    pub fn prune(&self, all: bool, hooks: &dyn RemoveHooks) -> Result<Pruned> {
        self.prune_those(all, &|_| true, hooks)
    }

    /// The same, of those images alone that `wanted` names.
    ///
    /// # Errors
    /// The database or a file cannot be changed.
    pub fn prune_those(
        &self,
        all: bool,
        wanted: &dyn Fn(&ImageId) -> bool,
        hooks: &dyn RemoveHooks,
    ) -> Result<Pruned> {
        let change = self.change()?;
        let mut removed = Vec::new();
        for id in self.digests("SELECT id FROM images ORDER BY id")? {
            let tagged = change.query_row("SELECT 1 FROM names WHERE image = ?1", [id.as_str()], |_| Ok(()));
            let tagged = tagged.optional().map_err(self.failed())?.is_some();
            if (all || !tagged) && wanted(&id) && hooks.in_use(&id).is_empty() {
                self.remove_whole(&change, id, &mut removed)?;
            }
        }
        self.collect_after(change, removed, hooks)
    }

    /// Removes an image with its names.
    fn remove_whole(&self, change: &Transaction, id: ImageId, removed: &mut Vec<Removed>) -> Result<()> {
        self.drop_names(change, &id, removed)?;
        delete_image(change, &id).map_err(self.failed())?;
        removed.push(Removed::Deleted(id));
        Ok(())
    }

    /// Ends a change that has removed images, and removes what nothing refers to any more.
    fn collect_after(
        &self,
        change: Transaction,
        mut removed: Vec<Removed>,
        hooks: &dyn RemoveHooks,
    ) -> Result<Pruned> {
        change.commit().map_err(self.failed())?;
        let collected = self.collect(hooks)?;
        removed.extend(collected.removed);
        Ok(Pruned { removed, bytes: collected.bytes })
    }

    /// Removes images until what the rest refers to takes no more than `budget` bytes: those used longest ago first,
    /// and neither one in use nor `keep`.
    ///
    /// # Errors
    /// The database or a file cannot be changed.
    pub fn prune_to(&self, budget: u64, keep: Option<&ImageId>, hooks: &dyn RemoveHooks) -> Result<Pruned> {
        let change = self.change()?;
        let mut images = Vec::new();
        for id in self.digests("SELECT id FROM images ORDER BY stored, id")? {
            images.push((self.last_used(&id)?, id));
        }
        images.sort_by_key(|(used, _)| *used);
        let mut removed = Vec::new();
        for (_, id) in images {
            if self.referred_bytes(&change)? <= budget {
                break;
            }
            if keep != Some(&id) && hooks.in_use(&id).is_empty() {
                self.remove_whole(&change, id, &mut removed)?;
            }
        }
        self.collect_after(change, removed, hooks)
    }

    /// Notes that an image is used: its manifest's time says when that was last.
    pub fn mark_used(&self, image: &Image) {
        if let Ok(file) = std::fs::File::open(self.layout.blob(&image.manifest)) {
            // Should it fail, the image counts as used earlier, and goes earlier.
            let _ = file.set_modified(SystemTime::now());
        }
    }

    /// When an image was last used, or stored.
    fn last_used(&self, id: &ImageId) -> Result<SystemTime> {
        let sql = "SELECT manifest, stored FROM images WHERE id = ?1";
        let (manifest, stored) = self
            .db
            .query_row(sql, [id.as_str()], |row| Ok((row.get::<_, String>(0)?, super::unsigned(row, 1)?)))
            .map_err(self.failed())?;
        let stored = UNIX_EPOCH + Duration::from_secs(stored);
        let Ok(manifest) = manifest.parse::<Digest>() else { return Ok(stored) };
        let used = std::fs::metadata(self.layout.blob(&manifest)).and_then(|metadata| metadata.modified());
        Ok(used.map_or(stored, |used| used.max(stored)))
    }

    fn referred_bytes(&self, change: &Connection) -> Result<u64> {
        let sql = "SELECT (SELECT coalesce(sum(disk_size), 0) FROM layers
                           WHERE diff_id IN (SELECT diff_id FROM image_layers))
                        + (SELECT coalesce(sum(size), 0) FROM blobs
                           WHERE digest IN (SELECT digest FROM image_blobs))";
        change.query_row(sql, [], |row| super::unsigned(row, 0)).map_err(self.failed())
    }

    /// Deletes content that neither an image nor a living session refers to, and what dead sessions left.
    ///
    /// # Errors
    /// The database or a file cannot be changed.
    pub fn collect(&self, hooks: &dyn RemoveHooks) -> Result<Pruned> {
        remove_dead_sessions(&self.layout)?;
        let mut pruned = Pruned::default();
        let change = self.change()?;
        self.drop_dead_leases()?;
        let layers = self.digests(
            "SELECT diff_id FROM layers WHERE diff_id NOT IN (SELECT diff_id FROM image_layers)
             AND diff_id NOT IN (SELECT digest FROM leases)",
        )?;
        for diff_id in layers {
            if hooks.before_layer_delete(&diff_id).is_err() {
                continue;
            }
            pruned.bytes += self.delete_layer(&diff_id)?;
            pruned.removed.push(Removed::Layer(diff_id));
        }
        let blobs = self.digests(
            "SELECT digest FROM blobs WHERE digest NOT IN (SELECT digest FROM image_blobs)
             AND digest NOT IN (SELECT digest FROM leases)",
        )?;
        for digest in blobs {
            pruned.bytes += self.delete_blob(&digest)?;
        }
        self.check_litter(true, hooks, &mut Vec::new())?;
        change.commit().map_err(self.failed())?;
        self.settle();
        Ok(pruned)
    }

    /// Deletes a layer's file and its copies, then its row, whose transaction is the caller's.
    pub(super) fn delete_layer(&self, diff_id: &Digest) -> Result<u64> {
        let copies = self.layout.kept_layers(diff_id)?;
        copies.iter().try_for_each(|copy| remove_path(copy))?;
        // An image beside a directory is a copy of it, and goes before it.
        for form in [LayerForm::Erofs, LayerForm::Directory] {
            remove_path(&self.layout.layer(diff_id, form))?;
        }
        let sql = "DELETE FROM layers WHERE diff_id = ?1 RETURNING disk_size";
        let size = self.db.query_row(sql, [diff_id.as_str()], |row| super::unsigned(row, 0));
        // A copy takes as much as what it was made like.
        let copies = 1 + copies.len() as u64;
        Ok(size.optional().map_err(self.failed())?.unwrap_or(0) * copies)
    }

    pub(super) fn delete_blob(&self, digest: &Digest) -> Result<u64> {
        remove_path(&self.layout.blob(digest))?;
        let sql = "DELETE FROM blobs WHERE digest = ?1 RETURNING size";
        let size = self.db.query_row(sql, [digest.as_str()], |row| super::unsigned(row, 0));
        Ok(size.optional().map_err(self.failed())?.unwrap_or(0))
    }

    /// Drops the leases of sessions that are dead; the caller's transaction keeps new ones out.
    pub(super) fn drop_dead_leases(&self) -> Result<()> {
        for session in self.strings("SELECT DISTINCT session FROM leases WHERE session <> ?1", "")? {
            if session_is_dead(&self.layout, &session)? {
                self.db.execute("DELETE FROM leases WHERE session = ?1", [session]).map_err(self.failed())?;
            }
        }
        Ok(())
    }

    fn resolve_in_change(&self, name_or_id: &str) -> Result<Image> {
        let id = self.find(name_or_id)?;
        // An image that lost a layer must be removable.
        let names = self.strings("SELECT name FROM names WHERE image = ?1 ORDER BY name", id.as_str())?;
        Ok(Image {
            manifest: id.clone(),
            id,
            names,
            config: Default::default(),
            disk: None,
            layers: Vec::new(),
            size: 0,
            disk_size: 0,
            stored: 0,
        })
    }

    /// Removes the one reference that `text` is; `false` where it is an id.
    fn drop_reference(
        &self,
        change: &Connection,
        image: &Image,
        text: &str,
        removed: &mut Vec<Removed>,
    ) -> Result<bool> {
        let Ok(reference) = Reference::parse(text) else { return Ok(false) };
        let (repository, id) = (reference.repository(), image.id.as_str());
        let gone = match reference.digest() {
            Some(digest) => {
                let sql = "DELETE FROM repo_digests WHERE repository = ?1 AND digest = ?2 AND image = ?3";
                change.execute(sql, params![repository, digest.as_str(), id])
            }
            None => change.execute(
                "DELETE FROM names WHERE name = ?1 AND image = ?2",
                params![reference.to_string(), id],
            ),
        };
        if gone.map_err(self.failed())? == 0 {
            return Ok(false);
        }
        removed.push(Removed::Untagged(reference.familiar()));
        let sql = "SELECT 1 FROM names WHERE image = ?1 AND substr(name, 1, length(?2)) = ?2";
        let tagged = change.query_row(sql, params![id, format!("{repository}:")], |_| Ok(()));
        if tagged.optional().map_err(self.failed())?.is_none() {
            // The repository's digests go with its last tag.
            self.drop_digests(change, &image.id, Some(&repository), removed)?;
        }
        Ok(true)
    }

    fn drop_names(&self, change: &Connection, id: &ImageId, removed: &mut Vec<Removed>) -> Result<()> {
        for name in self.strings("DELETE FROM names WHERE image = ?1 RETURNING name", id.as_str())? {
            removed.push(Removed::Untagged(familiar_repository(&name).to_owned()));
        }
        self.drop_digests(change, id, None, removed)
    }

    fn drop_digests(
        &self,
        change: &Connection,
        id: &ImageId,
        repository: Option<&str>,
        removed: &mut Vec<Removed>,
    ) -> Result<()> {
        let sql = "DELETE FROM repo_digests WHERE image = ?1 AND (?2 IS NULL OR repository = ?2)
                   RETURNING repository || '@' || digest";
        let mut statement = change.prepare(sql).map_err(self.failed())?;
        let rows = statement.query_map(params![id.as_str(), repository], |row| row.get::<_, String>(0));
        for name in rows.map_err(self.failed())? {
            let name = name.map_err(self.failed())?;
            removed.push(Removed::Untagged(familiar_repository(&name).to_owned()));
        }
        Ok(())
    }

    fn references(&self, change: &Connection, id: &ImageId) -> Result<i64> {
        let sql = "SELECT (SELECT count(*) FROM names WHERE image = ?1)
                        + (SELECT count(*) FROM repo_digests WHERE image = ?1)";
        change.query_row(sql, [id.as_str()], |row| row.get(0)).map_err(self.failed())
    }
}

fn delete_image(change: &Connection, id: &ImageId) -> rusqlite::Result<()> {
    for sql in [
        "DELETE FROM images WHERE id = ?1",
        "DELETE FROM image_layers WHERE image = ?1",
        "DELETE FROM image_blobs WHERE image = ?1",
    ] {
        change.execute(sql, [id.as_str()])?;
    }
    Ok(())
}
