//! Machines: whole disks that boot by themselves, under the verbs of all instances.
//!
//! Most tests boot a system of one sector (`tiny.s`), which is there in a second or two even where everything is
//! emulated. Those of `real` boot what others have written: Debian, iPXE, memtest86+.

mod disks;
mod hostile;
mod life;
mod real;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::{Proa, Terminal};

/// How long a system of others may take to boot.
const SLOWLY: Duration = Duration::from_secs(240);

/// A root, and a place for disks.
struct Bed {
    proa: Proa,
    directory: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        Self::of(Proa::new())
    }

    fn of(proa: Proa) -> Self {
        Self { proa, directory: tempfile::tempdir_in("/var/tmp").unwrap() }
    }

    /// A file beside the root.
    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// A disk of one MiB with the tiny system.
    fn tiny(&self) -> String {
        let path = self.path("tiny.img");
        if !PathBuf::from(&path).exists() {
            self.sh(&format!(
                "as --32 -o tiny.o {0} && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o tiny.img tiny.o && \
                 truncate -s 1M tiny.img",
                concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/machines/tiny.s"),
            ));
        }
        path
    }

    /// A shell line in the place for disks, which must succeed.
    fn sh(&self, line: &str) -> String {
        let output =
            Command::new("sh").args(["-c", line]).current_dir(self.directory.path()).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Makes a machine of the tiny system.
    fn create(&self, name: &str, options: &[&str]) {
        let disk = self.tiny();
        self.ok(&[&["machine", "create", "--disk", &disk, "-m", "64m"], options, &[name]].concat());
    }

    fn ok(&self, arguments: &[&str]) -> String {
        self.proa.ok(arguments)
    }

    /// What a command that fails says.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.proa.run(arguments);
        assert_ne!(output.code, 0, "{arguments:?}: {output:?}");
        output.stderr
    }

    /// Waits until a machine has written this to its console.
    fn expect(&self, name: &str, text: &str) {
        self.proa.wait_for(&format!("{text:?} of {name}"), || {
            self.proa.run(&["logs", name]).stdout.contains(text)
        });
    }

    /// The same of a system that takes its time where everything is emulated and others want the CPUs.
    fn expect_slowly(&self, name: &str, text: &str) {
        let deadline = Instant::now() + SLOWLY;
        while !self.proa.run(&["logs", name]).stdout.contains(text) {
            let log = || self.proa.run(&["logs", "--tail", "5", name]).stdout;
            assert!(Instant::now() < deadline, "no {text:?} of {name}: {}", log());
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn state(&self, name: &str) -> String {
        self.ok(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name])
    }

    fn attach(&self, name: &str) -> Terminal {
        Terminal::start(&self.proa, &["attach", name], 24, 80)
    }

    /// Where what a machine writes is.
    fn media(&self, name: &str) -> PathBuf {
        let id = self.ok(&["inspect", "--format", "{{.Id}}", name]);
        self.proa.root().join("instances").join(id).join("machine")
    }
}

/// Debian's disk, made once.
fn debian() -> String {
    let path = crate::harness::workspace().join("target/test-cache/debian.img");
    if !path.exists() {
        let script = crate::harness::workspace().join("scripts/test-disk");
        assert!(Command::new(script).status().unwrap().success(), "scripts/test-disk failed");
    }
    fs::metadata(&path).unwrap();
    path.to_str().unwrap().to_owned()
}
