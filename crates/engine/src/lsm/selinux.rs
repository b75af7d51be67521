//! SELinux labels: `container_t` and two categories for the processes, the same categories for their files.

use std::fs;
use std::io::Write;
use std::path::Path;

use proa_protocol::volume::{Backing, MountPoint};
use rustix::fs::XattrFlags;

use crate::config::HostConfig;
use crate::error::{Error, Result};
use crate::mounts;
use crate::spec::Label;

const FS: &str = "/sys/fs/selinux";
const CONFIG: &str = "/etc/selinux/config";
const ATTRIBUTE: &str = "security.selinux";
/// Level of what instances share (`:z`).
const SHARED: &str = "s0";
/// Directories of the system that no volume may relabel, as in Docker.
const SYSTEM: &[&str] = &[
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/opt", "/proc", "/root", "/run",
    "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var",
];
/// What policies call files that all containers read and none writes, where they tell these from others.
const READ_ONLY_KIND: &str = "container_ro_file_t";
/// Levels of directories that are relabelled.
const MAX_DEPTH: u32 = 256;

/// The host's policy for containers: a context for processes and one for files, without levels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    process: [String; 3],
    file: [String; 3],
}

/// The labels of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Its processes'.
    pub process: String,
    /// Its files'.
    pub mount: String,
    /// That of files that instances share.
    pub shared: String,
}

/// The policy, if the kernel has SELinux, it is on, and it knows containers.
pub fn policy() -> Option<Policy> {
    if !Path::new(FS).join("enforce").exists() {
        return None;
    }
    let policy = Policy::read(&contexts_file()).unwrap_or_default();
    is_valid(&policy.labels(&Label::default(), SHARED).process).then_some(policy)
}

impl Default for Policy {
    fn default() -> Self {
        let parts = |text: [&str; 3]| text.map(str::to_owned);
        Self {
            process: parts(["system_u", "system_r", "container_t"]),
            file: parts(["system_u", "object_r", "container_file_t"]),
        }
    }
}

/// The distribution's contexts of containers.
fn contexts_file() -> String {
    let config = fs::read_to_string(CONFIG).unwrap_or_default();
    let kind = config.lines().find_map(|line| line.trim().strip_prefix("SELINUXTYPE=")).unwrap_or("targeted");
    // One name of a directory, and nothing that leads elsewhere.
    let kind = if kind.contains('/') || kind.starts_with('.') { "targeted" } else { kind.trim() };
    fs::read_to_string(format!("/etc/selinux/{kind}/contexts/lxc_contexts")).unwrap_or_default()
}

impl Policy {
    /// From the text of `lxc_contexts`: `process = "user:role:type:level"`, `file = "…"`.
    fn read(text: &str) -> Option<Self> {
        let value = |key: &str| {
            let mut pairs = text.lines().filter_map(|line| line.split_once('='));
            let (_, value) = pairs.find(|(name, _)| name.trim() == key)?;
            let mut parts = value.trim().trim_matches('"').splitn(4, ':').map(str::to_owned);
            Some([parts.next()?, parts.next()?, parts.next()?])
        };
        Some(Self { process: value("process")?, file: value("file")? })
    }

    /// The label of image layers, which all instances share.
    pub fn layer_label(&self) -> String {
        let [user, role, kind] = &self.file;
        let with = |kind: &str| format!("{user}:{role}:{kind}:{SHARED}");
        let read_only = with(READ_ONLY_KIND);
        if is_valid(&read_only) { read_only } else { with(kind) }
    }

    /// The labels of an instance at this level, with the parts that were asked for.
    pub fn labels(&self, asked: &Label, level: &str) -> Labels {
        let or = |asked: &Option<String>, default: &str| asked.clone().unwrap_or_else(|| default.to_owned());
        let [user, role, kind] = &self.process;
        let (user, role) = (or(&asked.user, user), or(&asked.role, role));
        let [file_user, file_role, file_kind] = &self.file;
        let file = format!("{file_user}:{file_role}:{}", or(&asked.file_kind, file_kind));
        Labels {
            process: format!("{user}:{role}:{}:{level}", or(&asked.kind, kind)),
            mount: format!("{file}:{level}"),
            shared: format!("{file}:{SHARED}"),
        }
    }
}

impl Labels {
    /// Whether the kernel's policy knows them.
    ///
    /// # Errors
    /// It does not know one.
    pub fn check(&self) -> Result<()> {
        match [&self.process, &self.mount].into_iter().find(|label| !is_valid(label)) {
            None => Ok(()),
            Some(label) => Err(Error::Invalid {
                message: format!("the SELinux policy does not know {label}"),
                hint: "see `seinfo -t`, or leave --security-opt label= out".into(),
            }),
        }
    }
}

/// The kernel checks a context that is written to this file.
fn is_valid(context: &str) -> bool {
    let file = fs::OpenOptions::new().read(true).write(true).open(Path::new(FS).join("context"));
    file.and_then(|mut file| file.write_all(context.as_bytes())).is_ok()
}

/// Gives the sources of `-v …:z` the label of what is shared, and those of `:Z` that of the instance.
///
/// # Errors
/// A source is a directory of the system, or cannot be labelled.
pub fn relabel_volumes(host: &HostConfig, labels: &Labels) -> Result<()> {
    for text in &host.binds {
        let bind = mounts::parse_bind(text)?;
        if bind.is_volume() {
            continue;
        }
        let options: Vec<&str> = bind.mode.split(',').collect();
        let label = match (options.contains(&"Z"), options.contains(&"z")) {
            (true, _) => &labels.mount,
            (false, true) => &labels.shared,
            (false, false) => continue,
        };
        let source = mounts::normalize(&bind.source);
        if SYSTEM.contains(&source.as_str()) {
            return Err(Error::Invalid {
                message: format!("{source} is not relabelled: it belongs to the system"),
                hint: "leave z or Z out of the volume's options".into(),
            });
        }
        relabel(Path::new(&source), label, MAX_DEPTH)?;
    }
    Ok(())
}

/// Gives volumes the label of what is shared, or that of the instance where `:Z` asks for it.
///
/// # Errors
/// One cannot be labelled.
pub fn label_volumes(points: &[MountPoint], labels: &Labels) -> Result<()> {
    for point in points {
        let Some(volume) = point.volume.as_ref().filter(|volume| volume.backing == Backing::Directory) else {
            continue;
        };
        let own = point.mode.split(',').any(|option| option == "Z");
        let label = if own { &labels.mount } else { &labels.shared };
        let data = volume.backing.data(&volume.directory);
        let mut known = [0; 256];
        let length = rustix::fs::lgetxattr(&data, ATTRIBUTE, &mut known[..]).unwrap_or(0);
        if known[..length].strip_suffix(&[0]).unwrap_or(&known[..length]) != label.as_bytes() {
            relabel(&data, label, MAX_DEPTH)?;
        }
    }
    Ok(())
}

/// Links are labelled, and not followed.
fn relabel(path: &Path, label: &str, depth: u32) -> Result<()> {
    rustix::fs::lsetxattr(path, ATTRIBUTE, label.as_bytes(), XattrFlags::empty())
        .map_err(|errno| Error::io("label", path, errno))?;
    let metadata = fs::symlink_metadata(path).map_err(|error| Error::io("read", path, error))?;
    if !metadata.is_dir() || depth == 0 {
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(|error| Error::io("read", path, error))? {
        let entry = entry.map_err(|error| Error::io("read", path, error))?;
        relabel(&entry.path(), label, depth - 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_a_level_and_the_parts_asked_for() {
        let plain = Policy::default().labels(&Label::default(), "s0:c1,c2");
        assert_eq!(plain.process, "system_u:system_r:container_t:s0:c1,c2");
        assert_eq!(plain.mount, "system_u:object_r:container_file_t:s0:c1,c2");
        assert_eq!(plain.shared, "system_u:object_r:container_file_t:s0");
        let asked = Label {
            user: Some("u".into()),
            role: Some("r".into()),
            kind: Some("t".into()),
            file_kind: Some("f".into()),
            ..Label::default()
        };
        let labels = Policy::default().labels(&asked, "s0");
        assert_eq!((labels.process.as_str(), labels.mount.as_str()), ("u:r:t:s0", "system_u:object_r:f:s0"));
    }

    #[test]
    fn the_distributions_contexts() {
        let text = "process = \"u:r:svirt_lxc_net_t:s0\"\ncontent = \"x:y:z:s0\"\nfile = \"u:object_r:svirt_sandbox_file_t:s0\"\n";
        let policy = Policy::read(text).unwrap();
        assert_eq!(policy.labels(&Label::default(), "s0:c3,c4").process, "u:r:svirt_lxc_net_t:s0:c3,c4");
        assert_eq!(Policy::read("process = \"u:r\"\n"), None);
        assert_eq!(Policy::read(""), None);
    }

    #[test]
    fn the_systems_directories_keep_their_labels() {
        let labels = Policy::default().labels(&Label::default(), "s0:c1,c2");
        let host = |bind: &str| HostConfig { binds: vec![bind.into()], ..HostConfig::default() };
        for bind in ["/etc:/x:Z", "/usr/../etc/:/x:z", "/:/x:ro,z"] {
            let error = relabel_volumes(&host(bind), &labels).unwrap_err().to_string();
            assert!(error.contains("system"), "{bind}: {error}");
        }
        relabel_volumes(&host("/etc:/x:ro"), &labels).unwrap();
    }
}
