//! Volumes: directories that outlive instances and are shared by them, whatever their isolation level.
//!
//! ```text
//!   (nothing) ── create, or the first instance that names it ──▶ there ──▶ had by instances ──▶ … ──▶ removed
//!                row and directory in one transaction                rows of `volume_uses`, until the instance's `rm`
//! ```
//!
//! Names are claimed in the database, and so is every use by an instance, whether that runs or not: a volume that an
//! instance has is never removed. That a volume is mounted at this moment is known by locks in its directory
//! (`proa_sys::volume`), which monitors hold.
//!
//! A directory is made under a name that no volume can have (`.new-…`) and renamed into its place inside the
//! transaction that adds the row; it is renamed to `.gone-…` inside the one that removes it, and deleted after that.
//! So a process may die at any line. What is left of it is a directory with such a name, or without a row, or a row
//! without a directory: a removal that is finished by whoever comes next.

mod content;
mod filters;
mod options;
mod pack;
mod points;
mod remove;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proa_protocol::volume::{Backing, image_file, mount_dir, volume_dir};

use crate::db::{Claim, VolumeRecord};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::{names, parse, trees};

pub use filters::VolumeFilters;
pub use options::backing;
pub(crate) use points::behind;
pub use remove::Pruned;

/// The label of volumes that nobody named, as Docker has it.
pub const ANONYMOUS: &str = "com.docker.volume.anonymous";
const MAKING: &str = ".new-";
const GONE: &str = ".gone-";
/// Attempts at claiming volumes that others remove at the same moment.
const ATTEMPTS: u32 = 10;
const TOOL: &str = "mkfs.ext4";

/// Directories that are ready to become volumes; those that did not are removed.
struct Prepared(BTreeMap<String, PathBuf>);

impl Drop for Prepared {
    fn drop(&mut self) {
        // What stays is found by `system check`.
        self.0.values().for_each(|path| drop(trees::remove(path)));
    }
}

/// A volume as it is asked for; `None` for a name that is made up.
///
/// # Errors
/// The name or the options make no sense.
pub fn request(
    name: Option<&str>,
    labels: BTreeMap<String, String>,
    options: BTreeMap<String, String>,
) -> Result<VolumeRecord> {
    backing(&options)?;
    let mut record = VolumeRecord { name: String::new(), created_ns: parse::now_ns(), labels, options };
    match name {
        Some(name) => {
            check_name(name)?;
            name.clone_into(&mut record.name);
        }
        None => {
            record.name = names::fresh_id()?;
            record.labels.insert(ANONYMOUS.into(), String::new());
        }
    }
    Ok(record)
}

/// Checks a name by Docker's rule.
///
/// # Errors
/// It has other characters.
pub fn check_name(name: &str) -> Result<()> {
    names::check_name(name).map_err(|_| Error::Invalid {
        message: format!("invalid volume name {name:?}"),
        hint: "two or more of a-z A-Z 0-9 _ . -, the first a letter or a digit; a path of the host begins with /".into(),
    })
}

impl Engine {
    /// Makes a volume; one that is there with the same options is fine.
    ///
    /// # Errors
    /// There is one with other options, or it cannot be made.
    pub fn create_volume(&self, record: &VolumeRecord) -> Result<VolumeRecord> {
        let _making = self.making()?;
        for _ in 0..ATTEMPTS {
            if let Some(found) = self.db.volume(&record.name)? {
                if self.is_there(&found.name) {
                    check_same(&found, record)?;
                    return Ok(found);
                }
                self.finish_removal(&found.name)?;
            }
            let mut prepared = self.prepare([record])?;
            if self.db.add_volume(record, &mut |name| self.place(&mut prepared, name))? {
                self.tell_volume("create", &record.name, &[]);
                return Ok(record.clone());
            }
        }
        Err(Error::conflict(format!("volume {} is made and removed again and again", record.name), ""))
    }

    /// The volume with this name.
    ///
    /// # Errors
    /// There is none.
    pub fn volume(&self, name: &str) -> Result<VolumeRecord> {
        let found = self.db.volume(name)?;
        found.filter(|volume| self.is_there(&volume.name)).ok_or_else(|| Error::NoSuchVolume(name.to_owned()))
    }

    /// Those volumes for which the conditions hold, by name.
    ///
    /// # Errors
    /// The database failed.
    pub fn volumes(&self, filters: &VolumeFilters) -> Result<Vec<VolumeRecord>> {
        let uses = self.db.volume_uses()?;
        let mut volumes = self.db.volumes()?;
        volumes.retain(|volume| {
            self.is_there(&volume.name) && filters.matches(volume, uses.contains_key(&volume.name))
        });
        Ok(volumes)
    }

    /// Where a volume's files are for people.
    pub fn mountpoint(&self, name: &str) -> PathBuf {
        self.volume_directory(name).join("_data")
    }

    /// Bytes on disk that a volume takes; those of a directory that the user named are not its own.
    pub fn volume_size(&self, volume: &VolumeRecord) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let directory = self.volume_directory(&volume.name);
        match backing(&volume.options) {
            Ok(Backing::Directory) => trees::disk_usage(&directory.join("_data")),
            Ok(Backing::Image(_)) => {
                fs::metadata(image_file(&directory)).map_or(0, |image| image.blocks() * 512)
            }
            _ => 0,
        }
    }

    pub(crate) fn volume_directory(&self, name: &str) -> PathBuf {
        volume_dir(&self.paths.root, name)
    }

    fn is_there(&self, name: &str) -> bool {
        self.volume_directory(name).is_dir()
    }

    /// Gives an instance its volumes, and makes those that are not there.
    pub(crate) fn claim_volumes(&self, id: &str, claims: &[Claim]) -> Result<()> {
        if claims.is_empty() {
            return Ok(());
        }
        // Whose directory is what somebody left who died while the volume was made or removed.
        let mut litter = BTreeSet::new();
        for _ in 0..ATTEMPTS {
            let is_missing = |name: &String| litter.contains(name) || !self.is_there(name);
            let missing = claims.iter().map(|claim| &claim.record).filter(|record| is_missing(&record.name));
            let mut prepared = self.prepare(missing)?;
            let claimed = self.db.claim_volumes(id, claims, &mut |name, known| {
                if known && self.is_there(name) { Ok(()) } else { self.place(&mut prepared, name) }
            });
            match claimed {
                // It was removed after it had been looked at, or is none.
                Err(Error::NoSuchVolume(name)) => _ = litter.insert(name),
                other => {
                    other?.iter().for_each(|name| self.tell_volume("create", name, &[]));
                    return Ok(());
                }
            }
        }
        Err(Error::conflict("volumes are removed again and again while they are claimed", ""))
    }

    /// Makes directories that are not yet volumes.
    fn prepare<'a>(&self, records: impl IntoIterator<Item = &'a VolumeRecord>) -> Result<Prepared> {
        let mut prepared = Prepared(BTreeMap::new());
        for record in records {
            if prepared.0.contains_key(&record.name) {
                continue;
            }
            let path = self.aside(MAKING)?;
            prepared.0.insert(record.name.clone(), path.clone());
            make(&path, &backing(&record.options)?)?;
        }
        Ok(prepared)
    }

    /// A name beside the volumes that none of them can have.
    fn aside(&self, prefix: &str) -> Result<PathBuf> {
        let volumes = self.paths.root.join("volumes");
        let made = fs::DirBuilder::new().recursive(true).mode(0o701).create(&volumes);
        made.map_err(|error| Error::io("make directory", &volumes, error))?;
        Ok(volumes.join(format!("{prefix}{}", names::short(&names::fresh_id()?))))
    }

    /// Makes a prepared directory the volume's; whoever calls has the database to itself.
    fn place(&self, prepared: &mut Prepared, name: &str) -> Result<()> {
        let Some(path) = prepared.0.get(name) else { return Err(Error::NoSuchVolume(name.to_owned())) };
        let directory = self.volume_directory(name);
        if directory.exists() {
            // Litter of one that died while it made a volume.
            self.move_away(name)?;
        }
        fs::rename(path, &directory).map_err(|error| Error::io("make volume", &directory, error))?;
        prepared.0.remove(name);
        Ok(())
    }

    pub(crate) fn tell_volume(&self, action: &str, name: &str, attributes: &[(&str, &str)]) {
        let event = proa_protocol::events::Event::volume(action, name);
        self.append(attributes.iter().fold(event, |event, (key, value)| event.with(key, *value)));
    }
}

/// A volume that is there must be what is asked for, where that is said.
fn check_same(found: &VolumeRecord, wanted: &VolumeRecord) -> Result<()> {
    let differs = (!wanted.options.is_empty() && wanted.options != found.options)
        || (!wanted.labels.is_empty() && wanted.labels != found.labels);
    if !differs {
        return Ok(());
    }
    Err(Error::conflict(
        format!("there is a volume {} with other options or labels", found.name),
        format!("`proa volume inspect {}` shows them; leave yours out, or choose another name", found.name),
    ))
}

/// Makes what a volume's directory holds (`proa_protocol::volume`).
fn make(directory: &Path, backing: &Backing) -> Result<()> {
    let failed = |error| Error::io("make volume", directory, error);
    let make = |path: &Path, mode: u32| {
        fs::create_dir(path)?;
        // Whatever the mask of who calls us.
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    make(directory, 0o701).map_err(failed)?;
    let data = directory.join("_data");
    let made = match backing {
        Backing::Directory => make(&data, 0o755),
        Backing::Image(_) => make(&mount_dir(directory), 0o700).and_then(|()| symlink("fs/data", &data)),
        Backing::Mount { .. } => make(&mount_dir(directory), 0o700).and_then(|()| symlink("fs", &data)),
        Backing::Bind(path) => symlink(path, &data),
    };
    made.map_err(failed)?;
    match backing {
        Backing::Image(bytes) => make_file_system(&image_file(directory), *bytes),
        _ => Ok(()),
    }
}

/// An empty ext4 file system in a sparse file.
fn make_file_system(image: &Path, bytes: u64) -> Result<()> {
    let failed = |error| Error::io("make", image, error);
    fs::File::create_new(image).and_then(|file| file.set_len(bytes)).map_err(failed)?;
    let mut command = Command::new(TOOL);
    command.args([
        "-q",
        "-F",
        "-b",
        "4096",
        "-m",
        "0",
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0",
    ]);
    command.arg(image).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    let output = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::unsupported(
            format!("a volume with a size needs {TOOL}, which is not on this host"),
            "install it: apt-get install e2fsprogs",
        ),
        _ => failed(error),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(failed(io::Error::other(format!("{TOOL}: {reason}"))))
}
