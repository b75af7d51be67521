//! Where state is.

use std::path::{Path, PathBuf};

use proa_protocol::instance::instance_dir;

use crate::error::{Error, Result};

/// State directory where the user names none.
pub const DEFAULT_ROOT: &str = "/var/lib/proa";
const DEFAULT_RUN: &str = "/run/proa";

/// The directories of one root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// What survives a boot: images, instances, the database.
    pub root: PathBuf,
    /// What does not: locks, sockets, layer mounts.
    pub run: PathBuf,
}

impl Paths {
    /// The directories for `root`, which is made if it is missing.
    ///
    /// # Errors
    /// It cannot be made or resolved.
    pub fn new(root: &Path) -> Result<Self> {
        let root = match root.canonicalize() {
            Ok(root) => root,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => make_root(root)?,
            Err(error) => return Err(Error::io("use the state directory", root, error)),
        };
        let run = if root == Path::new(DEFAULT_ROOT) {
            PathBuf::from(DEFAULT_RUN)
        } else {
            // Eight digits: a socket's path may have 107 bytes, and an id takes 64 of them.
            PathBuf::from(format!("{DEFAULT_RUN}-{:08x}", hash(root.as_os_str().as_encoded_bytes())))
        };
        Ok(Self { root, run })
    }

    /// `<root>/instances/<id>`.
    pub fn instance(&self, id: &str) -> PathBuf {
        instance_dir(&self.root, id)
    }

    /// `<run>/instances/<id>`.
    pub fn instance_run(&self, id: &str) -> PathBuf {
        instance_dir(&self.run, id)
    }
}

fn make_root(root: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |error| Error::io("make the state directory", root, error);
    // Images may hold set-uid programs: nobody but us looks in (0700).
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed)?;
    root.canonicalize().map_err(failed)
}

/// FNV-1a, folded to 32 bits: it must be the same in every version, and nothing more.
fn hash(bytes: &[u8]) -> u32 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> 32) as u32 ^ hash as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_root_has_its_own_run_directory() {
        let base = tempfile::tempdir().unwrap();
        let one = Paths::new(&base.path().join("one")).unwrap();
        let two = Paths::new(&base.path().join("two")).unwrap();
        assert_ne!(one.run, two.run);
        std::os::unix::fs::symlink(base.path().join("one"), base.path().join("link")).unwrap();
        assert_eq!(Paths::new(&base.path().join("link")).unwrap(), one);
    }

    #[test]
    fn the_hash_is_frozen_and_sockets_fit() {
        assert_eq!(hash(b"/srv/proa"), 0x6b4f067a);
        let longest = format!("{DEFAULT_RUN}-{:08x}/instances/{}/monitor.sock", 0, "0".repeat(64));
        assert!(longest.len() <= 107, "{}", longest.len());
    }
}
