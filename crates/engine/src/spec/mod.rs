//! The runtime spec: defaults, then the image's configuration, then flags.
//!
//! ```text
//!   ContainerConfig ── merge(image) ──▶ ContainerConfig ┐
//!   HostConfig ─────────────────────────────────────────┴─ build(level) ──▶ InstanceConfig
//! ```
//!
//! The rules are Docker's. This is the one place of the engine that looks at the isolation level: what means
//! nothing at the level asked for is refused here, and nothing after it asks.

mod environment;
mod files;
mod limits;
mod process;
pub(crate) mod resources;
mod security;

use proa_oci::defaults;
use proa_oci::runtime::{NamespaceKind, Spec};
use proa_protocol::instance::{InstanceConfig, IsolationLevel, VmConfig};
use proa_protocol::kernel::name_of;
use proa_protocol::message::LaunchConfig;
use proa_protocol::volume::MountPoint;

use crate::config::{ContainerConfig, HostConfig};
use crate::error::{Error, Result};
use crate::network::Mode;
use crate::{logging, mounts, names, namespaces};

pub use environment::merge as merge_environment;
pub(crate) use files::{parse_extra_host, resolv_conf_of};
pub use process::{ExecRequest, exec_process, merge};
pub use security::{AppArmor, Filter, Label, SecurityOptions};

/// Ports from here on are everybody's.
const UNPRIVILEGED_PORTS: (&str, &str) = ("net.ipv4.ip_unprivileged_port_start", "0");
/// Groups that may send echo requests.
const UNPRIVILEGED_PING: &str = "net.ipv4.ping_group_range";
const MOST_GROUPS: u32 = 1 << 31;
/// With fewer ids an ordinary user has none for virtual machine monitors (`proa_vm` says which they are); a range of
/// the usual size is 65536.
const FEWEST_IDS: u32 = 12288;

/// What an instance's network means for its spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    /// A loopback interface alone.
    None,
    /// The host's.
    Host,
    /// Another instance's, whose namespace its monitor looks up.
    Shared,
    /// Interfaces of its own, which its monitor makes.
    Own,
}

impl Network {
    fn of(host: &HostConfig) -> Result<Self> {
        Ok(match Mode::parse(&host.network_mode)? {
            Mode::None => Self::None,
            Mode::Host => Self::Host,
            Mode::Container(_) => Self::Shared,
            Mode::Network(_) => Self::Own,
        })
    }
}

/// Writes out what the user left to a rule, so that it is seen: names of capabilities, swap, the level.
///
/// # Errors
/// There is no such capability.
pub fn complete(host: &mut HostConfig, level: IsolationLevel) -> Result<()> {
    level.as_str().clone_into(&mut host.isolation);
    host.cap_add = security::normalize(&host.cap_add)?;
    host.cap_drop = security::normalize(&host.cap_drop)?;
    // A label would keep it from what it shares with the host.
    let unlabelled =
        host.privileged || [&host.pid_mode, &host.ipc_mode].into_iter().any(|mode| mode == "host");
    if unlabelled && !host.security_opt.iter().any(|option| option.starts_with("label")) {
        host.security_opt.push("label=disable".into());
    }
    resources::complete_swap(host);
    Ok(())
}

/// What a monitor runs, from what was asked for. `config` is already merged with the image's.
///
/// # Errors
/// Something makes no sense, or means nothing at this level.
pub fn build(
    id: &str,
    config: &ContainerConfig,
    host: &HostConfig,
    points: &[MountPoint],
    level: IsolationLevel,
) -> Result<InstanceConfig> {
    check_level(host, level)?;
    let network = Network::of(host)?;
    let hostname = hostname(id, config, host, network)?;
    let mut spec = defaults::default_spec();
    spec.hostname = Some(hostname.clone());
    spec.domainname = (!config.domainname.is_empty()).then(|| config.domainname.clone());
    spec.annotations = host.annotations.clone();
    spec.process =
        Some(process::first_process(config, host, &hostname, spec.process.take().unwrap_or_default())?);
    if let Some(root) = &mut spec.root {
        root.readonly = host.readonly_rootfs;
    }
    namespaces::apply(&mut spec, id, host)?;
    place_mounts(&mut spec, host, points, level)?;
    apply_linux(&mut spec, host, network)?;
    limits::apply(&mut spec, host)?;
    security::apply(&mut spec, host, level)?;
    let launch = LaunchConfig {
        user: user(config),
        stdin: config.open_stdin,
        stdin_once: config.stdin_once,
        init: host.init.unwrap_or(false),
        all_devices: host.privileged,
        files: files::build(config, host, network, &hostname, &spec.mounts)?,
    };
    let mut instance = InstanceConfig {
        id: id.to_owned(),
        isolation: level,
        spec,
        launch,
        log: logging::parse(host)?,
        vm: vm_config(host)?,
        life: crate::restart::life(config, host)?,
        auto_remove: host.auto_remove,
        mount_points: points.to_vec(),
        ..InstanceConfig::default()
    };
    namespaces::write(host, &mut instance);
    Ok(instance)
}

pub(crate) fn check_level(host: &HostConfig, level: IsolationLevel) -> Result<()> {
    let refused = |flag: &str, hint: &str| {
        Err(Error::unsupported(format!("{flag} means nothing at isolation level {}", level.as_str()), hint))
    };
    match level {
        IsolationLevel::Container => {
            if host.vm.kernel.is_some() {
                return refused("--kernel", "a container runs on the host's kernel: use --isolation vm");
            }
            if !host.vm.kernel_args.is_empty() {
                return refused("--kernel-arg", "a container runs on the host's kernel: use --isolation vm");
            }
            if host.vm.no_template {
                return refused("--no-template", "a container has nothing to boot: use --isolation vm");
            }
            if host.vm.disk_size.is_some() {
                return refused(
                    "--disk-size",
                    "a container writes to the host's file system: use --isolation vm",
                );
            }
        }
        IsolationLevel::Vm => {
            if !proa_sys::userns::is_initial() && proa_sys::userns::count_ids() < FEWEST_IDS {
                return Err(Error::unsupported(
                    "isolation level vm needs ids for virtual machine monitors, which do not run as you: your user \
                     namespace has too few",
                    "install newuidmap (package uidmap), and give the user a line as NAME:100000:65536 in \
                     /etc/subuid and /etc/subgid; or use --isolation container",
                ));
            }
            if host.network_mode == "host" {
                return refused(
                    "--network host",
                    "a guest has a network stack of its own: use a network, or --network none",
                );
            }
            if !host.devices.is_empty() {
                return refused("--device", "a guest has devices of its own: use --isolation container");
            }
            if !host.device_cgroup_rules.is_empty() {
                return refused(
                    "--device-cgroup-rule",
                    "no device of the host is in a guest: use --isolation container",
                );
            }
            if !host.cpuset_cpus.is_empty() || !host.cpuset_mems.is_empty() {
                return refused("--cpuset-cpus", "a guest has CPUs of its own: use --cpus");
            }
            if resources::weighs_or_throttles(host) {
                return refused(
                    "a block I/O limit",
                    "a guest has disks of its own: use --isolation container",
                );
            }
        }
    }
    Ok(())
}

/// Docker's rule: without a user it is root, with the groups that the image gives to root.
fn user(config: &ContainerConfig) -> String {
    if config.user.is_empty() { "0".into() } else { config.user.clone() }
}

fn hostname(id: &str, config: &ContainerConfig, host: &HostConfig, network: Network) -> Result<String> {
    if namespaces::has_hosts_name(host) {
        return Ok(names::of_host());
    }
    if !config.hostname.is_empty() {
        let valid = config.hostname.len() <= 63
            && config.hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if !valid {
            return Err(Error::Invalid {
                message: format!("invalid host name {:?}", config.hostname),
                hint: "at most 63 letters, digits, dots and hyphens".into(),
            });
        }
        return Ok(config.hostname.clone());
    }
    if network == Network::Host {
        return Ok(names::of_host());
    }
    Ok(names::short(id).to_owned())
}

/// The user's mounts take the place of defaults at the same path, and of what those hold.
fn place_mounts(
    spec: &mut Spec,
    host: &HostConfig,
    points: &[MountPoint],
    level: IsolationLevel,
) -> Result<()> {
    if host.shm_size != crate::config::DEFAULT_SHM_SIZE {
        if host.shm_size <= 0 {
            return Err(Error::invalid("--shm-size must be more than 0"));
        }
        let shm = spec.mounts.iter_mut().filter(|mount| mount.destination == "/dev/shm");
        for option in shm.flat_map(|mount| &mut mount.options).filter(|option| option.starts_with("size=")) {
            *option = format!("size={}", host.shm_size);
        }
    }
    let added = mounts::build(points, host, level)?;
    spec.mounts.retain(|mount| !added.iter().any(|new| new.destination == mount.destination));
    spec.mounts.extend(added);
    Ok(())
}

fn apply_linux(spec: &mut Spec, host: &HostConfig, network: Network) -> Result<()> {
    let linux = spec.linux_mut();
    if network == Network::Host {
        linux.namespaces.retain(|namespace| namespace.kind != NamespaceKind::Network);
    }
    if network == Network::Own {
        // As Docker has it: who has a network of its own needs no privilege for its ports and for ping.
        let (key, value) = UNPRIVILEGED_PORTS;
        linux.sysctl.insert(key.to_owned(), value.to_owned());
        // A range of groups must be whole in the instance's own ids.
        if !host.has_own_ids() {
            let last = proa_sys::userns::count_ids().clamp(1, MOST_GROUPS) - 1;
            linux.sysctl.insert(UNPRIVILEGED_PING.to_owned(), format!("0 {last}"));
        }
    }
    for (key, value) in &host.sysctls {
        let of_network = key.starts_with("net.");
        let of_ipc = matches!(
            key.as_str(),
            "kernel.msgmax"
                | "kernel.msgmnb"
                | "kernel.msgmni"
                | "kernel.sem"
                | "kernel.shmall"
                | "kernel.shmmax"
                | "kernel.shmmni"
                | "kernel.shm_rmid_forced"
        ) || key.starts_with("fs.mqueue.");
        if key.contains('/') || !(of_network || of_ipc) {
            return Err(Error::Invalid {
                message: format!("sysctl {key:?} is not in a namespace of the instance's own"),
                hint: "net.*, fs.mqueue.* and kernel.{msg*,sem,shm*} are".into(),
            });
        }
        if of_network && network == Network::Host {
            return Err(Error::invalid(format!(
                "sysctl {key:?} would change the host: not with --network host"
            )));
        }
        if of_ipc && !namespaces::has_own_ipc(host) {
            return Err(Error::invalid(format!(
                "sysctl {key:?} would change others: not with --ipc {}",
                host.ipc_mode
            )));
        }
        linux.sysctl.insert(key.clone(), value.clone());
    }
    Ok(())
}

pub(crate) fn vm_config(host: &HostConfig) -> Result<VmConfig> {
    let cpus = host.nano_cpus.max(0).unsigned_abs().div_ceil(1_000_000_000);
    let file = host.vm.kernel.as_deref().filter(|kernel| name_of(kernel).is_none());
    if let Some(kernel) = file
        && !kernel.is_file()
    {
        return Err(Error::Invalid {
            message: format!("there is no kernel at {}", kernel.display()),
            hint: "name a bzImage or vmlinux file, or leave --kernel out".into(),
        });
    }
    let is_word =
        |word: &&String| !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c.is_control());
    if let Some(word) = host.vm.kernel_args.iter().find(|word| !is_word(word)) {
        let hint = "one word without spaces, as NAME=VALUE; repeat the option for more";
        return Err(Error::invalid_with_hint(format!("invalid --kernel-arg {word:?}"), hint));
    }
    Ok(VmConfig {
        kernel: host.vm.kernel.clone(),
        kernel_args: host.vm.kernel_args.clone(),
        memory: host.memory.max(0).unsigned_abs(),
        cpus: u32::try_from(cpus).map_err(|_| Error::invalid("too many CPUs"))?,
        disk_size: host.vm.disk_size.unwrap_or(0).max(0).unsigned_abs(),
        no_template: host.vm.no_template,
    })
}

#[cfg(test)]
mod tests;
