//! Mount options: which are attributes of the mount, which go to the file system.

use proa_oci::runtime::{IdMapping, Mount};
use proa_sys::mount::{
    ATIME, MountAttr, NOATIME, NODEV, NODIRATIME, NOEXEC, NOSUID, NOSYMFOLLOW, PRIVATE, RDONLY, SHARED,
    SLAVE, STRICTATIME, UNBINDABLE,
};

use crate::{Error, Result};

/// One mount, checked.
#[derive(Debug, PartialEq)]
pub(crate) struct MountPlan<'a> {
    /// Path inside the container; one that is not absolute is relative to the root.
    pub destination: &'a str,
    /// What is mounted.
    pub source: MountSource<'a>,
    /// Attributes of the mount itself.
    pub attr: MountAttr,
    /// Attributes of the mounts below it too (`rro` and the like); none is all zero.
    pub recursive: MountAttr,
    /// Ids are mapped.
    pub idmap: Option<IdMap<'a>>,
}

/// What is mounted.
#[derive(Debug, PartialEq)]
pub(crate) enum MountSource<'a> {
    /// A host path.
    Bind(Bind<'a>),
    /// A new instance of a file system.
    New(Filesystem<'a>),
    /// The container's own cgroups.
    Cgroup,
    /// Nothing: what is mounted there already gets other attributes and options.
    Remount(Vec<FsOption<'a>>),
}

/// An option of a file system and its value.
pub(crate) type FsOption<'a> = (&'a str, Option<&'a str>);

/// A bind mount.
#[derive(Debug, PartialEq)]
pub(crate) struct Bind<'a> {
    /// Host path; one that is not absolute is relative to the bundle.
    pub path: &'a str,
    /// With the mounts below it.
    pub recursive: bool,
    /// Propagation, for all of them.
    pub propagation: u64,
}

/// How ids of an id-mapped mount translate.
#[derive(Debug, PartialEq)]
pub(crate) struct IdMap<'a> {
    /// Of users and of groups; empty for the map of the container's user namespace.
    pub maps: [&'a [IdMapping]; 2],
    /// For the mounts below it too.
    pub recursive: bool,
}

/// A new instance of a file system.
#[derive(Debug, PartialEq)]
pub(crate) struct Filesystem<'a> {
    /// Its type.
    pub kind: &'a str,
    /// What it is made from, or a name that it shows.
    pub source: Option<&'a str>,
    /// Its options.
    pub options: Vec<FsOption<'a>>,
    /// Propagation, where it is asked for.
    pub propagation: Option<u64>,
    /// A tmpfs that begins with what lies under it.
    pub copy_up: bool,
}

impl<'a> MountPlan<'a> {
    pub(crate) fn new(mount: &'a Mount, warnings: &mut Vec<String>) -> Result<Self> {
        let destination = match mount.destination.trim_end_matches('/') {
            "" if mount.destination.starts_with('/') => "/",
            trimmed => trimmed,
        };
        let invalid = |what: String| Err(Error::invalid(format!("mount {destination}: {what}")));
        if destination.is_empty() || destination == "/" {
            return invalid("the destination must be below the root".to_owned());
        }
        let mut parsed = Options::default();
        mount.options.iter().for_each(|option| parsed.add(option));
        let kind = mount.kind.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("bind");
        let is_bind = parsed.bind.is_some() || matches!(kind, "bind" | "none" | "rbind");
        // The file system is there already, with its own options, and the kernel does not look at these.
        if is_bind {
            let ignored = |(name, _): FsOption| {
                format!("mount {destination}: option '{name}' has no effect on a bind mount")
            };
            warnings.extend(parsed.rest.drain(..).map(ignored));
        }
        if parsed.copy_up && (is_bind || kind != "tmpfs") {
            return invalid("tmpcopyup is for a tmpfs".to_owned());
        }
        let idmap = idmap(mount, &parsed, is_bind)
            .map_err(|what| Error::invalid(format!("mount {destination}: {what}")))?;
        let source = match (is_bind, kind, mount.source.as_deref().filter(|source| !source.is_empty())) {
            _ if parsed.remount => {
                MountSource::Remount(parsed.superblock.into_iter().chain(parsed.rest).collect())
            }
            (true, _, Some(path)) => {
                let recursive = parsed.bind.unwrap_or(kind == "rbind");
                let propagation = parsed.propagation.unwrap_or(PRIVATE);
                MountSource::Bind(Bind { path, recursive, propagation })
            }
            (true, ..) => return invalid("a bind mount has no source".to_owned()),
            (_, "cgroup" | "cgroup2", _) => MountSource::Cgroup,
            (_, kind, source) => MountSource::New(Filesystem {
                kind,
                source,
                options: parsed.superblock.into_iter().chain(parsed.rest).collect(),
                propagation: parsed.propagation,
                copy_up: parsed.copy_up,
            }),
        };
        if source == MountSource::Cgroup {
            // Each hierarchy is a mount below it.
            change(&mut parsed.attr, parsed.recursive.set, parsed.recursive.clear);
        }
        Ok(Self { destination, source, attr: parsed.attr, recursive: parsed.recursive, idmap })
    }

    /// Invariant 11: nodes that a container makes cannot be opened, unless the spec says `dev`. On devpts none can
    /// be made, and its terminals must be opened.
    pub(crate) fn bind_devices(&mut self) {
        match &self.source {
            MountSource::New(Filesystem { kind: "devpts", .. }) | MountSource::Remount(_) => return,
            MountSource::Bind(_) => self.recursive.set |= NODEV & !self.attr.clear & !self.recursive.clear,
            _ => {}
        }
        self.attr.set |= NODEV & !self.attr.clear;
    }

    /// Whether a symbolic link in the destination would be an attack: the kernel's own file systems belong
    /// where they belong (CVE-2019-19921, CVE-2023-27561).
    pub(crate) fn must_be_real(&self) -> bool {
        match &self.source {
            MountSource::Bind(_) | MountSource::Remount(_) => false,
            MountSource::Cgroup => true,
            MountSource::New(new) => match new.kind {
                "proc" | "sysfs" | "devpts" | "mqueue" => true,
                _ => self.destination.trim_start_matches('/').starts_with("dev"),
            },
        }
    }
}

/// The id map of a mount, if it has one.
fn idmap<'a>(mount: &'a Mount, parsed: &Options, is_bind: bool) -> Result<Option<IdMap<'a>>, String> {
    let maps = [&mount.uid_mappings[..], &mount.gid_mappings[..]];
    let is_mapped = maps.iter().any(|map| !map.is_empty());
    if parsed.idmap.is_none() && !is_mapped {
        return Ok(None);
    }
    if maps[0].is_empty() != maps[1].is_empty() {
        return Err("an id-mapped mount needs both uidMappings and gidMappings".to_owned());
    }
    if !is_bind || parsed.remount {
        return Err("only bind mounts can be id-mapped".to_owned());
    }
    Ok(Some(IdMap { maps, recursive: parsed.idmap.unwrap_or(false) }))
}

/// Whether this is an option of mounts themselves, and not one that a file system may or may not have.
pub fn knows_mount_option(option: &str) -> bool {
    let mut parsed = Options::default();
    parsed.add(option);
    parsed.rest.is_empty()
}

#[derive(Default)]
struct Options<'a> {
    attr: MountAttr,
    recursive: MountAttr,
    bind: Option<bool>,
    remount: bool,
    idmap: Option<bool>,
    copy_up: bool,
    propagation: Option<u64>,
    /// Flags of the file system itself.
    superblock: Vec<FsOption<'a>>,
    rest: Vec<FsOption<'a>>,
}

impl<'a> Options<'a> {
    fn add(&mut self, option: &'a str) {
        if let Some((set, clear)) = attribute(option) {
            return change(&mut self.attr, set, clear);
        }
        if let Some((set, clear)) = option.strip_prefix('r').and_then(attribute) {
            return change(&mut self.recursive, set, clear);
        }
        match option {
            // What a mount is anyway, or what only the kernel's log would tell.
            "" | "defaults" | "norelatime" | "rnorelatime" | "iversion" | "noiversion" | "silent"
            | "loud" => {}
            "sync" | "async" | "dirsync" | "lazytime" | "nolazytime" | "mand" | "nomand" => {
                self.superblock.push((option, None));
            }
            "bind" => self.bind = Some(false),
            "rbind" => self.bind = Some(true),
            "remount" => self.remount = true,
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            "tmpcopyup" => self.copy_up = true,
            "private" | "rprivate" => self.propagation = Some(PRIVATE),
            "slave" | "rslave" => self.propagation = Some(SLAVE),
            "shared" | "rshared" => self.propagation = Some(SHARED),
            "unbindable" | "runbindable" => self.propagation = Some(UNBINDABLE),
            _ => self.rest.push(match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            }),
        }
    }
}

/// Sets and clears attributes, whatever was said of them before.
pub(crate) fn change(attr: &mut MountAttr, set: u64, clear: u64) {
    attr.set = attr.set & !clear | set;
    attr.clear = attr.clear & !set | clear;
}

/// Attributes that an option sets and clears.
fn attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (RDONLY, 0),
        "rw" => (0, RDONLY),
        "nosuid" => (NOSUID, 0),
        "suid" => (0, NOSUID),
        "nodev" => (NODEV, 0),
        "dev" => (0, NODEV),
        "noexec" => (NOEXEC, 0),
        "exec" => (0, NOEXEC),
        "nodiratime" => (NODIRATIME, 0),
        "diratime" => (0, NODIRATIME),
        "relatime" | "atime" | "nostrictatime" => (0, ATIME),
        "noatime" => (NOATIME, ATIME),
        "strictatime" => (STRICTATIME, ATIME),
        "nosymfollow" => (NOSYMFOLLOW, 0),
        "symfollow" => (0, NOSYMFOLLOW),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(mount: &Mount) -> Result<MountPlan<'_>> {
        MountPlan::new(mount, &mut Vec::new())
    }

    fn mount(kind: &str, options: &[&str]) -> Mount {
        Mount {
            destination: "/data".into(),
            kind: Some(kind.into()),
            source: Some("/src".into()),
            options: options.iter().map(ToString::to_string).collect(),
            ..Mount::default()
        }
    }

    #[test]
    fn options_find_their_place() {
        let tmpfs = mount("tmpfs", &["nosuid", "strictatime", "mode=755", "size=1k", "ro"]);
        let plan = planned(&tmpfs).unwrap();
        assert_eq!(
            plan.attr,
            MountAttr { set: NOSUID | STRICTATIME | RDONLY, clear: ATIME, ..MountAttr::default() }
        );
        let MountSource::New(new) = plan.source else { panic!() };
        assert_eq!(new.options, [("mode", Some("755")), ("size", Some("1k"))]);
        let bind = mount("bind", &["rbind", "rro", "rshared"]);
        let plan = planned(&bind).unwrap();
        assert_eq!(plan.recursive.set, RDONLY);
        assert_eq!(
            plan.source,
            MountSource::Bind(Bind { path: "/src", recursive: true, propagation: SHARED })
        );
    }

    #[test]
    fn nodev_unless_asked_otherwise() {
        let attr = |kind: &str, options: &[&str]| {
            let mount = mount(kind, options);
            let mut plan = planned(&mount).unwrap();
            plan.bind_devices();
            (plan.attr.set & NODEV, plan.recursive.set & NODEV)
        };
        assert_eq!(attr("bind", &[]), (NODEV, NODEV));
        assert_eq!(attr("bind", &["dev"]), (0, 0));
        assert_eq!(attr("tmpfs", &[]), (NODEV, 0));
        assert_eq!(attr("devpts", &[]), (0, 0));
    }

    #[test]
    fn file_systems_of_any_kind() {
        let ext4 = mount("ext4", &["sync", "data=journal", "rslave", "norelatime", "silent"]);
        let MountSource::New(new) = planned(&ext4).unwrap().source else { panic!() };
        assert_eq!((new.kind, new.source, new.propagation), ("ext4", Some("/src"), Some(SLAVE)));
        assert_eq!(new.options, [("sync", None), ("data", Some("journal"))]);
        let remount = mount("tmpfs", &["remount", "ro", "size=1k"]);
        let plan = planned(&remount).unwrap();
        assert_eq!(plan.source, MountSource::Remount(vec![("size", Some("1k"))]));
        assert_eq!(plan.attr.set, RDONLY);
    }

    #[test]
    fn id_maps_belong_to_bind_mounts() {
        let map = || vec![IdMapping { container_id: 0, host_id: 1000, size: 1 }];
        let mapped = Mount { uid_mappings: map(), gid_mappings: map(), ..mount("bind", &["ridmap"]) };
        let plan = planned(&mapped).unwrap();
        assert!(plan.idmap.is_some_and(|idmap| idmap.recursive && idmap.maps[0][0].host_id == 1000));
        let half = Mount { uid_mappings: map(), ..mount("bind", &[]) };
        assert!(planned(&half).unwrap_err().to_string().contains("both"));
        let tmpfs = mount("tmpfs", &["idmap"]);
        assert!(planned(&tmpfs).unwrap_err().to_string().contains("bind"));
    }

    #[test]
    fn options_of_other_file_systems_are_warned_of_on_bind_mounts() {
        let mut warnings = Vec::new();
        let bind = mount("bind", &["ro", "mode=755", "sise=3"]);
        let plan = MountPlan::new(&bind, &mut warnings).unwrap();
        assert_eq!(plan.attr.set, RDONLY);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("/data") && warnings[0].contains("'mode'"), "{warnings:?}");
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(planned(&mount("bind", &["tmpcopyup"])).is_err());
        assert!(planned(&Mount { destination: "/".into(), ..mount("bind", &[]) }).is_err());
        assert!(planned(&Mount { source: None, ..mount("bind", &[]) }).is_err());
    }
}
