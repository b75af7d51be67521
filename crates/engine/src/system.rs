//! The whole root: finding and repairing what a crash left, stopping everything, what takes how much.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proa_image::Image;
use proa_protocol::instance::{CONFIG_FILE, Status, removing_dir};
use proa_protocol::message::Request;
use proa_sys::trees;
use serde::Serialize;

use crate::engine::{Engine, Instance};
use crate::error::{Error, Result};
use crate::life::StopOptions;
use crate::lsm::apparmor;
use crate::volumes::VolumeFilters;
use crate::{monitor, names, signals};

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Problem {
    /// What.
    pub what: String,
    /// Whether it was repaired.
    pub repaired: bool,
}

/// What a check looks at.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions {
    /// Repair what is found.
    pub repair: bool,
    /// Read all content and compare it with its digest.
    pub read: bool,
}

impl Engine {
    /// Finds, and with `repair` repairs, what crashes left: monitors that died, instances half made or half
    /// removed, directories nobody knows, content nobody refers to.
    ///
    /// # Errors
    /// The check itself cannot be done.
    pub fn check(&self, options: CheckOptions) -> Result<Vec<Problem>> {
        // Who makes something at this moment has things half made.
        let _quiet = self.exclusive()?;
        let mut problems: Vec<Problem> =
            self.db.integrity()?.into_iter().map(|what| Problem { what, repaired: false }).collect();
        self.check_instances(options.repair, &mut problems)?;
        self.check_directories(options.repair, &mut problems)?;
        self.check_aside(options.repair, &mut problems)?;
        self.check_standby(options.repair, &mut problems)?;
        self.check_volumes(options.repair, &mut problems)?;
        self.check_places(options.repair, &mut problems)?;
        if options.repair {
            self.db.fold()?;
        }
        let images = self.store()?.check(options.repair, options.read, self)?;
        problems.extend(
            images.into_iter().map(|problem| Problem { what: problem.what, repaired: problem.repaired }),
        );
        Ok(problems)
    }

    fn check_instances(&self, repair: bool, problems: &mut Vec<Problem>) -> Result<()> {
        for record in self.db.all()? {
            let label = format!("instance {} ({})", record.name, names::short(&record.id));
            let lock = match self.try_lock(&record.id) {
                Ok(Some(lock)) => lock,
                Ok(None) | Err(Error::NoSuchInstance(_)) => continue,
                Err(error) => return Err(error),
            };
            let state = self.read_state(&record.id);
            let complete = self.paths.instance(&record.id).join(CONFIG_FILE).exists();
            let what = match &state {
                _ if !complete => format!("{label} was never completed"),
                Err(error) => format!("{label}: {error}"),
                Ok(state) if state.status.is_live() => {
                    format!("{label} is said to run, but its monitor died")
                }
                Ok(state) if record.auto_remove && state.status == Status::Exited => {
                    format!("{label} has ended and was to be removed")
                }
                Ok(_) => continue,
            };
            if repair {
                if complete && state.is_ok() {
                    drop(lock);
                    // Looking at it repairs it.
                    match self.find(&record.id) {
                        Ok(_) | Err(Error::NoSuchInstance(_)) => {}
                        Err(error) => return Err(error),
                    }
                } else {
                    self.remove_locked(&record.id, lock, true)?;
                }
            }
            problems.push(Problem { what, repaired: repair });
        }
        Ok(())
    }

    fn check_directories(&self, repair: bool, problems: &mut Vec<Problem>) -> Result<()> {
        let known: BTreeSet<String> = self.db.all()?.into_iter().map(|record| record.id).collect();
        let bases = [&self.paths.root, &self.paths.run].map(|base| base.join("instances"));
        let mut unknown = BTreeSet::new();
        for base in &bases {
            unknown.extend(entries(base)?.into_iter().filter(|id| !known.contains(id)));
        }
        for id in unknown {
            let found: Vec<_> =
                bases.iter().map(|base| base.join(&id)).filter(|path| path.exists()).collect();
            // A monitor that still cleans up after a removed instance has not died.
            if self.paths.instance_run(&id).exists() && monitor::try_lock(&self.paths, &id)?.is_none() {
                continue;
            }
            if repair {
                // Its processes and mounts, where there are any; there may be nothing left to repair them by.
                let _ = monitor::repair(&self.programs, &self.paths, &id);
                for base in &bases {
                    let path = base.join(&id);
                    trees::remove(&path).map_err(|error| Error::io("remove", &path, error))?;
                }
            }
            for path in found {
                let what = format!("{} belongs to no instance", path.display());
                problems.push(Problem { what, repaired: repair });
            }
        }
        Ok(())
    }

    /// What is left of removed instances; where nobody holds it, its removal was cut short.
    fn check_aside(&self, repair: bool, problems: &mut Vec<Problem>) -> Result<()> {
        let aside = removing_dir(&self.paths.root);
        let held = |path: &Path| trees::hold(path).is_err() && path.exists();
        let found = entries(&aside)?.into_iter().map(|name| aside.join(name));
        let left: Vec<_> = found.filter(|path| path.exists() && !held(path)).collect();
        if repair {
            self.clear_aside()?;
        }
        for path in left {
            let what = format!("{} is left of an instance that was removed", path.display());
            problems.push(Problem { what, repaired: repair });
        }
        Ok(())
    }

    /// What is left of virtual machines that stood by.
    fn check_standby(&self, repair: bool, problems: &mut Vec<Problem>) -> Result<()> {
        for path in self.dead_standby()? {
            if repair {
                trees::remove(&path).map_err(|error| Error::io("remove", &path, error))?;
            }
            let what = format!("{} is left of a virtual machine that stood by", path.display());
            problems.push(Problem { what, repaired: repair });
        }
        Ok(())
    }

    /// Ends everything of this root: instances, monitors, layer mounts. Returns the names of what it stopped.
    ///
    /// # Errors
    /// Something does not end.
    pub fn stop_all(&self, limit: Duration) -> Result<Vec<String>> {
        let live: Vec<Instance> = self.instances()?.into_iter().filter(Instance::is_live).collect();
        let deadline = Instant::now() + limit;
        for instance in &live {
            if let Ok(mut channel) = self.connect(instance) {
                let name = &instance.record.config.stop_signal;
                let signal = signals::number(name).unwrap_or(signals::TERM);
                let _ = channel.command(Request::Stop { by_user: false });
                // One that ends by itself at this moment is fine.
                let _ = channel.command(Request::Resume);
                let _ = channel.command(Request::Signal { signal, all: false });
            }
        }
        for instance in &live {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = i64::try_from(left.as_secs()).ok();
            match self.stop(instance, &StopOptions { timeout, signal: None, until_boot: true }) {
                // One that was to be removed at its end has gone by itself.
                Ok(_) | Err(Error::NoSuchInstance(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.settle_all()?;
        self.end_template_makers()?;
        self.end_standby()?;
        self.unmount_volumes()?;
        self.unmount_layers()?;
        self.take_down_networks()?;
        apparmor::forget(&self.paths.run);
        // What is not empty belongs to a command that has just begun.
        for directory in
            [self.paths.run.join("instances"), self.paths.run.join("layers"), self.paths.run.clone()]
        {
            let _ = std::fs::remove_dir(directory);
        }
        Ok(live.into_iter().map(|instance| instance.record.name).collect())
    }

    /// Waits for monitors that are ending, or that hold files for a moment, and removes what instances that are kept had
    /// while they ran: nobody might come again before the root is gone.
    fn settle_all(&self) -> Result<()> {
        for id in entries(&self.paths.run.join("instances"))? {
            match self.settle(&id) {
                Ok(_lock) => self.remove_run_directory(&id)?,
                Err(Error::NoSuchInstance(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn unmount_layers(&self) -> Result<()> {
        let directory = self.paths.run.join("layers");
        for name in entries(&directory)? {
            let path = directory.join(name);
            proa_sys::layer_mount::unmount(&path)
                .map_err(|error| Error::io("unmount", &path, std::io::Error::other(error)))?;
        }
        Ok(())
    }

    /// Bytes on disk: of images, instances' writable layers, volumes and templates.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn disk_usage(&self) -> Result<DiskUsage> {
        let instances = self.instances()?;
        let mut usage = DiskUsage { instances: instances.len(), ..DiskUsage::default() };
        self.add_images(&instances, &mut usage)?;
        self.add_volumes(&mut usage)?;
        let templates = self.templates()?;
        usage.templates = templates.len();
        usage.templates_bytes = templates.iter().map(|template| template.bytes).sum();
        for instance in &instances {
            let (own, _) = self.sizes(instance);
            usage.instances_bytes += own;
            if instance.is_live() {
                usage.instances_active += 1;
            } else {
                usage.instances_reclaimable += own;
            }
        }
        Ok(usage)
    }

    /// What images have in common is counted once, and is free only when none of them is used.
    fn add_images(&self, instances: &[Instance], usage: &mut DiskUsage) -> Result<()> {
        let store = self.store()?;
        let (mut all, mut used) = (BTreeMap::new(), BTreeMap::new());
        for image in store.list()? {
            usage.images += 1;
            let footprint = store.footprint(&image.id)?;
            if instances.iter().any(|instance| instance.record.image_id == image.id.as_str()) {
                usage.images_active += 1;
                used.extend(footprint.clone());
            }
            all.extend(footprint);
        }
        usage.images_bytes = all.values().sum();
        usage.images_reclaimable = usage.images_bytes.saturating_sub(used.values().sum());
        Ok(())
    }

    fn add_volumes(&self, usage: &mut DiskUsage) -> Result<()> {
        let uses = self.db.volume_uses()?;
        for volume in self.volumes(&VolumeFilters::default())? {
            let bytes = self.volume_size(&volume);
            usage.volumes += 1;
            usage.volumes_bytes += bytes;
            if uses.contains_key(&volume.name) {
                usage.volumes_active += 1;
            } else {
                usage.volumes_reclaimable += bytes;
            }
        }
        Ok(())
    }
}

/// Each on its own.
impl Engine {
    /// Bytes on disk of each image and of each instance, the newest first.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn disk_usage_of_each(&self) -> Result<(Vec<ImageUsage>, Vec<InstanceUsage>)> {
        let instances = self.instances()?;
        let store = self.store()?;
        let images = store.list()?;
        let footprints = images.iter().map(|image| store.footprint(&image.id));
        let footprints = footprints.collect::<proa_image::Result<Vec<_>>>()?;
        let mut owners = BTreeMap::<&Path, usize>::new();
        for path in footprints.iter().flat_map(BTreeMap::keys) {
            *owners.entry(path).or_default() += 1;
        }
        let usage = |(image, footprint): (&Image, &BTreeMap<PathBuf, u64>)| {
            let is_shared = |path: &Path| owners.get(path).is_some_and(|owners| *owners > 1);
            let shared = footprint.iter().filter(|(path, _)| is_shared(path)).map(|(_, bytes)| bytes).sum();
            let unique = footprint.values().sum::<u64>() - shared;
            let used = instances.iter().filter(|instance| instance.record.image_id == image.id.as_str());
            ImageUsage { image: image.clone(), shared, unique, instances: used.count() }
        };
        let images = images.iter().zip(&footprints).map(usage).collect();
        let sized = |instance: Instance| InstanceUsage { bytes: self.sizes(&instance).0, instance };
        Ok((images, instances.into_iter().map(sized).collect()))
    }
}

/// What an image takes.
#[derive(Debug, Clone)]
pub struct ImageUsage {
    /// Which.
    pub image: Image,
    /// Bytes that other images have as well.
    pub shared: u64,
    /// Bytes that are its own.
    pub unique: u64,
    /// How many instances use it.
    pub instances: usize,
}

/// What an instance takes.
#[derive(Debug, Clone)]
pub struct InstanceUsage {
    /// Which.
    pub instance: Instance,
    /// Bytes of its writable layer.
    pub bytes: u64,
}

/// What takes how much.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Number of images.
    pub images: usize,
    /// Of which instances use so many.
    pub images_active: usize,
    /// Bytes of all blobs and layers, each counted once.
    pub images_bytes: u64,
    /// Bytes that pruning could free at most.
    pub images_reclaimable: u64,
    /// Number of instances.
    pub instances: usize,
    /// Of which so many run.
    pub instances_active: usize,
    /// Bytes of their writable layers.
    pub instances_bytes: u64,
    /// Bytes of those that do not run.
    pub instances_reclaimable: u64,
    /// Number of volumes.
    pub volumes: usize,
    /// Of which instances have so many.
    pub volumes_active: usize,
    /// Their bytes.
    pub volumes_bytes: u64,
    /// Bytes of those that no instance has.
    pub volumes_reclaimable: u64,
    /// Number of templates of virtual machines.
    pub templates: usize,
    /// Their bytes; all of them can be made again.
    pub templates_bytes: u64,
}

/// Names in a directory; none where there is no such directory.
pub(crate) fn entries(directory: &Path) -> Result<Vec<String>> {
    let failed = |error| Error::io("list", directory, error);
    match std::fs::read_dir(directory) {
        Ok(entries) => {
            let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            names.collect::<std::io::Result<_>>().map_err(failed)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}
