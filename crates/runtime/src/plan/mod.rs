//! The runtime spec checked and turned into plain data before anything is opened or forked: whatever the spec
//! says that cannot be done is refused here, and nothing in it is ignored.

mod mounts;
pub(crate) mod namespaces;
mod process;

pub(crate) use mounts::{Bind, Filesystem, MountPlan, MountSource};
pub(crate) use namespaces::Namespaces;
pub(crate) use process::{CapabilityPlan, ProcessPlan};

use proa_oci::runtime::{Linux, Namespace, NamespaceKind, Spec};
use proa_sys::mount;

use crate::{Error, Result};

/// What the first process of a container sets up.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// Names the session keyring.
    pub id: &'a str,
    /// The spec's Linux section.
    pub linux: &'a Linux,
    /// Host and domain name.
    pub names: [Option<&'a str>; 2],
    /// Namespaces to make and to join.
    pub namespaces: Namespaces<'a>,
    /// Mounts in their order.
    pub mounts: Vec<MountPlan<'a>>,
    /// Propagation of the root mount, and whether that is recursive.
    pub propagation: (u64, bool),
    /// Make the root read-only.
    pub readonly_root: bool,
    /// The first process.
    pub process: ProcessPlan<'a>,
}

impl<'a> Plan<'a> {
    /// Checks the spec.
    pub(crate) fn new(id: &'a str, spec: &'a Spec, linux: &'a Linux) -> Result<Self> {
        refuse_unsupported(spec, linux)?;
        let process = spec.process.as_ref().ok_or_else(|| Error::invalid("the spec has no process"))?;
        let namespaces = Namespaces::new(linux)?;
        if (spec.hostname.is_some() || spec.domainname.is_some()) && !has_own(linux, NamespaceKind::Uts) {
            return Err(Error::invalid(
                "a host name can only be set in a UTS namespace of the container's own",
            ));
        }
        Ok(Self {
            id,
            linux,
            names: [spec.hostname.as_deref(), spec.domainname.as_deref()],
            namespaces,
            mounts: spec.mounts.iter().map(MountPlan::new).collect::<Result<_>>()?,
            propagation: propagation(linux.rootfs_propagation.as_deref())?,
            readonly_root: spec.root.as_ref().is_some_and(|root| root.readonly),
            process: ProcessPlan::new(process)?,
        })
    }
}

/// Whether the container gets a new namespace of this kind, or joins one.
pub(crate) fn has_own(linux: &Linux, kind: NamespaceKind) -> bool {
    namespace(linux, kind).is_some()
}

/// The spec's entry for this kind.
pub(crate) fn namespace(linux: &Linux, kind: NamespaceKind) -> Option<&Namespace> {
    linux.namespaces.iter().find(|namespace| namespace.kind == kind)
}

fn refuse_unsupported(spec: &Spec, linux: &Linux) -> Result<()> {
    let refuse =
        |what: &str| Err(Error::unsupported(format!("{what} not supported: remove it from the spec")));
    if spec.hooks.is_some() {
        return refuse("hooks are");
    }
    if linux.mount_label.is_some() {
        return refuse("mountLabel (SELinux) is");
    }
    if linux.seccomp.as_ref().is_some_and(|seccomp| seccomp.listener_path.is_some()) {
        return refuse("a seccomp listener is");
    }
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
    use proa_oci::runtime::Hooks;

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
        assert!(refused(|spec| spec.hooks = Some(Hooks::default())).contains("hooks"));
        assert!(refused(|spec| spec.process = None).contains("no process"));
        assert!(refused(|spec| spec.linux_mut().rootfs_propagation = Some("loose".into())).contains("loose"));
        assert!(
            refused(|spec| spec.process.as_mut().unwrap().apparmor_profile = Some("x".into()))
                .contains("AppArmor")
        );
        assert!(
            refused(|spec| {
                spec.hostname = Some("h".into());
                spec.linux_mut().namespaces.retain(|namespace| namespace.kind != NamespaceKind::Uts);
            })
            .contains("host name")
        );
    }

    #[test]
    fn propagation_names() {
        assert_eq!(propagation(None).unwrap(), (mount::PRIVATE, true));
        assert_eq!(propagation(Some("rshared")).unwrap(), (mount::SHARED, true));
        assert_eq!(propagation(Some("slave")).unwrap(), (mount::SLAVE, false));
    }
}
