//! What is mounted into an instance, as it was resolved when the instance was made, and where a volume is on the host.
//!
//! ```text
//!   <root>/volumes/<name>/
//!     _data          the volume's files; a link to where they are, for a volume with a file system of its own
//!     fs             where that is mounted while the volume is used
//!     image          the ext4 file system of a volume with a size
//!     users          locked by whoever uses the volume (`proa_sys::volume`)
//!   <run>/instances/<id>/parts/<number>    the part of a volume that an instance sees (`volume-subpath`)
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Name of the one volume driver.
pub const DRIVER: &str = "local";

/// A kind of mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PointKind {
    /// A path of the host.
    #[default]
    Bind,
    /// A volume.
    Volume,
    /// Memory.
    Tmpfs,
}

/// One mount of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountPoint {
    /// What it is.
    pub kind: PointKind,
    /// Name of the volume.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Path on the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Path in the instance.
    pub destination: String,
    /// Options as the user wrote them.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mode: String,
    /// No writing.
    pub read_only: bool,
    /// Of a bind mount: `rprivate`, `shared`, …
    #[serde(skip_serializing_if = "String::is_empty")]
    pub propagation: String,
    /// Without what is mounted below the source.
    pub non_recursive: bool,
    /// Read-only for the source alone.
    pub read_only_non_recursive: bool,
    /// Options of a tmpfs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// What a volume has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumePoint>,
}

/// What the mount of a volume has beside the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumePoint {
    /// Nobody named it: it goes with the instance, where that is asked for.
    pub anonymous: bool,
    /// Fill it from the image, if it is empty.
    pub copy: bool,
    /// The part of it that the instance sees; empty for all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub part: String,
    /// Its directory, `<root>/volumes/<name>`.
    pub directory: PathBuf,
    /// Where its files are.
    pub backing: Backing,
}

/// Where a volume's files are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// In its directory.
    #[default]
    Directory,
    /// In an ext4 file system of this many bytes, which is a file in its directory.
    Image(u64),
    /// In a directory of the host that the user named.
    Bind(PathBuf),
    /// In a file system that is mounted while it is used.
    Mount {
        /// As `tmpfs`.
        kind: String,
        /// Device, or whatever the file system takes for one.
        device: String,
        /// As of `mount -o`.
        options: String,
    },
}

impl Backing {
    /// The volume's files, while it is used.
    pub fn data(&self, directory: &Path) -> PathBuf {
        match self {
            Self::Directory => directory.join("_data"),
            Self::Image(_) => directory.join("fs/data"),
            Self::Bind(path) => path.clone(),
            Self::Mount { .. } => directory.join("fs"),
        }
    }

    /// Where its files may be prepared: on the same file system, if possible where no instance sees them.
    pub fn base(&self, directory: &Path) -> PathBuf {
        match self {
            Self::Directory => directory.to_owned(),
            Self::Image(_) => mount_dir(directory),
            Self::Bind(_) | Self::Mount { .. } => self.data(directory),
        }
    }

    /// Whether a file system has to be mounted first.
    pub fn is_mounted(&self) -> bool {
        matches!(self, Self::Image(_) | Self::Mount { .. })
    }
}

/// Directory of a volume.
pub fn volume_dir(root: &Path, name: &str) -> PathBuf {
    root.join("volumes").join(name)
}

/// Where a volume's own file system is mounted.
pub fn mount_dir(directory: &Path) -> PathBuf {
    directory.join("fs")
}

/// The file that holds an ext4 file system.
pub fn image_file(directory: &Path) -> PathBuf {
    directory.join("image")
}
