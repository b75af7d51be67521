//! The end of volumes: `rm`, `prune`, and what a crash left.

use std::fs;
use std::path::Path;

use proa_protocol::volume::{mount_dir, volume_dir};
use proa_sys::volume;

use super::{ANONYMOUS, GONE, MAKING, VolumeFilters};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::system::Problem;
use crate::trees;

/// What a pruning removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Names of the volumes.
    pub volumes: Vec<String>,
    /// Bytes that they took.
    pub bytes: u64,
}

impl Engine {
    /// Removes a volume that no instance has.
    ///
    /// # Errors
    /// There is none, an instance has it, or a command works on it.
    pub fn remove_volume(&self, name: &str) -> Result<()> {
        let was_there = self.volume_directory(name).is_dir();
        if !self.db.remove_volume(name, &mut |name| self.move_away(name))? || !was_there {
            return Err(Error::NoSuchVolume(name.to_owned()));
        }
        self.sweep()?;
        self.tell_volume("destroy", name, &[]);
        Ok(())
    }

    /// Removes the volumes that no instance has and for which the conditions hold: those that nobody named, and with
    /// `all` the others as well.
    ///
    /// # Errors
    /// One cannot be removed; those before it are gone.
    pub fn prune_volumes(&self, all: bool, filters: &VolumeFilters) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        let uses = self.db.volume_uses()?;
        for record in self.volumes(filters)? {
            let wanted = all || filters.asks_for_all() || record.labels.contains_key(ANONYMOUS);
            if !wanted || uses.contains_key(&record.name) {
                continue;
            }
            let bytes = self.volume_size(&record);
            match self.remove_volume(&record.name) {
                Ok(()) => {
                    pruned.bytes += bytes;
                    pruned.volumes.push(record.name);
                }
                // Somebody uses it since, or has removed it.
                Err(Error::VolumeInUse { .. } | Error::NoSuchVolume(_) | Error::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut event =
            proa_protocol::events::Event::volume("prune", "").with("reclaimed", pruned.bytes.to_string());
        event.actor.attributes.remove("driver");
        self.append(event);
        Ok(pruned)
    }

    /// Forgets an instance; with `volumes` those of its volumes as well that nobody named. False where nobody knew it.
    pub(crate) fn forget(&self, id: &str, volumes: bool) -> Result<bool> {
        if !volumes {
            return self.db.delete(id);
        }
        let (was_there, gone) = self.db.delete_with_volumes(id, &mut |name| self.move_away(name))?;
        if !gone.is_empty() {
            self.sweep()?;
            gone.iter().for_each(|name| self.tell_volume("destroy", name, &[]));
        }
        Ok(was_there)
    }

    /// A row without a directory is a removal that was cut short.
    pub(super) fn finish_removal(&self, name: &str) -> Result<()> {
        match self.db.remove_volume(name, &mut |name| self.move_away(name)) {
            Ok(_) => self.sweep(),
            Err(Error::VolumeInUse { .. }) => Err(Error::conflict(
                format!("the files of volume {name} are gone, and instances have it"),
                "`proa volume rm` it after these instances",
            )),
            Err(error) => Err(error),
        }
    }

    /// Moves a volume's directory out of the way; whoever calls has the database to itself.
    pub(crate) fn move_away(&self, name: &str) -> Result<()> {
        let directory = self.volume_directory(name);
        let failed = |error| Error::io("remove volume", &directory, error);
        let guard = match volume::try_lock(&directory) {
            Ok(Some(guard)) => guard,
            Ok(None) => return Err(busy(name)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let Some(_alone) = volume::alone(&directory, &guard).map_err(failed)? else { return Err(busy(name)) };
        volume::unmount(&mount_dir(&directory)).map_err(failed)?;
        fs::rename(&directory, self.aside(GONE)?).map_err(failed)
    }

    /// Deletes what was moved out of the way.
    pub(crate) fn sweep(&self) -> Result<()> {
        for path in self.aside_directories(GONE)? {
            remove_whole(&path)?;
        }
        Ok(())
    }

    fn aside_directories(&self, prefix: &str) -> Result<Vec<std::path::PathBuf>> {
        let volumes = self.paths.root.join("volumes");
        let names = crate::system::entries(&volumes)?;
        Ok(names.into_iter().filter(|name| name.starts_with(prefix)).map(|name| volumes.join(name)).collect())
    }

    /// Finds, and with `repair` repairs, what a crash left of volumes. Nobody makes one at this moment.
    pub(crate) fn check_volumes(&self, repair: bool, problems: &mut Vec<Problem>) -> Result<()> {
        let mut found = |what: String| problems.push(Problem { what, repaired: repair });
        for path in [self.aside_directories(GONE)?, self.aside_directories(MAKING)?].concat() {
            if repair {
                remove_whole(&path)?;
            }
            found(format!("{} was to be removed", path.display()));
        }
        let known = self.db.volumes()?;
        for name in crate::system::entries(&self.paths.root.join("volumes"))? {
            if name.starts_with('.') || known.iter().any(|volume| volume.name == name) {
                continue;
            }
            if repair {
                self.move_away(&name)?;
            }
            found(format!("{} belongs to no volume", volume_dir(&self.paths.root, &name).display()));
        }
        for volume in known.iter().filter(|volume| !self.volume_directory(&volume.name).is_dir()) {
            let used = self.db.volume_uses()?.contains_key(&volume.name);
            if repair && !used {
                self.finish_removal(&volume.name)?;
            }
            found(format!("volume {} has no files", volume.name));
        }
        self.unmount_volumes()?;
        self.sweep()
    }

    /// Unmounts the file systems of volumes that nobody uses.
    pub(crate) fn unmount_volumes(&self) -> Result<()> {
        for record in self.db.volumes()? {
            let directory = self.volume_directory(&record.name);
            let at = mount_dir(&directory);
            if !volume::is_mounted(&at) {
                continue;
            }
            let failed = |error| Error::io("unmount", &at, error);
            let guard = volume::lock(&directory).map_err(failed)?;
            if volume::alone(&directory, &guard).map_err(failed)?.is_some() {
                volume::unmount(&at).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// What is mounted there is not removed with it, whoever mounted it.
fn remove_whole(path: &Path) -> Result<()> {
    let failed = |error| Error::io("remove", path, error);
    volume::unmount(&mount_dir(path)).map_err(failed)?;
    trees::remove(path).map_err(failed)
}

fn busy(name: &str) -> Error {
    Error::conflict(
        format!("volume {name} is in use by a command at this moment"),
        "try again when that has ended",
    )
}
