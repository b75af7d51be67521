//! Finding and repairing what a crash, or a hand in the wrong place, left.

use std::fs;
use std::path::Path;

use proa_oci::reference::{Algorithm, Digest};
use rusqlite::OptionalExtension;

use super::{RemoveHooks, Store};
use crate::digest::HashingReader;
use crate::error::{Error, Result};
use crate::layer::LayerForm;
use crate::layout::{layer_of, read_dir, remove_dead_sessions, remove_free_locks, remove_path};

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What it is, and what to do where it cannot be repaired.
    pub what: String,
    /// Whether it has been put right.
    pub repaired: bool,
}

impl Store {
    /// Looks for damage and litter, and with `repair` puts right what can be. With `read` every blob is read
    /// and compared with its digest.
    ///
    /// # Errors
    /// The check itself failed.
    pub fn check(&self, repair: bool, read: bool, hooks: &dyn RemoveHooks) -> Result<Vec<Problem>> {
        let mut problems = Vec::new();
        self.check_database(&mut problems)?;
        if repair {
            for name in remove_dead_sessions(&self.layout)? {
                problems.push(Problem {
                    what: format!("left by a process that died: tmp/{name}"),
                    repaired: true,
                });
            }
            remove_free_locks(&self.layout)?;
        }
        let change = self.change()?;
        if repair {
            self.drop_dead_leases()?;
        }
        self.check_rows(repair, read, &mut problems)?;
        self.check_litter(repair, hooks, &mut problems)?;
        self.check_images(&mut problems)?;
        change.commit().map_err(self.failed())?;
        if repair {
            self.collect(hooks)?;
        }
        Ok(problems)
    }

    fn check_database(&self, problems: &mut Vec<Problem>) -> Result<()> {
        let sql = "PRAGMA integrity_check(20)";
        let mut statement = self.db.prepare(sql).map_err(self.failed())?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).map_err(self.failed())?;
        for row in rows {
            let row = row.map_err(self.failed())?;
            if row != "ok" {
                problems.push(Problem { what: format!("database: {row}"), repaired: false });
            }
        }
        Ok(())
    }

    /// Rows whose file is missing or damaged. Without the row the content is fetched again when it is next
    /// asked for.
    fn check_rows(&self, repair: bool, read: bool, problems: &mut Vec<Problem>) -> Result<()> {
        for digest in self.digests("SELECT digest FROM blobs")? {
            let fault = match self.blob(&digest)? {
                None => Some("missing or cut off"),
                Some(_) if read && !content_matches(&self.layout.blob(&digest), &digest)? => Some("damaged"),
                Some(_) => None,
            };
            if let Some(fault) = fault {
                if repair {
                    self.delete_blob(&digest)?;
                }
                problems.push(Problem { what: format!("blob {digest} is {fault}"), repaired: repair });
            }
        }
        for diff_id in self.digests("SELECT diff_id FROM layers")? {
            if self.layer_form(&diff_id)?.is_none() {
                if repair {
                    self.delete_layer(&diff_id)?;
                }
                problems.push(Problem {
                    what: format!("layer {diff_id} is missing or cut off"),
                    repaired: repair,
                });
            }
        }
        Ok(())
    }

    /// Files in place that no row names, unless a living session is about to name them.
    pub(super) fn check_litter(
        &self,
        repair: bool,
        hooks: &dyn RemoveHooks,
        problems: &mut Vec<Problem>,
    ) -> Result<()> {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for entry in read_dir(&self.layout.blobs_dir(algorithm.as_str()))? {
                let known = match file_digest(algorithm, &entry.file_name().to_string_lossy()) {
                    Some(digest) => self.is_known("SELECT 1 FROM blobs WHERE digest = ?1", &digest)?,
                    None => false,
                };
                self.litter(known, repair, &entry.path(), problems)?;
            }
        }
        for entry in read_dir(&self.layout.layers())? {
            let name = entry.file_name().to_string_lossy().into_owned();
            let (hex, form) = layer_of(&name).unwrap_or((&name, LayerForm::Directory));
            let algorithm = if hex.len() == 128 { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let Some(diff_id) = file_digest(algorithm, hex) else {
                self.litter(false, repair, &entry.path(), problems)?;
                continue;
            };
            let known = self.is_known("SELECT 1 FROM layers WHERE diff_id = ?1", &diff_id)?
                // Beside a directory there are copies in either form, beside an image there are none.
                && self.layer_form(&diff_id)?.is_none_or(|known| known == form || known == LayerForm::Directory);
            // A layer that is mounted cannot go yet.
            let known = known || (repair && hooks.before_layer_delete(&diff_id).is_err());
            self.litter(known, repair, &entry.path(), problems)?;
        }
        Ok(())
    }

    fn litter(&self, known: bool, repair: bool, path: &Path, problems: &mut Vec<Problem>) -> Result<()> {
        if known {
            return Ok(());
        }
        if repair {
            remove_path(path)?;
        }
        problems.push(Problem { what: format!("{} belongs to no image", path.display()), repaired: repair });
        Ok(())
    }

    fn is_known(&self, sql: &str, digest: &Digest) -> Result<bool> {
        for sql in [sql, "SELECT 1 FROM leases WHERE digest = ?1"] {
            let found = self.db.query_row(sql, [digest.as_str()], |_| Ok(())).optional();
            if found.map_err(self.failed())?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Images that lack a layer cannot run, those that lack a blob cannot be pushed or saved.
    fn check_images(&self, problems: &mut Vec<Problem>) -> Result<()> {
        let lacking = [
            (
                "layer",
                "SELECT DISTINCT image FROM image_layers WHERE diff_id NOT IN (SELECT diff_id FROM layers)",
            ),
            ("blob", "SELECT DISTINCT image FROM image_blobs WHERE digest NOT IN (SELECT digest FROM blobs)"),
        ];
        for (part, sql) in lacking {
            for id in self.digests(sql)? {
                let names = self.strings("SELECT name FROM names WHERE image = ?1", id.as_str())?;
                let name = names.first().map_or(id.as_str(), String::as_str);
                let what = format!("image {name} lacks a {part}: pull or load it again");
                problems.push(Problem { what, repaired: false });
            }
        }
        let sql = "SELECT DISTINCT n.name FROM names n LEFT JOIN images i ON i.id = n.image WHERE i.id IS NULL AND ?1 = ''";
        for name in self.strings(sql, "")? {
            problems.push(Problem { what: format!("name {name} has no image"), repaired: false });
        }
        Ok(())
    }
}

fn file_digest(algorithm: Algorithm, hex: &str) -> Option<Digest> {
    format!("{}:{hex}", algorithm.as_str()).parse().ok()
}

fn content_matches(path: &Path, digest: &Digest) -> Result<bool> {
    let file = fs::File::open(path).map_err(Error::io(path))?;
    let mut reader = HashingReader::new(file, digest.algorithm());
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match std::io::Read::read(&mut reader, &mut buffer) {
            Ok(0) => return Ok(reader.finish().0 == *digest),
            Ok(_) => {}
            Err(error) => return Err(Error::io(path)(error)),
        }
    }
}
