//! Locks in files that are removed together with what they protect.
//!
//! Whoever waits for such a lock may get it on a file that has lost its name meanwhile: others then lock the file
//! that has the name now, and both believe to be alone. So after each lock the holder asks whether the file is
//! still the one that others find, and otherwise opens it anew.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Whether a file has no name any more. One that cannot be asked counts as named.
pub fn is_unlinked(file: impl AsFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 0)
}

/// Whether somebody holds the lock of this file. Makes no file: where there is none, nobody does.
///
/// # Errors
/// It cannot be opened, or not be locked.
pub fn is_held(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    // Shared, so that two who look do not take each other for a holder.
    match rustix::io::retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockShared)) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_file_is_told_from_one_that_is_there() {
        let path = std::env::temp_dir().join(format!("proa-lock-{}", std::process::id()));
        let file = std::fs::File::create(&path).unwrap();
        assert!(!is_unlinked(&file));
        std::fs::remove_file(&path).unwrap();
        assert!(is_unlinked(&file));
    }

    #[test]
    fn who_only_looks_holds_nothing() {
        let path = std::env::temp_dir().join(format!("proa-held-{}", std::process::id()));
        assert!(!is_held(&path).unwrap());
        let file = File::create(&path).unwrap();
        assert!(!is_held(&path).unwrap());
        flock(&file, FlockOperation::LockExclusive).unwrap();
        assert!(is_held(&path).unwrap());
        drop(file);
        assert!(!is_held(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
    }
}
