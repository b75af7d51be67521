//! What an instance has mounted, from all that says so: Docker's order, in which what comes later takes the place.
//!
//! | from | |
//! | --- | --- |
//! | `--volumes-from` | the mounts of other instances |
//! | `-v`, `--mount` | paths of the host, volumes, memory; each place once |
//! | `-v /PATH`, the image's `VOLUME` | a volume that nobody names, where nothing else is mounted |

use std::collections::BTreeMap;
use std::path::PathBuf;

use proa_protocol::volume::{Backing, DRIVER, MountPoint, PointKind, VolumePoint};

use super::{backing, check_name, request};
use crate::config::{ContainerConfig, HostConfig, MountConfig};
use crate::db::{Claim, VolumeRecord};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::mounts::{self, normalize, parse_bind};

/// The mode of a volume that was named without one, as Docker tells it.
const SHARED: &str = "z";

/// Mounts by their place, each with the volume that it needs.
#[derive(Default)]
struct Plan {
    points: BTreeMap<String, (MountPoint, Option<Claim>)>,
}

/// Paths of the host that volumes are in truth, for policies.
pub(crate) fn behind(points: &[MountPoint]) -> Vec<String> {
    let path = |point: &MountPoint| match &point.volume.as_ref()?.backing {
        Backing::Bind(path) => Some(path.display().to_string()),
        Backing::Mount { kind, device, .. } if kind != "tmpfs" => Some(device.clone()),
        Backing::Mount { .. } | Backing::Directory | Backing::Image(_) => None,
    };
    // What another instance has of the host is the host's here as well.
    let bound = points.iter().filter(|point| point.kind == PointKind::Bind).map(|point| point.source.clone());
    points.iter().filter_map(path).chain(bound).collect()
}

impl Engine {
    /// The mounts of an instance, and the volumes that it needs for them; `config` is merged with the image's. Nothing
    /// is made.
    ///
    /// # Errors
    /// A mount makes no sense, two have one place, or an instance of `--volumes-from` does not exist.
    pub(crate) fn mount_points(
        &self,
        config: &ContainerConfig,
        host: &HostConfig,
    ) -> Result<(Vec<MountPoint>, Vec<Claim>)> {
        check_driver(&host.volume_driver)?;
        let mut plan = Plan::default();
        for text in &host.volumes_from {
            self.inherit(text, &mut plan)?;
        }
        let mut given = Plan::default();
        for text in &host.binds {
            let bind = parse_bind(text)?;
            let mut point = mounts::point_of_bind(&bind);
            if !bind.is_volume() {
                given.add_once(point, None)?;
                continue;
            }
            point.name = std::mem::take(&mut point.source);
            let volume = VolumePoint { copy: !bind.no_copy, ..VolumePoint::default() };
            let record =
                self.volume_or(&point.name, request(Some(&point.name), BTreeMap::new(), BTreeMap::new())?)?;
            self.add_volume_point(&mut given, point, volume, record)?;
        }
        for mount in &host.mounts {
            if mount.kind == "volume" {
                self.mount_of_volume(mount, &mut given)?;
            } else {
                given.add_once(mounts::point_of_mount(mount), None)?;
            }
        }
        plan.points.append(&mut given.points);
        for path in config.volumes.keys() {
            mounts::check_destination(path, path)?;
            let destination = normalize(path);
            let taken = plan.points.contains_key(&destination)
                || host.tmpfs.keys().any(|path| normalize(path) == destination);
            if !taken {
                let point = MountPoint { destination, ..MountPoint::default() };
                let volume = VolumePoint { copy: true, anonymous: true, ..VolumePoint::default() };
                self.add_volume_point(
                    &mut plan,
                    point,
                    volume,
                    request(None, BTreeMap::new(), BTreeMap::new())?,
                )?;
            }
        }
        let (points, claims): (Vec<_>, Vec<_>) = plan.points.into_values().unzip();
        Ok((points, claims.into_iter().flatten().collect()))
    }

    /// The mounts of another instance, as `NAME[:ro]`.
    fn inherit(&self, text: &str, plan: &mut Plan) -> Result<()> {
        let (name, mode) = text.split_once(':').unwrap_or((text, ""));
        let read_only = match mode {
            "" | "rw" | "z" | "Z" => false,
            "ro" => true,
            _ => {
                return Err(Error::invalid_with_hint(
                    format!("invalid --volumes-from {text:?}"),
                    "NAME[:ro]",
                ));
            }
        };
        let instance = self.find(name)?;
        for mut point in self.read_config(&instance.record.id)?.mount_points {
            point.read_only |= read_only;
            let claim = match &mut point.volume {
                Some(volume) => {
                    volume.copy = false;
                    let known = self.volume(&point.name)?;
                    Some(Claim { record: known, anonymous: volume.anonymous })
                }
                None if point.kind == PointKind::Tmpfs => continue,
                None => None,
            };
            plan.points.insert(point.destination.clone(), (point, claim));
        }
        Ok(())
    }

    fn mount_of_volume(&self, mount: &MountConfig, plan: &mut Plan) -> Result<()> {
        let options = mount.volume_options.clone().unwrap_or_default();
        check_driver(&options.driver_config.name)?;
        let is_named = !mount.source.is_empty();
        let name = is_named.then_some(mount.source.as_str());
        let wanted = request(name, options.labels, options.driver_config.options)?;
        let record = if is_named { self.volume_or(&mount.source, wanted)? } else { wanted };
        let point = MountPoint { name: record.name.clone(), ..mounts::point_of_mount(mount) };
        let point = MountPoint { propagation: String::new(), ..point };
        let volume = VolumePoint {
            copy: !options.no_copy && options.subpath.is_empty(),
            anonymous: !is_named,
            part: part(&options.subpath)?,
            ..VolumePoint::default()
        };
        self.add_volume_point(plan, point, volume, record)
    }

    /// The volume that is there, or the one that is wanted.
    fn volume_or(&self, name: &str, wanted: VolumeRecord) -> Result<VolumeRecord> {
        check_name(name)?;
        match self.volume(name) {
            Ok(found) => super::check_same(&found, &wanted).map(|()| found),
            Err(Error::NoSuchVolume(_)) => Ok(wanted),
            Err(error) => Err(error),
        }
    }

    fn add_volume_point(
        &self,
        plan: &mut Plan,
        point: MountPoint,
        volume: VolumePoint,
        record: VolumeRecord,
    ) -> Result<()> {
        let directory: PathBuf = self.volume_directory(&record.name);
        let backing = backing(&record.options)?;
        let mode = if point.mode.is_empty() && !(volume.anonymous && point.name.is_empty()) {
            SHARED.to_owned()
        } else {
            point.mode
        };
        let anonymous = volume.anonymous;
        let point = MountPoint {
            kind: PointKind::Volume,
            name: record.name.clone(),
            source: backing.data(&directory).to_string_lossy().into_owned(),
            mode,
            propagation: String::new(),
            volume: Some(VolumePoint { directory, backing, ..volume }),
            ..point
        };
        plan.add_once(point, Some(Claim { record, anonymous }))
    }
}

impl Plan {
    fn add_once(&mut self, point: MountPoint, claim: Option<Claim>) -> Result<()> {
        let place = point.destination.clone();
        match self.points.insert(place.clone(), (point, claim)) {
            None => Ok(()),
            Some(_) => Err(Error::invalid(format!("two mounts on {place}"))),
        }
    }
}

fn check_driver(name: &str) -> Result<()> {
    if name.is_empty() || name == DRIVER {
        return Ok(());
    }
    Err(Error::unsupported(
        format!("there is no volume driver {name:?}"),
        format!("{DRIVER} is the one there is"),
    ))
}

/// A path in a volume, which may not lead out by its own words; links in the volume are looked at when it is mounted.
fn part(path: &str) -> Result<String> {
    let climbs = path.split('/').any(|name| name == "..");
    if path.starts_with('/') || climbs {
        return Err(Error::invalid_with_hint(
            format!("invalid volume-subpath {path:?}"),
            "a path below the volume's root, as data/www",
        ));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stay_below() {
        assert_eq!(part("data/www").unwrap(), "data/www");
        for path in ["/data", "../x", "a/../../x"] {
            assert!(part(path).is_err(), "{path}");
        }
    }

    #[test]
    fn one_place_has_one_mount() {
        let mut plan = Plan::default();
        let point = || MountPoint { destination: "/x".into(), ..MountPoint::default() };
        plan.add_once(point(), None).unwrap();
        assert!(plan.add_once(point(), None).is_err());
    }

    #[test]
    fn what_is_of_the_host_is_told() {
        let volume = |backing| MountPoint {
            kind: PointKind::Volume,
            volume: Some(VolumePoint { backing, ..VolumePoint::default() }),
            ..MountPoint::default()
        };
        let mount = |kind: &str| Backing::Mount {
            kind: kind.into(),
            device: "/dev/x".into(),
            options: String::new(),
        };
        let points = [
            volume(Backing::Directory),
            volume(Backing::Bind("/srv".into())),
            volume(mount("tmpfs")),
            volume(mount("ext4")),
            MountPoint { source: "/etc".into(), ..MountPoint::default() },
        ];
        assert_eq!(behind(&points), ["/srv", "/dev/x", "/etc"]);
    }
}
