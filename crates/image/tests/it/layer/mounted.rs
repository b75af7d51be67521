//! Layers on disk, mounted, and what can be seen in them. Everything mounted is unmounted when dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use proa_image::layer::{self, LayerError, LayerForm, LayerInfo, Limits};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A directory of layers and their mounts.
pub struct Bench {
    dir: TempDir,
    mounts: Vec<PathBuf>,
    made: usize,
}

/// One layer, ready to be looked at.
pub struct Made {
    /// The file or directory.
    pub path: PathBuf,
    /// Where its content is seen.
    pub seen: PathBuf,
    pub info: LayerInfo,
}

impl Bench {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), mounts: Vec::new(), made: 0 }
    }

    /// A path nothing is at yet.
    pub fn path(&mut self, name: &str) -> PathBuf {
        self.made += 1;
        self.dir.path().join(format!("{}-{name}", self.made))
    }

    /// Converts, checks and mounts.
    pub fn layer(&mut self, tar: &[u8], form: LayerForm) -> Result<Made, LayerError> {
        self.layer_within(tar, form, &Limits::default())
    }

    pub fn layer_within(
        &mut self,
        mut tar: impl std::io::Read,
        form: LayerForm,
        limits: &Limits,
    ) -> Result<Made, LayerError> {
        let path = self.path("layer");
        let info = match layer::convert(&mut tar, &path, form, limits) {
            Ok(info) => info,
            Err(error) => {
                assert!(!path.exists(), "an error left {}", path.display());
                return Err(error);
            }
        };
        assert_eq!(tar.read(&mut [0]).unwrap(), 0, "the stream was not read to its end");
        if form == LayerForm::Directory {
            return Ok(Made { seen: path.clone(), path, info });
        }
        fsck(&path);
        let summary = layer::erofs::check(&path).unwrap();
        assert_eq!(summary.inodes, info.entries);
        let seen = self.path("mount");
        proa_sys::layer_mount::ensure_mounted(&path, &seen, None).unwrap();
        self.mounts.push(seen.clone());
        Ok(Made { path, seen, info })
    }

    /// Mounts the layers, lowest first, over each other.
    pub fn overlay(&mut self, layers: &[&Made]) -> PathBuf {
        let seen = self.path("merged");
        let empty = self.path("empty");
        std::fs::create_dir(&seen).unwrap();
        std::fs::create_dir(&empty).unwrap();
        let first = layers.iter().rposition(|layer| layer.info.opaque_root).unwrap_or(0);
        let mut lower: Vec<&str> = layers[first..].iter().rev().map(|l| l.seen.to_str().unwrap()).collect();
        // Without a writable layer overlayfs wants two.
        lower.push(empty.to_str().unwrap());
        let options = std::ffi::CString::new(format!("lowerdir={}", lower.join(":"))).unwrap();
        let flags = rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount("overlay", &seen, "overlay", flags, options.as_c_str()).expect("needs root");
        self.mounts.push(seen.clone());
        seen
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for mount in self.mounts.drain(..).rev() {
            let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// The other opinion on an image.
pub fn fsck(image: &Path) {
    let out = Command::new("fsck.erofs").arg(image).output().expect("fsck.erofs of erofs-utils is needed");
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && !said.contains("<E>") && !said.contains("<W>"), "fsck.erofs: {said}");
}

/// All that can be seen of a tree, a line of text for each path.
pub fn look(root: &Path) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    look_at(root, root, &mut seen);
    seen
}

fn look_at(root: &Path, path: &Path, seen: &mut BTreeMap<String, String>) {
    let meta = path.symlink_metadata().unwrap();
    let kind = meta.file_type();
    let mut line =
        format!("{:o} {}:{} {}.{:09}", meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec());
    if kind.is_dir() {
        let mut children: Vec<_> = path.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        children.sort();
        for child in children {
            look_at(root, &child, seen);
        }
    } else {
        write!(line, " links {}", meta.nlink()).unwrap();
    }
    if kind.is_file() {
        write!(line, " size {} {}", meta.len(), hash(path)).unwrap();
    } else if kind.is_symlink() {
        write!(line, " -> {}", path.read_link().unwrap().as_os_str().as_bytes().escape_ascii()).unwrap();
    } else if kind.is_char_device() || kind.is_block_device() {
        let device = meta.rdev();
        write!(line, " {}:{}", rustix::fs::major(device), rustix::fs::minor(device)).unwrap();
    }
    for (name, value) in xattrs(path) {
        write!(line, " {name}={}", value.escape_ascii()).unwrap();
    }
    let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
    seen.insert(name, line);
}

/// Where two trees differ.
pub fn differing(one: &BTreeMap<String, String>, other: &BTreeMap<String, String>) -> Vec<String> {
    let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let lines = keys.into_iter().filter(|key| one.get(*key) != other.get(*key));
    lines.map(|key| format!("{key:?}:\n  {:?}\n  {:?}", one.get(key), other.get(key))).collect()
}

/// Of a huge file only what is stored: its holes would take long.
fn hash(path: &Path) -> String {
    let mut hash = Sha256::new();
    let mut file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    if size < 64 << 20 {
        std::io::copy(&mut file, &mut hash).unwrap();
    } else {
        for (offset, bytes) in data(&file, size) {
            hash.update(offset.to_le_bytes());
            hash.update(bytes);
        }
    }
    format!("{:x}", hash.finalize())
}

/// The blocks of a file that are not all zero.
fn data(file: &File, size: u64) -> Vec<(u64, Vec<u8>)> {
    use rustix::fs::SeekFrom;
    use std::os::unix::fs::FileExt;
    let mut blocks = Vec::new();
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(file, SeekFrom::Data(at)) {
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap();
        for block in (start / 4096..end.div_ceil(4096)).map(|block| block * 4096) {
            let mut bytes = vec![0; 4096.min(size - block) as usize];
            file.read_exact_at(&mut bytes, block).unwrap();
            if bytes.iter().any(|&byte| byte != 0) {
                blocks.push((block, bytes));
            }
        }
        at = end;
    }
    blocks
}

/// All attributes but overlayfs's own.
pub fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut found = BTreeMap::new();
    for name in names[..length].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let name = String::from_utf8_lossy(name).into_owned();
        if name.starts_with("trusted.overlay.") {
            continue;
        }
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..]).unwrap();
        value.truncate(length);
        found.insert(name, value);
    }
    found
}
