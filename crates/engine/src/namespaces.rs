//! `--pid`, `--ipc`, `--uts`, `--cgroupns` and `--cgroup-parent`: what an instance shares with the host or another one.
//!
//! ```text
//!   check (what makes no sense) ─▶ complete (container:NAME ─▶ container:ID, and may it?) ─▶ apply (the spec)
//! ```
//!
//! Whose namespaces are joined is looked up by the monitor at each start (`proa_monitor`'s `shared`); here it is only
//! settled which instance that is. What a virtual machine has is inside its guest, so it shares nothing.

use proa_oci::runtime::{Mount, NamespaceKind, Spec};
use proa_protocol::instance::{InstanceConfig, IsolationLevel};

use crate::config::{ContainerConfig, HostConfig};
use crate::engine::Engine;
use crate::error::{Error, Result};

const SHARED_MEMORY: &str = "/dev/shm";
const QUEUES: &str = "/dev/mqueue";

/// Whose namespace of some kind an instance has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose<'a> {
    Own,
    Host,
    /// That of another instance.
    Other(&'a str),
}

/// Reads a mode; `own` are the words for a namespace of its own.
fn parse<'a>(flag: &str, mode: &'a str, own: &[&str], others: bool) -> Result<Whose<'a>> {
    let invalid = || {
        let words = own.iter().chain(&["host"]).filter(|word| !word.is_empty()).copied();
        let words = words.chain(others.then_some("container:NAME")).collect::<Vec<_>>().join(", ");
        Error::invalid_with_hint(format!("invalid {flag} {mode:?}"), words)
    };
    match mode.strip_prefix("container:") {
        Some("") => Err(invalid()),
        Some(name) if others => Ok(Whose::Other(name)),
        _ if mode == "host" => Ok(Whose::Host),
        _ if own.contains(&mode) => Ok(Whose::Own),
        _ => Err(invalid()),
    }
}

fn pid(host: &HostConfig) -> Result<Whose<'_>> {
    parse("--pid", &host.pid_mode, &[""], true)
}

fn ipc(host: &HostConfig) -> Result<Whose<'_>> {
    parse("--ipc", &host.ipc_mode, &["", "private", "none", "shareable"], true)
}

fn uts(host: &HostConfig) -> Result<Whose<'_>> {
    parse("--uts", &host.uts_mode, &[""], false)
}

fn cgroup(host: &HostConfig) -> Result<Whose<'_>> {
    parse("--cgroupns", &host.cgroupns_mode, &["", "private"], false)
}

/// Whether the host's name is the instance's.
pub(crate) fn has_hosts_name(host: &HostConfig) -> bool {
    host.uts_mode == "host"
}

/// Whether System V's objects are the instance's alone.
pub(crate) fn has_own_ipc(host: &HostConfig) -> bool {
    matches!(ipc(host), Ok(Whose::Own))
}

/// Refuses what makes no sense, or not at this level.
pub(crate) fn check(config: &ContainerConfig, host: &HostConfig, level: IsolationLevel) -> Result<()> {
    let asked = [
        ("--pid", pid(host)?, "a guest's kernel has processes of its own alone"),
        ("--ipc", ipc(host)?, "a guest's memory is its own: use --ipc private or none"),
        ("--uts", uts(host)?, "a guest has a name of its own: use --hostname"),
        ("--cgroupns", cgroup(host)?, "a guest's kernel has cgroups of its own"),
    ];
    if level == IsolationLevel::Vm {
        return check_guest(host, &asked);
    }
    if has_hosts_name(host) && !(config.hostname.is_empty() && config.domainname.is_empty()) {
        return Err(Error::invalid(
            "--hostname and --domainname go with no --uts host, which has the host's",
        ));
    }
    for (flag, whose, _) in asked.iter().take(2).filter(|(_, whose, _)| *whose != Whose::Own) {
        if host.has_own_ids() {
            return Err(Error::invalid_with_hint(
                format!(
                    "{flag} shares with others, whose ids differ from those of --userns {}",
                    host.userns_mode
                ),
                "use --userns host",
            ));
        }
        if *flag == "--pid" && *whose == Whose::Host && !proa_sys::userns::is_initial() {
            return Err(Error::unsupported(
                "--pid host is root's: an ordinary user may not mount a /proc of the host's processes",
                "leave it out, or run proa as root",
            ));
        }
    }
    cgroup_path("", host).map(drop)
}

fn check_guest(host: &HostConfig, asked: &[(&str, Whose, &str)]) -> Result<()> {
    let refused = |flag: &str, hint: &str| {
        Err(Error::unsupported(
            format!("{flag} means nothing at isolation level vm"),
            format!("{hint}; or use --isolation container"),
        ))
    };
    if let Some((flag, _, hint)) = asked.iter().find(|(_, whose, _)| *whose != Whose::Own) {
        return refused(flag, hint);
    }
    if host.ipc_mode == "shareable" {
        return refused("--ipc shareable", "nobody outside can join what a guest has: use --ipc private");
    }
    if !host.cgroup_parent.is_empty() {
        return refused("--cgroup-parent", "a guest's limits are its size: use -m and --cpus");
    }
    Ok(())
}

impl Engine {
    /// `container:NAME` becomes `container:ID`, so that a new instance of that name is another.
    ///
    /// # Errors
    /// There is no such instance, or it shares with nobody.
    pub(crate) fn complete_namespaces(
        &self,
        config: &mut ContainerConfig,
        host: &mut HostConfig,
        level: IsolationLevel,
    ) -> Result<()> {
        check(config, host, level)?;
        if let Whose::Other(name) = pid(host)? {
            host.pid_mode = self.sharer("--pid", name, |_| true)?;
        }
        if let Whose::Other(name) = ipc(host)? {
            host.ipc_mode = self.sharer("--ipc", name, |mode| !matches!(mode, "" | "private" | "none"))?;
        }
        if host.ipc_mode.is_empty() {
            "private".clone_into(&mut host.ipc_mode);
        }
        if host.cgroupns_mode.is_empty() {
            "private".clone_into(&mut host.cgroupns_mode);
        }
        Ok(())
    }

    fn sharer(&self, flag: &str, name: &str, shares: fn(&str) -> bool) -> Result<String> {
        let other = self.find(name)?.record;
        let host = &other.host_config;
        if other.level == IsolationLevel::Vm || host.machine.is_some() {
            return Err(Error::unsupported(
                format!(
                    "{flag} container:{name} needs two containers: what a virtual machine has is in its guest"
                ),
                "use --isolation container for both",
            ));
        }
        if host.has_own_ids() {
            return Err(Error::invalid_with_hint(
                format!("{flag} container:{name}: it has ids of its own (--userns {})", host.userns_mode),
                "make it with --userns host",
            ));
        }
        if !shares(&host.ipc_mode) {
            return Err(Error::invalid_with_hint(
                format!("{flag} container:{name}: its IPC is its own"),
                format!("make {name} with --ipc shareable"),
            ));
        }
        Ok(format!("container:{}", other.id))
    }
}

/// Takes out of a default spec what the instance has not of its own; before mounts of the user's are placed.
pub(crate) fn apply(spec: &mut Spec, id: &str, host: &HostConfig) -> Result<()> {
    let linux = spec.linux_mut();
    let shared = [
        (NamespaceKind::Pid, pid(host)?),
        (NamespaceKind::Ipc, ipc(host)?),
        (NamespaceKind::Uts, uts(host)?),
        (NamespaceKind::Cgroup, cgroup(host)?),
    ];
    for (kind, _) in shared.iter().filter(|(_, whose)| *whose == Whose::Host) {
        linux.namespaces.retain(|namespace| namespace.kind != *kind);
    }
    linux.cgroups_path = cgroup_path(id, host)?;
    if has_hosts_name(host) {
        (spec.hostname, spec.domainname) = (None, None);
    }
    let whose = ipc(host)?;
    if whose != Whose::Own || host.ipc_mode == "none" {
        // That of another instance is mounted by the monitor, who knows where it is.
        spec.mounts.retain(|mount| mount.destination != SHARED_MEMORY);
    }
    if whose == Whose::Host {
        spec.mounts.push(hosts(SHARED_MEMORY));
        // The host's queues can be mounted anew by the host's root alone.
        if !proa_sys::userns::is_initial() {
            spec.mounts.retain(|mount| mount.destination != QUEUES);
            spec.mounts.extend(std::path::Path::new(QUEUES).exists().then(|| hosts(QUEUES)));
        }
    }
    Ok(())
}

/// What the host has at the same path.
fn hosts(path: &str) -> Mount {
    Mount {
        destination: path.to_owned(),
        kind: Some("bind".to_owned()),
        source: Some(path.to_owned()),
        options: ["rbind", "nosuid", "noexec", "nodev"].map(ToOwned::to_owned).to_vec(),
        ..Mount::default()
    }
}

/// Which instances' namespaces a monitor is to join.
pub(crate) fn write(host: &HostConfig, instance: &mut InstanceConfig) {
    let other = |mode: &str| mode.strip_prefix("container:").map(ToOwned::to_owned);
    (instance.pid_of, instance.ipc_of) = (other(&host.pid_mode), other(&host.ipc_mode));
}

/// The instance's own cgroup, where its user has named the parent: a path below the hierarchies' roots.
fn cgroup_path(id: &str, host: &HostConfig) -> Result<Option<String>> {
    let parent = host.cgroup_parent.trim_matches('/');
    if host.cgroup_parent.is_empty() {
        return Ok(None);
    }
    let is_plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(':');
    if parent.is_empty() || !parent.split('/').all(is_plain) {
        return Err(Error::invalid_with_hint(
            format!("invalid --cgroup-parent {:?}", host.cgroup_parent),
            "a path below the root of the cgroup hierarchies, as /work/batch",
        ));
    }
    Ok(Some(format!("/{parent}/{id}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: fn(&mut HostConfig)) -> HostConfig {
        let mut host = HostConfig::default();
        change(&mut host);
        host
    }

    fn refused(change: fn(&mut HostConfig), level: IsolationLevel) -> String {
        check(&ContainerConfig::default(), &with(change), level).unwrap_err().to_string()
    }

    #[test]
    fn modes_that_make_no_sense_are_refused() {
        use IsolationLevel::Container;
        assert!(refused(|host| host.pid_mode = "private".into(), Container).contains("--pid"));
        assert!(refused(|host| host.pid_mode = "container:".into(), Container).contains("--pid"));
        assert!(refused(|host| host.ipc_mode = "public".into(), Container).contains("--ipc"));
        assert!(refused(|host| host.uts_mode = "container:x".into(), Container).contains("--uts"));
        assert!(refused(|host| host.cgroupns_mode = "x".into(), Container).contains("--cgroupns"));
        for parent in ["/", "..", "/a/../b", "a//b", "a.slice:b"] {
            let host = HostConfig { cgroup_parent: parent.into(), ..HostConfig::default() };
            assert!(check(&ContainerConfig::default(), &host, Container).is_err(), "{parent}");
        }
        let both = |host: &mut HostConfig| {
            host.ipc_mode = "host".into();
            host.userns_mode = "auto".into();
        };
        assert!(refused(both, Container).contains("--userns auto"));
        let named = ContainerConfig { hostname: "x".into(), ..ContainerConfig::default() };
        assert!(check(&named, &with(|host| host.uts_mode = "host".into()), Container).is_err());
    }

    #[test]
    fn a_guest_shares_nothing() {
        use IsolationLevel::Vm;
        assert!(refused(|host| host.pid_mode = "host".into(), Vm).contains("--pid"));
        assert!(refused(|host| host.ipc_mode = "shareable".into(), Vm).contains("--ipc shareable"));
        assert!(refused(|host| host.cgroup_parent = "/x".into(), Vm).contains("--cgroup-parent"));
        for mode in ["private", "none"] {
            let host = HostConfig { ipc_mode: mode.into(), ..HostConfig::default() };
            check(&ContainerConfig::default(), &host, Vm).unwrap();
        }
    }

    #[test]
    fn the_spec_has_what_is_its_own() {
        let spec = |change: fn(&mut HostConfig)| {
            let mut spec = proa_oci::defaults::default_spec();
            apply(&mut spec, "id", &with(change)).unwrap();
            spec
        };
        let has = |spec: &Spec, kind| {
            spec.linux.as_ref().unwrap().namespaces.iter().any(|namespace| namespace.kind == kind)
        };
        let shm = |spec: &Spec| {
            spec.mounts
                .iter()
                .find(|mount| mount.destination == SHARED_MEMORY)
                .map(|mount| mount.kind.clone())
        };
        let own = spec(|_| {});
        assert!(
            has(&own, NamespaceKind::Pid) && has(&own, NamespaceKind::Ipc) && has(&own, NamespaceKind::Uts)
        );
        assert!(!has(&spec(|host| host.pid_mode = "host".into()), NamespaceKind::Pid));
        let hosts = spec(|host| host.ipc_mode = "host".into());
        assert_eq!((has(&hosts, NamespaceKind::Ipc), shm(&hosts)), (false, Some(Some("bind".into()))));
        let none = spec(|host| host.ipc_mode = "none".into());
        assert_eq!((has(&none, NamespaceKind::Ipc), shm(&none)), (true, None));
        let other = spec(|host| host.ipc_mode = "container:x".into());
        assert_eq!((has(&other, NamespaceKind::Ipc), shm(&other)), (true, None));
        let named = spec(|host| host.cgroup_parent = "a/b/".into());
        assert_eq!(named.linux.unwrap().cgroups_path.as_deref(), Some("/a/b/id"));
    }
}
