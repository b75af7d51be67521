//! An instance, or a line that would make one, as the standards see it.

use proa_protocol::volume::Backing;

use super::{Dialect, Level, RunAs, Seccomp, SelinuxOptions, Subject, check, run_as, short_capability};
use crate::config::{ContainerConfig, HostConfig};
use crate::error::{Error, Result};
use crate::settings::SecuritySettings;
use crate::spec::{AppArmor, Filter, SecurityOptions};
use crate::{mounts, volumes};

/// Refuses an instance that breaks its policy: the one asked for, which cannot be weaker than the host's. Which it
/// was is written out in `host`. `behind` are paths of the host that its volumes are in truth.
///
/// # Errors
/// [`Error::Policy`], with all that is wrong.
pub fn enforce(
    config: &ContainerConfig,
    host: &mut HostConfig,
    behind: &[String],
    settings: &SecuritySettings,
) -> Result<()> {
    let asked = match host.policy.as_str() {
        "" => None,
        word => Some(Level::parse(word)?),
    };
    if let (Some(asked), Some(least)) = (asked, settings.policy)
        && asked < least
    {
        return Err(Error::Invalid {
            message: format!(
                "--policy {} is weaker than this host's policy, {}",
                asked.as_str(),
                least.as_str()
            ),
            hint: "leave --policy out, or change [security] policy in the configuration file".into(),
        });
    }
    let Some(level) = asked.or(settings.policy) else { return Ok(()) };
    let mut subject = Subject::of_instance(config, host, settings)?;
    for path in behind {
        if !subject.host_paths.contains(path) {
            subject.host_paths.push(path.clone());
        }
    }
    let violations = check(&subject, level);
    if !violations.is_empty() {
        return Err(Error::Policy { level, violations });
    }
    level.as_str().clone_into(&mut host.policy);
    Ok(())
}

impl Subject {
    /// From what an instance was asked to be; `config` is already merged with its image's.
    ///
    /// # Errors
    /// An option makes no sense.
    pub fn of_instance(
        config: &ContainerConfig,
        host: &HostConfig,
        settings: &SecuritySettings,
    ) -> Result<Self> {
        let mut subject = Self { dialect: Dialect::Run, ..Self::of_options(&host.security_opt, settings)? };
        subject.host_ports = host.port_bindings.keys().cloned().collect();
        if host.publish_all_ports {
            subject.host_ports.extend(config.exposed_ports.keys().cloned());
        }
        if host.network_mode == "host" {
            subject.host_namespaces.push("network");
        }
        let shared = [("pid", &host.pid_mode), ("ipc", &host.ipc_mode)];
        subject
            .host_namespaces
            .extend(shared.into_iter().filter(|(_, mode)| *mode == "host").map(|(name, _)| name));
        subject.privileged = host.privileged;
        subject.added = host.cap_add.iter().map(|name| short_capability(name)).collect();
        subject.drops_all = host.cap_drop.iter().any(|name| short_capability(name) == "ALL");
        for text in &host.binds {
            let bind = mounts::parse_bind(text)?;
            subject.host_paths.extend((!bind.is_volume()).then_some(bind.source));
        }
        let binds = host.mounts.iter().filter(|mount| mount.kind == "bind");
        subject.host_paths.extend(binds.map(|mount| mount.source.clone()));
        for options in host.mounts.iter().filter_map(|mount| mount.volume_options.as_ref()) {
            if let Backing::Bind(path) = volumes::backing(&options.driver_config.options)? {
                subject.host_paths.push(path.display().to_string());
            }
        }
        subject.host_paths.extend(host.devices.iter().map(|device| device.path_on_host.clone()));
        subject
            .host_paths
            .extend(host.device_cgroup_rules.iter().map(|rule| format!("the devices {rule:?}")));
        subject.sysctls = host.sysctls.keys().cloned().collect();
        subject.user = match run_as(&config.user) {
            // Docker's default is known to be root.
            RunAs::Open => RunAs::Root,
            user => user,
        };
        if host.privileged {
            // Follows from that, and is told with it.
            (subject.proc_unmasked, subject.seccomp) = (false, Seccomp::Confined);
        }
        Ok(subject)
    }

    /// What `--security-opt`, and `security_opt` of a Compose file, says.
    pub(super) fn of_options(texts: &[String], settings: &SecuritySettings) -> Result<Self> {
        let options = SecurityOptions::read(texts)?;
        let label = options.label;
        Ok(Self {
            apparmor_unconfined: options.apparmor == AppArmor::Unconfined,
            selinux: SelinuxOptions {
                kind: label.kind,
                user: label.user.is_some(),
                role: label.role.is_some(),
                disabled: label.disabled,
            },
            proc_unmasked: options.open_paths,
            seccomp: match options.seccomp {
                Filter::Unconfined => Seccomp::Unconfined,
                Filter::Builtin | Filter::Profile(_) => Seccomp::Confined,
            },
            escalation: !options.no_new_privileges.unwrap_or(settings.no_new_privileges),
            ..Self::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DeviceMapping;

    fn controls(config: &ContainerConfig, host: &HostConfig, level: Level) -> Vec<&'static str> {
        let subject = Subject::of_instance(config, host, &SecuritySettings::default()).unwrap();
        check(&subject, level).iter().map(|violation| violation.control).collect()
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_default_is_baseline() {
        let (config, host) = (ContainerConfig::default(), HostConfig::default());
        assert!(controls(&config, &host, Level::Baseline).is_empty());
        assert_eq!(
            controls(&config, &host, Level::Restricted),
            ["Privilege Escalation", "Running as Non-root user", "Capabilities"]
        );
    }

    #[test]
    fn a_hardened_line_is_restricted() {
        let config = ContainerConfig { user: "65532:65532".into(), ..ContainerConfig::default() };
        let host = HostConfig {
            cap_drop: strings(&["all"]),
            cap_add: strings(&["CAP_NET_BIND_SERVICE"]),
            security_opt: strings(&["no-new-privileges"]),
            tmpfs: [("/tmp".to_owned(), String::new())].into(),
            ..HostConfig::default()
        };
        assert!(controls(&config, &host, Level::Restricted).is_empty());
        let open = HostConfig { security_opt: Vec::new(), ..host.clone() };
        let settings = SecuritySettings { no_new_privileges: true, ..SecuritySettings::default() };
        let subject = Subject::of_instance(&config, &open, &settings).unwrap();
        assert!(check(&subject, Level::Restricted).is_empty());
        let named = ContainerConfig { user: "app".into(), ..ContainerConfig::default() };
        assert_eq!(controls(&named, &host, Level::Restricted), ["Running as Non-root"]);
    }

    #[test]
    fn the_hosts_policy_is_the_weakest() {
        let enforce = |asked: &str, least: Option<Level>, privileged: bool| {
            let mut host = HostConfig { policy: asked.into(), privileged, ..HostConfig::default() };
            let settings = SecuritySettings { policy: least, ..SecuritySettings::default() };
            super::enforce(&ContainerConfig::default(), &mut host, &[], &settings).map(|()| host.policy)
        };
        assert_eq!(enforce("", None, true).unwrap(), "");
        assert_eq!(enforce("privileged", None, true).unwrap(), "privileged");
        assert_eq!(enforce("", Some(Level::Baseline), false).unwrap(), "baseline");
        assert!(matches!(enforce("", Some(Level::Baseline), true), Err(Error::Policy { .. })));
        assert!(matches!(enforce("restricted", Some(Level::Baseline), false), Err(Error::Policy { .. })));
        let weaker = enforce("privileged", Some(Level::Baseline), false).unwrap_err().to_string();
        assert!(weaker.contains("weaker"), "{weaker}");
        assert!(enforce("strong", None, false).unwrap_err().to_string().contains("strong"));
    }

    #[test]
    fn every_flag_that_opens_the_host_is_seen() {
        let config = ContainerConfig::default();
        let host = |change: fn(&mut HostConfig)| {
            let mut host = HostConfig::default();
            change(&mut host);
            controls(&config, &host, Level::Baseline).join(",")
        };
        assert_eq!(host(|host| host.network_mode = "host".into()), "Host Namespaces");
        assert_eq!(host(|host| host.privileged = true), "Privileged Containers");
        assert_eq!(host(|host| host.cap_add = strings(&["ALL"])), "Capabilities");
        assert_eq!(host(|host| host.binds = strings(&["/etc:/x:ro"])), "HostPath Volumes");
        assert_eq!(
            host(|host| host.devices = vec![DeviceMapping::parse("/dev/fuse").unwrap()]),
            "HostPath Volumes"
        );
        assert_eq!(host(|host| host.device_cgroup_rules = strings(&["c 1:1 r"])), "HostPath Volumes");
        for (option, control) in [
            ("apparmor=unconfined", "AppArmor"),
            ("label=disable", "SELinux"),
            ("label=type:spc_t", "SELinux"),
            ("label=role:sysadm_r", "SELinux"),
            ("systempaths=unconfined", "/proc Mount Type"),
            ("seccomp=unconfined", "Seccomp"),
        ] {
            let host = HostConfig { security_opt: strings(&[option]), ..HostConfig::default() };
            assert_eq!(controls(&config, &host, Level::Baseline), [control], "{option}");
        }
        let sysctls = [("net.core.somaxconn".to_owned(), "1".to_owned())].into();
        assert_eq!(
            controls(&config, &HostConfig { sysctls, ..HostConfig::default() }, Level::Baseline),
            ["Sysctls"]
        );
    }
}
