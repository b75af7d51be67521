//! Executables that nobody can write through `/proc/<pid>/exe` (invariant 10).
//!
//! A process in a container can open the executable of whoever enters it, by `/proc/<pid>/exe` or by
//! `#!/proc/self/exe`, and a root user there could write to it (CVE-2019-5736). So our programs run from a
//! read-only clone of the mount that holds them: the clone is in no mount namespace, hence nobody can make it
//! writable again. Where mounts cannot be cloned (no `CAP_SYS_ADMIN`), from a copy in a sealed memfd.
//!
//! ```text
//!   engine ── Sealed::open(path) ─▶ Command::new(sealed.path()) ──▶ monitor ── is_sealed() or else exec again
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::exec::{self, StringArray};
use crate::mount::{self, MountAttr};

const OWN: &str = "/proc/self/exe";

/// An executable behind a read-only mount of its own, or in a sealed memfd.
#[derive(Debug)]
pub struct Sealed {
    fd: OwnedFd,
}

impl Sealed {
    /// Seals the executable at `path`.
    ///
    /// # Errors
    /// It cannot be read, or the kernel has neither way.
    pub fn open(path: &Path) -> io::Result<Self> {
        match Self::from_clone(path) {
            Ok(sealed) => Ok(sealed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
            // No privilege, or a kernel before 5.12.
            Err(_) => Self::from_copy(path),
        }
    }

    /// Seals the executable of this process.
    ///
    /// # Errors
    /// As for [`Sealed::open`].
    pub fn own() -> io::Result<Self> {
        if is_sealed()? {
            let fd = rustix::fs::open(OWN, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            return Ok(Self { fd });
        }
        Self::open(&std::fs::read_link(OWN)?)
    }

    fn from_clone(path: &Path) -> io::Result<Self> {
        let fd = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        mount::set(fd.as_fd(), false, &MountAttr { set: mount::RDONLY, ..MountAttr::default() })?;
        Ok(Self { fd })
    }

    fn from_copy(path: &Path) -> io::Result<Self> {
        let mut from = File::open(path)?;
        // Older kernels do not know MFD_EXEC, newer ones may be set up to want it.
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("proa", flags | MemfdFlags::EXEC)
            .or_else(|_| rustix::fs::memfd_create("proa", flags))?;
        let mut to = File::from(fd);
        io::copy(&mut from, &mut to)?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&to, seals)?;
        // The writable descriptor must be gone before the program is run.
        let fd = rustix::fs::open(own_fd_path(&to), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd })
    }

    /// The path to run it by (`std::process::Command::new`), valid in this process and in its forks while
    /// `self` lives. Give the program its name by `arg0`.
    pub fn path(&self) -> PathBuf {
        own_fd_path(&self.fd)
    }

    /// Replaces this process's program by it. Returns only when that fails.
    pub fn exec(&self, args: &StringArray, env: &StringArray) -> io::Error {
        exec::execve_fd(self.fd.as_fd(), args, env)
    }
}

impl AsFd for Sealed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn own_fd_path(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Whether this process runs from a sealed executable: one on a read-only mount, or a sealed memfd.
///
/// # Errors
/// `/proc/self/exe` cannot be opened.
pub fn is_sealed() -> io::Result<bool> {
    let exe = rustix::fs::open(OWN, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::fstatvfs(&exe)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(true);
    }
    let wanted = SealFlags::SEAL | SealFlags::WRITE;
    Ok(rustix::fs::fcntl_get_seals(&exe).is_ok_and(|seals| seals.contains(wanted)))
}

/// Runs this process's executable again from a seal, with the same arguments and environment, unless it is
/// sealed already.
///
/// # Errors
/// It cannot be sealed or run.
pub fn ensure_sealed() -> io::Result<()> {
    use std::os::unix::ffi::OsStringExt;
    if is_sealed()? {
        return Ok(());
    }
    let sealed = Sealed::own()?;
    let args = StringArray::new(std::env::args_os().map(OsStringExt::into_vec))?;
    let env = StringArray::new(std::env::vars_os().map(|(key, value)| {
        let mut pair = key.into_vec();
        pair.push(b'=');
        pair.extend_from_slice(&value.into_vec());
        pair
    }))?;
    Err(sealed.exec(&args, &env))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    /// A script run from the seal tries to write to what it runs from.
    fn runs_but_cannot_be_written(sealed: &Sealed) {
        let output = Command::new(sealed.path()).args(["ok"]).output().unwrap();
        assert_eq!(output.stdout, b"ok\n", "{output:?}");
        let write = rustix::fs::open(sealed.path(), OFlags::WRONLY, Mode::empty());
        match write {
            Err(error) => assert!(matches!(
                error,
                rustix::io::Errno::ROFS | rustix::io::Errno::PERM | rustix::io::Errno::TXTBSY
            )),
            Ok(fd) => assert_eq!(rustix::io::write(fd, b"x").unwrap_err(), rustix::io::Errno::PERM),
        }
    }

    #[test]
    fn clones_and_copies_run_and_refuse_writes() {
        let echo = std::env::temp_dir().join(format!("proa-seal-{}", std::process::id()));
        std::fs::copy("/bin/echo", &echo).unwrap();
        std::fs::set_permissions(&echo, PermissionsExt::from_mode(0o755)).unwrap();
        runs_but_cannot_be_written(&Sealed::from_clone(&echo).expect("this test needs root"));
        runs_but_cannot_be_written(&Sealed::from_copy(&echo).unwrap());
        std::fs::remove_file(&echo).unwrap();
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        assert_eq!(Sealed::open(Path::new("/nonexistent")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!is_sealed().unwrap());
    }
}
