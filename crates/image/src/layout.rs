//! The store's directories, and how content gets into them.
//!
//! ```text
//!   <root>/image/
//!     oci-layout                 marks an OCI layout
//!     blobs/<algorithm>/<hex>    what registries and archives sent, as it came
//!     layers/<hex of diff id>.erofs   layers ready to mount; a directory of that name without the suffix
//!     layers/<hex of diff id>.keep-<uid>-<gid>   copies of such directories with other owners (see `store::copies`)
//!                                          beside a directory, an EROFS image is a copy as well
//!     store.db                   which of it all belongs to what (see `store`)
//!     tmp/<session>/             what one process is making; the directory is locked while it lives
//!     locks/<hex>                held by whoever makes that content
//! ```
//!
//! A file is made in the session's directory, made durable, and renamed to its place. A process that is killed
//! leaves nothing but a session's directory whose lock is free, and perhaps a file in its place which no row of
//! the database names yet. Both are found and removed by the collector.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use proa_oci::reference::Digest;
use rustix::fs::{FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::layer::{KeptIds, LayerForm};

const LAYOUT_FILE: &str = "{\"imageLayoutVersion\":\"1.0.0\"}\n";

/// Between a layer's name and the ids that its copy was made for.
const KEPT: &str = ".keep-";

/// The diff id's digits and the form of what lies in `layers` by this name; nothing where it is no name of ours.
pub(crate) fn layer_of(name: &str) -> Option<(&str, LayerForm)> {
    if let Some((hex, ids)) = name.split_once(KEPT) {
        let (uid, gid) = ids.split_once('-')?;
        let is_id = |text: &str| text.parse::<u32>().is_ok_and(|id| id.to_string() == text);
        return (is_id(uid) && is_id(gid)).then_some((hex, LayerForm::Directory));
    }
    match name.strip_suffix(".erofs") {
        Some(hex) => Some((hex, LayerForm::Erofs)),
        None => Some((name, LayerForm::Directory)),
    }
}

/// Paths of one store.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below the engine's root.
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.join("image") }
    }

    /// Makes the directories.
    pub(crate) fn create(&self) -> Result<()> {
        let dirs =
            [self.blobs_dir("sha256"), self.blobs_dir("sha512"), self.layers(), self.tmp(), self.locks()];
        for dir in dirs {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(Error::io(&dir))?;
        }
        let marker = self.root.join("oci-layout");
        fs::write(&marker, LAYOUT_FILE).map_err(Error::io(&marker))
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("store.db")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn blobs_dir(&self, algorithm: &str) -> PathBuf {
        self.root.join("blobs").join(algorithm)
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs_dir(digest.algorithm().as_str()).join(digest.hex())
    }

    pub(crate) fn layer(&self, diff_id: &Digest, form: LayerForm) -> PathBuf {
        match form {
            LayerForm::Erofs => self.layers().join(format!("{}.erofs", diff_id.hex())),
            LayerForm::Directory => self.layers().join(diff_id.hex()),
        }
    }

    pub(crate) fn kept_layer(&self, diff_id: &Digest, kept: KeptIds) -> PathBuf {
        self.layers().join(format!("{}{KEPT}{}-{}", diff_id.hex(), kept.uid, kept.gid))
    }

    /// All copies of a layer with other owners.
    pub(crate) fn kept_layers(&self, diff_id: &Digest) -> Result<Vec<PathBuf>> {
        let start = format!("{}{KEPT}", diff_id.hex());
        let entries = read_dir(&self.layers())?.into_iter();
        let copies = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&start));
        Ok(copies.map(|entry| entry.path()).collect())
    }

    pub(crate) fn content_lock(&self, digest: &Digest) -> PathBuf {
        self.locks().join(digest.hex())
    }
}

/// A lock on a file of its own, which is removed with it.
#[derive(Debug)]
pub(crate) struct LockFile {
    path: PathBuf,
    _file: File,
}

impl LockFile {
    /// Takes the lock if it is free.
    pub(crate) fn try_take(path: &Path) -> Result<Option<Self>> {
        Self::acquire(path, FlockOperation::NonBlockingLockExclusive)
    }

    /// Waits for the lock.
    pub(crate) fn take(path: &Path) -> Result<Self> {
        loop {
            if let Some(lock) = Self::acquire(path, FlockOperation::LockExclusive)? {
                return Ok(lock);
            }
        }
    }

    /// A holder removes the file before it lets go, so a lock on a file that is not at the path any more is
    /// worth nothing, and is taken anew.
    fn acquire(path: &Path, operation: FlockOperation) -> Result<Option<Self>> {
        loop {
            let open = OpenOptions::new().create(true).truncate(false).write(true).open(path);
            let file = open.map_err(Error::io(path))?;
            if !lock(&file, operation).map_err(Error::io(path))? {
                return Ok(None);
            }
            if is_at(&file, path) {
                return Ok(Some(Self { path: path.to_owned(), _file: file }));
            }
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether the lock was taken; `false` where another holds it and `operation` does not wait.
fn lock(file: impl std::os::fd::AsFd, operation: FlockOperation) -> io::Result<bool> {
    loop {
        match rustix::fs::flock(&file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(there)) => held.ino() == there.ino() && held.dev() == there.dev(),
        _ => false,
    }
}

/// A directory for what one operation makes, locked while the operation lives and removed with it.
#[derive(Debug)]
pub(crate) struct TempDir {
    name: String,
    path: PathBuf,
    _lock: OwnedFd,
}

impl TempDir {
    pub(crate) fn create(layout: &Layout) -> Result<Self> {
        loop {
            let name = random_name()?;
            let path = layout.tmp().join(&name);
            fs::DirBuilder::new().mode(0o700).create(&path).map_err(Error::io(&path))?;
            // The collector may have taken the directory for a dead one before it was locked.
            if let Some(lock) = lock_dir(&path)?
                && path.exists()
            {
                return Ok(Self { name, path, _lock: lock });
            }
        }
    }

    /// The session's name in the database.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A path in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Locks a session's directory; `None` where its owner lives, or where it is gone.
fn lock_dir(path: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(Error::io(path)(errno.into())),
    };
    let taken = lock(&dir, FlockOperation::NonBlockingLockExclusive).map_err(Error::io(path))?;
    Ok(taken.then_some(dir))
}

/// Whether the session's owner is dead: its directory is gone or can be locked.
pub(crate) fn session_is_dead(layout: &Layout, name: &str) -> Result<bool> {
    let path = layout.tmp().join(name);
    Ok(!path.exists() || lock_dir(&path)?.is_some())
}

/// Removes what dead sessions left; returns their names.
pub(crate) fn remove_dead_sessions(layout: &Layout) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for entry in read_dir(&layout.tmp())? {
        let path = entry.path();
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            fs::remove_file(&path).or_else(ignore_missing).map_err(Error::io(&path))?;
            removed.push(entry.file_name().to_string_lossy().into_owned());
        } else if let Some(_lock) = lock_dir(&path)? {
            fs::remove_dir_all(&path).or_else(ignore_missing).map_err(Error::io(&path))?;
            removed.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(removed)
}

/// Removes lock files nobody holds.
pub(crate) fn remove_free_locks(layout: &Layout) -> Result<()> {
    for entry in read_dir(&layout.locks())? {
        drop(LockFile::try_take(&entry.path())?);
    }
    Ok(())
}

/// A directory's entries; none where the directory is missing.
pub(crate) fn read_dir(path: &Path) -> Result<Vec<fs::DirEntry>> {
    match fs::read_dir(path) {
        Ok(entries) => entries.collect::<io::Result<_>>().map_err(Error::io(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io(path)(error)),
    }
}

/// Makes a finished file or directory durable and moves it to its place. Content is known by its digest, so
/// where the place is taken what is there is as good, and stays.
pub(crate) fn publish(from: &Path, to: &Path) -> Result<()> {
    let dir = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(from, dir, Mode::empty()).map_err(|errno| Error::io(from)(errno.into()))?;
    let is_dir = from.is_dir();
    // A directory is many files: one call for them all.
    let synced = if is_dir { rustix::fs::syncfs(&file) } else { rustix::fs::fdatasync(&file) };
    synced.map_err(|errno| Error::io(from)(errno.into()))?;
    let cwd = rustix::fs::CWD;
    match rustix::fs::renameat_with(cwd, from, cwd, to, RenameFlags::NOREPLACE) {
        Ok(()) => sync_parent(to),
        Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(()),
        Err(errno) => Err(Error::io(to)(errno.into())),
    }
}

/// Makes a rename durable.
fn sync_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(Error::io(parent))
}

/// Removes a file or a whole directory; missing is fine.
pub(crate) fn remove_path(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.or_else(ignore_missing).map_err(Error::io(path))
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn random_name() -> Result<String> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::stream("random numbers")(errno.into()))?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        layout.create().unwrap();
        (dir, layout)
    }

    #[test]
    fn a_living_session_is_left_alone_and_a_dead_one_is_removed() {
        let (_dir, layout) = layout();
        let session = TempDir::create(&layout).unwrap();
        fs::write(session.path("x"), "x").unwrap();
        fs::create_dir(layout.tmp().join("dead")).unwrap();
        assert_eq!(remove_dead_sessions(&layout).unwrap(), ["dead"]);
        assert!(session.path("x").exists());
        assert!(!session_is_dead(&layout, session.name()).unwrap());
        let name = session.name().to_owned();
        drop(session);
        assert!(session_is_dead(&layout, &name).unwrap());
        assert!(read_dir(&layout.tmp()).unwrap().is_empty());
    }

    #[test]
    fn locks_exclude_and_leave_no_file() {
        let (_dir, layout) = layout();
        let path = layout.locks().join("x");
        let held = LockFile::take(&path).unwrap();
        assert!(LockFile::try_take(&path).unwrap().is_none());
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || LockFile::take(&path).map(drop)
        });
        drop(held);
        waiter.join().unwrap().unwrap();
        assert!(LockFile::try_take(&path).unwrap().is_some());
        remove_free_locks(&layout).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn publishing_keeps_what_is_there() {
        let (_dir, layout) = layout();
        let (from, to) = (layout.tmp().join("a"), layout.layers().join("b"));
        for content in ["first", "second"] {
            fs::write(&from, content).unwrap();
            publish(&from, &to).unwrap();
        }
        assert_eq!(fs::read_to_string(&to).unwrap(), "first");
        for _ in 0..2 {
            let from = layout.tmp().join("d");
            fs::create_dir_all(from.join("sub")).unwrap();
            publish(&from, &layout.layers().join("c")).unwrap();
        }
        remove_path(&layout.layers().join("c")).unwrap();
        remove_path(&layout.layers().join("c")).unwrap();
    }
}
