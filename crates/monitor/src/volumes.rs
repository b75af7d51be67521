//! The volumes of an instance, on the host: used from before its backend until after its end.
//!
//! ```text
//!   attach: lock ─▶ join the users ─▶ mount what is not mounted ─▶ finish what another left ─▶ fill, if new and empty
//!   detach: lock ─▶ leave the users ─▶ unmount, if there are no others
//! ```
//!
//! Both levels see the same directories, so an image's files are copied here for both, by the host, which made the
//! layers; no disk that a guest wrote is ever read. A killed monitor leaves the mounts, which [`repair`] and whoever
//! uses the volume next take care of; its part in the users ends with it.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use proa_protocol::instance::InstanceConfig;
use proa_protocol::volume::{Backing, MountPoint, VolumePoint, image_file, mount_dir};
use proa_sys::volume::{self, Users};

use crate::backend::mount_layer;
use crate::error::{Error, IoAt};
use crate::record::Record;

const PARTS: &str = "parts";
const EMPTY: &str = "empty";

/// The volumes that an instance uses.
#[derive(Default)]
pub struct Volumes {
    used: Vec<Used>,
    parts: Vec<PathBuf>,
}

/// One of them.
struct Used {
    directory: PathBuf,
    is_mounted: bool,
    users: Users,
}

impl Volumes {
    /// Makes the volumes of an instance ready. Those that are empty are filled from its image where `first`: before it
    /// has ever run. The spec is changed where an instance sees a part of a volume alone.
    ///
    /// # Errors
    /// A volume is gone, cannot be mounted or cannot be filled.
    pub fn attach(
        run: &Path,
        record: &Record,
        config: &mut InstanceConfig,
        first: bool,
    ) -> Result<Self, Error> {
        let mut volumes = Self::default();
        for point in config.mount_points.clone() {
            let Some(volume) = &point.volume else { continue };
            let failed = |error: Error| Error::Volume { name: point.name.clone(), error: error.to_string() };
            let source = (first && volume.copy).then_some((&*config, run));
            let used = attach(record, &point, volume, source).map_err(failed)?;
            volumes.used.push(used);
            if !volume.part.is_empty() {
                volumes
                    .show_part(record, &point, volume, config)
                    .map_err(|error| failed(Error::Io { path: PathBuf::from(&volume.part), error }))?;
            }
        }
        Ok(volumes)
    }

    fn show_part(
        &mut self,
        record: &Record,
        point: &MountPoint,
        volume: &VolumePoint,
        config: &mut InstanceConfig,
    ) -> io::Result<()> {
        let directory = record.run_dir.join(PARTS);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let at = directory.join(self.parts.len().to_string());
        // What a killed monitor left.
        volume::unmount(&at)?;
        self.parts.push(at.clone());
        volume::mount_part(&volume.backing.data(&volume.directory), &volume.part, &at)?;
        let mounts = config.spec.mounts.iter_mut().filter(|mount| mount.destination == point.destination);
        mounts.for_each(|mount| mount.source = Some(at.to_string_lossy().into_owned()));
        Ok(())
    }

    /// Whether something is to be unmounted at the end, which must come after the instance's own mounts have gone.
    pub fn has_mounts(&self) -> bool {
        !self.parts.is_empty() || self.used.iter().any(|used| used.is_mounted)
    }

    /// Lets go of them. What cannot be unmounted is so by whoever uses or removes the volume next.
    pub fn detach(&mut self) {
        for part in self.parts.drain(..) {
            let _ = remove_part(&part);
        }
        for Used { directory, is_mounted, users } in self.used.drain(..) {
            if is_mounted {
                let _ = unmount_unused(&directory, Some(users));
            }
        }
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Unmounts what a monitor that was killed left of an instance's volumes.
pub fn repair(record: &Record, config: &InstanceConfig) {
    let parts = fs::read_dir(record.run_dir.join(PARTS)).into_iter().flatten().flatten();
    parts.for_each(|part| drop(remove_part(&part.path())));
    for point in &config.mount_points {
        if let Some(volume) = point.volume.as_ref().filter(|volume| volume.backing.is_mounted()) {
            // Another instance, or the volume's removal, does it otherwise.
            let _ = unmount_unused(&volume.directory, None);
        }
    }
}

fn remove_part(part: &Path) -> io::Result<()> {
    volume::unmount(part)?;
    if part.is_dir() { fs::remove_dir(part) } else { fs::remove_file(part) }
}

/// Unmounts a volume's file system, if there are no users beside the one that leaves.
fn unmount_unused(directory: &Path, leaving: Option<Users>) -> io::Result<()> {
    let guard = volume::lock(directory)?;
    drop(leaving);
    match volume::alone(directory, &guard)? {
        Some(_alone) => volume::unmount(&mount_dir(directory)),
        None => Ok(()),
    }
}

fn attach(
    record: &Record,
    point: &MountPoint,
    volume: &VolumePoint,
    source: Option<(&InstanceConfig, &Path)>,
) -> Result<Used, Error> {
    let directory = &volume.directory;
    let guard = volume::lock(directory).at(directory)?;
    let users = volume::join(directory, &guard).map_err(|_| Error::VolumeBusy)?;
    mount(directory, &volume.backing).at(directory)?;
    let (base, data) = (volume.backing.base(directory), volume.backing.data(directory));
    volume::settle(&base, &data).at(&data)?;
    if let Some((config, run)) = source
        && volume::is_empty(&data).at(&data)?
    {
        fill(record, config, run, &point.destination, (&base, &data))?;
    }
    Ok(Used { directory: directory.clone(), is_mounted: volume.backing.is_mounted(), users })
}

/// Mounts the file system of a volume that has one of its own, if that is not done.
fn mount(directory: &Path, backing: &Backing) -> io::Result<()> {
    let at = mount_dir(directory);
    match backing {
        Backing::Image(_) => volume::ensure_image(&image_file(directory), &at, &backing.data(directory)),
        Backing::Mount { kind, device, options } => volume::ensure_mounted(kind, device, options, &at),
        Backing::Directory | Backing::Bind(_) => Ok(()),
    }
}

/// Copies what the image has at the volume's place. An image without such a directory has nothing to copy.
fn fill(
    record: &Record,
    config: &InstanceConfig,
    run: &Path,
    destination: &str,
    (base, data): (&Path, &Path),
) -> Result<(), Error> {
    let layers = if config.readable_layers.is_empty() { &config.layers } else { &config.readable_layers };
    let label = config.layer_label.as_deref();
    let lowers = layers.iter().map(|layer| mount_layer(run, layer, label)).collect::<Result<Vec<_>, _>>()?;
    let empty = record.run_dir.join(EMPTY);
    fs::create_dir_all(&empty).at(&empty)?;
    let found = proa_runtime::image_directory(&lowers, &empty, destination);
    // The tree that was just made keeps it.
    let _ = fs::remove_dir(&empty);
    match found? {
        Some(directory) => volume::fill(base, data, &directory).at(data),
        None => Ok(()),
    }
}
