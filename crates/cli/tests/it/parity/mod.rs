//! Behaviour that both isolation levels share: each test is written once and runs at each level, and as a
//! container of an ordinary user's.
//!
//! What cannot be the same stands in COMPATIBILITY.md with its reason, and here in a test that names the level.

mod boot;
mod confinement;
mod events;
mod figures;
mod files;
mod health;
mod identity;
mod life;
mod limits;
mod logging;
mod network;
pub mod outside;
mod process;
mod restart;
mod security;
mod terminal;
mod userns;
mod volumes;

use crate::harness::{Output, Proa};

/// A store of its own and the level under test.
pub struct Bed {
    /// The command line on that store.
    pub proa: Proa,
    /// `container` or `vm`.
    pub level: &'static str,
}

impl Bed {
    /// An empty store with the image `busybox`.
    pub fn new(level: &'static str) -> Self {
        Self { proa: Proa::with_busybox(), level }
    }

    /// A store of an ordinary user's, with the image `busybox`, at the level container.
    pub fn rootless() -> Self {
        Self { proa: Proa::of_user("proa-test").import_busybox(), level: "container" }
    }

    /// The same at the level vm.
    pub fn rootless_vm() -> Self {
        Self { proa: crate::rootless_vm::user().import_busybox(), level: "vm" }
    }

    /// The same where the user has a cgroup of its own. Elsewhere a limit must be refused, with what it needs.
    fn rootless_with_cgroup() -> Option<Self> {
        let bed = Self::rootless();
        if bed.proa.has_cgroup() {
            return Some(bed);
        }
        let refused = bed.run(&["-m", "64m"], &["true"]);
        assert!(refused.code == 125 && refused.stderr.contains("cgroup"), "{refused:?}");
        None
    }

    /// A directory that whoever runs the instance may use.
    pub fn directory(&self) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        self.proa.give(directory.path());
        directory
    }

    /// Whom the instance's root is outside.
    pub fn uid(&self) -> u32 {
        self.proa.user().map_or(0, |user| user.uid)
    }

    /// Whether this is the VM level, for the few expectations that name it.
    pub fn is_vm(&self) -> bool {
        self.level == "vm"
    }

    /// `proa ARGUMENTS`, whatever the outcome.
    pub fn proa(&self, arguments: &[&str]) -> Output {
        self.proa.run(arguments)
    }

    /// `proa ARGUMENTS` that must succeed; its standard output without the last newline.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.proa(arguments);
        assert_eq!(output.code, 0, "proa {arguments:?}: {output:?}");
        output.stdout.trim_end_matches('\n').to_owned()
    }

    /// `proa run --rm FLAGS busybox COMMAND` at this level.
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Output {
        self.proa(&[&["run", "--rm", "--isolation", self.level], flags, &["busybox"], command].concat())
    }

    /// The same, which must succeed; its standard output without the last newline.
    pub fn run_ok(&self, flags: &[&str], command: &[&str]) -> String {
        let output = self.run(flags, command);
        assert_eq!(output.code, 0, "{flags:?} {command:?}: {output:?}");
        output.stdout.trim_end_matches('\n').to_owned()
    }

    /// Starts `busybox COMMAND` detached under `name`.
    pub fn detach(&self, name: &str, flags: &[&str], command: &[&str]) -> String {
        let start = ["run", "-d", "--isolation", self.level, "--name", name];
        self.ok(&[&start, flags, &["busybox"], command].concat())
    }
}

/// Makes a module with one test a level from one function over a [`Bed`], and one for an ordinary user; behind a
/// `;` those that need a cgroup, which an ordinary user has on few hosts, and behind another those that need root.
macro_rules! at_both_levels {
    ($($name:ident),* $(,)? $(; $($limited:ident),* $(,)? $(; $($roots:ident),+ $(,)?)?)?) => {
        $(
            mod $name {
                #[test]
                fn container() {
                    super::$name(&super::super::Bed::new("container"));
                }

                #[test]
                fn vm() {
                    super::$name(&super::super::Bed::new("vm"));
                }

                #[test]
                fn rootless() {
                    super::$name(&super::super::Bed::rootless());
                }
            }
        )*
        $($(
            mod $limited {
                #[test]
                fn container() {
                    super::$limited(&super::super::Bed::new("container"));
                }

                #[test]
                fn vm() {
                    super::$limited(&super::super::Bed::new("vm"));
                }

                #[test]
                fn rootless() {
                    if let Some(bed) = super::super::Bed::rootless_with_cgroup() {
                        super::$limited(&bed);
                    }
                }
            }
        )*
        $($(
            mod $roots {
                #[test]
                fn container() {
                    super::$roots(&super::super::Bed::new("container"));
                }

                #[test]
                fn vm() {
                    super::$roots(&super::super::Bed::new("vm"));
                }
            }
        )+)?)?
    };
}
pub(crate) use at_both_levels;
