//! The files of networks and endpoints below `<run>/networks` (`proa_protocol::network`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use proa_protocol::network::{DIRECTORY, LOCK_FILE, Live, NETWORK_FILE, Network, endpoint_file, network_dir};
use rustix::fs::{FlockOperation, OFlags, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;

/// One for all roots of the host.
const HOST_LOCK: &str = "/run/lock/proa-networks";
/// Longest of these files: an endpoint may publish every port there is.
const MAX_FILE: u64 = 16 << 20;

/// Held while bridges or the firewall's tables are made or taken away; given back when it is dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held")] File);

impl Lock {
    /// Waits until nobody else makes or takes away anything of these networks.
    ///
    /// # Errors
    /// Its file cannot be made.
    pub fn take(run: &Path) -> Result<Self, Error> {
        make_base(run)?;
        Self::take_existing(run)
    }

    /// The same where there are networks; an error where there are none any more.
    ///
    /// # Errors
    /// There is no directory for its file.
    pub fn take_existing(run: &Path) -> Result<Self, Error> {
        Self::of(run.join(DIRECTORY).join(LOCK_FILE), FlockOperation::LockExclusive)
    }

    /// The same for one instance's place, which others' places do not disturb.
    ///
    /// # Errors
    /// Its file cannot be made.
    pub fn share(run: &Path) -> Result<Self, Error> {
        Self::of(run.join(DIRECTORY).join(LOCK_FILE), FlockOperation::LockShared)
    }

    /// Waits until no other root of this host chooses a subnet.
    ///
    /// # Errors
    /// Its file cannot be made.
    pub fn of_host() -> Result<Self, Error> {
        Self::of(PathBuf::from(HOST_LOCK), FlockOperation::LockExclusive)
    }

    fn of(path: PathBuf, operation: FlockOperation) -> Result<Self, Error> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let file = file.map_err(Error::file("open", &path))?;
        rustix::io::retry_on_intr(|| flock(&file, operation))
            .map_err(|errno| Error::file("lock", &path)(errno.into()))?;
        Ok(Self(file))
    }
}

/// Tells the resolver, and whoever restores the firewall, of a network.
///
/// # Errors
/// The file cannot be written.
pub fn write_network(run: &Path, network: &Network) -> Result<(), Error> {
    write(&network_dir(run, &network.id), NETWORK_FILE, network)
}

/// Tells them of an instance's place in one.
///
/// # Errors
/// The file cannot be written.
pub fn write_live(run: &Path, instance: &str, live: &Live) -> Result<(), Error> {
    write(&network_dir(run, &live.endpoint.network.id), instance, live)
}

/// What was written of an instance's place, if it is there and whole.
pub fn read_live(run: &Path, network: &str, instance: &str) -> Option<Live> {
    read(&endpoint_file(run, network, instance))
}

/// Forgets an instance's place.
///
/// # Errors
/// The file is there and cannot be removed.
pub fn remove_live(run: &Path, network: &str, instance: &str) -> Result<(), Error> {
    gone_is_fine(&endpoint_file(run, network, instance), |path| fs::remove_file(path))
}

/// Forgets a network and all places in it.
///
/// # Errors
/// The directory is there and cannot be removed.
pub fn remove_network(run: &Path, network: &str) -> Result<(), Error> {
    gone_is_fine(&network_dir(run, network), |path| fs::remove_dir_all(path))
}

/// Forgets all networks.
///
/// # Errors
/// The directory is there and cannot be removed.
pub fn remove_directory(run: &Path) -> Result<(), Error> {
    gone_is_fine(&run.join(DIRECTORY), |path| fs::remove_dir_all(path))
}

fn gone_is_fine(path: &Path, remove: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Error> {
    match remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// All networks that have a bridge, and all places in them. What cannot be read is left out.
pub fn read_all(run: &Path) -> (Vec<Network>, Vec<(String, Live)>) {
    let (mut networks, mut places) = (Vec::new(), Vec::new());
    for directory in entries(&run.join(DIRECTORY)) {
        networks.extend(read::<Network>(&directory.join(NETWORK_FILE)));
        for path in entries(&directory) {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name != NETWORK_FILE && !name.contains('.') {
                places.extend(read::<Live>(&path).map(|live| (name.to_owned(), live)));
            }
        }
    }
    (networks, places)
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// What one of these files holds; nothing if it is no file, too long, or holds something else.
pub fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    // Not waiting: it might be a pipe.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Whole or not at all; a reader that watches the directory hears of the name when the content is there.
fn write(directory: &Path, name: &str, value: &impl Serialize) -> Result<(), Error> {
    let path = directory.join(name);
    let failed = |error: io::Error| Error::file("write", &path)(error);
    let bytes = serde_json::to_vec(value).map_err(|error| failed(io::Error::other(error)))?;
    make_directory(directory)?;
    // Its name has a dot, which no id has.
    let fresh = directory.join(format!("{name}.new"));
    fs::write(&fresh, bytes).map_err(failed)?;
    fs::rename(&fresh, &path).map_err(failed)
}

/// Makes the directory of all networks.
///
/// # Errors
/// It cannot be made.
pub fn make_base(run: &Path) -> Result<(), Error> {
    make_directory(&run.join(DIRECTORY))
}

pub(crate) fn make_directory(directory: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(Error::file("make directory", directory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_protocol::network::{Endpoint, Protocol, PublishedPort};
    use rustix::fs::{CWD, FileType, Mode};

    #[test]
    fn what_is_written_is_read_and_what_is_broken_is_left_out() {
        let run = std::env::temp_dir().join(format!("proa-files-{}", std::process::id()));
        let network = Network { id: "n1".into(), name: "web".into(), ..Network::default() };
        let endpoint = Endpoint { network: network.clone(), ..Endpoint::default() };
        let live = Live { endpoint, link: "p1".into(), switch: None };
        drop(Lock::take(&run).unwrap());
        write_network(&run, &network).unwrap();
        write_live(&run, "i1", &live).unwrap();
        fs::write(run.join("networks/n1/i2"), "{").unwrap();
        assert_eq!(read_all(&run), (vec![network], vec![("i1".to_owned(), live.clone())]));
        assert_eq!(read_live(&run, "n1", "i1"), Some(live));
        remove_live(&run, "n1", "i1").unwrap();
        remove_live(&run, "n1", "i1").unwrap();
        remove_network(&run, "n1").unwrap();
        assert_eq!(read_all(&run), (Vec::new(), Vec::new()));
        fs::remove_dir_all(run).unwrap();
    }

    #[test]
    fn an_endpoint_may_publish_every_port() {
        let run = std::env::temp_dir().join(format!("proa-files-ports-{}", std::process::id()));
        let host_ip = "127.0.0.1".parse().unwrap();
        let port = |port| PublishedPort { protocol: Protocol::Tcp, host_ip, host_port: port, port };
        let endpoint = Endpoint { ports: (1..=u16::MAX).map(port).collect(), ..Endpoint::default() };
        let live = Live { endpoint, link: "p1".into(), switch: None };
        write(&network_dir(&run, "n1"), "i1", &live).unwrap();
        assert_eq!(read_live(&run, "n1", "i1"), Some(live));
        assert_eq!(read_all(&run).1.len(), 1);
        fs::remove_dir_all(run).unwrap();
    }

    #[test]
    fn only_a_file_is_read() {
        let run = std::env::temp_dir().join(format!("proa-files-kinds-{}", std::process::id()));
        fs::create_dir_all(&run).unwrap();
        std::os::unix::fs::symlink("/dev/zero", run.join("link")).unwrap();
        rustix::fs::mknodat(CWD, run.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        File::create(run.join("long")).unwrap().set_len(MAX_FILE + 1).unwrap();
        for name in ["link", "pipe", "long", "none", "."] {
            assert!(read::<serde_json::Value>(&run.join(name)).is_none(), "{name}");
        }
        fs::remove_dir_all(run).unwrap();
    }
}
