//! The runtime spec checked and turned into plain data before anything is opened or forked: whatever the spec
//! says that cannot be done is refused here, and nothing in it is ignored.

mod mounts;
pub(crate) mod namespaces;
mod numbers;
mod process;

pub use mounts::knows_mount_option;
pub(crate) use mounts::{Bind, Filesystem, FsOption, IdMap, MountPlan, MountSource, change};
pub(crate) use namespaces::Namespaces;
pub use numbers::hex_mask;
pub(crate) use numbers::mask;
pub(crate) use process::{CapabilityPlan, Label, ProcessPlan};

use proa_oci::runtime::{
    Hooks, Linux, MemoryPolicy, Namespace, NamespaceKind, Personality, SPEC_VERSION, Spec,
};
use proa_oci::state::State;
use proa_sys::mount;

use crate::container::Taken;
use crate::{Error, Result, hooks, netdev};

/// What the first process of a container sets up.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// Names the session keyring.
    pub id: &'a str,
    /// The spec's Linux section.
    pub linux: &'a Linux,
    /// Its hooks, if it has any.
    pub hooks: Option<&'a Hooks>,
    /// What hooks and listeners are told, but for the status, the process and the bundle.
    pub state: State,
    /// Host and domain name.
    pub names: [Option<&'a str>; 2],
    /// Namespaces to make and to join.
    pub namespaces: Namespaces<'a>,
    /// Mounts in their order.
    pub mounts: Vec<MountPlan<'a>>,
    /// Sources of bind mounts that are no paths.
    pub taken: &'a [Taken],
    /// Propagation of the root mount, and whether that is recursive.
    pub propagation: (u64, bool),
    /// Mounts look as the spec says in every detail.
    pub as_written: bool,
    /// Mounts are `nodev` unless the spec says otherwise (invariant 11).
    pub nodev: bool,
    /// Make the root read-only.
    pub readonly_root: bool,
    /// What every process of the container has, those that join later too.
    pub common: Common,
    /// The first process.
    pub process: ProcessPlan<'a>,
    /// SELinux label of what is mounted.
    mount_label: Option<&'a str>,
    /// What of the mounts was asked for and has no effect.
    pub warnings: Vec<String>,
}

impl<'a> Plan<'a> {
    /// Checks the spec.
    pub(crate) fn new(id: &'a str, spec: &'a Spec, linux: &'a Linux) -> Result<Self> {
        refuse_unsupported(linux)?;
        spec.hooks.as_ref().map_or(Ok(()), hooks::check)?;
        let namespaces = Namespaces::new(linux)?;
        if (spec.hostname.is_some() || spec.domainname.is_some()) && !has_own(linux, NamespaceKind::Uts) {
            return Err(Error::invalid(
                "a host name can only be set in a UTS namespace of the container's own",
            ));
        }
        let covers_paths = !linux.masked_paths.is_empty() || !linux.readonly_paths.is_empty();
        if covers_paths && !namespaces.has_mount() {
            return Err(Error::invalid(
                "maskedPaths and readonlyPaths need a mount namespace of the container's own",
            ));
        }
        let mut warnings = Vec::new();
        Ok(Self {
            id,
            linux,
            hooks: spec.hooks.as_ref().filter(|hooks| **hooks != Hooks::default()),
            state: State {
                oci_version: SPEC_VERSION.to_owned(),
                id: id.to_owned(),
                annotations: spec.annotations.clone(),
                ..State::default()
            },
            names: [spec.hostname.as_deref(), spec.domainname.as_deref()],
            mounts: mounts(spec, &namespaces, &mut warnings)?,
            taken: &[],
            namespaces,
            propagation: propagation(linux.rootfs_propagation.as_deref())?,
            nodev: false,
            as_written: false,
            readonly_root: spec.root.as_ref().is_some_and(|root| root.readonly),
            common: Common::new(linux)?,
            process: spec.process.as_ref().map_or_else(ProcessPlan::none, ProcessPlan::new)?,
            mount_label: mount_label(linux, &mut warnings),
            warnings,
        })
    }
}

/// What every process of a container has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Common {
    /// NUMA memory policy: mode with flags, nodes.
    pub memory_policy: Option<(u32, Vec<u64>)>,
    /// Execution domain.
    pub personality: Option<u64>,
}

impl Common {
    fn new(linux: &Linux) -> Result<Self> {
        Ok(Self {
            memory_policy: linux.memory_policy.as_ref().map(memory_policy).transpose()?,
            personality: linux.personality.as_ref().map(personality).transpose()?,
        })
    }
}

impl Plan<'_> {
    /// Makes all `nodev` that the spec does not say `dev` of (invariant 11).
    pub(crate) fn bind_devices(&mut self) {
        self.nodev = true;
        self.mounts.iter_mut().for_each(MountPlan::bind_devices);
    }

    /// Whether the nodes in `/dev` can be opened as they are: it is a tmpfs of the spec, and not `nodev`.
    pub(crate) fn opens_nodes(&self) -> bool {
        self.mounts.iter().any(|mount| {
            let is_tmpfs = matches!(&mount.source, MountSource::New(new) if new.kind == "tmpfs");
            is_tmpfs && mount.destination == "/dev" && mount.attr.set & mount::NODEV == 0
        })
    }

    /// The SELinux label of a new file system; those that take none have the kernel's.
    pub(crate) fn label_of(&self, new: &Filesystem) -> Option<&str> {
        self.label().filter(|_| !matches!(new.kind, "proc" | "sysfs" | "mqueue"))
    }

    /// The SELinux label of what is mounted.
    pub(crate) fn label(&self) -> Option<&str> {
        self.mount_label
    }

    /// Whether a file system is told what it is made from.
    pub(crate) fn shows_source(&self, kind: &str, source: &str) -> bool {
        self.as_written || source != kind
    }

    /// Whether a bind mount of the spec is of a device, or of a directory of them: they must open, and so the device
    /// rules must hold at once.
    pub(crate) fn binds_devices(&self) -> bool {
        self.mounts.iter().any(|mount| {
            let MountSource::Bind(bind) = &mount.source else { return false };
            let path = std::path::Path::new(&self.state.bundle).join(bind.path);
            path.starts_with("/dev")
                || rustix::fs::stat(&path).is_ok_and(|stat| {
                    let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
                    matches!(kind, rustix::fs::FileType::CharacterDevice | rustix::fs::FileType::BlockDevice)
                })
        })
    }

    /// Whether the parent takes what is bound: it may go where the root of a user namespace may not, and only it may
    /// map ids.
    pub(crate) fn takes_sources(&self) -> bool {
        self.namespaces.has_user() || self.mounts.iter().any(|mount| mount.idmap.is_some())
    }

    /// Whether the runtime has something to do before `pivot_root`, when the namespaces are there: its hooks, or
    /// interfaces to move.
    pub(crate) fn waits_for_runtime(&self) -> bool {
        let has_hooks = |hooks: &Hooks| !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty();
        self.hooks.is_some_and(has_hooks) || !self.linux.net_devices.is_empty()
    }
}

/// Checks a spec without doing anything.
///
/// # Errors
/// What of it cannot be done.
pub fn check(id: &str, spec: &Spec) -> Result<()> {
    let none = Linux::default();
    Plan::new(id, spec, spec.linux.as_ref().unwrap_or(&none)).map(drop)
}

/// Whether the container gets a new namespace of this kind, or joins one.
pub(crate) fn has_own(linux: &Linux, kind: NamespaceKind) -> bool {
    namespace(linux, kind).is_some()
}

/// The spec's entry for this kind.
pub(crate) fn namespace(linux: &Linux, kind: NamespaceKind) -> Option<&Namespace> {
    linux.namespaces.iter().find(|namespace| namespace.kind == kind)
}

fn mounts<'a>(
    spec: &'a Spec,
    namespaces: &Namespaces,
    warnings: &mut Vec<String>,
) -> Result<Vec<MountPlan<'a>>> {
    let mounts =
        spec.mounts.iter().map(|mount| MountPlan::new(mount, warnings)).collect::<Result<Vec<_>>>()?;
    let lacks_map = |mount: &&MountPlan| mount.idmap.as_ref().is_some_and(|map| map.maps[0].is_empty());
    match mounts.iter().find(lacks_map) {
        Some(mount) if !namespaces.has_user() => Err(Error::invalid(format!(
            "mount {}: idmap needs uidMappings and gidMappings, or a user namespace",
            mount.destination
        ))),
        _ => Ok(mounts),
    }
}

fn refuse_unsupported(linux: &Linux) -> Result<()> {
    let refuse =
        |what: &str| Err(Error::unsupported(format!("{what} not supported: remove it from the spec")));
    if linux.intel_rdt.is_some() {
        return refuse("intelRdt is");
    }
    netdev::check(linux)?;
    if let Some(device) =
        linux.devices.iter().find(|device| !matches!(device.kind.as_str(), "c" | "u" | "b" | "p"))
    {
        return Err(Error::invalid(format!(
            "{}: no device type '{}': use c, b or p",
            device.path, device.kind
        )));
    }
    Ok(())
}

/// A label of files confines nothing by itself: without SELinux no file has one, and nobody asks for it. That of a
/// process is another matter.
fn mount_label<'a>(linux: &'a Linux, warnings: &mut Vec<String>) -> Option<&'a str> {
    let label = linux.mount_label.as_deref().filter(|label| !label.is_empty())?;
    if process::has_selinux() {
        return Some(label);
    }
    warnings.push(format!("mountLabel '{label}' has no effect: the kernel has no SELinux, or it is off"));
    None
}

fn personality(personality: &Personality) -> Result<u64> {
    if let Some(flag) = personality.flags.first() {
        return Err(Error::unsupported(format!("personality: the specification has no flag '{flag}'")));
    }
    match personality.domain.as_str() {
        "LINUX" => Ok(0),
        "LINUX32" => Ok(8),
        domain => Err(Error::invalid(format!("personality '{domain}' is not known"))),
    }
}

fn memory_policy(policy: &MemoryPolicy) -> Result<(u32, Vec<u64>)> {
    let unknown = |what: &str| Error::invalid(format!("memoryPolicy: '{what}' is not known"));
    let mode = match policy.mode.as_str() {
        "MPOL_DEFAULT" => 0,
        "MPOL_PREFERRED" => 1,
        "MPOL_BIND" => 2,
        "MPOL_INTERLEAVE" => 3,
        "MPOL_LOCAL" => 4,
        "MPOL_PREFERRED_MANY" => 5,
        "MPOL_WEIGHTED_INTERLEAVE" => 6,
        mode => return Err(unknown(mode)),
    };
    let flags = policy.flags.iter().try_fold(0, |flags, flag| match flag.as_str() {
        "MPOL_F_NUMA_BALANCING" => Ok(flags | 1 << 13),
        "MPOL_F_RELATIVE_NODES" => Ok(flags | 1 << 14),
        "MPOL_F_STATIC_NODES" => Ok(flags | 1 << 15),
        flag => Err(unknown(flag)),
    })?;
    Ok((mode | flags, numbers::mask("memoryPolicy", &policy.nodes)?))
}

fn propagation(name: Option<&str>) -> Result<(u64, bool)> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok((mount::PRIVATE, true)) };
    let (name, recursive) = name.strip_prefix('r').map_or((name, false), |rest| (rest, true));
    let kind = match name {
        "private" => mount::PRIVATE,
        "slave" => mount::SLAVE,
        "shared" => mount::SHARED,
        "unbindable" => mount::UNBINDABLE,
        _ => return Err(Error::invalid(format!("rootfsPropagation '{name}' is not known"))),
    };
    Ok((kind, recursive))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_oci::runtime::Hook;

    fn plan(spec: &Spec) -> Result<()> {
        Plan::new("id", spec, spec.linux.as_ref().unwrap()).map(drop)
    }

    #[test]
    fn the_default_spec_can_be_done_and_what_cannot_is_refused() {
        let spec = || {
            let mut spec = proa_oci::defaults::default_spec();
            spec.process.as_mut().unwrap().args = vec!["sh".into()];
            spec
        };
        plan(&spec()).unwrap();
        let refused = |change: fn(&mut Spec)| {
            let mut spec = spec();
            change(&mut spec);
            plan(&spec).unwrap_err().to_string()
        };
        let hooks = refused(|spec| {
            let hook = Hook { path: "relative".into(), ..Hook::default() };
            spec.hooks = Some(Hooks { poststop: vec![hook], ..Hooks::default() });
        });
        assert!(hooks.contains("poststop hook 'relative'"));
        assert!(refused(|spec| spec.linux_mut().rootfs_propagation = Some("loose".into())).contains("loose"));
        assert!(refused(|spec| spec.linux_mut().intel_rdt = Some(Default::default())).contains("intelRdt"));
        let policy = |mode: &str, nodes: &str| MemoryPolicy {
            mode: mode.into(),
            nodes: nodes.into(),
            flags: vec!["MPOL_F_STATIC_NODES".into()],
        };
        assert_eq!(memory_policy(&policy("MPOL_BIND", "0-1")).unwrap(), (2 | 1 << 15, vec![3]));
        assert!(memory_policy(&policy("MPOL_X", "")).is_err());
        assert!(
            refused(|spec| {
                spec.hostname = Some("h".into());
                spec.linux_mut().namespaces.retain(|namespace| namespace.kind != NamespaceKind::Uts);
            })
            .contains("host name")
        );
    }

    #[test]
    fn a_label_of_mounts_alone_is_warned_of_without_selinux() {
        if process::has_selinux() {
            return;
        }
        let mut spec = proa_oci::defaults::default_spec();
        spec.process = None;
        spec.linux_mut().mount_label = Some("a:b:c".into());
        let plan = Plan::new("id", &spec, spec.linux.as_ref().unwrap()).unwrap();
        assert!(plan.label().is_none());
        assert!(plan.warnings[0].contains("a:b:c") && plan.warnings[0].contains("SELinux"));
    }

    #[test]
    fn propagation_names() {
        assert_eq!(propagation(None).unwrap(), (mount::PRIVATE, true));
        assert_eq!(propagation(Some("rshared")).unwrap(), (mount::SHARED, true));
        assert_eq!(propagation(Some("slave")).unwrap(), (mount::SLAVE, false));
    }
}
