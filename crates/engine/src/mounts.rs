//! `-v`, `--mount` and `--tmpfs`: their texts, and the mounts they become.

use std::path::{Component, Path};

use proa_oci::runtime::Mount;
use proa_protocol::instance::IsolationLevel;
use proa_protocol::volume::{MountPoint, PointKind};

use crate::config::{BindOptions, HostConfig, MountConfig, TmpfsOptions, VolumeOptions};
use crate::error::{Error, Result};
use crate::{parse, volumes};

const SHARING: &[&str] = &["shared", "rshared", "slave", "rslave"];
const PROPAGATIONS: &[&str] = &["private", "rprivate", "shared", "rshared", "slave", "rslave"];

/// One mount an instance was asked to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Absolute path on the host, or name of a volume.
    pub source: String,
    /// Absolute path in the instance.
    pub destination: String,
    /// Options as the user wrote them.
    pub mode: String,
    /// No writing.
    pub read_only: bool,
    /// `rprivate`, `shared`, …
    pub propagation: String,
    /// Do not fill a volume from the image.
    pub no_copy: bool,
}

impl Bind {
    /// Whether it names a volume.
    pub fn is_volume(&self) -> bool {
        !self.source.starts_with('/')
    }
}

fn invalid(message: String, hint: &str) -> Error {
    Error::Invalid { message, hint: hint.to_owned() }
}

/// Reads `source:destination[:options]` of `-v`.
///
/// # Errors
/// It has another form.
pub fn parse_bind(text: &str) -> Result<Bind> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, mode) = match parts[..] {
        [source, destination] => (source, destination, ""),
        [source, destination, mode] => (source, destination, mode),
        _ => {
            return Err(invalid(format!("invalid volume {text:?}"), "HOST-PATH:PATH[:ro] or NAME:PATH[:ro]"));
        }
    };
    if source.is_empty() {
        return Err(invalid(
            format!("invalid volume {text:?}: no source"),
            "HOST-PATH:PATH[:ro] or NAME:PATH[:ro]",
        ));
    }
    if !source.starts_with('/') {
        volumes::check_name(source)?;
    }
    check_destination(text, destination)?;
    let mut bind = Bind {
        source: source.to_owned(),
        destination: destination.to_owned(),
        mode: mode.to_owned(),
        read_only: false,
        propagation: "rprivate".into(),
        no_copy: false,
    };
    for option in mode.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => bind.read_only = true,
            // Relabelling has no meaning where SELinux is not in force, and consistency none on Linux.
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            "nocopy" if bind.is_volume() => bind.no_copy = true,
            shared if bind.is_volume() && SHARING.contains(&shared) => {
                return Err(invalid(
                    format!("invalid volume {text:?}: {shared} is for paths of the host"),
                    "a volume is mounted for the instance alone: leave it out",
                ));
            }
            propagation if PROPAGATIONS.contains(&propagation) => bind.propagation = propagation.to_owned(),
            other => {
                return Err(invalid(
                    format!("invalid volume {text:?}: unknown option {other:?}"),
                    "ro, rw, z, Z, nocopy (volumes), shared, rshared, slave, rslave, private, rprivate",
                ));
            }
        }
    }
    Ok(bind)
}

/// Checks a path inside an instance; `text` is what the user wrote.
///
/// # Errors
/// It is not absolute, or the root.
pub fn check_destination(text: &str, destination: &str) -> Result<()> {
    if !destination.starts_with('/') {
        return Err(invalid(
            format!("invalid volume {text:?}: the path inside must be absolute"),
            "HOST-PATH:/PATH or NAME:/PATH",
        ));
    }
    if normalize(destination) == "/" {
        return Err(invalid(format!("invalid volume {text:?}: it would hide the whole root"), ""));
    }
    Ok(())
}

/// The path without `.`, `..` and double slashes.
pub fn normalize(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::ParentDir => drop(parts.pop()),
            Component::Normal(part) => parts.extend(part.to_str()),
            _ => {}
        }
    }
    format!("/{}", parts.join("/"))
}

/// Reads the `key=value,…` text of `--mount`.
///
/// # Errors
/// It has another form, or another type than bind, volume and tmpfs.
pub fn parse_mount(text: &str) -> Result<MountConfig> {
    let mut mount = MountConfig { kind: "volume".into(), ..MountConfig::default() };
    let mut bind = BindOptions::default();
    let mut tmpfs = TmpfsOptions::default();
    let mut volume = VolumeOptions::default();
    for field in fields(text) {
        let field = field.as_str();
        let (key, value) = field.split_once('=').map_or((field, None), |(key, value)| (key, Some(value)));
        let needed =
            || value.ok_or_else(|| invalid(format!("invalid mount {text:?}: {key} needs a value"), ""));
        match key.to_ascii_lowercase().as_str() {
            "type" => mount.kind = needed()?.to_ascii_lowercase(),
            "source" | "src" => mount.source = needed()?.to_owned(),
            "target" | "dst" | "destination" => mount.target = needed()?.to_owned(),
            "readonly" | "ro" => mount.read_only = switch(text, key, value)?,
            "bind-propagation" => bind.propagation = needed()?.to_ascii_lowercase(),
            "bind-nonrecursive" => bind.non_recursive = switch(text, key, value)?,
            "bind-recursive" => match needed()? {
                "enabled" | "readonly" => {}
                "disabled" => bind.non_recursive = true,
                "writable" => bind.read_only_non_recursive = true,
                other => {
                    return Err(invalid(
                        format!("invalid mount {text:?}: bind-recursive={other}"),
                        "enabled, disabled, writable or readonly",
                    ));
                }
            },
            "consistency" => {}
            "volume-nocopy" => volume.no_copy = switch(text, key, value)?,
            "volume-subpath" => volume.subpath = needed()?.to_owned(),
            "volume-driver" => volume.driver_config.name = needed()?.to_owned(),
            "volume-label" => {
                let (key, value) = needed()?.split_once('=').unwrap_or((needed()?, ""));
                volume.labels.insert(key.to_owned(), value.to_owned());
            }
            "volume-opt" => {
                let (key, value) = needed()?.split_once('=').unwrap_or((needed()?, ""));
                volume.driver_config.options.insert(key.to_owned(), value.to_owned());
            }
            "tmpfs-size" => tmpfs.size_bytes = parse::bytes(needed()?)?,
            "tmpfs-mode" => {
                let mode = u32::from_str_radix(needed()?, 8).ok().filter(|mode| *mode <= 0o7777);
                tmpfs.mode = mode.ok_or_else(|| {
                    invalid(format!("invalid mount {text:?}: tmpfs-mode"), "an octal mode, as 1777")
                })?;
            }
            _ => {
                return Err(invalid(
                    format!("invalid mount {text:?}: unknown key {key:?}"),
                    "type, source, target, readonly, bind-propagation, bind-recursive, volume-nocopy, volume-subpath, \
                     volume-label, volume-driver, volume-opt, tmpfs-size, tmpfs-mode",
                ));
            }
        }
    }
    check_mount(text, &mount, &bind, &tmpfs)?;
    if volume != VolumeOptions::default() && mount.kind != "volume" {
        return Err(invalid(
            format!("invalid mount {text:?}: options of a volume"),
            "type=volume,target=/path",
        ));
    }
    mount.volume_options = (volume != VolumeOptions::default()).then_some(volume);
    mount.bind_options = (bind != BindOptions::default()).then_some(bind);
    mount.tmpfs_options = (tmpfs != TmpfsOptions::default()).then_some(tmpfs);
    Ok(mount)
}

/// Fields of a line of CSV, as Docker reads it: one in double quotes may hold commas.
fn fields(text: &str) -> Vec<String> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    for character in text.chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => fields.last_mut().into_iter().for_each(|field| field.push(other)),
        }
    }
    fields
}

fn switch(text: &str, key: &str, value: Option<&str>) -> Result<bool> {
    let Some(value) = value else { return Ok(true) };
    parse::boolean(value)
        .ok_or_else(|| invalid(format!("invalid mount {text:?}: {key}={value}"), "true or false"))
}

fn check_mount(text: &str, mount: &MountConfig, bind: &BindOptions, tmpfs: &TmpfsOptions) -> Result<()> {
    let wrong = |what: &str| {
        Err(invalid(
            format!("invalid mount {text:?}: {what}"),
            "type=bind,source=/host/path,target=/path, type=volume,source=NAME,target=/path or type=tmpfs,target=/path",
        ))
    };
    match mount.kind.as_str() {
        "bind" if mount.source.is_empty() => return wrong("a bind mount needs a source"),
        "bind" if !mount.source.starts_with('/') => return wrong("the source must be an absolute path"),
        "bind" if *tmpfs != TmpfsOptions::default() => return wrong("tmpfs options on a bind mount"),
        "tmpfs" if !mount.source.is_empty() => return wrong("a tmpfs has no source"),
        "tmpfs" if *bind != BindOptions::default() => return wrong("bind options on a tmpfs"),
        "volume" if *bind != BindOptions::default() => return wrong("bind options on a volume"),
        "volume" if *tmpfs != TmpfsOptions::default() => return wrong("tmpfs options on a volume"),
        "volume" if !mount.source.is_empty() => volumes::check_name(&mount.source)?,
        "bind" | "tmpfs" | "volume" => {}
        other => return wrong(&format!("unknown type {other:?}")),
    }
    if !bind.propagation.is_empty() && !PROPAGATIONS.contains(&bind.propagation.as_str()) {
        return wrong("unknown bind-propagation");
    }
    if mount.target.is_empty() {
        return wrong("it needs a target");
    }
    check_destination(text, &mount.target)
}

/// What a path of the host given with `-v` becomes.
pub(crate) fn point_of_bind(bind: &Bind) -> MountPoint {
    MountPoint {
        source: bind.source.clone(),
        destination: normalize(&bind.destination),
        mode: bind.mode.clone(),
        read_only: bind.read_only,
        propagation: bind.propagation.clone(),
        ..MountPoint::default()
    }
}

/// What a mount given with `--mount` becomes, but for a volume.
pub(crate) fn point_of_mount(mount: &MountConfig) -> MountPoint {
    let point = MountPoint {
        destination: normalize(&mount.target),
        read_only: mount.read_only,
        ..MountPoint::default()
    };
    if mount.kind == "tmpfs" {
        return MountPoint { kind: PointKind::Tmpfs, options: tmpfs_config_options(mount), ..point };
    }
    let bind = mount.bind_options.clone().unwrap_or_default();
    MountPoint {
        source: mount.source.clone(),
        propagation: if bind.propagation.is_empty() { "rprivate".into() } else { bind.propagation },
        non_recursive: bind.non_recursive,
        read_only_non_recursive: bind.read_only_non_recursive,
        ..point
    }
}

/// All mounts of an instance, parents before what lies below them.
///
/// # Errors
/// Two have the same destination, or an option means nothing at the level.
pub fn build(points: &[MountPoint], host: &HostConfig, level: IsolationLevel) -> Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for point in points {
        mounts.push(match point.kind {
            PointKind::Bind => bind_mount(point, level)?,
            PointKind::Volume => volume_mount(point, host),
            PointKind::Tmpfs => tmpfs_mount(&point.destination, &point.options),
        });
    }
    for (path, options) in &host.tmpfs {
        if !path.starts_with('/') || normalize(path) == "/" {
            return Err(invalid(
                format!("invalid tmpfs {path:?}: an absolute path is needed, and not the root"),
                "",
            ));
        }
        let options: Vec<String> =
            options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
        mounts.push(tmpfs_mount(path, &options));
    }
    mounts.sort_by_key(|mount| mount.destination.matches('/').count());
    let mut seen = std::collections::BTreeSet::new();
    match mounts.iter().find(|mount| !seen.insert(&mount.destination)) {
        Some(twice) => Err(Error::invalid(format!("two mounts on {}", twice.destination))),
        None => Ok(mounts),
    }
}

fn bind_mount(point: &MountPoint, level: IsolationLevel) -> Result<Mount> {
    let propagation = &point.propagation;
    if level == IsolationLevel::Vm && !propagation.ends_with("private") {
        return Err(Error::unsupported(
            format!(
                "mount propagation {propagation} of {} means nothing at isolation level vm",
                point.destination
            ),
            "a guest has mounts of its own: leave it out",
        ));
    }
    Ok(bound(point, propagation))
}

/// The owners of a volume's files are those inside, whatever ids of the host the instance has.
fn volume_mount(point: &MountPoint, host: &HostConfig) -> Mount {
    let mut mount = bound(point, "rprivate");
    let has_own_ids = !matches!(host.userns_mode.as_str(), "" | "host");
    if has_own_ids && proa_sys::userns::is_initial() {
        mount.options.push("ridmap".into());
    }
    mount
}

fn bound(point: &MountPoint, propagation: &str) -> Mount {
    let bind_kind = if point.non_recursive { "bind" } else { "rbind" };
    let mut options = vec![bind_kind.to_owned(), propagation.to_owned()];
    if point.read_only {
        let recursive = !point.non_recursive && !point.read_only_non_recursive;
        options.push(if recursive { "rro" } else { "ro" }.to_owned());
    }
    Mount {
        destination: point.destination.clone(),
        kind: Some("bind".into()),
        source: Some(point.source.clone()),
        options,
        ..Mount::default()
    }
}

fn tmpfs_config_options(mount: &MountConfig) -> Vec<String> {
    let options = mount.tmpfs_options.clone().unwrap_or_default();
    let mut texts = Vec::new();
    if options.size_bytes > 0 {
        texts.push(format!("size={}", options.size_bytes));
    }
    if options.mode != 0 {
        texts.push(format!("mode={:o}", options.mode));
    }
    if mount.read_only {
        texts.push("ro".into());
    }
    texts
}

fn tmpfs_mount(destination: &str, given: &[String]) -> Mount {
    let mut options: Vec<String> = ["noexec", "nosuid", "nodev"].map(String::from).to_vec();
    for option in given {
        // `exec` undoes `noexec` and so on; the last word counts.
        let opposite = option.strip_prefix("no").map_or_else(|| format!("no{option}"), str::to_owned);
        options.retain(|known| *known != opposite && known != option);
        options.push(option.clone());
    }
    Mount {
        destination: normalize(destination),
        kind: Some("tmpfs".into()),
        source: Some("tmpfs".into()),
        options,
        ..Mount::default()
    }
}

/// Makes the sources of `-v` that do not exist, as Docker does, and checks those of `--mount`.
///
/// # Errors
/// A source of `--mount` does not exist, or a directory cannot be made.
pub fn prepare_sources(host: &HostConfig) -> Result<()> {
    for text in &host.binds {
        let bind = parse_bind(text)?;
        let source = Path::new(&bind.source);
        if !bind.is_volume() && !source.exists() {
            std::fs::create_dir_all(source).map_err(|error| Error::io("make directory", source, error))?;
        }
    }
    for mount in host.mounts.iter().filter(|mount| mount.kind == "bind") {
        let create = mount.bind_options.as_ref().is_some_and(|bind| bind.create_mountpoint);
        let source = Path::new(&mount.source);
        if !create && !source.exists() {
            return Err(invalid(
                format!("bind source path does not exist: {}", mount.source),
                "make it first, or use -v, which makes it",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_of_v() {
        let bind = parse_bind("/a:/b:ro,rshared").unwrap();
        assert_eq!((bind.source.as_str(), bind.destination.as_str()), ("/a", "/b"));
        assert!(bind.read_only);
        assert_eq!(bind.propagation, "rshared");
        assert!(!parse_bind("/a:/b:z").unwrap().read_only);
        for text in [
            "",
            "/only",
            "n:/b",
            ":/b",
            "/a:b",
            "/a:/",
            "/a:/x/..",
            "/a:/b:fast",
            "/a:/b:ro:x",
            "/a:",
            "/a:/b:nocopy",
            "name:/b:rshared",
            "na/me:/b",
        ] {
            assert!(parse_bind(text).is_err(), "{text}");
        }
        let volume = parse_bind("name:/b:nocopy,rprivate").unwrap();
        assert!(volume.is_volume() && volume.no_copy && !bind.is_volume());
    }

    #[test]
    fn mounts_of_mount() {
        let mount = parse_mount("type=bind,src=/a,dst=/b,readonly,bind-propagation=rslave").unwrap();
        assert_eq!((mount.kind.as_str(), mount.source.as_str(), mount.target.as_str()), ("bind", "/a", "/b"));
        assert!(mount.read_only);
        assert_eq!(mount.bind_options.unwrap().propagation, "rslave");
        let mount = parse_mount("type=tmpfs,target=/t,tmpfs-size=8m,tmpfs-mode=700").unwrap();
        assert_eq!(mount.tmpfs_options.unwrap(), TmpfsOptions { size_bytes: 8 << 20, mode: 0o700 });
        assert!(!parse_mount("type=bind,src=/a,dst=/b,ro=false").unwrap().read_only);
        let text = "src=data,dst=/b,volume-nocopy,volume-subpath=a/b,volume-label=x=1,volume-opt=type=tmpfs,\"volume-opt=o=size=1m,ro\"";
        let mount = parse_mount(text).unwrap();
        assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("volume", "data"));
        let options = mount.volume_options.unwrap();
        assert!(options.no_copy && options.subpath == "a/b" && options.labels["x"] == "1");
        assert_eq!(options.driver_config.options["o"], "size=1m,ro");
        assert!(parse_mount("type=volume,target=/b").unwrap().source.is_empty());
        for text in [
            "",
            "type=bind",
            "type=bind,source=/a",
            "type=bind,source=a,target=/b",
            "type=bind,source=/a,target=/b,readonly=maybe",
            "type=bind,source=/a,target=/b,tmpfs-size=1m",
            "type=tmpfs,source=/a,target=/b",
            "type=tmpfs,target=/b,tmpfs-mode=9",
            "type=volume,source=/a,target=/b",
            "type=volume,target=/b,tmpfs-size=1m",
            "type=volume,target=/b,bind-propagation=shared",
            "type=tmpfs,target=/b,volume-nocopy",
            "source=/a,target=/b",
            "type=bind,source=/a,target=/b,colour=red",
        ] {
            assert!(parse_mount(text).is_err(), "{text}");
        }
    }

    fn built(host: &HostConfig, level: IsolationLevel) -> Result<Vec<Mount>> {
        let points: Result<Vec<MountPoint>> =
            host.binds.iter().map(|text| Ok(point_of_bind(&parse_bind(text)?))).collect();
        build(&points?, host, level)
    }

    #[test]
    fn parents_are_mounted_first() {
        let host = HostConfig {
            binds: vec!["/a:/x/y:ro".into(), "/b:/x".into()],
            tmpfs: [("/scratch".to_owned(), "size=8m,exec".to_owned())].into(),
            ..HostConfig::default()
        };
        let mounts = built(&host, IsolationLevel::Container).unwrap();
        let order: Vec<&str> = mounts.iter().map(|mount| mount.destination.as_str()).collect();
        assert_eq!(order, ["/x", "/scratch", "/x/y"]);
        assert_eq!(mounts[1].options, ["nosuid", "nodev", "size=8m", "exec"]);
        assert_eq!(mounts[2].options, ["rbind", "rprivate", "rro"]);
    }

    #[test]
    fn one_destination_has_one_mount() {
        let host = HostConfig { binds: vec!["/a:/x".into(), "/b:/x/".into()], ..HostConfig::default() };
        assert!(built(&host, IsolationLevel::Container).unwrap_err().to_string().contains("/x"));
    }

    #[test]
    fn propagation_means_nothing_in_a_guest() {
        let host = HostConfig { binds: vec!["/a:/x:rshared".into()], ..HostConfig::default() };
        assert!(built(&host, IsolationLevel::Container).is_ok());
        assert!(built(&host, IsolationLevel::Vm).is_err());
    }
}
