//! Behaviour that both isolation levels share: each test is written once and runs at each level, and as a
//! container of an ordinary user's.
//!
//! What cannot be the same is refused, and its test says so with [`Bed::lacks`]. What each test at each level has found is
//! written below `target/parity`, from which `cargo xtask parity` makes the table in COMPATIBILITY.md.

mod boot;
mod confinement;
mod differences;
mod events;
mod figures;
mod files;
mod giving_back;
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
mod sharing;
mod terminal;
mod userns;
mod volumes;

use std::cell::RefCell;
use std::fs;

use crate::harness::{Output, Proa, workspace};

/// A store of its own and the level under test.
pub struct Bed {
    /// The command line on that store.
    pub proa: Proa,
    /// `container` or `vm`.
    pub level: &'static str,
    /// Why this level has not got what the test is about.
    pub lack: RefCell<Option<String>>,
}

impl Bed {
    /// A store that is there already.
    pub fn of(proa: Proa, level: &'static str) -> Self {
        Self { proa, level, lack: RefCell::new(None) }
    }

    /// An empty store with the image `busybox`.
    pub fn new(level: &'static str) -> Self {
        Self::of(Proa::with_busybox(), level)
    }

    /// A store of an ordinary user's, with the image `busybox`, at the level container.
    pub fn rootless() -> Self {
        Self::of(Proa::of_user("proa-test").import_busybox(), "container")
    }

    /// The same at the level vm.
    pub fn rootless_vm() -> Self {
        Self::of(crate::rootless_vm::user().import_busybox(), "vm")
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

    /// This level has not got what the test is about: the command is refused, and its hint is the table's reason.
    pub fn lacks(&self, refused: &Output) {
        assert!(refused.code != 0 && refused.stdout.is_empty(), "{refused:?}");
        let hint = refused.stderr.lines().find_map(|line| line.split_once("hint: "));
        let (_, reason) = hint.unwrap_or_else(|| panic!("no hint: {refused:?}"));
        *self.lack.borrow_mut() = Some(reason.to_owned());
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

/// Runs a test at a level, and writes down what it has found if it passes: nothing, or why the level has not got that.
fn judge(module: &str, level: &'static str, test: fn(&Bed)) {
    let (_, name) = module.split_once("parity::").unwrap();
    let records = workspace().join("target/parity");
    fs::create_dir_all(&records).unwrap();
    let record = records.join(format!("{}.{level}", name.replace("::", ".")));
    // What an earlier run has left.
    let _ = fs::remove_file(&record);
    let bed = Bed::new(level);
    test(&bed);
    let lack = bed.lack.take();
    // Fails where something is left.
    drop(bed);
    fs::write(record, lack.unwrap_or_default()).unwrap();
}

/// Makes a module with one test a level from one function over a [`Bed`], and one for an ordinary user; behind a
/// `;` those that need a cgroup, which an ordinary user has on few hosts, and behind another those that need root.
macro_rules! at_both_levels {
    ($($name:ident),* $(,)? $(; $($limited:ident),* $(,)? $(; $($roots:ident),+ $(,)?)?)?) => {
        $(
            mod $name {
                #[test]
                fn container() {
                    super::super::judge(module_path!(), "container", super::$name);
                }

                #[test]
                fn vm() {
                    super::super::judge(module_path!(), "vm", super::$name);
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
                    super::super::judge(module_path!(), "container", super::$limited);
                }

                #[test]
                fn vm() {
                    super::super::judge(module_path!(), "vm", super::$limited);
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
                    super::super::judge(module_path!(), "container", super::$roots);
                }

                #[test]
                fn vm() {
                    super::super::judge(module_path!(), "vm", super::$roots);
                }
            }
        )+)?)?
    };
}
pub(crate) use at_both_levels;
