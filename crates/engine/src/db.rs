//! The database: which instances there are.
//!
//! `<root>/proa.db`, SQLite in WAL mode. One row an instance; `id` and `name` are unique, so that the insert
//! *is* the claim: of two commands that want a name, one inserts and the other learns who has it. What an
//! instance is doing is not here: that is its monitor's business (`state.json`).
//!
//! ```text
//!   instances   key · id · name · image_id · image · level · created_ns · auto_remove · config · host_config
//!   notes       what has been said once to the users of this root
//!   categories  SELinux categories that instances have claimed: low * 1024 + high · key
//!   networks    which there are: name · config (JSON of `crate::network::NetworkRecord`)
//!   addresses   what instances have claimed in them: network · which of its subnets · offset in it · key
//!   id_ranges   ids of the host that instances have for their user namespaces: kind (u, g) · first · count · key
//!   volumes     name · created_ns · labels · options, see `volumes`
//!   volume_uses volumes that instances have: volume · key · anonymous
//! ```
//!
//! `key` is the number made of an id's first fifteen digits: ids are random, so it is as unique as they are. As
//! SQLite's own row number it needs no index, which makes commits shorter, and turns the search for the beginning
//! of an id into a range. `config` and `host_config` are JSON of [`ContainerConfig`] and [`HostConfig`], without what
//! is as by default. The schema's version is SQLite's `user_version`; each step of [`MIGRATIONS`] raises it by one.
//!
//! `synchronous=NORMAL`: a commit writes no more than the log's pages and waits for no disk. A kill of any of
//! our processes loses nothing; a power cut may lose the last commands, never the database.

mod volumes;

use std::path::{Path, PathBuf};
use std::time::Duration;

use proa_protocol::instance::IsolationLevel;
use rusqlite::config::DbConfig;
use rusqlite::{
    Connection, ErrorCode, OptionalExtension, Row, ToSql, Transaction, TransactionBehavior, params,
};

use crate::config::{ContainerConfig, HostConfig};
use crate::error::{Error, Result};
use crate::names;
use crate::write_ahead::write_ahead;

pub use volumes::{Claim, VolumeRecord};

/// Name of the file below the root.
pub const FILE: &str = "proa.db";

const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE instances (
        key INTEGER PRIMARY KEY,
        id TEXT NOT NULL,
        name TEXT NOT NULL UNIQUE,
        image_id TEXT NOT NULL,
        image TEXT NOT NULL,
        level TEXT NOT NULL,
        created_ns INTEGER NOT NULL,
        auto_remove INTEGER NOT NULL,
        config TEXT NOT NULL,
        host_config TEXT NOT NULL
    );
    CREATE TABLE notes (key TEXT PRIMARY KEY) WITHOUT ROWID;
",
    "
    CREATE TABLE categories (pair INTEGER PRIMARY KEY, key INTEGER NOT NULL);
    CREATE INDEX categories_key ON categories (key);
    CREATE TRIGGER categories_freed AFTER DELETE ON instances
        BEGIN DELETE FROM categories WHERE key = OLD.key; END;
",
    "
    CREATE TABLE id_ranges (
        kind TEXT NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL, key INTEGER NOT NULL,
        PRIMARY KEY (kind, first)
    ) WITHOUT ROWID;
    CREATE INDEX id_ranges_key ON id_ranges (key);
    CREATE TRIGGER id_ranges_freed AFTER DELETE ON instances
        BEGIN DELETE FROM id_ranges WHERE key = OLD.key; END;
",
    "
    CREATE TABLE networks (
        key INTEGER PRIMARY KEY, id TEXT NOT NULL, name TEXT NOT NULL UNIQUE, created_ns INTEGER NOT NULL,
        config TEXT NOT NULL
    );
    CREATE TABLE addresses (
        network INTEGER NOT NULL, version INTEGER NOT NULL, host INTEGER NOT NULL, key INTEGER NOT NULL,
        PRIMARY KEY (network, version, host)
    ) WITHOUT ROWID;
    CREATE INDEX addresses_key ON addresses (key);
    CREATE TRIGGER addresses_freed AFTER DELETE ON instances
        BEGIN DELETE FROM addresses WHERE key = OLD.key; END;
",
    "
    CREATE TABLE volumes (
        name TEXT PRIMARY KEY, created_ns INTEGER NOT NULL, labels TEXT NOT NULL, options TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE volume_uses (
        volume TEXT NOT NULL, key INTEGER NOT NULL, anonymous INTEGER NOT NULL, PRIMARY KEY (volume, key)
    ) WITHOUT ROWID;
    CREATE INDEX volume_uses_key ON volume_uses (key);
    CREATE TRIGGER volume_uses_freed AFTER DELETE ON instances
        BEGIN DELETE FROM volume_uses WHERE key = OLD.key; END;
",
];

const COLUMNS: &str = "id, name, image_id, image, level, created_ns, auto_remove, config, host_config";

/// Bytes of the log after which it is folded into the database. Each process that opens the database reads the
/// whole log, so it is kept short; folding waits for the disk, so not too short.
const LOG_BYTES: u64 = 64 * 4096;
/// How long others are waited for that have the database locked.
const BUSY: Duration = Duration::from_secs(30);
/// SELinux categories of the common policies: c0 to c1023.
const CATEGORIES: u16 = 1024;
/// Attempts at finding a free pair of them, of half a million.
const CATEGORY_ATTEMPTS: u32 = 100;
/// Digits of an id that make its row's key: 60 bits.
const KEY_DIGITS: usize = 15;

/// One instance, as it was asked to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Digest of the image's config.
    pub image_id: String,
    /// The image as the user named it.
    pub image: String,
    /// Its isolation level.
    pub level: IsolationLevel,
    /// When it was made, nanoseconds since the epoch.
    pub created_ns: i64,
    /// Remove it when it ends.
    pub auto_remove: bool,
    /// The image's side of what was asked for.
    pub config: ContainerConfig,
    /// The host's side.
    pub host_config: Box<HostConfig>,
}

/// An open database.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    path: PathBuf,
}

impl Database {
    /// Opens the database below `root`, making or upgrading it as needed.
    ///
    /// # Errors
    /// It cannot be opened, or is from a newer version.
    pub fn open(root: &Path) -> Result<Self> {
        let path = root.join(FILE);
        let failed = |source| Error::Database { action: "open what is", path: path.clone(), source };
        let connection = Connection::open(&path).map_err(failed)?;
        connection.busy_timeout(BUSY).map_err(failed)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
        let mut database = Self { connection, path };
        database.prepare()?;
        Ok(database)
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(crate) fn begin(&self) -> Result<Transaction<'_>> {
        Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)
            .map_err(self.failed("begin a change"))
    }

    pub(crate) fn failed(&self, action: &'static str) -> impl FnOnce(rusqlite::Error) -> Error + '_ {
        move |source| Error::Database { action, path: self.path.clone(), source }
    }

    fn prepare(&mut self) -> Result<()> {
        // SQLite's own folding leaves the log as long as it was: what was folded is known only until the last
        // process that has the database open closes it, and here that is each command.
        let settings = "PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0;";
        self.connection.execute_batch(settings).map_err(self.failed("configure what is"))?;
        let known = MIGRATIONS.len() as i64;
        let version = self.version()?;
        if version < known {
            self.migrate()?;
        } else if version > known {
            return Err(Error::NewerDatabase { path: self.path.clone(), found: version, known });
        }
        Ok(())
    }

    fn version(&self) -> Result<i64> {
        let version = self.connection.query_row("PRAGMA user_version", [], |row| row.get(0));
        version.map_err(self.failed("read the version"))
    }

    fn migrate(&mut self) -> Result<()> {
        let path = self.path.clone();
        let failed = |source| Error::Database { action: "upgrade what is", path: path.clone(), source };
        write_ahead(&self.connection, BUSY).map_err(failed)?;
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        // Another process may have been faster.
        let version: i64 =
            transaction.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        for (number, step) in MIGRATIONS.iter().enumerate().skip(usize::try_from(version).unwrap_or(0)) {
            transaction.execute_batch(step).map_err(failed)?;
            transaction.pragma_update(None, "user_version", number as i64 + 1).map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }

    /// Claims the record's id and name.
    ///
    /// # Errors
    /// [`Error::NameInUse`].
    pub fn insert(&self, record: &Record) -> Result<()> {
        let sql = format!(
            "INSERT INTO instances (key, {COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
        );
        let values = params![
            key_of(&record.id),
            record.id,
            record.name,
            record.image_id,
            record.image,
            record.level.as_str(),
            record.created_ns,
            record.auto_remove,
            json(&record.config),
            json(record.host_config.as_ref()),
        ];
        match self.connection.execute(&sql, values) {
            Ok(_) => Ok(()),
            Err(error) if is_constraint(&error) => Err(self.name_in_use(&record.name)?),
            Err(error) => Err(self.failed("add an instance")(error)),
        }
    }

    fn name_in_use(&self, name: &str) -> Result<Error> {
        let holder = self
            .by_name(name)?
            .map_or_else(|| "unknown".into(), |record| names::short(&record.id).to_owned());
        Ok(Error::NameInUse { name: name.to_owned(), holder })
    }

    /// Gives an instance another name.
    ///
    /// # Errors
    /// [`Error::NameInUse`].
    pub fn rename(&self, id: &str, name: &str) -> Result<()> {
        match self
            .connection
            .execute("UPDATE instances SET name = ?2 WHERE key = ?1", params![key_of(id), name])
        {
            Ok(0) => Err(Error::NoSuchInstance(id.to_owned())),
            Ok(_) => Ok(()),
            Err(error) if is_constraint(&error) => Err(self.name_in_use(name)?),
            Err(error) => Err(self.failed("rename an instance")(error)),
        }
    }

    /// Gives an instance another host configuration.
    ///
    /// # Errors
    /// There is no such instance.
    pub fn set_host_config(&self, id: &str, config: &HostConfig) -> Result<()> {
        let sql = "UPDATE instances SET host_config = ?2 WHERE key = ?1";
        match self.connection.execute(sql, params![key_of(id), json(config)]) {
            Ok(0) => Err(Error::NoSuchInstance(id.to_owned())),
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed("update an instance")(error)),
        }
    }

    /// Forgets an instance; false where nobody knew it.
    pub fn delete(&self, id: &str) -> Result<bool> {
        let count = self.connection.execute("DELETE FROM instances WHERE key = ?1", [key_of(id)]);
        count.map(|count| count > 0).map_err(self.failed("remove an instance"))
    }

    /// The instance with this id, name, or beginning of an id, in that order.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn find(&self, text: &str) -> Result<Record> {
        let text = text.strip_prefix('/').unwrap_or(text);
        if let Some(record) = self.by_id(text)? {
            return Ok(record);
        }
        if let Some(record) = self.by_name(text)? {
            return Ok(record);
        }
        let Some((low, high)) = key_range(text) else { return Err(Error::NoSuchInstance(text.to_owned())) };
        let mut found = self.many("WHERE key BETWEEN ?1 AND ?2", &[&low, &high])?;
        found.retain(|record| record.id.starts_with(text));
        match (found.pop(), found.pop()) {
            (Some(record), None) => Ok(record),
            (None, _) => Err(Error::NoSuchInstance(text.to_owned())),
            _ => Err(Error::AmbiguousId(text.to_owned())),
        }
    }

    /// The instance with this name.
    pub fn by_name(&self, name: &str) -> Result<Option<Record>> {
        self.one("name = ?1", &name)
    }

    /// The instance with this id.
    pub fn by_id(&self, id: &str) -> Result<Option<Record>> {
        let found = self.one("key = ?1", &key_of(id))?;
        Ok(found.filter(|record| record.id == id))
    }

    /// Whether there is an instance with this id.
    ///
    /// # Errors
    /// The database failed.
    pub fn knows(&self, id: &str) -> Result<bool> {
        let sql = "SELECT 1 FROM instances WHERE key = ?1 AND id = ?2";
        let found = self.connection.query_row(sql, params![key_of(id), id], |_| Ok(())).optional();
        found.map(|row| row.is_some()).map_err(self.failed("look up an instance"))
    }

    /// All instances, the newest first.
    pub fn all(&self) -> Result<Vec<Record>> {
        self.many("ORDER BY created_ns DESC, id", &[])
    }

    /// Whether this is said for the first time: true once for each key.
    pub fn first_time(&self, key: &str) -> Result<bool> {
        let said =
            self.connection.query_row("SELECT 1 FROM notes WHERE key = ?1", [key], |_| Ok(())).optional();
        if said.map_err(self.failed("read the notes"))?.is_some() {
            return Ok(false);
        }
        let added = self.connection.execute("INSERT OR IGNORE INTO notes VALUES (?1)", [key]);
        added.map(|count| count > 0).map_err(self.failed("add a note"))
    }

    /// Claims two SELinux categories that no other instance of this root has together, the lower first. They are
    /// free again when the instance is forgotten.
    pub fn claim_categories(&self, id: &str) -> Result<(u16, u16)> {
        let failed = |error| self.failed("claim SELinux categories")(error);
        for _ in 0..CATEGORY_ATTEMPTS {
            let (one, other) = (names::random_below(CATEGORIES)?, names::random_below(CATEGORIES)?);
            if one == other {
                continue;
            }
            let (low, high) = (one.min(other), one.max(other));
            let pair = i64::from(low) * i64::from(CATEGORIES) + i64::from(high);
            match self.connection.execute("INSERT INTO categories VALUES (?1, ?2)", params![pair, key_of(id)])
            {
                Ok(_) => return Ok((low, high)),
                Err(error) if is_constraint(&error) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(Error::conflict(
            "no free SELinux categories were found",
            "remove instances, or give label=level:",
        ))
    }

    /// Claims `count` user ids and `count` group ids of these pools (first, count) that no other instance of this root
    /// has; returns the first of each. They are free again when the instance is forgotten.
    ///
    /// # Errors
    /// A pool has no such range left.
    pub fn claim_ids(&self, id: &str, count: u32, pools: &IdPools) -> Result<(u32, u32)> {
        let failed = |error| self.failed("claim ids")(error);
        let transaction = self.begin()?;
        let claim = |kind: &str, what: &str, pool: &[(u32, u32)]| {
            let taken = taken(&transaction, kind).map_err(failed)?;
            let Some(first) = gap(&taken, pool, count) else {
                return Err(Error::conflict(
                    format!("no {count} {what} ids in a row are left for --userns auto"),
                    "remove instances, ask for fewer with auto:size=COUNT, or give more in /etc/subuid and /etc/subgid",
                ));
            };
            let values = params![kind, first, count, key_of(id)];
            transaction.execute("INSERT INTO id_ranges VALUES (?1, ?2, ?3, ?4)", values).map_err(failed)?;
            Ok(first)
        };
        let claimed = (claim("u", "user", &pools.uids)?, claim("g", "group", &pools.gids)?);
        transaction.commit().map_err(failed)?;
        Ok(claimed)
    }

    /// Problems that SQLite itself finds in the file; none if it is whole.
    pub fn integrity(&self) -> Result<Vec<String>> {
        let failed = |error| self.failed("check the integrity of what is")(error);
        let mut statement = self.connection.prepare("PRAGMA integrity_check").map_err(failed)?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).map_err(failed)?;
        let lines: Vec<String> = rows.collect::<rusqlite::Result<_>>().map_err(failed)?;
        Ok(lines.into_iter().filter(|line| line != "ok").collect())
    }

    /// Folds the log into the database, so that the next command opens it faster.
    pub fn fold(&self) -> Result<()> {
        let folded = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        folded.map_err(self.failed("fold the log"))
    }

    /// Folds the log where it has become long. Nobody is waited for: whoever comes next does it then.
    fn settle(&self) -> rusqlite::Result<()> {
        let log = self.path.with_extension("db-wal");
        if std::fs::metadata(log).is_ok_and(|log| log.len() > LOG_BYTES) {
            self.connection.busy_timeout(Duration::ZERO)?;
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            self.connection.busy_timeout(BUSY)?;
        }
        Ok(())
    }

    fn one(&self, condition: &str, value: &dyn ToSql) -> Result<Option<Record>> {
        let sql = format!("SELECT {COLUMNS} FROM instances WHERE {condition}");
        let row = self.connection.query_row(&sql, [value], |row| Ok(record(row)));
        row.optional().and_then(Option::transpose).map_err(self.failed("look up an instance"))
    }

    fn many(&self, rest: &str, values: &[&dyn ToSql]) -> Result<Vec<Record>> {
        let failed = |error| self.failed("list instances")(error);
        let sql = format!("SELECT {COLUMNS} FROM instances {rest}");
        let mut statement = self.connection.prepare(&sql).map_err(failed)?;
        let rows = statement.query_map(values, record).map_err(failed)?;
        rows.collect::<rusqlite::Result<_>>().map_err(failed)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A log that stays long costs time and loses nothing.
        let _ = self.settle();
    }
}

/// Ids of the host that instances may have for their user namespaces: first and count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdPools {
    /// Of users.
    pub uids: Vec<(u32, u32)>,
    /// Of groups.
    pub gids: Vec<(u32, u32)>,
}

/// Ranges that instances have, in their order.
fn taken(connection: &Connection, kind: &str) -> rusqlite::Result<Vec<(u32, u32)>> {
    let mut statement =
        connection.prepare("SELECT first, count FROM id_ranges WHERE kind = ?1 ORDER BY first")?;
    let rows = statement.query_map([kind], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// The first id of the lowest free range of this length.
fn gap(taken: &[(u32, u32)], pool: &[(u32, u32)], count: u32) -> Option<u32> {
    pool.iter().find_map(|&(first, size)| {
        let end = first.checked_add(size)?;
        let mut free = first;
        for &(used, length) in taken {
            if used.checked_sub(free).is_some_and(|room| room >= count) {
                break;
            }
            free = free.max(used.saturating_add(length));
        }
        end.checked_sub(free).is_some_and(|room| room >= count).then_some(free)
    })
}

/// The row of an id; -1, which is nobody's, for what is none.
pub(crate) fn key_of(id: &str) -> i64 {
    id.get(..KEY_DIGITS).and_then(|digits| i64::from_str_radix(digits, 16).ok()).unwrap_or(-1)
}

/// The rows of ids that begin so.
pub(crate) fn key_range(prefix: &str) -> Option<(i64, i64)> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if prefix.is_empty() || !prefix.bytes().all(is_digit) {
        return None;
    }
    let digits = prefix.get(..KEY_DIGITS).unwrap_or(prefix);
    let fill =
        |with: &str| i64::from_str_radix(&format!("{digits}{}", with.repeat(KEY_DIGITS - digits.len())), 16);
    Some((fill("0").ok()?, fill("f").ok()?))
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let level: String = row.get(4)?;
    Ok(Record {
        id: row.get(0)?,
        name: row.get(1)?,
        image_id: row.get(2)?,
        image: row.get(3)?,
        level: if level == IsolationLevel::Vm.as_str() {
            IsolationLevel::Vm
        } else {
            IsolationLevel::Container
        },
        created_ns: row.get(5)?,
        auto_remove: row.get(6)?,
        config: from_json(row, 7)?,
        host_config: Box::new(from_json(row, 8)?),
    })
}

fn from_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    serde_json::from_str(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

/// The fields that are not as they are by default; so a default is part of the format and cannot change.
fn json<T: Default + serde::Serialize>(value: &T) -> String {
    // Plain data with string keys always serializes.
    let fields = |value| serde_json::to_value(value).unwrap_or_default();
    let mut kept = fields(value);
    if let (Some(kept), Some(default)) = (kept.as_object_mut(), fields(&T::default()).as_object()) {
        kept.retain(|field, value| default.get(field) != Some(value));
    }
    kept.to_string()
}

pub(crate) fn is_constraint(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::SqliteFailure(failure, _) if failure.code == ErrorCode::ConstraintViolation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, name: &str) -> Record {
        Record {
            id: id.repeat(64 / id.len()),
            name: name.into(),
            image_id: "sha256:1".into(),
            image: "busybox".into(),
            level: IsolationLevel::Vm,
            created_ns: 5,
            auto_remove: true,
            config: ContainerConfig { env: vec!["A=1".into()], ..ContainerConfig::default() },
            host_config: Box::new(HostConfig { memory: 7, ..HostConfig::default() }),
        }
    }

    #[test]
    fn records_survive_and_are_found() {
        let root = tempfile::tempdir().unwrap();
        let web = record("ab", "web");
        Database::open(root.path()).unwrap().insert(&web).unwrap();
        let database = Database::open(root.path()).unwrap();
        database.insert(&record("ac", "abab")).unwrap();
        for text in ["web", "/web", &web.id, &web.id[..5]] {
            assert_eq!(database.find(text).unwrap(), web, "{text}");
        }
        // A name is stronger than the beginning of an id.
        assert_eq!(database.find("abab").unwrap().name, "abab");
        assert!(matches!(database.find("a"), Err(Error::AmbiguousId(_))));
        assert_eq!(database.find(&web.id[..20]).unwrap(), web);
        for text in ["", "nobody", "ff", "%", "_", "+b", &"ab".repeat(40), &format!("{}ff", &web.id[..20])] {
            assert!(matches!(database.find(text), Err(Error::NoSuchInstance(_))), "{text}");
        }
        assert_eq!(database.all().unwrap().len(), 2);
        assert!(database.delete(&web.id).unwrap());
        assert!(!database.delete(&web.id).unwrap());
        assert!(database.integrity().unwrap().is_empty());
    }

    #[test]
    fn rows_are_short_and_their_defaults_frozen() {
        assert_eq!(json(&HostConfig { memory: 7, ..HostConfig::default() }), r#"{"Memory":7}"#);
        assert_eq!(json(&HostConfig::default()), "{}");
        let default = serde_json::to_value(HostConfig::default()).unwrap();
        let told = default.as_object().unwrap().iter().filter(|(_, value)| !is_nothing(value));
        let told: Vec<String> = told.map(|(field, value)| format!("{field}={value}")).collect();
        let frozen = [
            r"ConsoleSize=[0,0]",
            r#"LogConfig={"Config":{},"Type":"json-file"}"#,
            r#"NetworkMode="default""#,
            r#"RestartPolicy={"MaximumRetryCount":0,"Name":"no"}"#,
            "ShmSize=67108864",
        ];
        assert_eq!(told, frozen);
    }

    fn is_nothing(value: &serde_json::Value) -> bool {
        ["null", "false", "0", "\"\"", "[]", "{}"].contains(&value.to_string().as_str())
    }

    #[test]
    fn a_name_has_one_holder() {
        let root = tempfile::tempdir().unwrap();
        let database = Database::open(root.path()).unwrap();
        database.insert(&record("ab", "web")).unwrap();
        let refused = database.insert(&record("cd", "web")).unwrap_err();
        assert!(
            matches!(refused, Error::NameInUse { ref holder, .. } if holder == "abababababab"),
            "{refused}"
        );
        database.insert(&record("cd", "other")).unwrap();
        assert!(matches!(database.rename(&"cd".repeat(32), "web"), Err(Error::NameInUse { .. })));
        database.rename(&"cd".repeat(32), "third").unwrap();
        assert!(database.by_name("other").unwrap().is_none());
        assert_eq!(database.by_id(&"cd".repeat(32)).unwrap().unwrap().name, "third");
    }

    #[test]
    fn many_processes_make_it_at_once() {
        let root = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let root = root.path();
                scope.spawn(move || {
                    let database = Database::open(root).unwrap();
                    database.insert(&record(&format!("{number:x}a"), &format!("n{number}"))).unwrap();
                });
            }
        });
        assert_eq!(Database::open(root.path()).unwrap().all().unwrap().len(), 8);
    }

    #[test]
    fn the_log_stays_short() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..200 {
            Database::open(root.path())
                .unwrap()
                .insert(&record(&format!("{number:04x}"), &format!("n{number}")))
                .unwrap();
        }
        let log = std::fs::metadata(root.path().join("proa.db-wal")).unwrap().len();
        assert!(log < 2 * LOG_BYTES, "{log} bytes");
        assert_eq!(Database::open(root.path()).unwrap().all().unwrap().len(), 200);
    }

    #[test]
    fn a_note_is_said_once() {
        let root = tempfile::tempdir().unwrap();
        let database = Database::open(root.path()).unwrap();
        assert!(database.first_time("network").unwrap());
        assert!(!database.first_time("network").unwrap());
    }

    #[test]
    fn categories_have_one_holder_and_are_freed() {
        let root = tempfile::tempdir().unwrap();
        let database = Database::open(root.path()).unwrap();
        let count = |database: &Database| {
            let query = "SELECT count(*) FROM categories";
            database.connection.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap()
        };
        let web = record("ab", "web");
        database.insert(&web).unwrap();
        for _ in 0..50 {
            let (low, high) = database.claim_categories(&web.id).unwrap();
            assert!(low < high && high < CATEGORIES);
        }
        assert_eq!(count(&database), 50);
        database.delete(&web.id).unwrap();
        assert_eq!(count(&database), 0);
    }

    #[test]
    fn ids_have_one_holder_and_the_lowest_free_are_taken() {
        assert_eq!(gap(&[(10, 5)], &[(10, 20)], 5), Some(15));
        assert_eq!(gap(&[(12, 5)], &[(10, 20)], 2), Some(10));
        assert_eq!(gap(&[(0, 8), (12, 5)], &[(10, 9), (40, 5)], 3), Some(40));
        assert_eq!(gap(&[(10, 5)], &[(10, 9)], 5), None);
        let root = tempfile::tempdir().unwrap();
        let pools = IdPools { uids: vec![(1000, 80)], gids: vec![(5000, 1000)] };
        let ids: Vec<String> = (0..8).map(|number| record(&format!("{number}c"), "x").id).collect();
        let claimed: std::collections::BTreeSet<(u32, u32)> = std::thread::scope(|scope| {
            let claim = |id| Database::open(root.path()).unwrap().claim_ids(id, 10, &pools).unwrap();
            let threads: Vec<_> = ids.iter().map(|id| scope.spawn(move || claim(id))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(claimed, (0..8).map(|number| (1000 + number * 10, 5000 + number * 10)).collect());
        let database = Database::open(root.path()).unwrap();
        assert!(database.claim_ids(&ids[0], 1, &pools).unwrap_err().to_string().contains("user ids"));
        let web = record("ff", "web");
        database.insert(&web).unwrap();
        let more = IdPools { uids: vec![(1000, 90)], ..pools };
        assert_eq!(database.claim_ids(&web.id, 10, &more).unwrap(), (1080, 5080));
        database.delete(&web.id).unwrap();
        assert_eq!(database.claim_ids(&web.id, 10, &more).unwrap(), (1080, 5080));
    }

    #[test]
    fn a_newer_database_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let database = Database::open(root.path()).unwrap();
        database.connection.pragma_update(None, "user_version", 99).unwrap();
        drop(database);
        assert!(matches!(Database::open(root.path()), Err(Error::NewerDatabase { found: 99, .. })));
    }
}
