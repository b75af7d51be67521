use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use rustix::fs::Mode;
use tar::{Builder, EntryType, Header};

use super::*;

struct Root {
    dir: tempfile::TempDir,
    fd: OwnedFd,
}

impl Root {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A root inside a directory with something to protect.
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::write(dir.path().join("secret"), "host").unwrap();
        let fd = rustix::fs::open(dir.path().join("root"), OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
            .unwrap();
        Self { dir, fd }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path)
    }

    fn put(&self, path: &str, tar: &[u8], no_overwrite_dir: bool) -> Result<()> {
        put(self.fd.as_fd(), path, &mut &tar[..], no_overwrite_dir)
    }

    fn get(&self, path: &str) -> Vec<u8> {
        let mut out = Vec::new();
        get(self.fd.as_fd(), path, &mut out).unwrap();
        out
    }

    fn names(&self, path: &str) -> Vec<String> {
        let tar = self.get(path);
        let mut archive = tar::Archive::new(&tar[..]);
        let mut names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap())
            .collect();
        names.sort();
        names
    }
}

/// A tar with one entry; the name is written as it is, however wrong.
fn one(name: &str, kind: EntryType, link: &str, data: &[u8]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    add(&mut builder, name, kind, link, data);
    builder.into_inner().unwrap()
}

fn add(builder: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, link: &str, data: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o640);
    header.set_uid(5);
    header.set_gid(6);
    header.set_mtime(1_000_000);
    header.set_cksum();
    builder.append(&header, data).unwrap();
}

#[test]
fn a_tree_goes_out_and_in_again() {
    let from = Root::new();
    fs::create_dir_all(from.path("data/sub")).unwrap();
    fs::write(from.path("data/file"), "text").unwrap();
    fs::set_permissions(from.path("data/file"), PermissionsExt::from_mode(0o4751)).unwrap();
    fs::hard_link(from.path("data/file"), from.path("data/sub/again")).unwrap();
    symlink("/etc/passwd", from.path("data/link")).unwrap();
    let long = "n".repeat(200);
    fs::write(from.path("data").join(&long), "").unwrap();
    rustix::fs::mkfifoat(&from.fd, "data/pipe", Mode::from_raw_mode(0o600)).unwrap();
    assert_eq!(from.names("/data").len(), 7);
    let to = Root::new();
    to.put("/", &from.get("/data"), false).unwrap();
    assert_eq!(fs::read_to_string(to.path("data/file")).unwrap(), "text");
    let metadata = fs::metadata(to.path("data/file")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.nlink()), (0o4751, 2));
    assert_eq!(metadata.mtime(), fs::metadata(from.path("data/file")).unwrap().mtime());
    assert_eq!(fs::read_link(to.path("data/link")).unwrap(), PathBuf::from("/etc/passwd"));
    assert!(to.path("data").join(long).exists() && to.path("data/pipe").exists());
}

#[test]
fn stat_tells_of_links_and_does_not_follow_the_last() {
    let root = Root::new();
    fs::create_dir_all(root.path("real/dir")).unwrap();
    fs::write(root.path("real/dir/file"), "12345").unwrap();
    symlink("/real", root.path("alias")).unwrap();
    symlink("../../../../alias/dir", root.path("real/up")).unwrap();
    let at = |path| stat(root.fd.as_fd(), path).unwrap();
    assert_eq!((at("/alias/dir/file").size, at("/alias/dir/file").name.as_str()), (5, "file"));
    assert_eq!(at("alias").link_target, "/real");
    assert_eq!(at("/real/up").link_target, "/real/dir");
    assert_eq!(at("/alias/").link_target, "");
    assert_eq!(at("/").name, "/");
    let error = stat(root.fd.as_fd(), "/real/none").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSuchPath);
    assert_eq!(stat(root.fd.as_fd(), "/alias/dir/file/x").unwrap_err().kind(), ErrorKind::NoSuchPath);
}

#[test]
fn names_begin_with_the_last_component() {
    let root = Root::new();
    fs::create_dir_all(root.path("a/b")).unwrap();
    fs::write(root.path("a/b/c"), "").unwrap();
    assert_eq!(root.names("/a/b"), ["b/", "b/c"]);
    assert_eq!(root.names("/a/b/."), ["./", "c"]);
    assert_eq!(root.names("/a/b/c"), ["c"]);
}

#[test]
fn links_lead_nowhere_outside() {
    let root = Root::new();
    let secret = root.dir.path().join("secret");
    symlink(&secret, root.path("absolute")).unwrap();
    symlink("../secret", root.path("up")).unwrap();
    symlink(root.dir.path(), root.path("dir")).unwrap();
    assert!(stat(root.fd.as_fd(), "/dir/secret").is_err());
    assert!(stat(root.fd.as_fd(), "/../secret").is_err());
    // The link itself goes out, not what it leads to.
    assert!(!root.get("/up").windows(4).any(|bytes| bytes == b"host"));
    // In: the names are replaced, or resolved inside.
    root.put("/", &one("up", EntryType::Regular, "", b"new"), false).unwrap();
    root.put("/", &one("dir/secret", EntryType::Regular, "", b"new"), false).unwrap_err();
    assert_eq!(fs::read_to_string(&secret).unwrap(), "host");
    assert_eq!(fs::read_to_string(root.path("up")).unwrap(), "new");
}

#[test]
fn hostile_entries_are_refused_or_harmless() {
    let root = Root::new();
    for name in ["../secret", "a/../../secret", ".."] {
        let error = root.put("/", &one(name, EntryType::Regular, "", b"new"), false).unwrap_err();
        assert!(error.to_string().contains("leads out"), "{error}");
    }
    root.put("/", &one("/absolute", EntryType::Regular, "", b"inside"), false).unwrap();
    assert_eq!(fs::read_to_string(root.path("absolute")).unwrap(), "inside");
    root.put("/", &one("hard", EntryType::Link, "../secret", b""), false).unwrap_err();
    root.put("/", &one("hard", EntryType::Link, "/secret", b""), false).unwrap_err();
    // A link, then a write through it.
    let mut builder = Builder::new(Vec::new());
    add(&mut builder, "way", EntryType::Symlink, "../..", b"");
    add(&mut builder, "way/secret", EntryType::Regular, "", b"new");
    root.put("/", &builder.into_inner().unwrap(), false).unwrap();
    assert_eq!(fs::read_to_string(root.path("secret")).unwrap(), "new");
    assert_eq!(fs::read_to_string(root.dir.path().join("secret")).unwrap(), "host");
    assert!(
        root.put(
            "/",
            b"no tar at all, but longer than a header of 512 bytes is".repeat(20).as_slice(),
            false
        )
        .is_err()
    );
}

#[test]
fn what_is_in_the_way_is_replaced_or_kept() {
    let root = Root::new();
    fs::create_dir_all(root.path("thing/deep")).unwrap();
    fs::write(root.path("thing/deep/file"), "").unwrap();
    let file = one("thing", EntryType::Regular, "", b"file");
    assert!(root.put("/", &file, true).unwrap_err().to_string().contains("cannot overwrite"));
    root.put("/", &file, false).unwrap();
    let metadata = fs::metadata(root.path("thing")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o777), (5, 6, 0o640));
    let dir = one("thing/", EntryType::Directory, "", b"");
    assert!(root.put("/", &dir, true).is_err());
    root.put("/", &dir, false).unwrap();
    assert!(root.path("thing").is_dir());
    assert_eq!(fs::metadata(root.path("thing")).unwrap().mtime(), 1_000_000);
    fs::write(root.path("thing/kept"), "").unwrap();
    root.put("/", &dir, true).unwrap();
    assert!(root.path("thing/kept").exists());
    assert!(root.put("/thing/kept", &file, false).unwrap_err().to_string().contains("not a directory"));
    assert_eq!(root.put("/none", &file, false).unwrap_err().kind(), ErrorKind::NoSuchPath);
}

#[test]
fn two_processes_that_exchange_a_link_gain_nothing() {
    let root = Root::new();
    fs::create_dir(root.path("swap")).unwrap();
    fs::write(root.path("swap/secret"), "inside").unwrap();
    symlink("..", root.path("other")).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = rustix::fs::renameat_with(
                    &root.fd,
                    "swap",
                    &root.fd,
                    "other",
                    rustix::fs::RenameFlags::EXCHANGE,
                );
            }
        });
        for _ in 0..2000 {
            let mut out = Vec::new();
            let _ = get(root.fd.as_fd(), "/swap/secret", &mut out);
            assert!(!out.windows(4).any(|bytes| bytes == b"host"));
            let _ = root.put("/", &one("swap/secret", EntryType::Regular, "", b"new"), false);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(fs::read_to_string(root.dir.path().join("secret")).unwrap(), "host");
}
