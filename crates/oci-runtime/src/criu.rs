//! criu, the program that writes processes to files and makes them anew: where it is, what it is told of a
//! container, and what it says.
//!
//! What a container has from outside must be named at both ends: bind mounts by their destination, the network
//! namespace of an engine, and what the first process has as standard streams. What the streams were is kept
//! beside criu's images in `proa.json`, with the cgroup, which criu restores under its old name.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use proa_oci::runtime::{NamespaceKind, Spec};
use serde::{Deserialize, Serialize};

use crate::args::Parsed;
use crate::error::{Failure, Result};
use crate::global::absolute;

/// The file of [`Beside`].
const BESIDE: &str = "proa.json";
/// Its format.
const VERSION: u32 = 1;
/// What the network namespace of an engine is called.
pub const NETWORK: &str = "network";
/// Options that are criu's own, handed on as they are.
const FLAGS: &[&str] = &[
    "leave-running",
    "tcp-established",
    "tcp-skip-in-flight",
    "link-remap",
    "ext-unix-sk",
    "shell-job",
    "file-locks",
];
/// Those that need somebody who serves memory, or a kernel that tracks it.
const REFUSED: &[&str] = &["lazy-pages", "page-server", "status-fd", "pre-dump", "parent-path", "auto-dedup"];

/// What is kept beside criu's images.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    version: u32,
    /// The cgroup, below each hierarchy.
    pub cgroup: PathBuf,
    /// criu's names of the standard streams; none for one that is the container's own.
    pub streams: Vec<Option<String>>,
}

impl Beside {
    /// What is to be kept.
    pub fn new(cgroup: PathBuf, streams: Vec<Option<String>>) -> Self {
        Self { version: VERSION, cgroup, streams }
    }

    /// Writes it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, images: &Path) -> Result<()> {
        let path = images.join(BESIDE);
        let text = serde_json::to_vec(self).map_err(|error| Failure::new(error.to_string()))?;
        fs::write(&path, text).map_err(|error| Failure::at(path, error))
    }

    /// Reads it.
    ///
    /// # Errors
    /// There is none, or it is not ours.
    pub fn read(images: &Path) -> Result<Self> {
        let path = images.join(BESIDE);
        let text = fs::read(&path).map_err(|error| {
            Failure::at(&path, error).context("not a checkpoint of proa-runtime: set --image-path")
        })?;
        let beside: Self = serde_json::from_slice(&text)
            .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
        if beside.version != VERSION {
            let text = format!("{}: format {} is of another proa-runtime", path.display(), beside.version);
            return Err(Failure::new(text));
        }
        Ok(beside)
    }
}

/// A call of criu.
pub struct Criu {
    program: String,
    command: Command,
    action: &'static str,
    /// Where the images are.
    pub images: PathBuf,
    /// Where its log is.
    pub work: PathBuf,
}

impl Criu {
    /// Reads the options that both commands have, and finds criu.
    ///
    /// # Errors
    /// There is no criu, or an option that cannot be followed.
    pub fn new(action: &'static str, parsed: &Parsed) -> Result<Self> {
        if let Some(name) = REFUSED.iter().find(|name| parsed.get(name).is_some()) {
            return Err(Failure::new(format!("--{name} is not supported")));
        }
        let program = program(parsed).to_owned();
        let path = |name| parsed.get(name).filter(|path| !path.is_empty()).map(absolute).transpose();
        let images = path("image-path")?.map_or_else(|| absolute("checkpoint"), Ok)?;
        let work = path("work-path")?.unwrap_or_else(|| images.clone());
        let mut criu = Self { command: Command::new(&program), program, action, images, work };
        criu.must_be_there()?;
        let mode = match parsed.get("manage-cgroups-mode").filter(|mode| !mode.is_empty()) {
            None => "soft",
            Some(mode @ ("soft" | "full" | "strict")) => mode,
            Some(other) => {
                let text = format!("--manage-cgroups-mode {other}: use soft, full or strict");
                return Err(Failure::usage(text));
            }
        };
        criu.command.arg(action).args(["-v4", "--log-file", &format!("{action}.log")]);
        criu.command.arg(format!("--manage-cgroups={mode}"));
        criu.command.arg("--images-dir").arg(&criu.images).arg("--work-dir").arg(&criu.work);
        criu.command.args(FLAGS.iter().filter(|name| parsed.is(name)).map(|name| format!("--{name}")));
        match parsed.get("empty-ns") {
            None => {}
            Some("network") => criu.arg("--empty-ns", "net"),
            Some(other) => return Err(Failure::usage(format!("--empty-ns {other}: only network can be"))),
        }
        Ok(criu)
    }

    fn must_be_there(&self) -> Result<()> {
        match version(&self.program) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let text = format!("{} is not there: install criu, or name it with --criu", self.program);
                Err(Failure::new(text))
            }
            Err(error) => Err(Failure::at(&self.program, error)),
        }
    }

    /// Makes the directories, which only their owner may read: a program's memory lies there.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn make_directories(&self) -> Result<()> {
        for dir in [&self.images, &self.work] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(|error| Failure::at(dir, error))?;
        }
        Ok(())
    }

    /// Adds an option and its value.
    pub fn arg(&mut self, name: &str, value: impl Into<OsString>) {
        self.command.arg(name).arg(value.into());
    }

    /// Adds an option without a value.
    pub fn flag(&mut self, name: &str) {
        self.command.arg(name);
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It failed; the error is the one in its log that says why.
    pub fn run(mut self) -> Result<()> {
        let output = self.command.stdin(Stdio::null()).output();
        let output = output.map_err(|error| Failure::at(&self.program, error))?;
        if output.status.success() {
            return Ok(());
        }
        let log = self.work.join(format!("{}.log", self.action));
        let told = fs::read(&log).unwrap_or_default();
        let why = reason(&String::from_utf8_lossy(&told))
            .or_else(|| reason(&String::from_utf8_lossy(&output.stderr)))
            .unwrap_or_else(|| output.status.to_string());
        Err(Failure::new(format!("criu {} failed: {why}; see {}", self.action, log.display())))
    }
}

/// The program that `--criu` names, or the one in the path.
fn program(parsed: &Parsed) -> &str {
    parsed.get("criu").filter(|name| !name.is_empty()).unwrap_or("criu")
}

fn version(program: &str) -> std::io::Result<ExitStatus> {
    let mut version = Command::new(program);
    version.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()
}

/// Whether there is a criu that runs.
pub fn is_there(parsed: &Parsed) -> bool {
    version(program(parsed)).is_ok_and(|status| status.success())
}

/// The error that counts in what criu wrote: the first, but for that of a limit that it can do without. Those
/// after it say what did not work because of it.
fn reason(log: &str) -> Option<String> {
    let errors = log.lines().filter_map(|line| line.split_once("Error (").map(|(_, rest)| rest));
    let mut told = errors.filter_map(|rest| rest.split_once("): ").map(|(_, text)| text.trim().to_owned()));
    told.find(|text| !text.starts_with("rlimit:"))
}

/// The bind mounts of a spec: criu's name for each, which is its place in the container, and its source.
pub fn bind_mounts(spec: &Spec) -> impl Iterator<Item = (String, &str)> {
    spec.mounts.iter().filter_map(|mount| {
        let is_bind = mount.kind.as_deref() == Some("bind")
            || mount.options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind"));
        let place = format!("/{}", mount.destination.trim_matches('/'));
        is_bind.then_some((place, mount.source.as_deref()?))
    })
}

/// The network namespace that an engine has made.
pub fn network(spec: &Spec) -> Option<&str> {
    let linux = spec.linux.as_ref()?;
    let network = linux.namespaces.iter().find(|namespace| namespace.kind == NamespaceKind::Network)?;
    network.path.as_deref().filter(|path| !path.is_empty())
}

/// What can be neither written nor made anew.
///
/// # Errors
/// Names it.
pub fn check(spec: &Spec) -> Result<()> {
    if spec.process.as_ref().is_some_and(|process| process.terminal) {
        return Err(Failure::new("a container with a terminal cannot be checkpointed or restored"));
    }
    let namespaces = spec.linux.iter().flat_map(|linux| &linux.namespaces);
    for namespace in namespaces {
        let joined = namespace.path.as_ref().is_some_and(|path| !path.is_empty());
        if namespace.kind == NamespaceKind::User || joined && namespace.kind != NamespaceKind::Network {
            let kind = format!("{:?}", namespace.kind).to_lowercase();
            let how = if joined { "joined" } else { "own" };
            let text = format!("a container with {how} {kind} namespace cannot be checkpointed or restored");
            return Err(Failure::new(text));
        }
    }
    Ok(())
}

/// criu's names of a process's standard streams, those that are not the container's own.
///
/// # Errors
/// The process has ended.
pub fn streams(pid: u32) -> Result<Vec<Option<String>>> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let read = |path: PathBuf| fs::read_to_string(&path).map_err(|error| Failure::at(path, error));
    let mounts = read(proc.join("mountinfo"))?;
    let own: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').next()).collect();
    let name = |number: u32| {
        let link = proc.join(format!("fd/{number}"));
        let Ok(target) = fs::read_link(&link) else { return Ok(None) };
        let target = target.to_string_lossy().into_owned();
        if target.starts_with("pipe:") {
            return Ok(Some(target));
        }
        let info = read(proc.join(format!("fdinfo/{number}")))?;
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap_or_default().trim();
        if !target.starts_with('/') || own.contains(&mount) {
            return Ok(None);
        }
        let inode = fs::metadata(&link).map_err(|error| Failure::at(&link, error))?.ino();
        Ok(mount.parse::<u32>().ok().map(|mount| format!("file[{mount:x}:{inode:x}]")))
    };
    (0..3).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_counts() {
        let log = "(00.04) Error (criu/util.c:1534): rlimit: Can't setup\n(00.1) Warn  (x): no\n\
                   (00.2) Error (criu/files-reg.c:1790): Can't lookup mount=24\n\
                   (00.3) Error (criu/cr-dump.c:2128): Dumping FAILED.\n";
        assert_eq!(reason(log).unwrap(), "Can't lookup mount=24");
        assert_eq!(reason("(00.1) Warn  (x): no\n"), None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let read = |json: &str| serde_json::from_str::<Spec>(json).unwrap();
        let with = |namespace: &str| {
            read(&format!(r#"{{"ociVersion":"1.0.0","linux":{{"namespaces":[{namespace}]}}}}"#))
        };
        let network = with(r#"{"type":"network","path":"/x"}"#);
        check(&network).unwrap();
        assert_eq!(super::network(&network), Some("/x"));
        assert!(check(&with(r#"{"type":"user"}"#)).is_err());
        assert!(check(&with(r#"{"type":"pid","path":"/x"}"#)).is_err());
        let terminal = r#"{"ociVersion":"1.0.0","process":{"terminal":true,"cwd":"/","args":[]}}"#;
        assert!(check(&read(terminal)).is_err());
    }

    #[test]
    fn bind_mounts_are_known_by_their_place() {
        let json = r#"{"ociVersion":"1.0.0","mounts":[
            {"destination":"/proc","type":"proc","source":"proc"},
            {"destination":"/v/","type":"none","source":"/s","options":["rbind","ro"]}]}"#;
        let spec: Spec = serde_json::from_str(json).unwrap();
        assert_eq!(bind_mounts(&spec).collect::<Vec<_>>(), [("/v".to_owned(), "/s")]);
    }
}
