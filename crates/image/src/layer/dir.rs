//! The directory form of a layer, for where EROFS can't be mounted.
//!
//! File data is spooled beside the layer while the tar is read, in files named by number. When the tree is
//! known it is made from the root down, each file moved to its place. So no path of the tar is ever resolved
//! on the host: there is one directory at a time, freshly made by us, and single names in it.
//!
//! In a user namespace overlayfs reads `user.overlay.opaque` (mounted `userxattr`), and what root of a namespace
//! cannot make is left out and counted: device nodes but whiteouts, attributes `trusted.*`. A file of an id that
//! is not mapped is an error, since giving it to somebody else could give that one its rights.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::ingest::Store;
use super::tar::{Archive, Entry};
use super::tree::{Kind, Meta, NodeId, ROOT, Tree, Xattrs};
use super::{KeptIds, LayerError, LeftOut};

/// Unit in which what is on disk is counted.
const BLOCK: u64 = 4096;

/// A directory being filled.
pub struct Unpacked {
    root: PathBuf,
    spool_path: PathBuf,
    spool: OwnedFd,
    next: u64,
    used: u64,
    max: u64,
    kept: KeptIds,
}

/// Removes what an interrupted conversion left at `dest`.
pub fn remove(dest: &Path) {
    for path in [dest.to_owned(), spool_path(dest)] {
        drop(std::fs::remove_dir_all(path));
    }
}

fn spool_path(dest: &Path) -> PathBuf {
    let mut path = dest.as_os_str().to_owned();
    path.push(".files");
    path.into()
}

fn open_dir(at: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(fs::openat(at, name, flags, Mode::empty())?)
}

impl Unpacked {
    /// Creates the layer's directory and the spool; `max` is the most bytes of data.
    pub fn create(dest: &Path, max: u64, kept: KeptIds) -> Result<Self, LayerError> {
        let spool_path = spool_path(dest);
        let mode = Mode::from_raw_mode(0o700);
        let make = |path: &Path| -> io::Result<OwnedFd> {
            fs::mkdirat(CWD, path, mode)?;
            open_dir(CWD, path.as_os_str().as_bytes())
        };
        make(dest).map_err(LayerError::write(dest, "create the layer"))?;
        let spool = make(&spool_path).map_err(LayerError::write(&spool_path, "create the spool"))?;
        Ok(Self { root: dest.to_owned(), spool_path, spool, next: 0, used: 0, max, kept })
    }

    fn spool_file<R: Read>(&self, archive: &mut Archive<'_, R>, entry: &Entry) -> Result<u64, LayerError> {
        let failed = |source: io::Error| LayerError::write(&self.spool_path, "write a file")(source);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let name = self.next.to_string();
        let fd = fs::openat(&self.spool, name, flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(fd.map_err(|error| failed(error.into()))?);
        let mut used = 0;
        for segment in &entry.segments {
            used += segment.len.next_multiple_of(BLOCK);
            if segment.offset > 0 {
                file.seek(SeekFrom::Start(segment.offset)).map_err(failed)?;
            }
            let mut left = segment.len;
            while left > 0 {
                let bytes = archive.fill()?;
                let take = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                file.write_all(&bytes[..take]).map_err(failed)?;
                archive.consume(take);
                left -= take as u64;
            }
        }
        if entry.segments.last().map_or(0, |segment| segment.end()) < entry.size {
            file.set_len(entry.size).map_err(failed)?;
        }
        Ok(used)
    }
}

impl Store for Unpacked {
    /// The file's name in the spool.
    type Content = u64;

    fn put<R: Read>(
        &mut self,
        archive: &mut Archive<'_, R>,
        entry: &Entry,
        _: &Xattrs,
    ) -> Result<u64, LayerError> {
        self.used += self.spool_file(archive, entry)?;
        if self.used > self.max {
            return Err(LayerError::Limit { what: "bytes of layer", max: self.max });
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    fn finish(self, tree: &Tree<u64>, order: &[NodeId]) -> Result<(u64, LeftOut), LayerError> {
        let root = open_dir(CWD, self.root.as_os_str().as_bytes());
        let root = root.map_err(LayerError::write(&self.root, "open the layer"))?;
        let mut placer = Placer {
            tree,
            spool: &self.spool,
            linked: vec![false; tree.len()],
            here: root,
            path: PathBuf::new(),
            is_confined: !proa_sys::userns::is_initial(),
            kept: self.kept,
            left_out: LeftOut::default(),
        };
        placer.fill()?;
        let left_out = placer.left_out;
        std::fs::remove_dir_all(&self.spool_path)
            .map_err(LayerError::write(&self.spool_path, "remove the spool"))?;
        let dirs = order.iter().filter(|&&id| tree.dir(id).is_some()).count() as u64;
        Ok((self.used + dirs * BLOCK, left_out))
    }
}

/// Makes the tree, going down into a directory and up again with one open directory.
struct Placer<'a> {
    tree: &'a Tree<u64>,
    spool: &'a OwnedFd,
    /// Nodes with several names that have one already; they are in the spool by their node's number.
    linked: Vec<bool>,
    here: OwnedFd,
    /// In the layer; for messages only.
    path: PathBuf,
    /// We are in a user namespace.
    is_confined: bool,
    kept: KeptIds,
    left_out: LeftOut,
}

/// What is to be done next.
enum Step<'a> {
    /// Make a directory, go into it and make what it has.
    Enter(&'a [u8], NodeId),
    /// Go up and finish the directory that was left.
    Leave(&'a [u8], NodeId),
}

impl<'a> Placer<'a> {
    fn failed(&self, name: &[u8], action: &'static str) -> impl FnOnce(io::Error) -> LayerError {
        move |source| {
            let path = self.path.join(OsStr::from_bytes(name));
            LayerError::Write { path, action, source }
        }
    }

    fn fill(&mut self) -> Result<(), LayerError> {
        let mut steps = Vec::new();
        self.fill_dir(ROOT, &mut steps)?;
        while let Some(step) = steps.pop() {
            match step {
                Step::Enter(name, id) => {
                    let made = fs::mkdirat(&self.here, name, Mode::from_raw_mode(0o700));
                    let entered = made.map_err(Into::into).and_then(|()| open_dir(&self.here, name));
                    self.here = entered.map_err(self.failed(name, "make a directory"))?;
                    self.path.push(OsStr::from_bytes(name));
                    steps.push(Step::Leave(name, id));
                    self.fill_dir(id, &mut steps)?;
                }
                Step::Leave(name, id) => {
                    self.here = open_dir(&self.here, b"..").map_err(self.failed(b"..", "open"))?;
                    self.path.pop();
                    self.dress(name, id)?;
                }
            }
        }
        self.dress(b".", ROOT)
    }

    /// Makes all but the directories, which become steps.
    fn fill_dir(&mut self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Result<(), LayerError> {
        let tree = self.tree;
        let first = steps.len();
        for (name, &child) in tree.dir(id).into_iter().flat_map(|dir| &dir.children) {
            match &tree.node(child).kind {
                Kind::Dir(_) => steps.push(Step::Enter(name, child)),
                kind => self.place(name, child, kind)?,
            }
        }
        steps[first..].reverse();
        Ok(())
    }

    fn place(&mut self, name: &[u8], id: NodeId, kind: &Kind<u64>) -> Result<(), LayerError> {
        if self.is_confined && matches!(kind, Kind::Block(..) | Kind::Char(1.., _) | Kind::Char(_, 1..)) {
            self.left_out.devices += 1;
            return Ok(());
        }
        if self.tree.node(id).links == 1 {
            self.make(&self.here, name, kind).map_err(self.failed(name, "make a file"))?;
            return self.dress(name, id);
        }
        // Of several names the first is in the spool, where all others find it.
        let first = format!("n{id}");
        if !std::mem::replace(&mut self.linked[id as usize], true) {
            self.make(self.spool, first.as_bytes(), kind).map_err(self.failed(name, "make a file"))?;
            self.left_out.attributes += self.unusable(id);
            self.dress_at(self.spool, first.as_bytes(), name, id)?;
        }
        let linked = fs::linkat(self.spool, first, &self.here, name, AtFlags::empty());
        linked.map_err(|error| self.failed(name, "make a hard link")(error.into()))
    }

    fn make(&self, at: &OwnedFd, name: &[u8], kind: &Kind<u64>) -> io::Result<()> {
        let mode = Mode::from_raw_mode(0o600);
        let device = |major, minor| fs::makedev(major, minor);
        match kind {
            Kind::File(_, number) => fs::renameat(self.spool, number.to_string(), at, name)?,
            Kind::Symlink(target) => fs::symlinkat(&**target, at, name)?,
            Kind::Char(major, minor) => {
                fs::mknodat(at, name, FileType::CharacterDevice, mode, device(*major, *minor))?;
            }
            Kind::Block(major, minor) => {
                fs::mknodat(at, name, FileType::BlockDevice, mode, device(*major, *minor))?;
            }
            Kind::Fifo => fs::mknodat(at, name, FileType::Fifo, mode, 0)?,
            Kind::Dir(_) => unreachable!("directories are entered, not placed"),
        }
        Ok(())
    }

    fn dress(&mut self, name: &[u8], id: NodeId) -> Result<(), LayerError> {
        self.left_out.attributes += self.unusable(id);
        self.dress_at(&self.here, name, name, id)
    }

    fn unusable(&self, id: NodeId) -> u64 {
        let set = self.tree.xattrs(&self.tree.node(id).meta);
        set.iter().filter(|(name, _)| self.attribute(name).is_none()).count() as u64
    }

    /// The name under which an attribute is set here.
    fn attribute<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        match name {
            _ if !self.is_confined => Some(name),
            b"trusted.overlay.opaque" => Some(b"user.overlay.opaque"),
            _ => (!name.starts_with(b"trusted.")).then_some(name),
        }
    }

    /// Owner first, since changing it drops capabilities and set-user-id; times last.
    fn dress_at(&self, at: &OwnedFd, entry: &[u8], name: &[u8], id: NodeId) -> Result<(), LayerError> {
        let node = self.tree.node(id);
        let Meta { uid, gid, .. } = node.meta;
        let (user, group) = self.kept.outside(uid, gid);
        let owner = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
        match fs::chownat(at, entry, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL) if self.is_confined => {
                return Err(LayerError::NoId { path: self.path.join(OsStr::from_bytes(name)), uid, gid });
            }
            Err(errno) => return Err(self.failed(name, "set a file's owner")(errno.into())),
        }
        self.finish_metadata(at, entry, id).map_err(self.failed(name, "set a file's metadata"))
    }

    fn finish_metadata(&self, at: &OwnedFd, entry: &[u8], id: NodeId) -> io::Result<()> {
        let node = self.tree.node(id);
        let (kind, meta, set) = (&node.kind, &node.meta, self.tree.xattrs(&node.meta));
        if !set.is_empty() {
            let path = [format!("/proc/self/fd/{}/", at.as_raw_fd()).as_bytes(), entry].concat();
            for (name, value) in set {
                if let Some(name) = self.attribute(name) {
                    fs::lsetxattr(&path, name, value, XattrFlags::empty())?;
                }
            }
        }
        if !matches!(kind, Kind::Symlink(_)) {
            fs::chmodat(at, entry, Mode::from_raw_mode(meta.mode.into()), AtFlags::empty())?;
        }
        let time = Timespec { tv_sec: meta.mtime.0, tv_nsec: meta.mtime.1.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(fs::utimensat(at, entry, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}
