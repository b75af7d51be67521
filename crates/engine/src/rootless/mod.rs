//! Proa as an ordinary user.
//!
//! Where the effective user is not root, a command that opens the engine first enters a user namespace in which it
//! is, and a mount namespace that belongs to it. From there on everything (image store, unpacking, monitors, the
//! runtime) is the same code as for root.
//!
//! ```text
//!   proa (uid 1000) ── connect ──▶ holder ── user namespace (descriptor) ──▶ proa: setns, unshare(mounts) ── as root ─▶ …
//!        └ nobody there: lock ─▶ start a holder in a new user namespace ─▶ map its ids ─▶ publish its socket
//! ```
//!
//! The **holder** is a process (this program under the name `proa-userns`) that sits in the user namespace and
//! hands its descriptor to whoever connects: joining takes a tenth of a millisecond, where mapping ids by
//! `newuidmap` takes several. It is a convenience and holds no state: files belong to ids outside, which every
//! namespace with the same maps gives the same names. So it may be killed at any time, the next command starts
//! another (in the same namespace, where the user's networks are held by somebody in it: `proa_network::switch`);
//! and it ends by itself after a while without visitors, or by `proa system stop`. That whoever connects gets an
//! answer is the proof that it lives: no process id is written down that could pass on to another process. Its
//! socket lies in a directory that only its user can enter, and gets its name there by `rename` once all ids are mapped.
//!
//! The **mount namespace** is made anew by each command, so it has the mounts of whoever called. Nothing that is
//! mounted there need be seen by others: a user namespace cannot mount EROFS, so layers are unpacked directories
//! (`proa_image::layer`), and a container's overlay is in its own mount namespace.
//!
//! **Ids** ([`ids`]): with `newuidmap`, `newgidmap` and ranges in `/etc/subuid` and `/etc/subgid`, root inside is
//! the user, and ids from 1 up are those of the ranges. Else root inside is the user and there is no other id:
//! what belongs to others cannot be unpacked or made. A root keeps a note of the maps it was made with
//! ([`check_maps`]), since its files would belong to others with different ones.

mod holder;
pub(crate) mod ids;

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};

pub use holder::{NAME as HOLDER_NAME, serve as hold};
pub use ids::{Ids, Mapping};

const LOCK: &str = "proa-userns.lock";
/// Where a root notes the id maps of its files.
const MAPS: &str = "idmaps";

/// What this process became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entered {
    /// Root, with more ids beside it.
    Ranges,
    /// Root alone; why, in words for the user.
    Single(String),
}

/// Enters the user namespace of `user`, whose holder's socket is in `directory`. The process must have one thread.
///
/// # Errors
/// User namespaces are forbidden here; the error names the switch.
pub fn enter(directory: &Path, user: Mapping) -> Result<Entered> {
    if let Some(held) = holder::connect(directory)
        && let Some(entered) = join_if_current(held, user)?
    {
        return Ok(entered);
    }
    let _lock = lock(directory)?;
    // Another command may have started one, or ended an outdated one, while we waited.
    if let Some(held) = holder::connect(directory) {
        if let Some(entered) = join_if_current(held, user)? {
            return Ok(entered);
        }
        holder::end(directory);
    } else if let Some(namespace) = in_use(directory)
        && holder::keep(directory, &namespace).is_ok()
        && let Some(held) = holder::connect(directory)
    {
        if let Some(entered) = join_if_current(held, user)? {
            return Ok(entered);
        }
        holder::end(directory);
    }
    let ids = ids::granted(user);
    let (namespace, entered) = holder::start(directory, user, ids)?;
    join(&namespace).map(|()| entered)
}

/// The user namespace of those who hold networks of one of the user's roots: another one could not work in them.
fn in_use(directory: &Path) -> Option<OwnedFd> {
    let roots = std::fs::read_dir(directory).ok()?.flatten();
    let runs = roots.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"proa"));
    runs.flat_map(|entry| proa_network::switch::holders(&entry.path())).find_map(|pid| {
        let namespace = File::open(format!("/proc/{pid}/ns/user")).ok()?;
        // In our own there is nothing to join.
        let inode = |file: &File| rustix::fs::fstat(file).map(|found| found.st_ino).ok();
        let own = File::open("/proc/self/ns/user").ok()?;
        (inode(&namespace)? != inode(&own)?).then(|| namespace.into())
    })
}

/// Joins, unless the namespace has a single id and the user has got more since it was made.
fn join_if_current(held: holder::Held, user: Mapping) -> Result<Option<Entered>> {
    let entered = match held.is_single.then(|| ids::granted(user)) {
        Some(Ids::Ranges { .. }) => return Ok(None),
        Some(Ids::Single(why)) => Entered::Single(why),
        None => Entered::Ranges,
    };
    join(&held.namespace).map(|()| Some(entered))
}

fn join(namespace: &OwnedFd) -> Result<()> {
    proa_sys::userns::join(namespace).map_err(|error| refused(&error))
}

/// The one line that says why there can be no user namespace.
fn refused(error: &std::io::Error) -> Error {
    let why = proa_sys::userns::forbidden(error)
        .unwrap_or_else(|| format!("user namespaces cannot be used here: {error}"));
    Error::unsupported(why, "as an ordinary user Proa needs one: switch it on, or run Proa as root")
}

/// Ends the holder whose socket is in `directory`, if there is one. Who is in its namespace stays there.
///
/// # Errors
/// The lock cannot be taken.
pub fn end(directory: &Path) -> Result<()> {
    let _lock = lock(directory)?;
    holder::end(directory);
    let path = directory.join(LOCK);
    std::fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))
}

fn lock(directory: &Path) -> Result<File> {
    let path = directory.join(LOCK);
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    let file = file.map_err(|error| Error::io("open", &path, error))?;
    rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
        .map_err(|errno| Error::io("lock", &path, errno))?;
    Ok(file)
}

/// A directory for sockets and locks that only its user can enter: `given` if it is one (`XDG_RUNTIME_DIR`),
/// else one in `/tmp`, made if it is missing.
///
/// # Errors
/// The one in `/tmp` belongs to somebody else, or is open to others.
pub fn runtime_directory(given: Option<PathBuf>, user: u32) -> Result<PathBuf> {
    if let Some(given) = given.filter(|given| is_own(given, user)) {
        return Ok(given);
    }
    let path = PathBuf::from(format!("/tmp/proa-run-{user}"));
    let mode = rustix::fs::Mode::from_raw_mode(0o700);
    match rustix::fs::mkdir(&path, mode) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(Error::io("make directory", &path, errno)),
    }
    if is_own(&path, user) {
        return Ok(path);
    }
    Err(Error::Conflict {
        message: format!("{} is not a directory that belongs to you alone", path.display()),
        hint: "remove it, or set XDG_RUNTIME_DIR to a directory of yours with mode 0700".into(),
    })
}

/// Whether it is a directory, no link, that nobody but `user` can enter.
fn is_own(path: &Path, user: u32) -> bool {
    use std::os::unix::fs::MetadataExt;
    path.is_absolute()
        && std::fs::symlink_metadata(path)
            .is_ok_and(|found| found.is_dir() && found.uid() == user && found.mode() & 0o077 == 0)
}

/// Makes sure that the files of a root mean the same in this namespace as in the one they were made in, and
/// notes its maps. Does nothing in the host's own namespace.
///
/// # Errors
/// They do not, or the note cannot be read or written.
pub fn check_maps(root: &Path) -> Result<()> {
    if proa_sys::userns::is_initial() {
        return Ok(());
    }
    let path = root.join(MAPS);
    let now = ids::current().map_err(|error| Error::io("read", Path::new("/proc/self/uid_map"), error))?;
    let noted = match std::fs::read_to_string(&path) {
        Ok(noted) if noted == now => return Ok(()),
        Ok(noted) => noted,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    if !ids::extends(&now, &noted) {
        return Err(Error::Conflict {
            message: format!("{} was made with other id ranges than yours now", root.display()),
            hint: "give the user its old ranges in /etc/subuid and /etc/subgid back, or use another --root"
                .into(),
        });
    }
    let fresh = root.join(format!("{MAPS}.{}", std::process::id()));
    std::fs::write(&fresh, now).map_err(|error| Error::io("write", &fresh, error))?;
    std::fs::rename(&fresh, &path).map_err(|error| Error::io("write", &path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_a_directory_of_ones_own_will_do() {
        let base = tempfile::tempdir().unwrap();
        let user = rustix::process::geteuid().as_raw();
        std::fs::set_permissions(base.path(), PermissionsExt::from_mode(0o700)).unwrap();
        assert!(is_own(base.path(), user));
        assert!(!is_own(base.path(), user + 1));
        assert!(!is_own(&base.path().join("missing"), user));
        std::fs::set_permissions(base.path(), PermissionsExt::from_mode(0o750)).unwrap();
        assert!(!is_own(base.path(), user));
        std::fs::set_permissions(base.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let link = base.path().join("link");
        std::os::unix::fs::symlink(base.path(), &link).unwrap();
        assert!(!is_own(&link, user));
    }
}
