//! Which tests run in a guest, and which do not, with the reason.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::output_of;
use super::programs::Programs;

/// The policy of the guest with SELinux, and a version of the binary format that kernels since 5.12 read.
const POLICY: &str = include_str!("policy.cil");
const POLICY_VERSION: &str = "33";

/// A kernel's security module; each needs a boot of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lsm {
    AppArmor,
    Selinux,
}

impl Lsm {
    /// In the order they are booted.
    pub const ALL: [Self; 2] = [Self::AppArmor, Self::Selinux];

    pub fn from_name(name: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|lsm| lsm.name() == name) {
            Some(lsm) => Ok(lsm),
            None => bail!("no security module {name}: it is apparmor or selinux"),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::AppArmor => "apparmor",
            Self::Selinux => "selinux",
        }
    }

    /// For the kernel's command line.
    pub fn words(self) -> &'static [&'static str] {
        match self {
            Self::AppArmor => &["lsm=landlock,yama,apparmor,bpf", "apparmor=1"],
            Self::Selinux => &["lsm=landlock,yama,selinux,bpf", "selinux=1", "enforcing=1"],
        }
    }

    /// What the guest loads at its start.
    pub fn policy(self, scratch: &Path) -> Result<Option<PathBuf>> {
        if self == Self::AppArmor {
            return Ok(None);
        }
        let (source, policy) = (scratch.join("policy.cil"), scratch.join("policy"));
        fs::write(&source, policy_text()).with_context(|| format!("cannot write {}", source.display()))?;
        let mut compiler = Command::new("secilc");
        compiler
            .args(["-c", POLICY_VERSION, "-M", "true", "-f", "/dev/null", "-o"])
            .arg(&policy)
            .arg(&source);
        output_of(&mut compiler)?;
        Ok(Some(policy))
    }
}

/// The policy with the 1024 categories that instances choose from.
fn policy_text() -> String {
    let names: Vec<String> = (0..1024).map(|number| format!("c{number}")).collect();
    let mut categories: String = names.iter().map(|name| format!("(category {name})\n")).collect();
    categories += &format!("(categoryorder ({}))\n", names.join(" "));
    POLICY.replace("; CATEGORIES\n", &categories)
}

/// Tests of one program.
pub struct Suite {
    pub package: &'static str,
    /// `it`, or the library's name for its unit tests.
    pub target: &'static str,
    /// What a name must contain; any of them. None for all.
    only: &'static [&'static str],
    /// What a name must end with.
    end: &'static str,
}

/// What makes containers, at each level of our crates. What asks nothing of the kernel is tested on the host alone.
pub const SUITES: &[Suite] = &[
    Suite { package: "proa-runtime", target: "proa_runtime", only: &["cgroup::"], end: "" },
    Suite { package: "proa-runtime", target: "it", only: &[], end: "" },
    Suite { package: "proa-monitor", target: "it", only: &["limits::", "run::"], end: "" },
    Suite { package: "proa-cli", target: "it", only: FEATURES, end: "::container" },
    Suite { package: "proa-cli", target: "it", only: ROOTLESS, end: "::rootless" },
    Suite { package: "proa-cli", target: "it", only: ROOTLESS_ALONE, end: "" },
    Suite { package: "proa-cli", target: "it", only: &["lsm::"], end: "" },
    Suite {
        package: "proa-oci-runtime",
        target: "it",
        only: &["beside::", "checkpoint::", "machine::"],
        end: "",
    },
];

/// The parts of the command line's tests that differ between kernels.
const FEATURES: &[&str] = &[
    "parity::confinement::",
    "parity::events::",
    "parity::files::",
    "parity::life::pause",
    "parity::life::stop",
    "parity::limits::",
    "parity::network::a_published",
    "parity::network::networks_do_not",
    "parity::outside::ports_of_sctp",
    "parity::security::",
    "parity::userns::",
];

/// Those that differ for an ordinary user as well, who has a cgroup of its own in the guest.
const ROOTLESS: &[&str] = &[
    "parity::confinement::",
    "parity::events::",
    "parity::life::pause",
    "parity::limits::",
    "parity::security::",
];

/// What only an ordinary user has, and what an older kernel could refuse.
const ROOTLESS_ALONE: &[&str] = &[
    "keep_id::life_of_",
    "keep_id::the_user_is_itself_inside",
    "rootless::limits_",
    "rootless::root_inside_",
];

/// Where a security module matters, and so the only tests that run under SELinux too: names with these in them.
const LSM_TESTS: &[&str] = &["lsm::"];

/// What would fail in a guest for a reason that is not ours, or prove nothing there: program, part of the name,
/// reason.
const LEFT_OUT: &[(&str, &str, &str)] = &[
    (
        "proa-runtime::it",
        "attacks::descriptors_do_not_leak",
        "hundreds of containers: minutes under emulation",
    ),
    (
        "proa-runtime::it",
        "attacks::mount_destinations_that_move",
        "a hundred containers and their races: minutes",
    ),
    (
        "proa-runtime::it",
        "mounts::an_id_mapped_volume",
        "tmpfs maps ids since Linux 6.3, and the guest has 6.1",
    ),
];

/// A test to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// `proa-runtime::it limits::pids_are_limited`, as nextest writes it.
    pub title: String,
    pub program: PathBuf,
    pub name: String,
}

impl Planned {
    /// The directory of its crate below `crates`.
    pub fn crate_directory(&self) -> &str {
        let package = self.title.split([':', ' ']).next().unwrap_or_default();
        package.strip_prefix("proa-").unwrap_or(package)
    }

    /// Whether the test belongs into a guest with this security module.
    pub fn runs_under(&self, lsm: Lsm) -> bool {
        lsm == Lsm::AppArmor || LSM_TESTS.iter().any(|part| self.name.contains(part))
    }
}

/// The tests of the suites whose titles contain one of `filters`.
pub fn plan(programs: &Programs, filters: &[String]) -> Result<Vec<Planned>> {
    let mut planned = Vec::new();
    let mut used = BTreeSet::new();
    for suite in SUITES {
        let found =
            programs.tests.iter().find(|test| test.package == suite.package && test.target == suite.target);
        let Some(program) = found else { bail!("cargo built no tests {}::{}", suite.package, suite.target) };
        let before = planned.len();
        for name in &program.names {
            let title = suite.title(name);
            let left_out =
                LEFT_OUT.iter().position(|(of, part, _)| title.starts_with(of) && name.contains(part));
            used.extend(left_out);
            if left_out.is_none() && suite.has(name) {
                planned.push(Planned { title, program: program.path.clone(), name: name.clone() });
            }
        }
        ensure!(planned.len() > before, "{}::{} has none of its tests left", suite.package, suite.target);
    }
    for (number, (program, part, reason)) in LEFT_OUT.iter().enumerate() {
        ensure!(used.contains(&number), "{program} {part} ({reason}) is left out, but is no test");
    }
    planned.retain(|test| filters.is_empty() || filters.iter().any(|filter| test.title.contains(filter)));
    Ok(planned)
}

impl Suite {
    fn has(&self, name: &str) -> bool {
        let chosen = self.only.is_empty() || self.only.iter().any(|part| name.contains(part));
        chosen && name.ends_with(self.end)
    }

    fn title(&self, name: &str) -> String {
        match self.target {
            "it" => format!("{}::it {name}", self.package),
            _ => format!("{} {name}", self.package),
        }
    }
}
