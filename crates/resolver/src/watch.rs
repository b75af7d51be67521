//! Changes of files: of networks and endpoints, and of the host's `resolv.conf`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use proa_protocol::instance::is_id;
use proa_protocol::network::{DIRECTORY, NETWORK_FILE, RESOLVER_LOCK, network_dir};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

/// Something that has changed, or is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A network.
    Network(String),
    /// An endpoint: the network's id and the instance's.
    Endpoint(String, String),
    /// The host's servers.
    Servers,
    /// So much that it has not been told one by one.
    Everything,
    /// The directory of all networks is gone.
    Over,
}

#[derive(Debug)]
enum Place {
    Networks,
    Network(String),
    Servers(Vec<OsString>),
}

/// Watches.
#[derive(Debug)]
pub struct Watch {
    inotify: OwnedFd,
    places: HashMap<i32, Place>,
}

impl Watch {
    /// Watches the networks' directory, which is there, and the file of the host's servers.
    ///
    /// # Errors
    /// The kernel's limit of watches is reached, or the directory is not there.
    pub fn new(run: &Path, resolv_conf: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let mut watch = Self { inotify, places: HashMap::new() };
        let directory = run.join(DIRECTORY);
        let flags = ENTRIES | WatchFlags::CREATE | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        let number = inotify::add_watch(&watch.inotify, &directory, flags)?;
        watch.places.insert(number, Place::Networks);
        watch.servers(resolv_conf);
        Ok(watch)
    }

    /// The file is often a link: both where it is and where it leads to are watched. A host without one asks itself, and
    /// needs no watch.
    fn servers(&mut self, path: &Path) {
        let target = std::fs::canonicalize(path).ok();
        let mut names: HashMap<PathBuf, Vec<OsString>> = HashMap::new();
        for path in [Some(path.to_owned()), target].into_iter().flatten() {
            if let (Some(directory), Some(name)) = (path.parent(), path.file_name()) {
                names.entry(directory.to_owned()).or_default().push(name.to_owned());
            }
        }
        for (directory, names) in names {
            if let Ok(number) = inotify::add_watch(&self.inotify, &directory, ENTRIES | WatchFlags::CREATE) {
                self.places.entry(number).or_insert(Place::Servers(names));
            }
        }
    }

    /// Watches a network's directory too; one that is watched already stays so.
    pub fn network(&mut self, run: &Path, id: &str) {
        // Without a watch its names are those of when it was found: better than none.
        if let Ok(number) = inotify::add_watch(&self.inotify, network_dir(run, id), ENTRIES) {
            self.places.insert(number, Place::Network(id.to_owned()));
        }
    }

    /// What has changed since the last call.
    ///
    /// # Errors
    /// Reading fails.
    pub fn changes(&mut self) -> io::Result<Vec<Change>> {
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut changes = Vec::new();
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::WOULDBLOCK) => return Ok(changes),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                changes.push(Change::Everything);
                continue;
            }
            let gone = event.events().intersects(ReadFlags::IGNORED | ReadFlags::MOVE_SELF);
            let name = event.file_name().and_then(|name| name.to_str().ok()).unwrap_or_default();
            let removed = event.events().intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM);
            // A directory lives on, unnamed, as long as our lock in it is open.
            let gone = gone || removed && name == RESOLVER_LOCK;
            changes.extend(change(self.places.get(&event.wd()), name, gone));
            if event.events().contains(ReadFlags::IGNORED) {
                self.places.remove(&event.wd());
            }
        }
    }
}

const ENTRIES: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE);

fn change(place: Option<&Place>, name: &str, gone: bool) -> Option<Change> {
    match place? {
        Place::Networks if gone => Some(Change::Over),
        Place::Networks => is_id(name).then(|| Change::Network(name.to_owned())),
        Place::Network(id) if gone || name == NETWORK_FILE => Some(Change::Network(id.clone())),
        Place::Network(id) => is_id(name).then(|| Change::Endpoint(id.clone(), name.to_owned())),
        Place::Servers(names) => names.iter().any(|known| known == name).then_some(Change::Servers),
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn changes_are_told_by_what_they_are() {
        let run = tempfile::tempdir().unwrap();
        let directory = network_dir(run.path(), "a1");
        fs::create_dir_all(&directory).unwrap();
        let servers = run.path().join("resolv.conf");
        let mut watch = Watch::new(run.path(), &servers).unwrap();
        watch.network(run.path(), "a1");
        fs::write(&servers, "").unwrap();
        fs::write(directory.join(".new"), "").unwrap();
        fs::rename(directory.join(".new"), directory.join("i1")).unwrap();
        fs::write(directory.join(NETWORK_FILE), "").unwrap();
        fs::create_dir(network_dir(run.path(), "b2")).unwrap();
        let mut changes = watch.changes().unwrap();
        changes.dedup();
        let endpoint = Change::Endpoint("a1".into(), "i1".into());
        let [a1, b2] = ["a1", "b2"].map(|id| Change::Network(id.into()));
        assert_eq!(changes, [Change::Servers, endpoint, a1.clone(), b2]);
        fs::remove_dir_all(run.path().join(DIRECTORY)).unwrap();
        let changes = watch.changes().unwrap();
        assert!(changes.contains(&a1) && changes.contains(&Change::Over), "{changes:?}");
    }
}
