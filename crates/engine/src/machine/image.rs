//! Disk images: disks in the store, which travel as images do (`proa_image::disk`).

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use proa_image::{Image, Progress, disk};
use proa_oci::reference::Reference;
use proa_protocol::instance::removing_dir;
use proa_protocol::machine::{DiskFormat, DiskImport, disk_file};
use proa_sys::trees;

use super::snapshot::begin;
use crate::engine::{Engine, Instance};
use crate::error::{Error, Result};
use crate::{monitor, names};

impl Engine {
    /// Makes a disk image of a file.
    ///
    /// # Errors
    /// The file is refused, or the store cannot take it.
    pub fn import_disk_image(
        &self,
        file: &Path,
        format: Option<DiskFormat>,
        name: &Reference,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let id = names::fresh_id()?;
        // Among what is on its way out, and held: whoever comes after a crash removes it.
        let work = removing_dir(&self.paths.root).join(&id);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&work);
        made.map_err(|error| Error::io("make directory", &work, error))?;
        let held = trees::hold(&work).map_err(|error| Error::io("hold", &work, error))?;
        let target = work.join(disk_file(0));
        let import = DiskImport {
            id,
            view: work.clone(),
            source: file.to_owned(),
            format,
            target: target.clone(),
            size: 0,
        };
        let packed = monitor::import_disk(&self.programs, &import, progress)
            .and_then(|_| Ok(disk::pack(self.store()?, &target, name, progress)?));
        drop(held);
        self.clear_aside()?;
        packed
    }

    /// Makes a disk image of the first disk of a machine that does not run.
    ///
    /// # Errors
    /// It runs, has no disk, or the store cannot take it.
    pub fn save_disk_image(
        &self,
        instance: &Instance,
        name: &Reference,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let work = begin(self, instance)?;
        Ok(disk::pack(self.store()?, &work.media.join(disk_file(0)), name, progress)?)
    }

    /// Makes a machine's disk of a disk image.
    pub(super) fn unpack_disk(
        &self,
        reference: &str,
        target: &Path,
        size: u64,
        progress: &dyn Progress,
    ) -> Result<()> {
        let store = self.store()?;
        let image = store.resolve(reference)?;
        let length = image.disk.as_ref().map_or(0, |disk| disk.size);
        if size != 0 && size < length {
            return Err(Error::invalid(format!(
                "the disk of {reference} has {length} bytes, and can be made larger but not smaller than that"
            )));
        }
        let failed = |error| Error::io("make the disk", target, error);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(target);
        let file = file.map_err(failed)?;
        disk::unpack(store, &image, &file, target, progress)?;
        store.mark_used(&image);
        file.set_len(size.max(length).next_multiple_of(512)).map_err(failed)
    }
}
