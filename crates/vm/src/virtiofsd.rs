//! One virtio-fs server for each share, in a jail that shows it nothing else to serve.
//!
//! ```text
//!   <run dir> in the server's mount namespace
//!     share/            the directory itself, or
//!     share/file        the single file, in a directory that cannot be written to
//! ```
//!
//! The server then confines itself further: it makes `share` its root, in namespaces of its own, under a system
//! call filter, with few capabilities. It cannot make device nodes. Two programs of this name exist: QEMU's own
//! until 7.2, and its successor; they differ in their arguments alone.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proa_sys::jail::{Entry, Jail, View};
use rustix::fs::{Mode, OFlags};
use rustix::thread::UnshareFlags;

use crate::VmError;
use crate::machine::Helper;
use crate::share::{FILE_NAME, Share};

/// Where distributions put it; the first is QEMU's own.
const PLACES: &[&str] = &[
    "/usr/lib/qemu/virtiofsd",
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/bin/virtiofsd",
    "/usr/local/bin/virtiofsd",
];
const ROOT: &str = "share";

/// Starts the server of a share. The socket is for the VMM.
pub(crate) fn start(share: &Share, run_dir: &Path, errors: &OwnedFd) -> Result<(Helper, OwnedFd), VmError> {
    let program = find().ok_or_else(|| VmError::MissingVirtiofsd { path: share.source.clone() })?;
    let (listener, client) = connected(run_dir, &share.tag)?;
    let mut command = Command::new(&program);
    command.args(arguments(&program, listener.as_raw_fd(), &run_dir.join(ROOT)));
    let spawn_error = |source| VmError::Spawn { program: program.clone(), source };
    let errors = errors.try_clone().map_err(spawn_error)?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
    let child = jail(share, run_dir).spawn(command, &[listener.as_fd()]).map_err(spawn_error)?;
    Ok((Helper::new(child).map_err(spawn_error)?, client.into()))
}

/// What no template is to blame for.
///
/// # Errors
/// There is no server, or nothing to be served.
pub(crate) fn check(shares: &[Share]) -> Result<(), VmError> {
    shares.iter().try_for_each(|Share { source: path, .. }| {
        find().ok_or_else(|| VmError::MissingVirtiofsd { path: path.clone() })?;
        let found = std::fs::metadata(path);
        found.map(drop).map_err(|source| VmError::ShareSource { path: path.clone(), source })
    })
}

fn find() -> Option<PathBuf> {
    PLACES.iter().map(PathBuf::from).find(|path| path.is_file())
}

fn jail(share: &Share, run_dir: &Path) -> Jail {
    let root = PathBuf::from(ROOT);
    let entry = Entry::Bind {
        source: share.source.clone(),
        target: if share.single_file { root.join(FILE_NAME) } else { root },
        writable: !share.readonly,
    };
    Jail {
        namespaces: (UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS).bits().into(),
        view: Some(View { at: run_dir.to_owned(), entries: vec![entry], root: false }),
        no_new_privileges: true,
        ..Jail::default()
    }
}

fn arguments(program: &Path, listener: i32, root: &Path) -> Vec<String> {
    let root = root.display();
    let of_qemu = program == Path::new(PLACES[0]);
    let mut arguments = vec![format!("--fd={listener}")];
    let more: &[String] = if of_qemu {
        &[
            "-f".into(),
            "-o".into(),
            format!("source={root},sandbox=namespace,cache=auto,xattr,announce_submounts,modcaps=-mknod"),
        ]
    } else {
        &[
            format!("--shared-dir={root}"),
            "--sandbox=namespace".into(),
            "--cache=auto".into(),
            "--xattr".into(),
            "--announce-submounts".into(),
            "--modcaps=-mknod".into(),
        ]
    };
    arguments.extend_from_slice(more);
    arguments
}

/// A listening socket with a client that waits to be accepted. Its name is gone before anybody else sees it.
fn connected(run_dir: &Path, tag: &str) -> Result<(UnixListener, UnixStream), VmError> {
    let failed = VmError::io(run_dir);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let connect = || {
        let directory = rustix::fs::open(run_dir, flags, Mode::empty())?;
        // By descriptor, since the whole path may be longer than a socket's address.
        let path = format!("/proc/self/fd/{}/{tag}.sock", directory.as_raw_fd());
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        let client = UnixStream::connect(&path);
        std::fs::remove_file(&path)?;
        Ok((listener, client?))
    };
    connect().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_programs_are_told_the_same() {
        let root = Path::new("/run/x/share");
        let old = arguments(Path::new(PLACES[0]), 7, root).join(" ");
        let new = arguments(Path::new(PLACES[1]), 7, root).join(" ");
        for part in ["--fd=7", "=/run/x/share", "sandbox=namespace", "modcaps=-mknod", "xattr"] {
            assert!(old.contains(part) && new.contains(part), "{part}: {old} | {new}");
        }
    }

    #[test]
    fn a_single_file_is_shared_without_its_siblings() {
        let share = Share { tag: "s".into(), source: "/etc/hosts".into(), readonly: true, single_file: true };
        let view = jail(&share, Path::new("/run/x")).view.unwrap();
        let expected =
            Entry::Bind { source: "/etc/hosts".into(), target: "share/file".into(), writable: false };
        assert_eq!(view.entries, [expected]);
    }

    #[test]
    fn the_socket_has_no_name_left() {
        let scratch = tempfile::tempdir().unwrap();
        let (_listener, _client) = connected(scratch.path(), "share0").unwrap();
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
