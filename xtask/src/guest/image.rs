//! The guest's root: the programs, the libraries they load, the tools that tests and guest call, the plan.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::programs::Programs;
use super::selection::{Lsm, Planned};
use super::{SUITE, output_of, real_parent};
use crate::cargo;

const ONE: &str = include_str!("one.sh");
/// What a test may take in a guest, seconds: many times what the slowest needs.
const TEST_LIMIT: u32 = 220;

/// Packages whose programs, libraries and settings are in the image. `scripts/test` installs those that not every
/// system has.
const PACKAGES: &[&str] = &[
    "bash",
    "binutils",
    "busybox-static",
    "coreutils",
    "criu",
    "dash",
    "e2fsprogs",
    "erofs-utils",
    "findutils",
    "grep",
    "gzip",
    "iproute2",
    "iptables",
    "libc6-dev",
    "linux-libc-dev",
    "mawk",
    "mount",
    "nftables",
    "passwd",
    "procps",
    "sed",
    "tar",
    "uidmap",
    "util-linux",
    "apparmor",
];
/// Parts of them that no test needs.
const UNUSED: &[&str] = &["/usr/share/", "/etc/init.d/", "/etc/cron", "/lib/systemd/", "/usr/lib/systemd/"];
/// What is needed nevertheless.
const USED: &[&str] = &["/usr/share/apparmor"];
/// What systemd and its bus consist of: the tests boot them with what the bus's own units need, and no others.
const SYSTEMD: &[&str] = &[
    "/lib/systemd/systemd",
    "/bin/systemctl",
    "/lib/systemd/system/dbus.service",
    "/lib/systemd/system/dbus.socket",
    "/lib/systemd/system/basic.target",
    "/lib/systemd/system/shutdown.target",
    "/lib/systemd/system/sockets.target",
    "/lib/systemd/system/sysinit.target",
    "/usr/bin/dbus-daemon",
    "/usr/share/dbus-1/system.conf",
    "/usr/share/dbus-1/system.d/org.freedesktop.systemd1.conf",
];
/// What the host's administrator has chosen among programs of one name. criu runs the latter two.
const CHOSEN: &[&str] = &["/usr/bin/awk", "/usr/sbin/iptables-restore", "/usr/sbin/ip6tables-restore"];
/// What the compiler consists of, as it names them; some tests compile the program they run in a container.
const COMPILER_PROGRAMS: &[&str] = &["cc1", "collect2", "as", "ld"];
const COMPILER_FILES: &[&str] = &[
    "include",
    "crt1.o",
    "crti.o",
    "crtn.o",
    "crtbegin.o",
    "crtbeginT.o",
    "crtend.o",
    "libc.a",
    "libgcc.a",
    "libgcc_eh.a",
    "liblto_plugin.so",
];

/// Directories of every root.
const DIRECTORIES: &[&str] = &[
    "dev",
    "proc",
    "sys",
    "run",
    "tmp",
    "var/tmp",
    "var/lib",
    "root",
    "etc",
    "etc/systemd/system",
    "home/user",
    "rw",
    "guest",
    "mnt",
];
/// Files of every root; the ordinary users are those of `scripts/test-users`.
const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nproa-test:x:1000:1000::/home/user:/bin/sh\nproa-test-plain:x:1001:1001::/home/user:/bin/sh\n\
         messagebus:x:101:101::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n",
    ),
    (
        "etc/group",
        "root:x:0:\ntty:x:5:\nproa-test:x:1000:\nproa-test-plain:x:1001:\nmessagebus:x:101:\nnogroup:x:65534:\n",
    ),
    ("etc/subuid", "proa-test:100000:65536\n"),
    ("etc/subgid", "proa-test:100000:65536\n"),
    ("etc/hosts", "127.0.0.1 localhost guest\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
    ("guest/suite.sh", SUITE),
    ("guest/one.sh", ONE),
];

/// Makes the image of a guest that runs these tests.
pub fn make(scratch: &Path, lsm: Lsm, programs: &Programs, tests: &[&Planned]) -> Result<PathBuf> {
    let mut tree = Tree::new(scratch.join("root"))?;
    tree.add_packages()?;
    tree.add_compiler()?;
    for path in programs.tests.iter().map(|test| &test.path).chain(&programs.binaries) {
        tree.add_stripped(path)?;
    }
    tree.add_libraries()?;
    tree.add_sources()?;
    tree.write("guest/plan", &plan(tests)?)?;
    let policy = lsm.policy(scratch)?;
    if let Some(policy) = policy {
        tree.place(&policy, Path::new("guest/policy"))?;
    }
    let image = scratch.join("image.erofs");
    let mut tool = Command::new("mkfs.erofs");
    output_of(tool.args(["--quiet", "--all-root", "-x-1", "-T0"]).arg(&image).arg(&tree.root))?;
    fs::remove_dir_all(&tree.root).with_context(|| format!("cannot remove {}", tree.root.display()))?;
    Ok(image)
}

/// A line for each test: number, time limit, directory, program, name.
fn plan(tests: &[&Planned]) -> Result<String> {
    let mut text = String::new();
    for (number, test) in tests.iter().enumerate() {
        let directory = cargo::root().join("crates").join(test.crate_directory());
        let line = format!(
            "{number} {TEST_LIMIT} {} {} {}\n",
            directory.display(),
            test.program.display(),
            test.name
        );
        ensure!(line.split_whitespace().count() == 5, "a space in a path or in a test's name: {line}");
        text.push_str(&line);
    }
    Ok(text)
}

/// A root that grows.
struct Tree {
    root: PathBuf,
    /// Programs and libraries whose own libraries are still to be added.
    loaded: Vec<PathBuf>,
    seen: BTreeSet<PathBuf>,
}

impl Tree {
    fn new(root: PathBuf) -> Result<Self> {
        let tree = Self { root, loaded: Vec::new(), seen: BTreeSet::new() };
        fs::create_dir_all(&tree.root).with_context(|| format!("cannot make {}", tree.root.display()))?;
        // As the host has them: directories, or links into /usr.
        for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
            if let Ok(target) = fs::read_link(Path::new("/").join(name)) {
                tree.directory(&Path::new("usr").join(name))?;
                let link = tree.root.join(name);
                symlink(target, &link).with_context(|| format!("cannot link {}", link.display()))?;
            }
        }
        for path in DIRECTORIES {
            tree.directory(Path::new(path))?;
        }
        for (path, text) in FILES {
            tree.write(path, text)?;
        }
        Ok(tree)
    }

    fn directory(&self, inside: &Path) -> Result<()> {
        let path = self.root.join(inside);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))
    }

    fn write(&self, inside: &str, text: &str) -> Result<()> {
        let path = self.root.join(inside);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Copies a file of the host to a place in the root, with its permissions.
    fn place(&self, from: &Path, inside: &Path) -> Result<()> {
        let to = self.root.join(inside);
        self.directory(inside.parent().unwrap_or(Path::new("")))?;
        fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        Ok(())
    }

    fn add_packages(&mut self) -> Result<()> {
        let files = output_of(Command::new("dpkg").arg("-L").args(PACKAGES))
            .context("the guest's root is made of packages that scripts/test installs")?;
        let any = |line: &str, parts: &[&str]| parts.iter().any(|part| line.starts_with(part));
        let wanted =
            |line: &&str| line.starts_with('/') && *line != "/." && (any(line, USED) || !any(line, UNUSED));
        for path in files.lines().filter(wanted).map(Path::new) {
            // A file may be missing by the administrator's will, and a directory be there for what others add.
            if path.is_dir() {
                self.directory(fs::canonicalize(path)?.strip_prefix("/")?)?;
            } else if path.symlink_metadata().is_ok() {
                self.add(path)?;
            }
        }
        for path in SYSTEMD.iter().chain(CHOSEN) {
            self.add(Path::new(path))?;
        }
        Ok(())
    }

    fn add_compiler(&mut self) -> Result<()> {
        self.add(Path::new("/usr/bin/gcc"))?;
        let ask =
            |option: &str, name: &str| output_of(Command::new("gcc").arg(format!("-print-{option}={name}")));
        for name in COMPILER_PROGRAMS {
            let path = ask("prog-name", name)?;
            // One that is found by PATH came with its package.
            if path.starts_with('/') {
                self.add(Path::new(path.trim()))?;
            }
        }
        for name in COMPILER_FILES {
            self.add(Path::new(ask("file-name", name)?.trim()))?;
        }
        Ok(())
    }

    /// Adds a path of the host: a file, what a link leads to, all of a directory.
    fn add(&mut self, path: &Path) -> Result<()> {
        let path = real_parent(path)?;
        if !self.seen.insert(path.clone()) {
            return Ok(());
        }
        let inside = path.strip_prefix("/")?;
        let metadata = fs::symlink_metadata(&path).with_context(|| format!("no {}", path.display()))?;
        if metadata.is_symlink() {
            let target = fs::read_link(&path)?;
            self.directory(inside.parent().unwrap_or(Path::new("")))?;
            symlink(&target, self.root.join(inside))
                .with_context(|| format!("cannot link {}", path.display()))?;
            let target = path.parent().unwrap_or(Path::new("/")).join(target);
            return if target.exists() { self.add(&target) } else { Ok(()) };
        }
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))? {
                self.add(&entry?.path())?;
            }
            return Ok(());
        }
        self.place(&path, inside)?;
        if is_elf(&path)? {
            self.loaded.push(path);
        }
        Ok(())
    }

    /// A program of ours, without what only debuggers read.
    fn add_stripped(&mut self, path: &Path) -> Result<()> {
        let path = real_parent(path)?;
        let inside = path.strip_prefix("/")?;
        self.directory(inside.parent().unwrap_or(Path::new("")))?;
        output_of(
            Command::new("strip").arg("--strip-debug").arg("-o").arg(self.root.join(inside)).arg(&path),
        )?;
        self.loaded.push(path);
        Ok(())
    }

    /// The libraries of all programs that are there.
    fn add_libraries(&mut self) -> Result<()> {
        let programs = std::mem::take(&mut self.loaded);
        // For a static program it says so and fails, which is no failure here.
        let output = Command::new("ldd").args(&programs).output().context("cannot run ldd")?;
        for line in String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with('\t')) {
            let path = line.split_whitespace().find(|word| word.starts_with('/') && !word.ends_with(':'));
            if let Some(path) = path {
                self.add(Path::new(path))?;
            }
        }
        // Loaded by name at run time, so that no program lists them.
        for name in ["libnss_files.so.2", "libgcc_s.so.1"] {
            let path = output_of(Command::new("gcc").arg(format!("-print-file-name={name}")))?;
            let path = Path::new(path.trim());
            if path.is_absolute() && path.exists() {
                self.add(path)?;
            }
        }
        Ok(())
    }

    /// The files that tests read from their sources' directories.
    fn add_sources(&mut self) -> Result<()> {
        let crates = cargo::root().join("crates");
        for entry in fs::read_dir(&crates).with_context(|| format!("cannot list {}", crates.display()))? {
            let directory = entry?.path();
            self.directory(directory.strip_prefix("/")?)?;
            if directory.join("tests").is_dir() {
                self.add(&directory.join("tests"))?;
            }
        }
        Ok(())
    }
}

fn is_elf(path: &Path) -> Result<bool> {
    let mut file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut magic = [0; 4];
    let whole = file.read_exact(&mut magic).is_ok();
    let executable = file.metadata()?.permissions().mode() & 0o111 != 0;
    Ok(whole && magic == *b"\x7fELF" && (executable || path.to_string_lossy().contains(".so")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_is_what_the_guest_reads() {
        let test = Planned {
            title: "proa-runtime::it life::a".into(),
            program: "/target/it-1".into(),
            name: "life::a".into(),
        };
        let text = plan(&[&test]).unwrap();
        let root = cargo::root();
        assert_eq!(text, format!("0 {TEST_LIMIT} {}/crates/runtime /target/it-1 life::a\n", root.display()));
        let spaced = Planned { program: "/a b".into(), ..test };
        assert!(plan(&[&spaced]).is_err());
    }

    #[test]
    fn links_lead_to_what_is_there() {
        let scratch = std::env::temp_dir().join(format!("proa-tree-{}", std::process::id()));
        let mut tree = Tree::new(scratch.clone()).unwrap();
        tree.add(Path::new("/bin/sh")).unwrap();
        let real = fs::canonicalize("/bin/sh").unwrap();
        assert!(scratch.join(real.strip_prefix("/").unwrap()).is_file());
        assert!(fs::symlink_metadata(scratch.join("bin/sh")).is_ok());
        fs::remove_dir_all(scratch).unwrap();
    }
}
