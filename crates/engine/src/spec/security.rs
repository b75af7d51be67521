//! Privileges: capabilities and `--security-opt`.

use std::path::Path;

use proa_oci::defaults;
use proa_oci::runtime::{Seccomp, Spec};
use proa_protocol::instance::IsolationLevel;
use serde::Deserialize;

use crate::config::HostConfig;
use crate::error::{Error, Result};
use crate::parse;

/// What `--security-opt` says, all together.
#[derive(Debug, Default)]
struct Options {
    seccomp: Filter,
    no_new_privileges: bool,
    open_paths: bool,
}

#[derive(Debug, Default)]
enum Filter {
    #[default]
    Builtin,
    Unconfined,
    Profile(String),
}

pub(super) fn apply(spec: &mut Spec, host: &HostConfig, level: IsolationLevel) -> Result<()> {
    if host.privileged {
        return Err(Error::unsupported(
            "--privileged is not there yet",
            "--cap-add ALL --security-opt seccomp=unconfined --security-opt systempaths=unconfined, and --device",
        ));
    }
    let capabilities = capabilities(&host.cap_add, &host.cap_drop)?;
    let options = read_options(&host.security_opt, level)?;
    let seccomp = match &options.seccomp {
        Filter::Builtin => Some(defaults::default_seccomp(&capabilities)),
        Filter::Unconfined => None,
        Filter::Profile(text) => Some(profile(text, &capabilities)?),
    };
    let process = spec.process.get_or_insert_default();
    process.capabilities = Some(defaults::capability_sets(capabilities));
    process.no_new_privileges = options.no_new_privileges;
    let linux = spec.linux_mut();
    linux.seccomp = seccomp;
    if options.open_paths {
        linux.masked_paths.clear();
        linux.readonly_paths.clear();
    }
    Ok(())
}

/// Docker's rule: `ALL` in one list makes the other count from everything or from nothing.
fn capabilities(add: &[String], drop: &[String]) -> Result<Vec<String>> {
    let (add, drop) = (normalize(add)?, normalize(drop)?);
    let has_all = |list: &[String]| list.iter().any(|name| name == "ALL");
    let base: Vec<String> = match (has_all(&add), has_all(&drop)) {
        (true, _) => held_capabilities(),
        (false, true) => Vec::new(),
        (false, false) => defaults::default_capabilities(),
    };
    let mut names: Vec<String> = base.into_iter().filter(|name| !drop.contains(name)).collect();
    for name in add.into_iter().filter(|name| name != "ALL") {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Every capability this host can give: it may lack some itself, and `ALL` does not ask for those.
fn held_capabilities() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let held = line.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).unwrap_or(u64::MAX);
    let names = defaults::ALL_CAPABILITIES.iter().enumerate();
    names.filter(|(number, _)| held >> number & 1 == 1).map(|(_, name)| (*name).to_owned()).collect()
}

pub(super) fn normalize(names: &[String]) -> Result<Vec<String>> {
    names.iter().flat_map(|list| list.split(',')).map(normalize_one).collect()
}

fn normalize_one(name: &str) -> Result<String> {
    let upper = name.trim().to_ascii_uppercase();
    if upper == "ALL" || upper == "CAP_ALL" {
        return Ok("ALL".into());
    }
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    if defaults::ALL_CAPABILITIES.contains(&full.as_str()) {
        return Ok(full);
    }
    Err(Error::Invalid { message: format!("no such capability: {name}"), hint: "see capabilities(7)".into() })
}

fn read_options(texts: &[String], level: IsolationLevel) -> Result<Options> {
    let mut options = Options::default();
    for text in texts {
        let (key, value) = match text.find(['=', ':']) {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text.as_str(), None),
        };
        match (key, value) {
            ("seccomp", Some("unconfined")) => options.seccomp = Filter::Unconfined,
            ("seccomp", Some("builtin" | "")) => options.seccomp = Filter::Builtin,
            ("seccomp", Some(profile)) => options.seccomp = Filter::Profile(profile.to_owned()),
            ("no-new-privileges", value) => {
                let wrong = || Error::invalid(format!("invalid --security-opt {text:?}: true or false"));
                options.no_new_privileges = value.map_or(Some(true), parse::boolean).ok_or_else(wrong)?;
            }
            ("systempaths", Some("unconfined")) => options.open_paths = true,
            // Nothing to turn off where nothing is on: no profile or label is ever given by default.
            ("apparmor", Some("unconfined")) | ("label", Some("disable")) => {}
            ("apparmor", Some(profile)) => return Err(no_module("AppArmor", profile, level)),
            ("label", Some(label)) => return Err(no_module("SELinux", label, level)),
            _ => {
                return Err(Error::Invalid {
                    message: format!("invalid --security-opt {text:?}"),
                    hint: "seccomp=unconfined|builtin|FILE, no-new-privileges, systempaths=unconfined, \
                           apparmor=unconfined, label=disable"
                        .into(),
                });
            }
        }
    }
    Ok(options)
}

fn no_module(module: &str, value: &str, level: IsolationLevel) -> Error {
    let there = match module {
        "AppArmor" => Path::new("/sys/kernel/security/apparmor").exists(),
        _ => Path::new("/sys/fs/selinux/enforce").exists(),
    };
    let message = match (level, there) {
        (IsolationLevel::Container, false) => {
            format!("the host's kernel has no {module}, which {value:?} asks for")
        }
        _ => format!("{module} profiles are not there yet, and {value:?} asks for one"),
    };
    Error::unsupported(
        message,
        "without it: seccomp, capabilities and --security-opt no-new-privileges still hold",
    )
}

/// A seccomp profile as Docker's users write it: the runtime spec's section, with conditions on what the
/// instance may do and with maps of architectures in place of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Profile {
    #[serde(flatten)]
    plain: Seccomp,
    arch_map: Vec<Architectures>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Architectures {
    architecture: String,
    sub_architectures: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuleConditions {
    name: String,
    includes: Conditions,
    excludes: Conditions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Conditions {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: String,
}

impl Conditions {
    fn all_hold(&self, capabilities: &[String]) -> bool {
        let caps = self.caps.iter().all(|name| capabilities.contains(name));
        caps && (self.arches.is_empty() || self.names_our_architecture()) && self.kernel_is_new_enough()
    }

    fn any_holds(&self, capabilities: &[String]) -> bool {
        self.caps.iter().any(|name| capabilities.contains(name))
            || self.names_our_architecture()
            || (!self.min_kernel.is_empty() && self.kernel_is_new_enough())
    }

    fn names_our_architecture(&self) -> bool {
        let ours = match std::env::consts::ARCH {
            "x86_64" => ["amd64", "x86_64"],
            _ => ["arm64", "aarch64"],
        };
        self.arches.iter().any(|name| ours.contains(&name.as_str()))
    }

    fn kernel_is_new_enough(&self) -> bool {
        if self.min_kernel.is_empty() {
            return true;
        }
        let release = rustix::system::uname();
        version(&release.release().to_string_lossy()) >= version(&self.min_kernel)
    }
}

fn version(text: &str) -> (u32, u32) {
    let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn profile(text: &str, capabilities: &[String]) -> Result<Seccomp> {
    let wrong = |error: serde_json::Error| Error::invalid(format!("invalid seccomp profile: {error}"));
    let mut value: serde_json::Value = serde_json::from_str(text).map_err(wrong)?;
    let rules = value
        .get_mut("syscalls")
        .and_then(|rules| rules.as_array_mut().map(std::mem::take))
        .unwrap_or_default();
    let mut kept = Vec::new();
    for rule in rules {
        let conditions = RuleConditions::deserialize(&rule).map_err(wrong)?;
        if conditions.includes.all_hold(capabilities) && !conditions.excludes.any_holds(capabilities) {
            let mut rule: proa_oci::runtime::SeccompRule = serde_json::from_value(rule).map_err(wrong)?;
            rule.names.extend((!conditions.name.is_empty()).then_some(conditions.name));
            kept.push(rule);
        }
    }
    let Profile { mut plain, arch_map } = serde_json::from_value(value).map_err(wrong)?;
    if plain.default_action.is_empty() {
        return Err(Error::invalid("invalid seccomp profile: it has no defaultAction"));
    }
    plain.syscalls = kept;
    let native = match std::env::consts::ARCH {
        "x86_64" => "SCMP_ARCH_X86_64",
        _ => "SCMP_ARCH_AARCH64",
    };
    if let Some(map) = arch_map.into_iter().find(|map| map.architecture == native) {
        plain.architectures.push(map.architecture);
        plain.architectures.extend(map.sub_architectures);
    }
    Ok(plain)
}
