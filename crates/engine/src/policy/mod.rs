//! The Kubernetes Pod Security Standards for single instances, without a cluster.
//!
//! ```text
//!   run line, instance  ─▶ of_instance ┐
//!   Compose file        ─▶ compose     ├─▶ Subject ─▶ check(level) ─▶ violations, each with what mends it
//!   Kubernetes YAML     ─▶ kube        ┘
//! ```
//!
//! The controls are those of the standards' version 1.37, one function each, over plain data; nothing here looks at
//! the host. A policy speaks of what is asked for, so it judges both isolation levels alike, as Kubernetes does for
//! pods that run in virtual machines.
//!
//! Three controls need words of their own for instances. A host device is judged as a host path, which is how a pod
//! gets one. `label=disable` is judged as a forbidden SELinux type, since it runs without one. Seccomp left open is
//! the built-in profile, where Kubernetes' is none: restricted asks nothing more.

mod compose;
mod controls;
mod instance;
mod kube;
mod yaml;

use serde::{Deserialize, Serialize};

pub use compose::parse as parse_compose;
pub use controls::{CONTROLS, Control, check};
pub use instance::enforce;
pub use kube::parse as parse_kube;

/// The standards' levels, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Everything is allowed.
    Privileged,
    /// No known way to the host.
    Baseline,
    /// Hardened.
    Restricted,
}

impl Level {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }

    /// From its word.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> crate::Result<Self> {
        let all = [Self::Privileged, Self::Baseline, Self::Restricted];
        all.into_iter().find(|level| level.as_str() == text).ok_or_else(|| crate::Error::Invalid {
            message: format!("no such policy: {text:?}"),
            hint: "privileged, baseline or restricted".into(),
        })
    }
}

/// How the thing that is judged was written, hence in which words to say what mends it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Options of `proa run`.
    #[default]
    Run,
    /// Keys of a Compose file.
    Compose,
    /// Fields of a pod.
    Kube,
}

/// What the standards look at, of one instance or one container of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// What to call it.
    pub name: String,
    /// How it was written.
    pub dialect: Dialect,
    /// Namespaces shared with the host: `network`, `pid`, `ipc`.
    pub host_namespaces: Vec<&'static str>,
    /// A Windows process of the host (`windowsOptions.hostProcess`).
    pub host_process: bool,
    /// All privileges.
    pub privileged: bool,
    /// Capabilities added, by short names in capitals.
    pub added: Vec<String>,
    /// Whether all capabilities are dropped first.
    pub drops_all: bool,
    /// Paths of the host, devices among them.
    pub host_paths: Vec<String>,
    /// Volumes of types that restricted does not list: name and type.
    pub other_volumes: Vec<(String, String)>,
    /// Ports of the host.
    pub host_ports: Vec<String>,
    /// Hosts named by probes and life cycle handlers.
    pub probe_hosts: Vec<String>,
    /// AppArmor is switched off.
    pub apparmor_unconfined: bool,
    /// SELinux options.
    pub selinux: SelinuxOptions,
    /// `/proc` without masks.
    pub proc_unmasked: bool,
    /// System call filter.
    pub seccomp: Seccomp,
    /// Names of kernel parameters.
    pub sysctls: Vec<String>,
    /// Whether programs may raise their privileges.
    pub escalation: bool,
    /// The user it runs as.
    pub user: RunAs,
    /// Users inside are others outside: the standards then allow root.
    pub user_namespace: bool,
}

/// SELinux options that the standards restrict.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SelinuxOptions {
    /// Type.
    pub kind: Option<String>,
    /// A user is set.
    pub user: bool,
    /// A role is set.
    pub role: bool,
    /// No label at all.
    pub disabled: bool,
}

/// The system call filter, as far as the standards ask.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// The runtime's own, or a profile.
    #[default]
    Confined,
    /// Left open where that means none (Kubernetes).
    Open,
    /// Explicitly none.
    Unconfined,
}

/// The user, as far as the standards ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RunAs {
    /// Root, said so.
    Root,
    /// A number other than 0, or a promise that is checked (`runAsNonRoot`).
    NonRoot,
    /// Nothing is said, which can be root.
    #[default]
    Open,
    /// A name, whose number an image decides.
    Named(String),
}

/// One way in which a subject breaks a standard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// What it is that breaks it; empty for an instance.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// Which control of the standards.
    pub control: &'static str,
    /// The level that forbids it.
    pub level: Level,
    /// What is wrong.
    pub problem: String,
    /// What mends it.
    pub mend: String,
}

impl Violation {
    /// As one line.
    pub fn line(&self) -> String {
        let subject = if self.subject.is_empty() { String::new() } else { format!("{}: ", self.subject) };
        format!("{subject}{} ({}): {}; mend: {}", self.control, self.level.as_str(), self.problem, self.mend)
    }
}

/// A volume of a kind that the standards do not know, or anything else that makes a file unfit to be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FileError(pub String);

impl FileError {
    fn at(place: &str, what: impl std::fmt::Display) -> Self {
        Self(format!("{place}: {what}"))
    }
}

/// A capability's short name in capitals.
fn short_capability(name: &str) -> String {
    let upper = name.trim().to_ascii_uppercase();
    upper.strip_prefix("CAP_").map_or(upper.clone(), str::to_owned)
}

/// What a `user[:group]` text says about root.
fn run_as(user: &str) -> RunAs {
    let name = user.split(':').next().unwrap_or_default();
    match name.parse::<u64>() {
        _ if name.is_empty() => RunAs::Open,
        Ok(0) => RunAs::Root,
        Ok(_) => RunAs::NonRoot,
        Err(_) if name == "root" => RunAs::Root,
        Err(_) => RunAs::Named(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::SecuritySettings;

    /// What YAML has a meaning for, and some that it has none for.
    const BYTES: &[u8] = b" :-[]{}&*!|>'\"\n#,?%@0a";

    /// Cuts, doubles and changes bytes of files that are fine: whatever comes of it, there is an answer.
    #[test]
    fn damaged_files_have_an_answer() {
        let samples = [
            "kind: Pod\nspec:\n  hostPID: true\n  containers:\n  - name: a\n    ports: [{hostPort: 80}]\n",
            "x: &x {user: '1'}\nservices:\n  a:\n    <<: *x\n    ports: ['80:80']\n    volumes: [./a:/b]\n",
        ];
        let mut state = 1u32;
        let mut random = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        let mut judged = 0;
        for round in 0..4000 {
            let mut bytes = samples[round % samples.len()].as_bytes().to_vec();
            for _ in 0..=random(4) {
                let at = random(bytes.len());
                match random(3) {
                    0 => bytes[at] = BYTES[random(BYTES.len())],
                    1 if bytes.len() > 20 => drop(bytes.drain(at..(at + 1 + random(8)).min(bytes.len()))),
                    _ => bytes.extend_from_within(at..),
                }
            }
            let text = String::from_utf8_lossy(&bytes);
            let parsed = [parse_compose(&text, &SecuritySettings::default()), parse_kube(&text)];
            for subject in parsed.into_iter().flatten().flatten() {
                let weak = check(&subject, Level::Baseline);
                let strong = check(&subject, Level::Restricted);
                assert!(weak.iter().all(|found| strong.contains(found)), "{text}");
                judged += 1;
            }
        }
        assert!(judged > 100, "{judged}");
    }
}
