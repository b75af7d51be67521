//! Volumes in the database: which there are, and which instances have them.
//!
//! A volume's directory is made and moved away by functions that are called inside the transaction, so that nobody
//! ever sees a directory of another volume under a name. A process that dies in between leaves a directory without
//! a row, which is litter, or a row without a directory, which is a removal to be finished.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Database, key_of};
use crate::error::{Error, Result};

/// One volume, as it was asked to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Its name.
    pub name: String,
    /// When it was made, nanoseconds since the epoch.
    pub created_ns: i64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Options of its driver.
    pub options: BTreeMap<String, String>,
}

/// A volume that an instance is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// As it is to be, where it is not there.
    pub record: VolumeRecord,
    /// It goes with the instance.
    pub anonymous: bool,
}

const COLUMNS: &str = "name, created_ns, labels, options";

impl Database {
    /// The volume with this name.
    pub fn volume(&self, name: &str) -> Result<Option<VolumeRecord>> {
        find(&self.connection, name).map_err(self.failed("look up a volume"))
    }

    /// All volumes, by name.
    pub fn volumes(&self) -> Result<Vec<VolumeRecord>> {
        let failed = |error| self.failed("list volumes")(error);
        let sql = format!("SELECT {COLUMNS} FROM volumes ORDER BY name");
        let mut statement = self.connection.prepare(&sql).map_err(failed)?;
        let rows = statement.query_map([], record).map_err(failed)?;
        rows.collect::<rusqlite::Result<_>>().map_err(failed)
    }

    /// Which volumes instances have: ids of instances by the volume's name.
    pub fn volume_uses(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let failed = |error| self.failed("list the uses of volumes")(error);
        let sql = "SELECT volume, id FROM volume_uses JOIN instances USING (key) ORDER BY volume, id";
        let mut statement = self.connection.prepare(sql).map_err(failed)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed)?;
        let mut uses: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for row in rows {
            let (volume, id) = row.map_err(failed)?;
            uses.entry(volume).or_default().push(id);
        }
        Ok(uses)
    }

    /// Adds a volume, if there is none with its name; `place` makes its directory. True for one that was added.
    ///
    /// # Errors
    /// `place` failed; nothing has been added then.
    pub fn add_volume(
        &self,
        record: &VolumeRecord,
        place: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<bool> {
        let transaction = self.begin()?;
        if find(&transaction, &record.name).map_err(self.failed("look up a volume"))?.is_some() {
            return Ok(false);
        }
        place(&record.name)?;
        insert(&transaction, record).map_err(self.failed("add a volume"))?;
        transaction.commit().map_err(self.failed("add a volume"))?;
        Ok(true)
    }

    /// Gives an instance its volumes; those that are not there are added, their directories made by `place`, which is
    /// told of a volume that is there as well and knows whether it has one. Returns the names of those added.
    ///
    /// # Errors
    /// `place` failed; nothing has been claimed then.
    pub fn claim_volumes(
        &self,
        id: &str,
        claims: &[Claim],
        place: &mut dyn FnMut(&str, bool) -> Result<()>,
    ) -> Result<Vec<String>> {
        let failed = |error| self.failed("claim volumes")(error);
        let transaction = self.begin()?;
        let mut added = Vec::new();
        for Claim { record, anonymous } in claims {
            let known = find(&transaction, &record.name).map_err(failed)?.is_some();
            place(&record.name, known)?;
            if !known {
                insert(&transaction, record).map_err(failed)?;
                added.push(record.name.clone());
            }
            let sql = "INSERT INTO volume_uses VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET anonymous = min(anonymous, ?3)";
            transaction.execute(sql, params![record.name, key_of(id), anonymous]).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        Ok(added)
    }

    /// Forgets a volume that no instance has; `clear` moves its directory away. False where there is none.
    ///
    /// # Errors
    /// [`Error::VolumeInUse`]; `clear` failed, and nothing has been forgotten.
    pub fn remove_volume(&self, name: &str, clear: &mut dyn FnMut(&str) -> Result<()>) -> Result<bool> {
        let failed = |error| self.failed("remove a volume")(error);
        let transaction = self.begin()?;
        if find(&transaction, name).map_err(failed)?.is_none() {
            return Ok(false);
        }
        let users = users(&transaction, name).map_err(failed)?;
        if !users.is_empty() {
            return Err(Error::VolumeInUse { name: name.to_owned(), users });
        }
        clear(name)?;
        transaction.execute("DELETE FROM volumes WHERE name = ?1", [name]).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        Ok(true)
    }

    /// Forgets an instance and those of its volumes that nobody named and no other instance has. Returns whether there
    /// was such an instance, and the names of the volumes.
    ///
    /// # Errors
    /// `clear` failed; nothing has been forgotten then.
    pub fn delete_with_volumes(
        &self,
        id: &str,
        clear: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<(bool, Vec<String>)> {
        let failed = |error| self.failed("remove an instance")(error);
        let transaction = self.begin()?;
        let mut names = {
            let sql = "SELECT volume FROM volume_uses AS own WHERE key = ?1 AND anonymous AND NOT EXISTS
                (SELECT 1 FROM volume_uses AS other WHERE other.volume = own.volume AND other.key != ?1)";
            let mut statement = transaction.prepare(sql).map_err(failed)?;
            let rows = statement.query_map([key_of(id)], |row| row.get(0)).map_err(failed)?;
            rows.collect::<rusqlite::Result<Vec<String>>>().map_err(failed)?
        };
        let count =
            transaction.execute("DELETE FROM instances WHERE key = ?1", [key_of(id)]).map_err(failed)?;
        let mut busy = Vec::new();
        for name in &names {
            match clear(name) {
                Ok(()) => {
                    transaction.execute("DELETE FROM volumes WHERE name = ?1", [name]).map_err(failed)?;
                }
                // A command works on it: it stays, for `prune`.
                Err(Error::Conflict { .. }) => busy.push(name.clone()),
                Err(error) => return Err(error),
            }
        }
        transaction.commit().map_err(failed)?;
        names.retain(|name| !busy.contains(name));
        Ok((count > 0, names))
    }
}

fn find(connection: &Connection, name: &str) -> rusqlite::Result<Option<VolumeRecord>> {
    let sql = format!("SELECT {COLUMNS} FROM volumes WHERE name = ?1");
    connection.query_row(&sql, [name], record).optional()
}

fn insert(connection: &Connection, record: &VolumeRecord) -> rusqlite::Result<usize> {
    let json = |map| serde_json::to_string(map).unwrap_or_default();
    let values = params![record.name, record.created_ns, json(&record.labels), json(&record.options)];
    connection.execute("INSERT INTO volumes VALUES (?1, ?2, ?3, ?4)", values)
}

/// Names and ids of the instances that have a volume.
fn users(connection: &Connection, name: &str) -> rusqlite::Result<Vec<(String, String)>> {
    let sql = "SELECT name, id FROM volume_uses JOIN instances USING (key) WHERE volume = ?1 ORDER BY name";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([name], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

fn record(row: &Row<'_>) -> rusqlite::Result<VolumeRecord> {
    Ok(VolumeRecord {
        name: row.get(0)?,
        created_ns: row.get(1)?,
        labels: super::from_json(row, 2)?,
        options: super::from_json(row, 3)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ContainerConfig, HostConfig};
    use crate::db::Record;
    use proa_protocol::instance::IsolationLevel;

    fn volume(name: &str) -> VolumeRecord {
        let labels = BTreeMap::from([("tier".to_owned(), "one".to_owned())]);
        VolumeRecord { name: name.into(), created_ns: 5, labels, ..VolumeRecord::default() }
    }

    fn instance(digit: &str) -> Record {
        Record {
            id: digit.repeat(64),
            name: format!("i{digit}"),
            image_id: "sha256:1".into(),
            image: "busybox".into(),
            level: IsolationLevel::Container,
            created_ns: 5,
            auto_remove: false,
            config: ContainerConfig::default(),
            host_config: Box::new(HostConfig::default()),
        }
    }

    fn claims(names: &[(&str, bool)]) -> Vec<Claim> {
        names.iter().map(|(name, anonymous)| Claim { record: volume(name), anonymous: *anonymous }).collect()
    }

    #[test]
    fn a_volume_in_use_stays_and_anonymous_ones_go_with_their_last_instance() {
        let root = tempfile::tempdir().unwrap();
        let database = Database::open(root.path()).unwrap();
        let (one, two) = (instance("a"), instance("b"));
        database.insert(&one).unwrap();
        database.insert(&two).unwrap();
        assert!(database.add_volume(&volume("named"), &mut |_| Ok(())).unwrap());
        assert!(!database.add_volume(&volume("named"), &mut |_| Ok(())).unwrap());
        let mut placed = Vec::new();
        let mut place = |name: &str, known: bool| {
            placed.push((name.to_owned(), known));
            Ok(())
        };
        let wanted = claims(&[("named", false), ("lone", true), ("both", true)]);
        assert_eq!(database.claim_volumes(&one.id, &wanted, &mut place).unwrap(), ["lone", "both"]);
        assert!(database.claim_volumes(&two.id, &claims(&[("both", true)]), &mut place).unwrap().is_empty());
        assert_eq!(placed[0], ("named".to_owned(), true));
        let refused = database.remove_volume("named", &mut |_| panic!("it is in use")).unwrap_err();
        assert!(matches!(refused, Error::VolumeInUse { ref users, .. } if users[0].0 == "ia"), "{refused}");
        let mut cleared = Vec::new();
        let mut clear = |name: &str| {
            cleared.push(name.to_owned());
            Ok(())
        };
        let (was, gone) = database.delete_with_volumes(&one.id, &mut clear).unwrap();
        assert!(was && gone == ["lone"]);
        assert_eq!(database.volume_uses().unwrap(), [("both".to_owned(), vec![two.id.clone()])].into());
        assert_eq!(database.volume("named").unwrap(), Some(volume("named")));
        assert!(database.remove_volume("named", &mut clear).unwrap());
        assert!(!database.remove_volume("named", &mut clear).unwrap());
        database.delete(&two.id).unwrap();
        let left: Vec<String> = database.volumes().unwrap().into_iter().map(|volume| volume.name).collect();
        assert_eq!(left, ["both"]);
        assert_eq!(cleared, ["lone", "named"]);
    }

    #[test]
    fn what_cannot_be_placed_is_not_claimed() {
        let root = tempfile::tempdir().unwrap();
        let database = Database::open(root.path()).unwrap();
        database.insert(&instance("a")).unwrap();
        let mut fails = |_: &str, _: bool| Err(Error::invalid("no room"));
        assert!(database.claim_volumes(&instance("a").id, &claims(&[("x", false)]), &mut fails).is_err());
        assert!(database.volumes().unwrap().is_empty() && database.volume_uses().unwrap().is_empty());
    }
}
