//! Builds a lean kernel for guests from the distribution's source package.
//!
//! ```text
//!   tools there? ─▶ source: package fetched and unpacked, or a directory ─▶ tinyconfig + lean.config ─▶ make vmlinux ─▶ add
//! ```
//! All of it happens in a directory that is held while it is used; what a killed build left is removed by the next. Of
//! what the tools say, the end is told where they fail; the whole is in a log beside the kernels.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::engine::Engine;
use crate::error::{Error, Result};

/// What the kernel has, all built in. What it would not take is told, and nothing is built.
const CONFIG: &str = include_str!("lean.config");
/// Programs, and the packages that have them.
const TOOLS: &[(&str, &str)] = &[
    ("make", "make"),
    ("gcc", "gcc"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("xz", "xz-utils"),
];
/// A header without which the kernel's own tools cannot be built, and its package.
const HEADER: (&str, &str) = ("/usr/include/libelf.h", "libelf-dev");
/// The package that depends on the current source.
const PACKAGE: &str = "linux-source";
const BUILDS: &str = ".build-";
const LOG: &str = ".build.log";
/// How much of the log is told.
const LAST_WORDS: u64 = 600;

/// What a kernel is built from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelSource {
    /// A directory with the kernel's source, which is copied; the distribution's package where it is none.
    pub directory: Option<PathBuf>,
    /// Options in place of ours, as in a `.config`.
    pub config: Option<PathBuf>,
    /// Directories with programs (`PATH`).
    pub programs: Vec<PathBuf>,
    /// Compilers at once; 0 for one a CPU.
    pub jobs: usize,
}

impl Engine {
    /// Builds a kernel and keeps it under a name. Takes some minutes and 2 GiB of the root's disk meanwhile. `say` is
    /// told what is done.
    ///
    /// # Errors
    /// A tool is missing, the source cannot be had or does not build, or the name is taken.
    pub fn build_kernel(&self, name: &str, from: &KernelSource, say: &mut dyn FnMut(&str)) -> Result<()> {
        if self.check_kernel(name).is_ok() {
            return Err(Error::conflict(
                format!("there is a kernel {name}"),
                "remove it, or take another --name",
            ));
        }
        check_tools(&from.programs)?;
        let config = match &from.config {
            Some(path) => fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?,
            None => CONFIG.to_owned(),
        };
        let build = Build::begin(&self.kernel_directory())?;
        let tree = build.unpack(from.directory.as_deref(), say)?;
        build.configure(&tree, &config, say)?;
        build.compile(&tree, from.jobs, say)?;
        self.add_kernel(name, &tree.join("vmlinux"), None)
    }
}

fn check_tools(paths: &[PathBuf]) -> Result<()> {
    let is_missing = |program: &str| !paths.iter().any(|path| path.join(program).is_file());
    let mut missing: Vec<&str> =
        TOOLS.iter().filter(|(program, _)| is_missing(program)).map(|(_, package)| *package).collect();
    missing.extend((!Path::new(HEADER.0).exists()).then_some(HEADER.1));
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    Err(Error::unsupported(
        format!(
            "to build a kernel, {} missing: {packages}",
            if missing.len() == 1 { "this is" } else { "these are" }
        ),
        format!("apt-get install {packages}"),
    ))
}

/// A directory to build in.
struct Build {
    directory: PathBuf,
    log: PathBuf,
    _held: std::os::fd::OwnedFd,
}

impl Build {
    fn begin(kernels: &Path) -> Result<Self> {
        fs::create_dir_all(kernels).map_err(|error| Error::io("make directory", kernels, error))?;
        for entry in fs::read_dir(kernels).map_err(|error| Error::io("list", kernels, error))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(BUILDS) && entry.path().is_dir() {
                // One that is in use stays; what cannot be removed is met again.
                let _ = proa_sys::trees::remove_unless_held(&entry.path());
            }
        }
        let directory = kernels.join(format!("{BUILDS}{}", std::process::id()));
        fs::create_dir(&directory).map_err(|error| Error::io("make directory", &directory, error))?;
        let held = proa_sys::trees::hold(&directory).map_err(|error| Error::io("lock", &directory, error))?;
        let log = kernels.join(LOG);
        File::create(&log).map_err(|error| Error::io("write", &log, error))?;
        Ok(Self { directory, log, _held: held })
    }

    /// The source, in a directory of its own.
    fn unpack(&self, source: Option<&Path>, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
        let tree = self.directory.join("source");
        if let Some(source) = source {
            say(&format!("copying {}", source.display()));
            self.run(Command::new("cp").args(["-a", "--"]).arg(source).arg(&tree))?;
            return Ok(tree);
        }
        say(&format!("fetching {PACKAGE} and unpacking it"));
        let package = self.current_package()?;
        // The empty sandbox user: apt's own may not write here, and apt says so at length.
        self.run(Command::new("apt-get").args([
            "-q",
            "-o",
            "APT::Sandbox::User=root",
            "download",
            &package,
        ]))?;
        let archive = self.only(&self.directory, ".deb")?;
        self.run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg("package"))?;
        let archive = self.only(&self.directory.join("package/usr/src"), ".tar.xz")?;
        fs::create_dir(&tree).map_err(|error| Error::io("make directory", &tree, error))?;
        self.run(
            Command::new("tar").arg("-xf").arg(&archive).args(["--strip-components=1", "-C"]).arg(&tree),
        )?;
        Ok(tree)
    }

    /// What the package that stands for the current source depends on.
    fn current_package(&self) -> Result<String> {
        let mut command = Command::new("apt-cache");
        command
            .args(["--no-all-versions", "show", PACKAGE])
            .current_dir(&self.directory)
            .stdin(Stdio::null());
        let output = command.output().map_err(|error| Error::io("run", Path::new("apt-cache"), error))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let depends = text.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
        let package = depends.split([',', ' ']).find(|word| word.starts_with("linux-source-"));
        package.map(str::to_owned).ok_or_else(|| Error::Unsupported {
            message: format!("the distribution has no package {PACKAGE}"),
            hint: "run apt-get update, or name a directory with --source".into(),
        })
    }

    fn configure(&self, tree: &Path, config: &str, say: &mut dyn FnMut(&str)) -> Result<()> {
        say("configuring");
        self.run(Command::new("make").args(["-s", "tinyconfig"]).current_dir(tree))?;
        let file = tree.join(".config");
        let tiny = fs::read_to_string(&file).map_err(|error| Error::io("read", &file, error))?;
        fs::write(&file, format!("{}{config}", without(&tiny, config)))
            .map_err(|error| Error::io("write", &file, error))?;
        self.run(Command::new("make").args(["-s", "olddefconfig"]).current_dir(tree))?;
        let result = fs::read_to_string(&file).map_err(|error| Error::io("read", &file, error))?;
        let missing: Vec<&str> =
            settings(config).filter(|line| !result.lines().any(|found| found == *line)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::invalid(format!("this source does not take {}", missing.join(" "))))
    }

    fn compile(&self, tree: &Path, jobs: usize, say: &mut dyn FnMut(&str)) -> Result<()> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let jobs = if jobs == 0 { cpus } else { jobs };
        say(&format!("compiling, {jobs} at once; the log is {}", self.log.display()));
        self.run(Command::new("make").args(["-s", &format!("-j{jobs}"), "vmlinux"]).current_dir(tree))
    }

    /// Runs a tool in the directory, if it has no other, with its words in the log.
    fn run(&self, command: &mut Command) -> Result<()> {
        let program = command.get_program().to_owned();
        let log = File::options().append(true).open(&self.log);
        let log = log.map_err(|error| Error::io("write", &self.log, error))?;
        let errors = log.try_clone().map_err(|error| Error::io("write", &self.log, error))?;
        if command.get_current_dir().is_none() {
            command.current_dir(&self.directory);
        }
        // Not in the user's language, and without what it sets for its own builds.
        command.env("LC_ALL", "C").env_remove("MAKEFLAGS").stdin(Stdio::null()).stdout(log).stderr(errors);
        let status = command.status().map_err(|error| Error::io("run", Path::new(&program), error))?;
        if status.success() {
            return Ok(());
        }
        let program = program.to_string_lossy();
        Err(Error::Invalid {
            message: format!("{program} failed: {}", last_words(&self.log)),
            hint: format!("all it said is in {}", self.log.display()),
        })
    }

    fn only(&self, directory: &Path, end: &str) -> Result<PathBuf> {
        let entries = fs::read_dir(directory).map_err(|error| Error::io("list", directory, error))?;
        let mut paths = entries.flatten().map(|entry| entry.path());
        let found = paths.find(|path| path.as_os_str().as_encoded_bytes().ends_with(end.as_bytes()));
        found.ok_or_else(|| {
            Error::invalid(format!("the package of the source has no {end} in {}", directory.display()))
        })
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        // What stays is removed by the next.
        let _ = proa_sys::trees::remove(&self.directory);
    }
}

/// Lines that set an option.
fn settings(config: &str) -> impl Iterator<Item = &str> {
    config.lines().filter(|line| line.starts_with("CONFIG_"))
}

/// A configuration without the options that another one sets or unsets.
fn without(config: &str, other: &str) -> String {
    let option = |line: &str| {
        let name = line.trim_start_matches("# ").split(['=', ' ']).next().unwrap_or_default();
        name.starts_with("CONFIG_").then(|| name.to_owned())
    };
    let set: Vec<String> = other.lines().filter_map(option).collect();
    let kept = config.lines().filter(|line| option(line).is_none_or(|name| !set.contains(&name)));
    kept.flat_map(|line| [line, "\n"]).collect()
}

/// The end of the log on one line.
fn last_words(log: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(log) {
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        // An error leaves the text empty.
        let _ = file
            .seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))
            .and_then(|_| file.read_to_end(&mut text));
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_lean_kernel_replace_those_of_the_tiny_one() {
        let tiny = "# CONFIG_SLUB is not set\nCONFIG_SLOB=y\nCONFIG_SMP_X=y\n# text\n";
        let left = without(tiny, "CONFIG_SLUB=y\n# CONFIG_SLOB is not set\nCONFIG_SMP=y\n");
        assert_eq!(left, "CONFIG_SMP_X=y\n# text\n");
    }

    #[test]
    fn the_lean_kernel_has_what_guests_need_and_no_option_twice() {
        let lines: Vec<&str> = settings(CONFIG).collect();
        for needed in [
            "VIRTIO_PCI",
            "VIRTIO_CONSOLE",
            "VIRTIO_BLK",
            "VIRTIO_NET",
            "EROFS_FS",
            "OVERLAY_FS",
            "EXT4_FS",
            "VIRTIO_FS",
            "PVH",
        ] {
            assert!(lines.contains(&format!("CONFIG_{needed}=y").as_str()), "{needed}");
        }
        let names: std::collections::BTreeSet<&str> =
            lines.iter().filter_map(|line| line.split('=').next()).collect();
        assert_eq!(names.len(), lines.len());
    }

    #[test]
    fn the_end_of_a_log_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        fs::write(&log, format!("{}\nfirst\n\nsecond\nthird\nfourth\n", "x".repeat(10_000))).unwrap();
        assert_eq!(last_words(&log), "second; third; fourth");
        assert_eq!(last_words(&directory.path().join("none")), "");
    }
}
