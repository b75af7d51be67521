//! The files of a volume as a whole: `export`, `import`, `snapshot`.
//!
//! Whoever changes all of a volume, or wants it as it is at one moment, has it alone: no instance that runs uses it, and
//! none starts with it until that is done.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use proa_protocol::volume::{Backing, image_file, mount_dir};
use proa_sys::volume::{self, Users};

use super::{ANONYMOUS, backing, pack, request};
use crate::db::VolumeRecord;
use crate::engine::Engine;
use crate::error::{Error, Result};

/// A volume whose files can be read and written; its file system is unmounted when nobody uses it any more.
struct Opened {
    directory: PathBuf,
    base: PathBuf,
    data: PathBuf,
    is_mounted: bool,
    users: Option<Users>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.users = None;
        if !self.is_mounted {
            return;
        }
        // What fails here is done by whoever uses or removes the volume next.
        if let Ok(guard) = volume::lock(&self.directory)
            && let Ok(Some(_alone)) = volume::alone(&self.directory, &guard)
        {
            let _ = volume::unmount(&mount_dir(&self.directory));
        }
    }
}

impl Engine {
    /// Writes a volume as a tar. Instances may go on to use it: each file is as it is when it is read.
    ///
    /// # Errors
    /// There is no such volume, or it cannot be read or written out.
    pub fn export_volume(&self, name: &str, out: &mut dyn Write) -> Result<()> {
        let record = self.volume(name)?;
        let opened = self.open_volume(&record, false)?;
        let failed = |error| Error::io("export", &opened.data, error);
        let directory = OwnedFd::from(File::open(&opened.data).map_err(failed)?);
        pack::pack(out, &directory).map_err(failed)
    }

    /// Fills an empty volume from a tar, plain or compressed; one that is not there is made. It is in the volume as a
    /// whole or not at all. Returns how many devices were left out.
    ///
    /// # Errors
    /// The volume is used or not empty, or the archive is no good.
    pub fn import_volume(&self, name: &str, tar: impl Read) -> Result<u64> {
        let record = match self.volume(name) {
            Err(Error::NoSuchVolume(_)) => {
                self.create_volume(&request(Some(name), Default::default(), Default::default())?)?
            }
            other => other?,
        };
        let opened = self.open_volume(&record, true)?;
        let failed = |error| Error::io("import into", &opened.data, error);
        if !volume::is_empty(&opened.data).map_err(failed)? {
            return Err(Error::conflict(
                format!("volume {name} is not empty"),
                "import into a new one, or empty it first",
            ));
        }
        let unpacked = proa_image::layer::unpack_files(BufReader::new(tar), &volume::staging(&opened.base));
        let info = unpacked.map_err(|error| failed(io::Error::other(error)))?;
        volume::publish(&opened.base, &opened.data).map_err(failed)?;
        Ok(info.left_out.devices)
    }

    /// Makes a volume with the same options, labels and files. Where the file system can, they share blocks until one
    /// of them changes.
    ///
    /// # Errors
    /// The volume is used at this moment, or there is one with the new name.
    pub fn snapshot_volume(&self, name: &str, new: &str) -> Result<VolumeRecord> {
        let record = self.volume(name)?;
        match backing(&record.options)? {
            Backing::Directory | Backing::Image(_) => {}
            Backing::Bind(_) | Backing::Mount { .. } => {
                return Err(Error::unsupported(
                    format!("volume {name} is not of Proa's own files, which are all that a snapshot has"),
                    "export it, and import that into a new volume",
                ));
            }
        }
        let _making = self.making()?;
        if self.volume(new).is_ok() {
            return Err(Error::conflict(format!("there is a volume {new}"), "choose another name"));
        }
        let mut labels = record.labels.clone();
        labels.remove(ANONYMOUS);
        let copy = request(Some(new), labels, record.options.clone())?;
        let source = self.open_volume(&record, true)?;
        let failed = |error| Error::io("copy", &source.data, error);
        let from = File::open(&source.data).map_err(failed)?;
        // Filled before anybody can see it: a copy that is cut short is litter.
        let mut prepared = self.prepare([&copy])?;
        let directory = prepared.0.get(new).cloned().unwrap_or_default();
        let target = open(directory, &copy, true)?;
        volume::fill(&target.base, &target.data, &from).map_err(failed)?;
        drop(target);
        if !self.db.add_volume(&copy, &mut |name| self.place(&mut prepared, name))? {
            return Err(Error::conflict(format!("there is a volume {new}"), "choose another name"));
        }
        self.tell_volume("create", new, &[]);
        Ok(copy)
    }

    fn open_volume(&self, record: &VolumeRecord, alone: bool) -> Result<Opened> {
        open(self.volume_directory(&record.name), record, alone)
    }
}

/// Opens a volume, alone if that is asked for.
fn open(directory: PathBuf, record: &VolumeRecord, alone: bool) -> Result<Opened> {
    let failed = |error| Error::io("use volume", &directory, error);
    let backing = backing(&record.options)?;
    let guard = volume::lock(&directory).map_err(failed)?;
    let users = if alone {
        volume::alone(&directory, &guard).map_err(failed)?.ok_or_else(|| in_use(&record.name))?
    } else {
        volume::join(&directory, &guard).map_err(|_| in_use(&record.name))?
    };
    let (base, data) = (backing.base(&directory), backing.data(&directory));
    let at = mount_dir(&directory);
    let mounted = match &backing {
        Backing::Image(_) => volume::ensure_image(&image_file(&directory), &at, &data),
        Backing::Mount { kind, device, options } => volume::ensure_mounted(kind, device, options, &at),
        Backing::Directory | Backing::Bind(_) => Ok(()),
    };
    let settled = mounted.and_then(|()| volume::settle(&base, &data)).map_err(failed);
    // The end of what is opened takes the lock itself.
    drop(guard);
    let opened = Opened { base, data, is_mounted: backing.is_mounted(), users: Some(users), directory };
    settled.map(|()| opened)
}

fn in_use(name: &str) -> Error {
    Error::conflict(
        format!("volume {name} is in use at this moment, by an instance that runs or a command"),
        "stop these instances first",
    )
}
