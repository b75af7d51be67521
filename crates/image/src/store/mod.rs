//! The image store: content on disk, and a database that says which image it belongs to.
//!
//! Where what lies is told in [`crate::layout`], what the database holds in `schema`. The rules:
//!
//! 1. An image is there when its row in `images` is. That row is written last and deleted first.
//! 2. Content gets its row after its file; it is deleted inside the transaction that deletes the row. Whoever
//!    finds a row also looks whether the file is there before it relies on it without an image's reference.
//! 3. Before a session relies on content, or makes it, it leases it. Collectors pass by what is leased by a
//!    session that lives, and what an image refers to.
//! 4. The same content is made by one process at a time, under its lock; the others wait, then find it.
//!
//! Any process can be killed at any line: rule 1 keeps images whole or absent, rules 2 and 3 keep content from
//! being lost or leaked for good, and the kernel drops the locks.

mod check;
mod copies;
mod footprint;
mod inspect;
mod remove;
mod schema;
mod session;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proa_oci::disk::{DiskLayout, OS};
use proa_oci::image::{ImageConfig, parse_config};
use proa_oci::reference::{Digest, Reference, ReferenceError, is_lower_hex};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

pub use check::Problem;
pub use copies::LayerCopy;
pub use inspect::HistoryRow;
pub use remove::{Pruned, RemoveHooks, Removed};
pub(crate) use session::{NewImage, Session};

use crate::error::{Error, Result};
use crate::layer::LayerForm;
use crate::layout::Layout;

/// An image's id: the digest of its config.
pub type ImageId = Digest;

/// The images of one root directory. Cheap to open; each thread opens its own.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    layout: Layout,
    db: Connection,
}

/// An image that is complete in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Digest of its config.
    pub id: ImageId,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Its normalized names with tags, `docker.io/library/busybox:latest`.
    pub names: Vec<String>,
    /// How to run it.
    pub config: ImageConfig,
    /// What it is as a disk, where it is one.
    pub disk: Option<DiskLayout>,
    /// What its root file system is mounted from, lowest first. Layers that an opaque root hides are left out.
    pub layers: Vec<LayerFile>,
    /// Bytes of its layers as tars; what Docker calls the size.
    pub size: u64,
    /// Bytes its layers take on disk. Layers are shared between images.
    pub disk_size: u64,
    /// When it was put into the store, in seconds since 1970.
    pub stored: u64,
}

/// One layer, ready to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFile {
    /// Digest of its uncompressed tar.
    pub diff_id: Digest,
    /// The EROFS image, or the directory.
    pub path: PathBuf,
    /// Which of the two it is.
    pub form: LayerForm,
}

impl Store {
    /// Opens the store below the engine's root directory; makes it where there is none.
    ///
    /// # Errors
    /// The directory cannot be made, or the database cannot be opened or is of a newer version.
    pub fn open(root: &Path) -> Result<Self> {
        // Layers are handed to processes that stand elsewhere.
        let root = std::path::absolute(root).map_err(Error::io(root))?;
        let layout = Layout::new(&root);
        let db = schema::open(&layout)?;
        Ok(Self { root, layout, db })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The image with this name, this id, or this beginning of an id.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is none.
    pub fn resolve(&self, name_or_id: &str) -> Result<Image> {
        // One snapshot for all the queries, and one lock instead of one for each.
        let read = self.db.unchecked_transaction().map_err(self.failed())?;
        let id = self.find(name_or_id)?;
        let image = self.load(&id)?;
        read.finish().map_err(self.failed())?;
        image.ok_or_else(|| Error::NotFound(name_or_id.to_owned()))
    }

    /// The image with exactly this id.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is none.
    pub fn get(&self, id: &ImageId) -> Result<Image> {
        self.load(id)?.ok_or_else(|| Error::NotFound(id.to_string()))
    }

    /// All images, the newest first.
    ///
    /// # Errors
    /// The database failed.
    pub fn list(&self) -> Result<Vec<Image>> {
        let ids = self.digests("SELECT id FROM images ORDER BY stored DESC, id")?;
        let images = ids.iter().filter_map(|id| self.load(id).transpose());
        images.collect()
    }

    /// Whether the image is still there. Waits for a removal under way: who has recorded its use of the image
    /// where [`RemoveHooks::in_use`] sees it, and then gets `true` here, keeps the image.
    ///
    /// # Errors
    /// The database failed.
    pub fn contains(&self, id: &ImageId) -> Result<bool> {
        let change = self.change()?;
        let found = change.query_row("SELECT 1 FROM images WHERE id = ?1", [id.as_str()], |_| Ok(()));
        Ok(found.optional().map_err(self.failed())?.is_some())
    }

    /// Gives an image another name, taking the name from the image that had it.
    ///
    /// # Errors
    /// There is no such image, or the target has a digest.
    pub fn tag(&self, source: &str, target: &Reference) -> Result<()> {
        let name = tag_name(target)?;
        let change = self.change()?;
        let id = self.find(source)?;
        set_name(&change, &name, &id).map_err(self.failed())?;
        change.commit().map_err(self.failed())?;
        self.settle();
        Ok(())
    }

    /// The registry digests known for an image, as `repository@digest`.
    ///
    /// # Errors
    /// The database failed.
    pub fn repo_digests(&self, id: &ImageId) -> Result<Vec<String>> {
        let sql = "SELECT repository || '@' || digest FROM repo_digests WHERE image = ?1 ORDER BY 1";
        self.strings(sql, id.as_str())
    }

    /// Notes that a registry knows the image by this digest.
    pub(crate) fn add_repo_digest(&self, id: &ImageId, repository: &str, digest: &Digest) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO repo_digests (repository, digest, image) VALUES (?1, ?2, ?3)";
        let done = self.db.execute(sql, params![repository, digest.as_str(), id.as_str()]);
        done.map(drop).map_err(self.failed())
    }

    fn find(&self, name_or_id: &str) -> Result<ImageId> {
        let missing = || Error::NotFound(name_or_id.to_owned());
        if let Ok(id) = name_or_id.parse::<Digest>() {
            let sql = "SELECT id FROM images WHERE id = ?1";
            return self.one_id(sql, &[id.as_str()])?.ok_or_else(missing);
        }
        let prefix = name_or_id.strip_prefix("sha256:").unwrap_or(name_or_id);
        let may_be_id = (1..=64).contains(&prefix.len()) && prefix.bytes().all(is_lower_hex);
        let found = match Reference::parse(name_or_id) {
            Ok(reference) => self.find_reference(&reference)?,
            Err(_) if may_be_id => None,
            Err(ReferenceError::LooksLikeId(_)) => None,
            Err(error) => return Err(error.into()),
        };
        match found {
            Some(id) => Ok(id),
            None if may_be_id => self.find_prefix(prefix)?.ok_or_else(missing),
            None => Err(missing()),
        }
    }

    fn find_reference(&self, reference: &Reference) -> Result<Option<ImageId>> {
        match reference.digest() {
            Some(digest) => {
                let sql = "SELECT image FROM repo_digests WHERE repository = ?1 AND digest = ?2";
                self.one_id(sql, &[&reference.repository(), digest.as_str()])
            }
            None => self.one_id("SELECT image FROM names WHERE name = ?1", &[&reference.to_string()]),
        }
    }

    fn find_prefix(&self, prefix: &str) -> Result<Option<ImageId>> {
        // 'g' is the first character above all hexadecimal digits.
        let sql = "SELECT id FROM images WHERE id >= 'sha256:' || ?1 AND id < 'sha256:' || ?1 || 'g'";
        let mut ids = self.strings(sql, prefix)?;
        match ids.len() {
            0 => Ok(None),
            1 => Ok(Some(ids.remove(0).parse()?)),
            count => Err(Error::AmbiguousId { prefix: prefix.to_owned(), count }),
        }
    }

    fn load(&self, id: &ImageId) -> Result<Option<Image>> {
        let row = self.db.query_row(
            "SELECT manifest, config, stored FROM images WHERE id = ?1",
            [id.as_str()],
            |row| Ok((digest(row, 0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?)),
        );
        let Some((manifest, config, stored)) = row.optional().map_err(self.failed())? else {
            return Ok(None);
        };
        let failed = || Error::document(format!("image {id}"));
        let text = config.as_bytes();
        let config = parse_config(text).map_err(failed())?;
        let disk = if config.os == OS { DiskLayout::parse(text).map_err(failed())? } else { None };
        let names = self.strings("SELECT name FROM names WHERE image = ?1 ORDER BY name", id.as_str())?;
        let stored = u64::try_from(stored).unwrap_or(0);
        let (layers, mut size, mut disk_size) = self.load_layers(id)?;
        if let Some(disk) = &disk {
            (size, disk_size) = (disk.size, self.blob_bytes(id)?);
        }
        Ok(Some(Image { id: id.clone(), manifest, names, config, disk, layers, size, disk_size, stored }))
    }

    /// Bytes of what an image was sent as.
    fn blob_bytes(&self, id: &ImageId) -> Result<u64> {
        let sql = "SELECT coalesce(sum(size), 0) FROM blobs
                   WHERE digest IN (SELECT digest FROM image_blobs WHERE image = ?1)";
        self.db.query_row(sql, [id.as_str()], |row| unsigned(row, 0)).map_err(self.failed())
    }

    fn load_layers(&self, id: &ImageId) -> Result<(Vec<LayerFile>, u64, u64)> {
        let sql = "SELECT i.diff_id, l.form, l.tar_size, l.disk_size, l.opaque_root FROM image_layers i
                   LEFT JOIN layers l ON l.diff_id = i.diff_id WHERE i.image = ?1 ORDER BY i.position";
        let mut statement = self.db.prepare(sql).map_err(self.failed())?;
        let mut rows = statement.query([id.as_str()]).map_err(self.failed())?;
        let (mut layers, mut size, mut disk_size) = (Vec::new(), 0, 0);
        while let Some(row) = rows.next().map_err(self.failed())? {
            let diff_id = digest(row, 0).map_err(self.failed())?;
            let Some(form) = row.get::<_, Option<String>>(1).map_err(self.failed())? else {
                let what = format!("layer {diff_id} is missing");
                return Err(Error::Damaged { image: id.to_string(), what });
            };
            let form = if form == "erofs" { LayerForm::Erofs } else { LayerForm::Directory };
            size += unsigned(row, 2).map_err(self.failed())?;
            disk_size += unsigned(row, 3).map_err(self.failed())?;
            if row.get(4).map_err(self.failed())? {
                layers.clear();
            }
            layers.push(LayerFile { path: self.layout.layer(&diff_id, form), diff_id, form });
        }
        Ok((layers, size, disk_size))
    }

    /// A transaction that writes: no other process writes until it ends.
    fn change(&self) -> Result<Transaction<'_>> {
        Transaction::new_unchecked(&self.db, TransactionBehavior::Immediate).map_err(self.failed())
    }

    /// A store of an earlier version has a write-ahead log; that goes, for quicker commands. Where others are reading,
    /// a later change does it.
    fn settle(&self) {
        let _ = self.db.busy_timeout(Duration::ZERO);
        let _ = self.db.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()));
        let _ = self.db.busy_timeout(schema::BUSY);
    }

    fn one_id(&self, sql: &str, values: &[&str]) -> Result<Option<ImageId>> {
        let found = self.db.query_row(sql, rusqlite::params_from_iter(values), |row| digest(row, 0));
        found.optional().map_err(self.failed())
    }

    fn strings(&self, sql: &str, value: &str) -> Result<Vec<String>> {
        let mut statement = self.db.prepare(sql).map_err(self.failed())?;
        let rows = statement.query_map([value], |row| row.get(0)).map_err(self.failed())?;
        rows.collect::<rusqlite::Result<_>>().map_err(self.failed())
    }

    fn digests(&self, sql: &str) -> Result<Vec<Digest>> {
        let mut statement = self.db.prepare(sql).map_err(self.failed())?;
        let rows = statement.query_map([], |row| digest(row, 0)).map_err(self.failed())?;
        rows.collect::<rusqlite::Result<_>>().map_err(self.failed())
    }

    fn failed(&self) -> impl Fn(rusqlite::Error) -> Error + Copy + '_ {
        |source| Error::Database { path: self.layout.database(), source }
    }
}

/// The name a reference stands for in the database.
pub(crate) fn tag_name(reference: &Reference) -> Result<String> {
    match reference.digest() {
        Some(_) => Err(Error::NotATag(reference.familiar())),
        None => Ok(reference.to_string()),
    }
}

fn set_name(db: &Connection, name: &str, id: &ImageId) -> rusqlite::Result<bool> {
    let sql = "INSERT INTO names (name, image, tagged) VALUES (?1, ?2, ?3)
               ON CONFLICT (name) DO UPDATE SET image = ?2, tagged = ?3 WHERE image <> ?2";
    Ok(db.execute(sql, params![name, id.as_str(), now()])? > 0)
}

fn digest(row: &Row<'_>, column: usize) -> rusqlite::Result<Digest> {
    let text: String = row.get(column)?;
    text.parse()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| signed(since.as_secs()))
}
