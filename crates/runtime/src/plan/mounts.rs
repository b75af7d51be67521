//! Mount options: which are attributes of the mount, which go to the file system.

use proa_oci::runtime::Mount;
use proa_sys::mount::{
    ATIME, MountAttr, NOATIME, NODEV, NODIRATIME, NOEXEC, NOSUID, NOSYMFOLLOW, PRIVATE, RDONLY, SHARED,
    SLAVE, STRICTATIME, UNBINDABLE,
};

use crate::{Error, Result};

/// One mount, checked.
#[derive(Debug, PartialEq)]
pub(crate) struct MountPlan<'a> {
    /// Absolute path inside the container.
    pub destination: &'a str,
    /// What is mounted.
    pub source: MountSource<'a>,
    /// Attributes of the mount itself.
    pub attr: MountAttr,
    /// Attributes of the mounts below it too (`rro` and the like); none is all zero.
    pub recursive: MountAttr,
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
}

/// A bind mount.
#[derive(Debug, PartialEq)]
pub(crate) struct Bind<'a> {
    /// Host path.
    pub path: &'a str,
    /// With the mounts below it.
    pub recursive: bool,
    /// Propagation, for all of them.
    pub propagation: u64,
}

/// A new instance of a file system.
#[derive(Debug, PartialEq)]
pub(crate) struct Filesystem<'a> {
    /// Its type.
    pub kind: &'a str,
    /// Its options.
    pub options: Vec<(&'a str, Option<&'a str>)>,
}

impl<'a> MountPlan<'a> {
    pub(crate) fn new(mount: &'a Mount) -> Result<Self> {
        let destination = mount.destination.as_str();
        let invalid = |what: String| Err(Error::invalid(format!("mount {destination}: {what}")));
        if !destination.starts_with('/') {
            return invalid("the destination is not an absolute path".to_owned());
        }
        if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
            return Err(Error::unsupported(format!(
                "mount {destination}: id-mapped mounts are not supported"
            )));
        }
        let mut parsed = Options::default();
        mount.options.iter().for_each(|option| parsed.add(option));
        let kind = mount.kind.as_deref().unwrap_or("bind");
        let is_bind = parsed.bind.is_some() || matches!(kind, "bind" | "none" | "rbind");
        if is_bind && let Some((name, _)) = parsed.rest.first() {
            return invalid(format!("option '{name}' is not known for a bind mount"));
        }
        let source = match (is_bind, kind, mount.source.as_deref()) {
            (true, _, Some(path)) if path.starts_with('/') => {
                let recursive = parsed.bind.unwrap_or(kind == "rbind");
                let propagation = parsed.propagation.unwrap_or(PRIVATE);
                MountSource::Bind(Bind { path, recursive, propagation })
            }
            (true, ..) => return invalid("the source is not an absolute path".to_owned()),
            (_, "cgroup" | "cgroup2", _) => MountSource::Cgroup,
            (_, kind @ ("proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue"), _) => {
                MountSource::New(Filesystem { kind, options: parsed.rest })
            }
            (_, kind, _) => return invalid(format!("file system '{kind}' is not supported")),
        };
        // Invariant 11: nodes that a container makes cannot be opened. On devpts none can be made, and its
        // terminals must be.
        if !matches!(&source, MountSource::New(Filesystem { kind: "devpts", .. })) {
            parsed.attr.set |= NODEV & !parsed.attr.clear;
        }
        Ok(Self { destination, source, attr: parsed.attr, recursive: parsed.recursive })
    }

    /// Whether a symbolic link in the destination would be an attack: the kernel's own file systems belong
    /// where they belong (CVE-2019-19921, CVE-2023-27561).
    pub(crate) fn must_be_real(&self) -> bool {
        match &self.source {
            MountSource::Bind(_) => false,
            MountSource::Cgroup => true,
            MountSource::New(new) => new.kind != "tmpfs" || self.destination.starts_with("/dev"),
        }
    }
}

#[derive(Default)]
struct Options<'a> {
    attr: MountAttr,
    recursive: MountAttr,
    bind: Option<bool>,
    propagation: Option<u64>,
    rest: Vec<(&'a str, Option<&'a str>)>,
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
            // nodiratime's opposite and such are what a new mount has anyway.
            "" | "defaults" | "async" | "nolazytime" => {}
            "bind" => self.bind = Some(false),
            "rbind" => self.bind = Some(true),
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

fn change(attr: &mut MountAttr, set: u64, clear: u64) {
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
        let plan = MountPlan::new(&tmpfs).unwrap();
        assert_eq!(
            plan.attr,
            MountAttr { set: NOSUID | STRICTATIME | RDONLY | NODEV, clear: ATIME, ..MountAttr::default() }
        );
        let MountSource::New(new) = plan.source else { panic!() };
        assert_eq!(new.options, [("mode", Some("755")), ("size", Some("1k"))]);
        let bind = mount("bind", &["rbind", "rro", "rshared"]);
        let plan = MountPlan::new(&bind).unwrap();
        assert_eq!(plan.recursive.set, RDONLY);
        assert_eq!(
            plan.source,
            MountSource::Bind(Bind { path: "/src", recursive: true, propagation: SHARED })
        );
    }

    #[test]
    fn nodev_unless_asked_otherwise() {
        assert_eq!(MountPlan::new(&mount("bind", &[])).unwrap().attr.set, NODEV);
        let dev = MountPlan::new(&mount("bind", &["dev"])).unwrap().attr;
        assert_eq!((dev.set, dev.clear), (0, NODEV));
    }

    #[test]
    fn unknown_things_are_refused() {
        assert!(MountPlan::new(&mount("bind", &["sise=3"])).unwrap_err().to_string().contains("sise"));
        assert!(MountPlan::new(&mount("nfs", &[])).is_err());
        assert!(MountPlan::new(&Mount { destination: "data".into(), ..mount("bind", &[]) }).is_err());
        assert!(MountPlan::new(&Mount { source: Some("rel".into()), ..mount("bind", &[]) }).is_err());
    }
}
