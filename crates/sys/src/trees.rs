//! Removal of directory trees that a workload wrote.
//!
//! A workload can nest directories deeper than a stack or a table of descriptors reaches. So the recursion here
//! ends at a fixed depth: what lies deeper is first moved up beside the tree's root and then removed from there.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

const DEPTH: usize = 32;

/// Removes a file or a whole tree. Symbolic links are removed, never followed; what is gone already is fine.
///
/// # Errors
/// Something cannot be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    let top = match open_directory(CWD, path) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return gone_is_fine(unlinkat(CWD, path, AtFlags::empty())),
        Err(error) => return Err(error.into()),
    };
    let mut moved = 0;
    // Each round removes `DEPTH` levels, and what it moved up is in the next round's way.
    loop {
        let before = moved;
        empty(&top, &top, DEPTH, &mut moved)?;
        if moved == before {
            break;
        }
    }
    gone_is_fine(unlinkat(CWD, path, AtFlags::REMOVEDIR))
}

fn open_directory(at: impl AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn gone_is_fine(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn empty(top: &OwnedFd, directory: &OwnedFd, depth: usize, moved: &mut u64) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let is_directory = match entry.file_type() {
            FileType::Directory => true,
            FileType::Unknown => open_directory(directory, name).is_ok(),
            _ => false,
        };
        if !is_directory {
            gone_is_fine(unlinkat(directory, name, AtFlags::empty()))?;
            continue;
        }
        match unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        if depth == 0 {
            *moved += 1;
            let aside = CString::new(format!(".removing.{moved}"))?;
            renameat(directory, name, top, &aside)?;
            continue;
        }
        empty(top, &open_directory(directory, name)?, depth - 1, moved)?;
        gone_is_fine(unlinkat(directory, name, AtFlags::REMOVEDIR))?;
    }
    Ok(())
}

/// Bytes that the files of a tree take, counted once each; directories are not followed deeper than the
/// removal's recursion reaches.
pub fn disk_usage(path: &Path) -> u64 {
    fn walk(directory: &OwnedFd, depth: usize) -> u64 {
        let Ok(entries) = Dir::read_from(directory) else { return 0 };
        let mut total = 0;
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if entry.file_type() == FileType::Directory {
                if depth > 0
                    && let Ok(inner) = open_directory(directory, name)
                {
                    total += walk(&inner, depth - 1);
                }
            } else if let Ok(stat) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                total += (stat.st_blocks as u64 * 512) / u64::from(stat.st_nlink.max(1) as u32);
            }
        }
        total
    }
    open_directory(CWD, path).map_or(0, |top| walk(&top, DEPTH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn links_are_removed_and_not_followed() {
        let base = tempfile::tempdir().unwrap();
        let kept = base.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        let tree = base.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/file"), "y".repeat(5000)).unwrap();
        std::os::unix::fs::symlink(&kept, tree.join("a/link")).unwrap();
        std::os::unix::fs::symlink("/", tree.join("root")).unwrap();
        assert!(disk_usage(&tree) >= 5000);
        remove(&tree).unwrap();
        assert!(!tree.exists());
        assert!(kept.join("file").exists());
        remove(&tree).unwrap();
        std::os::unix::fs::symlink(&kept, &tree).unwrap();
        remove(&tree).unwrap();
        assert!(kept.join("file").exists());
    }

    #[test]
    fn depth_does_not_matter() {
        let base = tempfile::tempdir().unwrap();
        let tree = base.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut at = open_directory(CWD, &tree).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = open_directory(&at, "d").unwrap();
        }
        drop(at);
        remove(&tree).unwrap();
        assert!(!tree.exists());
    }
}
