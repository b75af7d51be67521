//! Kernels of virtual machines that users have given a name, as the engine lists them and the monitor keeps them:
//! `<root>/vm/kernels/named/NAME` is JSON of a [`NamedKernel`], and the link [`DEFAULT`] beside them leads to the one that
//! guests boot which name none.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where kernels are, below [`crate::template::STORE`].
pub const DIRECTORY: &str = "kernels";
/// Where the names are, below [`DIRECTORY`].
pub const NAMED: &str = "named";
/// The link to the default; no name begins with a dot.
pub const DEFAULT: &str = ".default";
/// How a monitor that is to keep one is called: the second word of its command line, before JSON of [`AddKernel`].
pub const ADD_ARGUMENT: &str = "--add-kernel";

/// What is known of a named kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedKernel {
    /// Name of its directory below [`DIRECTORY`].
    pub directory: String,
    /// As `uname -r` says it.
    pub release: String,
    /// The file it was made of.
    pub source: String,
}

/// A kernel to be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddKernel {
    /// `<root>/vm`.
    pub store: PathBuf,
    /// Its name, which nothing has yet.
    pub name: String,
    /// A bzImage or vmlinux.
    pub image: PathBuf,
    /// A directory with one for each release, as `/lib/modules`; without it, where packages and the host have theirs.
    pub modules: Option<PathBuf>,
}

/// How a monitor that is to remove what nothing needs is called: the second word of its command line, before JSON of
/// [`PruneKernels`]. It prints JSON of a list of [`Pruned`].
pub const PRUNE_ARGUMENT: &str = "--prune-kernels";

/// What is needed of kernels, and of what guests start from beside them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneKernels {
    /// `<root>/vm`.
    pub store: PathBuf,
    /// The agent of guests.
    pub agent: PathBuf,
    /// Kernels that instances name. Where it is none, copies of all files that are there still are kept.
    pub wanted: Option<Vec<PathBuf>>,
}

/// What was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Its path in the store.
    pub name: String,
    /// Bytes on disk.
    pub bytes: u64,
}

/// The name, if this is one and no path: it has no slash.
pub fn name_of(kernel: &Path) -> Option<&str> {
    let mut components = kernel.components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(name)), None) => {
            name.to_str().filter(|_| !kernel.as_os_str().as_encoded_bytes().contains(&b'/'))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        assert_eq!(name_of(Path::new("lean")), Some("lean"));
        for path in ["./lean", "/lean", "lean/", "a/b", "..", ".", ""] {
            assert_eq!(name_of(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn the_file_is_frozen() {
        let kernel = NamedKernel { directory: "3-x".into(), release: "6.1".into(), source: "/k".into() };
        assert_eq!(
            serde_json::to_string(&kernel).unwrap(),
            r#"{"directory":"3-x","release":"6.1","source":"/k"}"#
        );
    }
}
