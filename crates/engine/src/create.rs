//! Making an instance.
//!
//! ```text
//!   merge with the image ─▶ policy ─▶ build the spec ─▶ claim id, name, volumes ─▶ confine ─▶ write instance.json
//!                                                         (database rows)           (LSMs)     (renamed into place)
//! ```
//!
//! What can be refused is refused before the claim, but for what the kernel's security modules refuse. A crash after it leaves a row without a
//! configuration, which can be removed like any instance, and which `system check` finds.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

use proa_image::layer::LayerForm;
use proa_image::{Image, LayerCopy, LayerFile};
use proa_protocol::instance::{CONFIG_FILE, InstanceConfig, IsolationLevel, Layer};
use proa_protocol::kernel::name_of;
use proa_protocol::standby::{self, Standby};
use proa_protocol::volume::MountPoint;
use proa_sys::trees;

use crate::condition::Dependency;
use crate::config::{ContainerConfig, HostConfig};
use crate::db::Record;
use crate::engine::{Engine, Making};
use crate::error::{Error, Result};
use crate::logging::LogSettings;
use crate::settings::{NetworkSettings, SecuritySettings};
use crate::volumes::behind;
use crate::{events, logging, mounts, names, parse, policy, spec, userns};

/// Attempts at finding a free name.
const NAME_ATTEMPTS: u32 = 20;

/// What to make.
#[derive(Debug)]
pub struct CreateRequest {
    /// Its name; one is made up where there is none.
    pub name: Option<String>,
    /// The image.
    pub image: Image,
    /// The image's side of what is asked for.
    pub config: ContainerConfig,
    /// The host's side.
    pub host_config: HostConfig,
    /// Its isolation level.
    pub level: IsolationLevel,
    /// What holds for every instance of the host.
    pub settings: SecuritySettings,
    /// The same of networks.
    pub network: NetworkSettings,
    /// What becomes of its output where nobody says so.
    pub log: LogSettings,
    /// How many virtual machines may stand by.
    pub standby: u32,
}

/// An instance just made. Litter collectors stay away while this lives.
#[derive(Debug)]
pub struct Created {
    /// Its record.
    pub record: Record,
    /// What makes no difference to it, but ought to be known.
    pub warnings: Vec<String>,
    /// What it wants to stand by for the next of its kind, and can have itself.
    pub(crate) standby: Option<Standby>,
    pub(crate) _making: Making,
}

impl Engine {
    /// Makes an instance.
    ///
    /// # Errors
    /// The request makes no sense, or the name is taken.
    pub fn create(&self, mut request: CreateRequest) -> Result<Created> {
        let CreateRequest { image, config, host_config, level, settings, log, .. } = &mut request;
        if image.disk.is_some() {
            return Err(Error::invalid_with_hint(
                format!("image {} is a disk, which boots by itself", config.image),
                format!("`proa machine create --disk {} NAME`", config.image),
            ));
        }
        spec::merge(config, &image.config.config);
        spec::complete(host_config, *level)?;
        let (points, volumes) = self.mount_points(config, host_config)?;
        policy::enforce(config, host_config, &behind(&points), settings)?;
        settings.apply(host_config)?;
        log.complete(host_config);
        userns::complete(config, host_config, *level, settings)?;
        let mut warnings = Vec::new();
        self.complete_namespaces(config, host_config, *level)?;
        let networks = self.complete_networks(config, host_config, *level, &mut warnings)?;
        if let Some(name) = host_config.vm.kernel.as_deref().and_then(name_of) {
            self.check_kernel(name)?;
        }
        for text in &host_config.depends_on {
            self.find(&Dependency::parse(text)?.name)?;
        }
        let mut record = Record {
            id: names::fresh_id()?,
            name: String::new(),
            image_id: image.id.to_string(),
            image: config.image.clone(),
            level: *level,
            created_ns: parse::now_ns(),
            auto_remove: host_config.auto_remove,
            config: config.clone(),
            host_config: Box::new(host_config.clone()),
        };
        let mut instance =
            spec::build(&record.id, &record.config, &record.host_config, &points, record.level)?;
        record.config.hostname = instance.spec.hostname.clone().unwrap_or_else(names::of_host);
        instance.layers = layers(&image.layers);
        instance.reaper = Some(self.programs.own.clone());
        mounts::prepare_sources(host_config)?;
        let settings = *settings;
        let making = self.making()?;
        self.claim(&mut record, request.name.as_deref())?;
        let claimed = self.claim_ids(&mut record, &mut instance.spec, &settings);
        let claimed = claimed
            .and_then(|()| self.claim_endpoints(&record, &networks, &mut instance, &request.network))
            .and_then(|()| self.claim_volumes(&record.id, &volumes));
        if let Err(error) = claimed {
            self.undo(&record);
            return Err(error);
        }
        instance.actor = events::actor(&record);
        let confined = self.confine(&record, &mut instance, &mut warnings);
        if let Err(error) =
            confined.and_then(|()| self.complete(&record, &mut instance, &request.image, request.standby))
        {
            self.undo(&record);
            return Err(error);
        }
        self.tell(&record, "create", &[]);
        Ok(Created { record, warnings, standby: instance.standby, _making: making })
    }

    pub(crate) fn claim(&self, record: &mut Record, wanted: Option<&str>) -> Result<()> {
        if let Some(name) = wanted {
            let name = name.strip_prefix('/').unwrap_or(name);
            names::check_name(name)?;
            record.name = name.to_owned();
            return match self.db.insert(record) {
                // The holder may be one that ended and was to go.
                Err(error @ Error::NameInUse { .. }) => match self.find(name) {
                    Err(Error::NoSuchInstance(_)) => self.db.insert(record),
                    _ => Err(error),
                },
                other => other,
            };
        }
        for attempt in 0..NAME_ATTEMPTS {
            record.name = names::fresh_name(attempt)?;
            match self.db.insert(record) {
                Err(Error::NameInUse { .. }) => {}
                other => return other,
            }
        }
        Err(Error::conflict("no free name was found", "give one with --name"))
    }

    fn complete(
        &self,
        record: &Record,
        instance: &mut InstanceConfig,
        image: &Image,
        most: u32,
    ) -> Result<()> {
        // The row keeps the image from now on; make sure that it was still there when the row was.
        let store = self.store()?;
        if !store.contains(&image.id)? {
            return Err(proa_image::Error::NotFound(record.image.clone()).into());
        }
        logging::identify(&mut instance.log, record)?;
        store.mark_used(image);
        if let Some(copy) = copy_of_layers(record)? {
            let fills = |point: &MountPoint| point.volume.as_ref().is_some_and(|volume| volume.copy);
            if copy == LayerCopy::Image && instance.mount_points.iter().any(fills) {
                instance.readable_layers = instance.layers.clone();
            }
            instance.layers = layers(&store.copies(image, copy)?);
        }
        let directory = self.paths.instance(&record.id);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(|error| Error::io("make directory", &directory, error))?;
        if instance.isolation == IsolationLevel::Vm && most > 0 {
            let kind = standby::kind(instance, &self.programs.monitor);
            instance.standby = Some(Standby { kind, most });
        }
        self.write_config(instance)
    }

    /// Writes what the monitor reads, whole or not at all.
    pub(crate) fn write_config(&self, instance: &InstanceConfig) -> Result<()> {
        let directory = self.paths.instance(&instance.id);
        let path = directory.join(CONFIG_FILE);
        let fresh = directory.join("instance.json.new");
        let json = serde_json::to_vec(instance)
            .map_err(|error| Error::io("write", &path, std::io::Error::other(error)))?;
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh);
        file.and_then(|mut file| file.write_all(&json)).map_err(|error| Error::io("write", &fresh, error))?;
        fs::rename(&fresh, &path).map_err(|error| Error::io("write", &path, error))
    }

    /// A failure here leaves a row that `rm` removes; the first failure is the one to tell.
    pub(crate) fn undo(&self, record: &Record) {
        let _ = trees::remove(&self.paths.instance(&record.id));
        let _ = self.forget(&record.id, true);
    }
}

/// In which form the instance's layers must be, where that is not the store's.
fn copy_of_layers(record: &Record) -> Result<Option<LayerCopy>> {
    let has_directories = LayerForm::usable() == LayerForm::Directory;
    if record.level == IsolationLevel::Vm && has_directories {
        return Ok(Some(LayerCopy::Image));
    }
    Ok(userns::kept_ids(&record.host_config)?.map(LayerCopy::Keeping))
}

fn layers(files: &[LayerFile]) -> Vec<Layer> {
    files.iter().map(|layer| Layer { diff_id: layer.diff_id.to_string(), path: layer.path.clone() }).collect()
}
