//! The writable disk of an instance: a sparse file with an empty ext4 file system.
//!
//! The file system is made once for each size and kept; an instance's disk is a copy of what it holds, which is
//! some hundred KiB. The host never reads it again: from then on it is the guest's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{SeekFrom as At, copy_file_range, seek};

use crate::VmError;
use crate::store::{Store, publish};

/// Changes when new disks shall differ from those made before.
pub(crate) const FORMAT: &str = "2";
/// Smaller file systems hold next to nothing.
pub(crate) const SMALLEST: u64 = 32 * 1024 * 1024;
/// What the agent wants to find: overlayfs's upper and work directories. Made here, they cost the guest no writes.
const DIRECTORIES: &[&str] = &["upper", "work"];
/// Journal, group tables and the like are written by the guest when it needs them.
const OPTIONS: &[&str] = &[
    "-q",
    "-F",
    "-m",
    "0",
    "-O",
    "^resize_inode",
    "-E",
    "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0",
];
const TOOL: &str = "mkfs.ext4";

/// Opens the disk at `path` for the VMM, making it where it does not exist.
pub(crate) fn open(store: &Store, path: &Path, size: u64) -> Result<File, VmError> {
    let open = || OpenOptions::new().read(true).write(true).open(path);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(store, path, size)?;
            open().map_err(VmError::io(path))
        }
        other => other.map_err(VmError::io(path)),
    }
}

/// Opens the disk at `path`, which does not exist, with the content of `source`.
pub(crate) fn open_copy(source: &Path, path: &Path) -> Result<File, VmError> {
    copy(source, path)?;
    OpenOptions::new().read(true).write(true).open(path).map_err(VmError::io(path))
}

fn make(store: &Store, path: &Path, size: u64) -> Result<(), VmError> {
    copy(&template(store, size)?, path)
}

fn copy(source: &Path, path: &Path) -> Result<(), VmError> {
    // The caller owns the directory and is alone in it; what a crash left is replaced.
    let partial = path.with_extension("new");
    copy_sparse(source, &partial).map_err(|error| {
        // Half a disk is of no use, and a full host needs the room.
        let _ = fs::remove_file(&partial);
        VmError::io(path)(error)
    })?;
    publish(&partial, path)
}

/// An empty file system of this size in the store.
fn template(store: &Store, size: u64) -> Result<std::path::PathBuf, VmError> {
    if size < SMALLEST || !size.is_multiple_of(4096) {
        return Err(VmError::BadShape(format!(
            "a writable disk of {size} bytes cannot be had: at least {SMALLEST}, in steps of 4096"
        )));
    }
    let path = store.path("disks").join(format!("{FORMAT}-ext4-{size}.img"));
    if path.exists() {
        return Ok(path);
    }
    let lock = store.lock()?;
    if path.exists() {
        return Ok(path);
    }
    let partial = store.partial(&lock, &path);
    let file = File::create(&partial).map_err(VmError::io(&partial))?;
    file.set_len(size).map_err(VmError::io(&partial))?;
    let tree = store.partial(&lock, &store.path("disks/tree"));
    for name in DIRECTORIES {
        let directory = tree.join(name);
        fs::create_dir_all(&directory).map_err(VmError::io(&directory))?;
    }
    make_file_system(&partial, &tree)?;
    fs::remove_dir_all(&tree).map_err(VmError::io(&tree))?;
    publish(&partial, &path)?;
    store.clear_older(&lock, "disks", FORMAT, &[]);
    Ok(path)
}

fn make_file_system(image: &Path, tree: &Path) -> Result<(), VmError> {
    let mut command = Command::new(TOOL);
    command
        .args(OPTIONS)
        .arg("-d")
        .arg(tree)
        .arg(image)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null());
    let output = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => VmError::Helper {
            program: TOOL.to_owned(),
            reason: "it is not on this host; install it: apt-get install e2fsprogs".to_owned(),
        },
        _ => VmError::Spawn { program: TOOL.into(), source: error },
    })?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(VmError::Helper { program: TOOL.to_owned(), reason })
}

/// Copies the parts of a file that hold data.
pub(crate) fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to)?;
    target.set_len(source.metadata()?.len())?;
    copy_data(&source, &target)
}

/// Copies what a file holds into another of its length that is empty; what it does not hold stays out.
pub(crate) fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let mut position = 0;
    while let Some((start, end)) = next_data(source, position)? {
        copy_range(source, target, start, end)?;
        position = end;
    }
    Ok(())
}

/// The next part of a file that holds data, from its first byte to that after its last.
pub(crate) fn next_data(file: &File, position: u64) -> io::Result<Option<(u64, u64)>> {
    match seek(file, At::Data(position)) {
        Ok(start) => Ok(Some((start, seek(file, At::Hole(start))?))),
        // Nothing but a hole is left.
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let left = (end - from) as usize;
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // The two may be on different file systems, which old kernels do not copy between.
            Err(_) => return copy_by_hand(source, target, from, end),
        }
    }
    Ok(())
}

fn copy_by_hand(mut source: &File, mut target: &File, start: u64, end: u64) -> io::Result<()> {
    source.seek(SeekFrom::Start(start))?;
    target.seek(SeekFrom::Start(start))?;
    io::copy(&mut io::Read::take(source, end - start), &mut target).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_disk_is_made_once_sparse_and_sound() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        let path = scratch.path().join("rw.img");
        let size = 1 << 30;
        let disk = open(&store, &path, size).unwrap();
        let metadata = disk.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.mode() & 0o777), (size, 0o600));
        assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
        let check = Command::new("/sbin/e2fsck").args(["-fn"]).arg(&path).output().unwrap();
        assert!(check.status.success(), "{check:?}");
        let list = Command::new("/sbin/debugfs").args(["-R", "ls -l /"]).arg(&path).output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        assert!(list.contains(" 40755 ") && list.contains("upper") && list.contains("work"), "{list}");
        fs::write(&path, "what the guest wrote").unwrap();
        open(&store, &path, size).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"what the guest wrote");
        assert!(!scratch.path().join("rw.new").exists());
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        for size in [0, 4096, SMALLEST + 1] {
            let error = open(&store, &scratch.path().join("rw.img"), size).unwrap_err();
            assert!(matches!(error, VmError::BadShape(_)), "{error}");
        }
    }

    #[test]
    fn copying_by_hand_gives_the_same() {
        let scratch = tempfile::tempdir().unwrap();
        let (from, to) = (scratch.path().join("a"), scratch.path().join("b"));
        fs::write(&from, "0123456789").unwrap();
        fs::write(&to, "..........").unwrap();
        let target = OpenOptions::new().write(true).open(&to).unwrap();
        copy_by_hand(&File::open(&from).unwrap(), &target, 3, 6).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"...345....");
    }
}
