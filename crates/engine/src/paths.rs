//! Where state is.

use std::path::{Path, PathBuf};

use proa_protocol::instance::instance_dir;

use crate::error::{Error, Result};

/// Root's state directory where nobody names one.
const DEFAULT_ROOT: &str = "/var/lib/proa";
const DEFAULT_RUN: &str = "/run/proa";

/// Where state is when nobody says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bases {
    /// The state directory.
    pub root: PathBuf,
    /// What does not survive a boot, of the default root; that of another has a hash appended.
    pub run: PathBuf,
}

impl Bases {
    /// Root's.
    pub fn system() -> Self {
        Self { root: DEFAULT_ROOT.into(), run: DEFAULT_RUN.into() }
    }

    /// An ordinary user's, from the directories that the XDG specification gives data and sockets.
    pub fn of_user(data: &Path, runtime: &Path) -> Self {
        Self { root: data.join("proa"), run: runtime.join("proa") }
    }
}

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
    pub fn new(root: &Path, bases: &Bases) -> Result<Self> {
        let root = existing_root(root)?;
        let run = if bases.root.canonicalize().is_ok_and(|default| default == root) {
            bases.run.clone()
        } else {
            // Eight digits: a socket's path may have 107 bytes, and an id takes 64 of them.
            let mut run = bases.run.clone().into_os_string();
            run.push(format!("-{:08x}", hash(root.as_os_str().as_encoded_bytes())));
            PathBuf::from(run)
        };
        Ok(Self { root, run })
    }

    /// The directories that another program of ours has worked out.
    ///
    /// # Errors
    /// The root cannot be made or resolved.
    pub fn given(root: &Path, run: &Path) -> Result<Self> {
        Ok(Self { root: existing_root(root)?, run: run.to_owned() })
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

fn existing_root(root: &Path) -> Result<PathBuf> {
    match root.canonicalize() {
        Ok(root) => Ok(root),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => make_root(root),
        Err(error) => Err(Error::io("use the state directory", root, error)),
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
    let hash = fnv(bytes);
    (hash >> 32) as u32 ^ hash as u32
}

/// FNV-1a, 64 bits.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_root_has_its_own_run_directory() {
        let base = tempfile::tempdir().unwrap();
        let paths = |name: &str| Paths::new(&base.path().join(name), &Bases::system()).unwrap();
        let (one, two) = (paths("one"), paths("two"));
        assert_ne!(one.run, two.run);
        std::os::unix::fs::symlink(base.path().join("one"), base.path().join("link")).unwrap();
        assert_eq!(paths("link"), one);
        let user = Bases::of_user(base.path(), "/run/user/7".as_ref());
        let default = Paths::new(&user.root, &user).unwrap();
        assert_eq!(default.run, Path::new("/run/user/7/proa"));
        assert!(Paths::new(&one.root, &user).unwrap().run.to_str().unwrap().starts_with("/run/user/7/proa-"));
    }

    #[test]
    fn the_hash_is_frozen_and_sockets_fit() {
        assert_eq!(hash(b"/srv/proa"), 0x6b4f067a);
        let longest = format!("{DEFAULT_RUN}-{:08x}/instances/{}/monitor.sock", 0, "0".repeat(64));
        assert!(longest.len() <= 107, "{}", longest.len());
    }
}
