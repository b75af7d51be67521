//! Seccomp profiles in Docker's format.

use proa_oci::runtime::Seccomp;
use serde::Deserialize;

use crate::error::{Error, Result};

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

/// The runtime spec's section for a process with these capabilities.
pub(super) fn read(text: &str, capabilities: &[String]) -> Result<Seccomp> {
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
