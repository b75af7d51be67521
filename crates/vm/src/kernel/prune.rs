//! Which of the kernels that are kept nothing needs any more.
//!
//! | kept as | needed as long as |
//! | --- | --- |
//! | what a name leads to | it has the name |
//! | of another program's newer format | ever, as far as we know |
//! | `named-…`, a file that was given by its path | that file is as it was; where all are to go, an instance names it |
//! | `host-…` | it is the newest at hand of those that were made ready |
//! | `host-…`, marked unfit | the host has it, so that it need not be looked at again |
//! | a package's | it is the one that was fetched last, and no kernel of the host is made ready |
//!
//! The last three hold for each set of further modules (`-with-…`) by itself.

use std::fs;
use std::path::{Path, PathBuf};

use proa_protocol::kernel::{NAMED, NamedKernel};

use super::{Candidate, DISTRIBUTION, FORMAT, Info, Kernel, UNFIT, directory, host_candidates};
use crate::store::{Store, format_of};

/// Between a key and the mark of further modules.
const MARK: &str = "-with-";

/// What is there, and what it is compared with.
struct Survey<'a> {
    store: &'a Store,
    /// Directories that names lead to.
    named: Vec<String>,
    /// Keys of the host's kernels, the newest first.
    host: Vec<String>,
    /// Files that instances name, where others are not kept.
    wanted: Option<Vec<PathBuf>>,
}

impl Kernel {
    /// Names in the store of kernels, and of what leads to them, that are not needed any more. `wanted` are the kernels
    /// that instances name; where it is none, whatever could be named is needed.
    pub fn unneeded(store: &Store, wanted: Option<&[PathBuf]>) -> Vec<String> {
        let host = host_candidates(Path::new("/boot"), Path::new("/lib/modules"));
        let host = host.into_iter().map(|candidate| candidate.key).collect();
        let wanted =
            wanted.map(|paths| paths.iter().filter_map(|path| fs::canonicalize(path).ok()).collect());
        let survey = Survey { store, named: named_directories(store), host, wanted };
        let names = store.names("kernels").into_iter().filter(|name| name != NAMED);
        names.filter(|name| !survey.needs(name)).collect()
    }

    /// Those that are ready to boot.
    pub fn all(store: &Store) -> Vec<Self> {
        let keys = store.names("kernels").into_iter();
        let keys = keys.filter_map(|name| Some(name.strip_prefix(&format!("{FORMAT}-"))?.to_owned()));
        keys.filter_map(|key| Self::load(store, &key)).collect()
    }
}

/// Directories in the store that names lead to.
pub(super) fn named_directories(store: &Store) -> Vec<String> {
    let names = Path::new("kernels").join(NAMED);
    let read = |name: String| store.read_json::<NamedKernel>(names.join(name));
    store.names(&names).into_iter().filter_map(read).map(|named| named.directory).collect()
}

impl Survey<'_> {
    fn needs(&self, name: &str) -> bool {
        if self.named.iter().any(|directory| directory == name) {
            return true;
        }
        match (format_of(name), format_of(&format!("{FORMAT}-"))) {
            (Some(format), Some(ours)) if format == ours => {}
            (Some(format), Some(ours)) => return format > ours,
            // Nothing of ours.
            _ => return true,
        }
        let key = &name[FORMAT.len() + 1..];
        let (plain, mark) = key.find(MARK).map_or((key, ""), |at| key.split_at(at));
        match plain.split_once('-').map_or(plain, |(kind, _)| kind) {
            // Its name is gone.
            "own" => false,
            "named" => self.needs_file(plain, name),
            "host" if directory(self.store, key).join(UNFIT).exists() => self.is_hosts(plain),
            "host" => self.hosts_newest(mark).as_deref() == Some(key),
            DISTRIBUTION => self.hosts_newest(mark).is_none() && self.fetched(mark).is_some(),
            _ => self.hosts_newest(mark).is_none() && self.fetched(mark).as_deref() == Some(key),
        }
    }

    fn needs_file(&self, key: &str, name: &str) -> bool {
        let info: Option<Info> = self.store.read_json(Path::new("kernels").join(name).join(super::INFO));
        let Some(origin) = info.map(|info| PathBuf::from(info.origin)) else { return false };
        let is_as_it_was = Candidate::named(&origin).is_ok_and(|candidate| candidate.key == key);
        is_as_it_was && self.wanted.as_ref().is_none_or(|wanted| wanted.contains(&origin))
    }

    fn is_hosts(&self, key: &str) -> bool {
        self.host.iter().any(|candidate| candidate == key)
    }

    /// The key of the kernel that a guest takes which names none, if that is the host's.
    fn hosts_newest(&self, mark: &str) -> Option<String> {
        let keys = self.host.iter().map(|key| format!("{key}{mark}"));
        keys.into_iter().find(|key| Kernel::load(self.store, key).is_some())
    }

    /// The key of the package's kernel that was fetched last.
    fn fetched(&self, mark: &str) -> Option<String> {
        let key = fs::read_to_string(directory(self.store, &format!("{DISTRIBUTION}{mark}"))).ok()?;
        Kernel::load(self.store, key.trim()).map(|kernel| kernel.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel in the store, which is all that is looked at.
    fn keep(store: &Store, name: &str, origin: &str) {
        let directory = store.path("kernels").join(name);
        fs::create_dir_all(&directory).unwrap();
        let text = format!(r#"{{"origin":"{origin}","release":"6","modules":[],"share_modules":[]}}"#);
        fs::write(directory.join("kernel.json"), text).unwrap();
    }

    fn survey(store: &Store, wanted: Option<Vec<PathBuf>>) -> Vec<String> {
        let host = vec!["host-6.2-b".into(), "host-6.1-a".into()];
        let survey = Survey { store, named: named_directories(store), host, wanted };
        let names = store.names("kernels").into_iter().filter(|name| name != NAMED);
        names.filter(|name| !survey.needs(name)).collect()
    }

    #[test]
    fn what_leads_nowhere_goes_and_what_is_named_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(&scratch.path().join("vm")).unwrap();
        let file = scratch.path().join("kernel");
        fs::write(&file, "k").unwrap();
        let unchanged = format!("5-{}", Candidate::named(&file).unwrap().key);
        let origin = file.to_str().unwrap();
        keep(&store, &unchanged, origin);
        keep(&store, "5-named-0123456789abcdef", origin);
        keep(&store, "5-named-fedcba9876543210", "/no/such/kernel");
        keep(&store, "2-own-lean-named-1", "x");
        keep(&store, "5-own-lean-named-2", "x");
        keep(&store, "5-own-lost-named-3", "x");
        keep(&store, "3-linux-image-1", "x");
        keep(&store, "6-linux-image-9", "x");
        fs::write(store.path("kernels/3-distribution"), "linux-image-1").unwrap();
        fs::create_dir(store.path("kernels/named")).unwrap();
        for (name, directory) in [("old", "2-own-lean-named-1"), ("lean", "5-own-lean-named-2")] {
            let text = format!(r#"{{"directory":"{directory}","release":"6","source":"x"}}"#);
            fs::write(store.path("kernels/named").join(name), text).unwrap();
        }
        let gone = [
            "3-distribution",
            "3-linux-image-1",
            "5-named-0123456789abcdef",
            "5-named-fedcba9876543210",
            "5-own-lost-named-3",
        ];
        assert_eq!(survey(&store, None), gone);
        assert_eq!(survey(&store, Some(vec![file])), gone);
        assert!(survey(&store, Some(Vec::new())).contains(&unchanged));
    }

    #[test]
    fn of_the_kernels_that_are_found_the_newest_at_hand_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        keep(&store, "5-linux-image-1", "x");
        keep(&store, "5-linux-image-2", "x");
        keep(&store, "5-linux-image-1-with-m", "x");
        fs::write(store.path("kernels/5-distribution"), "linux-image-2\n").unwrap();
        fs::write(store.path("kernels/5-distribution-with-m"), "linux-image-1-with-m").unwrap();
        fs::write(store.path("kernels/5-distribution-with-n"), "linux-image-0-with-n").unwrap();
        assert_eq!(survey(&store, None), ["5-distribution-with-n", "5-linux-image-1"]);
        // The host has one: that is what guests boot, but for those with further modules.
        keep(&store, "5-host-6.1-a", "x");
        keep(&store, "5-host-5.9-z", "x");
        fs::create_dir(store.path("kernels/5-host-6.2-b")).unwrap();
        fs::write(store.path("kernels/5-host-6.2-b/unfit"), "lacks ext4").unwrap();
        let gone =
            ["5-distribution", "5-distribution-with-n", "5-host-5.9-z", "5-linux-image-1", "5-linux-image-2"];
        assert_eq!(survey(&store, None), gone);
        keep(&store, "5-host-6.2-b", "x");
        fs::remove_file(store.path("kernels/5-host-6.2-b/unfit")).unwrap();
        assert!(survey(&store, None).contains(&"5-host-6.1-a".to_owned()));
    }
}
