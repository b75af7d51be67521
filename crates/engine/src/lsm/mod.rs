//! What the kernel's security modules give an instance beyond seccomp and capabilities: an AppArmor profile, an
//! SELinux label. The one part of the spec that depends on the host, so it is applied after the rest.
//!
//! | kernel | by default | asked for by name |
//! | --- | --- | --- |
//! | has AppArmor | our profile, loaded when first needed | that profile, if it is loaded |
//! | has SELinux and a policy for containers | `container_t` with two categories of the instance's own | with those parts |
//! | has neither | nothing | refused |
//!
//! In a guest nothing is loaded: there a name is refused, and the virtual machine is the wall.

pub mod apparmor;
pub mod selinux;

use proa_oci::defaults;
use proa_oci::runtime::Spec;
use proa_protocol::instance::{InstanceConfig, IsolationLevel};
use proa_protocol::volume::MountPoint;

use crate::config::HostConfig;
use crate::db::Record;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::spec::{AppArmor, Filter, SecurityOptions};

/// An instance that shares its host's network may not connect to abstract sockets of the host (CVE-2020-15257):
/// the runtime makes a Landlock domain for it where the spec says so.
const LANDLOCK: (&str, &str) =
    (proa_oci::defaults::LANDLOCK_ANNOTATION, proa_oci::defaults::LANDLOCK_SOCKETS);

impl Engine {
    /// Completes a spec by what the host's kernel can do; lines for the user are added to `warnings`.
    ///
    /// # Errors
    /// What was asked for by name cannot be had.
    pub(crate) fn confine(
        &self,
        record: &Record,
        instance: &mut InstanceConfig,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let host = &record.host_config;
        let spec = &mut instance.spec;
        let options = SecurityOptions::read(&host.security_opt)?;
        if record.level == IsolationLevel::Vm {
            return refuse_in_guests(&options);
        }
        if host.network_mode == "host" && !host.privileged && !options.without_landlock {
            let (key, value) = LANDLOCK;
            spec.annotations.insert(key.to_owned(), value.to_owned());
        }
        self.confine_by_apparmor(spec, host, &options, warnings)?;
        let policy = selinux::policy();
        instance.layer_label = policy.as_ref().map(selinux::Policy::layer_label);
        self.confine_by_selinux(record, &instance.mount_points, spec, &options, policy)
    }

    /// Loads our profile again, where a reboot has taken it away from an instance made before.
    ///
    /// # Errors
    /// It cannot be had any more.
    pub(crate) fn restore_confinement(&self, config: &InstanceConfig) -> Result<()> {
        let profile = config.spec.process.as_ref().and_then(|process| process.apparmor_profile.as_deref());
        if profile != Some(apparmor::DEFAULT_PROFILE) {
            return Ok(());
        }
        match apparmor::ensure_default(&self.paths.run)? {
            apparmor::Support::Loaded => Ok(()),
            apparmor::Support::None => Err(Error::conflict(
                "this instance was made with an AppArmor profile, and the kernel has no AppArmor now",
                "boot a kernel that has it, or make the instance anew",
            )),
            apparmor::Support::Missing(what) => Err(Error::conflict(
                format!("the AppArmor profile {} is not loaded: {what}", apparmor::DEFAULT_PROFILE),
                "an instance made with it does not run without it",
            )),
        }
    }

    fn confine_by_apparmor(
        &self,
        spec: &mut Spec,
        host: &HostConfig,
        options: &SecurityOptions,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let profile = match &options.apparmor {
            AppArmor::Unconfined => return unconfined(spec),
            AppArmor::Default if host.privileged => return unconfined(spec),
            AppArmor::Named(name) => {
                apparmor::check_named(name)?;
                name.clone()
            }
            AppArmor::Default => match apparmor::ensure_default(&self.paths.run)? {
                apparmor::Support::Loaded => apparmor::DEFAULT_PROFILE.to_owned(),
                apparmor::Support::None => return Ok(()),
                apparmor::Support::Missing(what) => {
                    if self.db.first_time("apparmor-missing")? {
                        warnings
                            .push(format!("instances run without an AppArmor profile: {what} (said once)"));
                    }
                    return Ok(());
                }
            },
        };
        let is_ours = profile == apparmor::DEFAULT_PROFILE;
        spec.process.get_or_insert_default().apparmor_profile = Some(profile);
        // Our profile denies AF_ALG and AF_VSOCK however they are asked for, so that 32-bit programs may have
        // sockets: a filter alone cannot look through the pointer of `socketcall`.
        if is_ours
            && options.seccomp == Filter::Builtin
            && let Some(seccomp) = &mut spec.linux_mut().seccomp
        {
            defaults::allow_socketcall(seccomp);
        }
        Ok(())
    }

    fn confine_by_selinux(
        &self,
        record: &Record,
        points: &[MountPoint],
        spec: &mut Spec,
        options: &SecurityOptions,
        policy: Option<selinux::Policy>,
    ) -> Result<()> {
        let (host, label) = (&record.host_config, &options.label);
        let Some(policy) = policy else {
            if label.asks() {
                return Err(missing("SELinux with a policy for containers", "label="));
            }
            return Ok(());
        };
        if label.disabled || (host.privileged && !label.asks()) {
            return Ok(());
        }
        let level = match &label.level {
            Some(level) => level.clone(),
            None => {
                let (low, high) = self.db.claim_categories(&record.id)?;
                format!("s0:c{low},c{high}")
            }
        };
        let labels = policy.labels(label, &level);
        labels.check()?;
        selinux::relabel_volumes(host, &labels)?;
        selinux::label_volumes(points, &labels)?;
        spec.process.get_or_insert_default().selinux_label = Some(labels.process);
        spec.linux_mut().mount_label = Some(labels.mount);
        Ok(())
    }
}

/// Written out, since a kernel may give processes a profile by their program's path.
fn unconfined(spec: &mut Spec) -> Result<()> {
    if apparmor::is_enabled() {
        spec.process.get_or_insert_default().apparmor_profile = Some("unconfined".into());
    }
    Ok(())
}

fn refuse_in_guests(options: &SecurityOptions) -> Result<()> {
    let refused = |flag: String| {
        Err(Error::unsupported(
            format!(
                "--security-opt {flag} means nothing at isolation level vm: no profile is loaded in a guest"
            ),
            "leave it out (the virtual machine is the wall), or use --isolation container",
        ))
    };
    match &options.apparmor {
        AppArmor::Named(name) => refused(format!("apparmor={name}")),
        _ if options.label.asks() => refused("label=".into()),
        _ => Ok(()),
    }
}

fn missing(module: &str, flag: &str) -> Error {
    Error::unsupported(
        format!("the host's kernel has no {module}, which --security-opt {flag} asks for"),
        "without it: seccomp, capabilities and --security-opt no-new-privileges still hold",
    )
}
