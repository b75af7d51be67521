//! Locks in files that are removed together with what they protect.
//!
//! Whoever waits for such a lock may get it on a file that has lost its name meanwhile: others then lock the file
//! that has the name now, and both believe to be alone. So after each lock the holder asks whether the file is
//! still the one that others find, and otherwise opens it anew.

use std::os::fd::AsFd;

/// Whether a file has no name any more. One that cannot be asked counts as named.
pub fn is_unlinked(file: impl AsFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 0)
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
}
