//! `-v`, `--mount` and `--tmpfs`: their texts, and the mounts they become.

use std::path::{Component, Path};

use proa_oci::runtime::Mount;
use proa_protocol::instance::IsolationLevel;

use crate::config::{BindOptions, HostConfig, MountConfig, TmpfsOptions};
use crate::error::{Error, Result};
use crate::parse;

const PROPAGATIONS: &[&str] = &["private", "rprivate", "shared", "rshared", "slave", "rslave"];

/// One mount an instance was asked to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Absolute path on the host.
    pub source: String,
    /// Absolute path in the instance.
    pub destination: String,
    /// Options as the user wrote them.
    pub mode: String,
    /// No writing.
    pub read_only: bool,
    /// `rprivate`, `shared`, …
    pub propagation: String,
}

fn invalid(message: String, hint: &str) -> Error {
    Error::Invalid { message, hint: hint.to_owned() }
}

fn named_volume(text: &str) -> Error {
    Error::unsupported(
        format!("named and anonymous volumes are not there yet: {text:?}"),
        "give an absolute host path: -v /host/path:/path",
    )
}

/// Reads `source:destination[:options]` of `-v`.
///
/// # Errors
/// It has another form, or names a volume instead of a host path.
pub fn parse_bind(text: &str) -> Result<Bind> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, mode) = match parts[..] {
        [source, destination] => (source, destination, ""),
        [source, destination, mode] => (source, destination, mode),
        [_] => return Err(named_volume(text)),
        _ => return Err(invalid(format!("invalid volume {text:?}"), "HOST-PATH:PATH[:ro]")),
    };
    if source.is_empty() {
        return Err(invalid(format!("invalid volume {text:?}: no source"), "HOST-PATH:PATH[:ro]"));
    }
    if !source.starts_with('/') {
        return Err(named_volume(text));
    }
    check_destination(text, destination)?;
    let mut bind = Bind {
        source: source.to_owned(),
        destination: destination.to_owned(),
        mode: mode.to_owned(),
        read_only: false,
        propagation: "rprivate".into(),
    };
    for option in mode.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => bind.read_only = true,
            // Relabelling has no meaning where SELinux is not in force, and consistency none on Linux.
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            propagation if PROPAGATIONS.contains(&propagation) => bind.propagation = propagation.to_owned(),
            other => {
                return Err(invalid(
                    format!("invalid volume {text:?}: unknown option {other:?}"),
                    "ro, rw, z, Z, shared, rshared, slave, rslave, private, rprivate",
                ));
            }
        }
    }
    Ok(bind)
}

fn check_destination(text: &str, destination: &str) -> Result<()> {
    if !destination.starts_with('/') {
        return Err(invalid(
            format!("invalid volume {text:?}: the path inside must be absolute"),
            "HOST-PATH:/PATH",
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
/// It has another form, or another type than bind and tmpfs.
pub fn parse_mount(text: &str) -> Result<MountConfig> {
    let mut mount = MountConfig { kind: "volume".into(), ..MountConfig::default() };
    let mut bind = BindOptions::default();
    let mut tmpfs = TmpfsOptions::default();
    for field in text.split(',') {
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
                    "type, source, target, readonly, bind-propagation, bind-recursive, tmpfs-size, tmpfs-mode",
                ));
            }
        }
    }
    check_mount(text, &mount, &bind, &tmpfs)?;
    mount.bind_options = (bind != BindOptions::default()).then_some(bind);
    mount.tmpfs_options = (tmpfs != TmpfsOptions::default()).then_some(tmpfs);
    Ok(mount)
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
            "type=bind,source=/host/path,target=/path or type=tmpfs,target=/path",
        ))
    };
    match mount.kind.as_str() {
        "bind" if mount.source.is_empty() => return wrong("a bind mount needs a source"),
        "bind" if !mount.source.starts_with('/') => return wrong("the source must be an absolute path"),
        "bind" if *tmpfs != TmpfsOptions::default() => return wrong("tmpfs options on a bind mount"),
        "tmpfs" if !mount.source.is_empty() => return wrong("a tmpfs has no source"),
        "tmpfs" if *bind != BindOptions::default() => return wrong("bind options on a tmpfs"),
        "bind" | "tmpfs" => {}
        "volume" => return Err(named_volume(text)),
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

/// All mounts of an instance, parents before what lies below them.
///
/// # Errors
/// Two have the same destination, a source is missing, or an option means nothing at the level.
pub fn build(host: &HostConfig, level: IsolationLevel) -> Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for text in &host.binds {
        let bind = parse_bind(text)?;
        let options = BindOptions { propagation: bind.propagation, ..BindOptions::default() };
        mounts.push(bind_mount(&bind.source, &bind.destination, bind.read_only, &options, level)?);
    }
    for mount in &host.mounts {
        if mount.kind == "bind" {
            let options = mount.bind_options.clone().unwrap_or_default();
            mounts.push(bind_mount(&mount.source, &mount.target, mount.read_only, &options, level)?);
        } else {
            mounts.push(tmpfs_mount(&mount.target, &tmpfs_config_options(mount)));
        }
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

fn bind_mount(
    source: &str,
    destination: &str,
    read_only: bool,
    bind: &BindOptions,
    level: IsolationLevel,
) -> Result<Mount> {
    let propagation = if bind.propagation.is_empty() { "rprivate" } else { &bind.propagation };
    if level == IsolationLevel::Vm && !propagation.ends_with("private") {
        return Err(Error::unsupported(
            format!("mount propagation {propagation} of {destination} means nothing at isolation level vm"),
            "a guest has mounts of its own: leave it out",
        ));
    }
    let bind_kind = if bind.non_recursive { "bind" } else { "rbind" };
    let mut options = vec![bind_kind.to_owned(), propagation.to_owned()];
    if read_only {
        let recursive = !bind.non_recursive && !bind.read_only_non_recursive;
        options.push(if recursive { "rro" } else { "ro" }.to_owned());
    }
    Ok(Mount {
        destination: normalize(destination),
        kind: Some("bind".into()),
        source: Some(source.to_owned()),
        options,
        ..Mount::default()
    })
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
        if !source.exists() {
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
        for text in
            ["", "/only", "name:/b", ":/b", "/a:b", "/a:/", "/a:/x/..", "/a:/b:fast", "/a:/b:ro:x", "/a:"]
        {
            assert!(parse_bind(text).is_err(), "{text}");
        }
        assert!(parse_bind("name:/b").unwrap_err().to_string().contains("volumes"));
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
        for text in [
            "",
            "type=bind",
            "type=bind,source=/a",
            "type=bind,source=a,target=/b",
            "type=bind,source=/a,target=/b,readonly=maybe",
            "type=bind,source=/a,target=/b,tmpfs-size=1m",
            "type=tmpfs,source=/a,target=/b",
            "type=tmpfs,target=/b,tmpfs-mode=9",
            "type=volume,target=/b",
            "source=/a,target=/b",
            "type=bind,source=/a,target=/b,colour=red",
        ] {
            assert!(parse_mount(text).is_err(), "{text}");
        }
    }

    #[test]
    fn parents_are_mounted_first() {
        let host = HostConfig {
            binds: vec!["/a:/x/y:ro".into(), "/b:/x".into()],
            tmpfs: [("/scratch".to_owned(), "size=8m,exec".to_owned())].into(),
            ..HostConfig::default()
        };
        let mounts = build(&host, IsolationLevel::Container).unwrap();
        let order: Vec<&str> = mounts.iter().map(|mount| mount.destination.as_str()).collect();
        assert_eq!(order, ["/x", "/scratch", "/x/y"]);
        assert_eq!(mounts[1].options, ["nosuid", "nodev", "size=8m", "exec"]);
        assert_eq!(mounts[2].options, ["rbind", "rprivate", "rro"]);
    }

    #[test]
    fn one_destination_has_one_mount() {
        let host = HostConfig { binds: vec!["/a:/x".into(), "/b:/x/".into()], ..HostConfig::default() };
        assert!(build(&host, IsolationLevel::Container).unwrap_err().to_string().contains("/x"));
    }

    #[test]
    fn propagation_means_nothing_in_a_guest() {
        let host = HostConfig { binds: vec!["/a:/x:rshared".into()], ..HostConfig::default() };
        assert!(build(&host, IsolationLevel::Container).is_ok());
        assert!(build(&host, IsolationLevel::Vm).is_err());
    }
}
