//! The database: its tables, and how it is opened.
//!
//! ```text
//!   names ──▶ images ◀── repo_digests          an image is there when its row is, and only then
//!                │ image_layers ──▶ layers     what it is mounted from
//!                └ image_blobs  ──▶ blobs      what it was sent as
//!   leases: content that a living session will soon refer to, which no collector may take
//! ```
//!
//! It is read by each command that starts an instance and changed by few, so changes go through a rollback journal: of
//! a write-ahead log, the first process to open the database makes the index anew, and here that is each command.
//!
//! Rows of `layers` and `blobs` are written after their files are in place, rows of `images` after those. So
//! content without a row is litter, and a row without content can only stand where nothing refers to it.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::error::{Error, Result};
use crate::layout::Layout;

/// Number of the newest schema.
const VERSION: i64 = 1;

/// How long to wait for another process's transaction. They are short, but a disk can be slow.
pub(super) const BUSY: Duration = Duration::from_secs(30);

const TABLES: &str = "
CREATE TABLE images (
    id       TEXT PRIMARY KEY,  -- digest of the config
    manifest TEXT NOT NULL,     -- digest of the manifest it was last made from
    config   TEXT NOT NULL,     -- the config as it came
    stored   INTEGER NOT NULL   -- seconds since 1970
) WITHOUT ROWID;
CREATE TABLE names (
    name   TEXT PRIMARY KEY,    -- normalized, with tag
    image  TEXT NOT NULL,
    tagged INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX names_image ON names (image);
CREATE TABLE repo_digests (
    repository TEXT NOT NULL,
    digest     TEXT NOT NULL,   -- of the index or manifest that the registry calls the image
    image      TEXT NOT NULL,
    PRIMARY KEY (repository, digest)
) WITHOUT ROWID;
CREATE INDEX repo_digests_image ON repo_digests (image);
CREATE TABLE layers (
    diff_id      TEXT PRIMARY KEY,
    form         TEXT NOT NULL, -- erofs or directory
    disk_size    INTEGER NOT NULL,
    tar_size     INTEGER NOT NULL,
    entries      INTEGER NOT NULL,
    opaque_root  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE blobs (
    digest  TEXT PRIMARY KEY,
    size    INTEGER NOT NULL,
    diff_id TEXT                -- what it unpacks to, for a layer
) WITHOUT ROWID;
CREATE TABLE image_layers (
    image    TEXT NOT NULL,
    position INTEGER NOT NULL,  -- 0 is the lowest
    diff_id  TEXT NOT NULL,
    PRIMARY KEY (image, position)
) WITHOUT ROWID;
CREATE INDEX image_layers_diff_id ON image_layers (diff_id);
CREATE TABLE image_blobs (
    image  TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (image, digest)
) WITHOUT ROWID;
CREATE INDEX image_blobs_digest ON image_blobs (digest);
CREATE TABLE leases (
    session TEXT NOT NULL,
    digest  TEXT NOT NULL,
    PRIMARY KEY (session, digest)
) WITHOUT ROWID;
CREATE INDEX leases_digest ON leases (digest);
";

/// Opens the database, and makes it and the store's directories where there is none yet. Others may make it at the
/// same time, and SQLite opens a file for reading alone that came to be while it was being opened: so it is opened
/// in one way only, in which it is made where it is missing.
pub(super) fn open(layout: &Layout) -> Result<Connection> {
    let path = layout.database();
    if !path.exists() {
        layout.create()?;
    }
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(&path, flags);
    prepare(db.map_err(|source| Error::Database { path: path.clone(), source })?, &path)
}

fn prepare(mut db: Connection, path: &Path) -> Result<Connection> {
    let failed = |source| Error::Database { path: path.to_owned(), source };
    db.busy_timeout(BUSY).map_err(failed)?;
    let version = db.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    match version {
        VERSION => {}
        0 => create(&mut db).map_err(failed)?,
        found => return Err(Error::Format { path: path.to_owned(), found, known: VERSION }),
    }
    Ok(db)
}

/// Makes the tables; whoever comes second finds them made.
fn create(db: &mut Connection) -> rusqlite::Result<()> {
    let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = change.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version == 0 {
        change.execute_batch(TABLES)?;
        change.pragma_update(None, "user_version", VERSION)?;
    }
    change.commit()
}
