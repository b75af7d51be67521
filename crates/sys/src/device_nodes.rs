//! Device nodes below a directory, for instances that get all of them.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What belongs to one `/dev` alone, as Docker leaves it out.
const LEFT_OUT: &[&str] =
    &["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console", "core", "ptmx"];
/// Directories below each other that are looked at.
const MAX_DEPTH: u32 = 8;

/// One device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// Where it is.
    pub path: PathBuf,
    /// `c` or `b`.
    pub kind: char,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl DeviceNode {
    /// The node that this is the metadata of; `None` for anything else.
    pub fn new(path: &Path, metadata: &Metadata) -> Option<Self> {
        let kind = match metadata.file_type() {
            kind if kind.is_char_device() => 'c',
            kind if kind.is_block_device() => 'b',
            _ => return None,
        };
        Some(Self {
            path: path.to_owned(),
            kind,
            major: rustix::fs::major(metadata.rdev()),
            minor: rustix::fs::minor(metadata.rdev()),
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        })
    }

    /// All nodes below a directory, sorted by their paths. Links are not followed.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn below(directory: &Path) -> io::Result<Vec<Self>> {
        let mut nodes = Vec::new();
        walk(directory, MAX_DEPTH, &mut nodes)?;
        nodes.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(nodes)
    }
}

fn walk(directory: &Path, depth: u32, nodes: &mut Vec<DeviceNode>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        // Devices come and go.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            if depth > 0 {
                walk(&entry.path(), depth - 1, nodes)?;
            }
        } else {
            nodes.extend(DeviceNode::new(&entry.path(), &metadata));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_this_machine() {
        let nodes = DeviceNode::below(Path::new("/dev")).unwrap();
        let null = nodes.iter().find(|node| node.path == Path::new("/dev/null")).unwrap();
        assert_eq!((null.kind, null.major, null.minor), ('c', 1, 3));
        assert!(nodes.iter().all(|node| !node.path.starts_with("/dev/pts")));
        assert!(nodes.windows(2).all(|pair| pair[0].path < pair[1].path));
        let file = std::fs::metadata("/etc/passwd").unwrap();
        assert_eq!(DeviceNode::new(Path::new("/etc/passwd"), &file), None);
    }
}
