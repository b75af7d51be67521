//! Tars that GNU tar writes, compared with the tree it was given.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{self as unix, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use proa_image::layer::LayerForm;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::mounted::{Bench, differing, look};

/// Some of everything. Times are whole seconds, since not all formats have more.
fn make_tree(root: &Path) {
    let long = "long-directory-name-".repeat(5);
    let deep = root.join(format!("{long}a/{long}b/{long}c"));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join(format!("{long}file")), "deep").unwrap();
    fs::write(root.join("name of 100 bytes ".repeat(6).get(..100).unwrap()), "x").unwrap();
    unix::symlink(format!("{long}a/{long}b/{long}c/{long}file"), root.join("far")).unwrap();
    fs::write(root.join("plain"), vec![5; 123_456]).unwrap();
    fs::hard_link(root.join("plain"), root.join("twin")).unwrap();
    fs::hard_link(deep.join(format!("{long}file")), root.join("deep twin")).unwrap();
    fs::set_permissions(root.join("plain"), fs::Permissions::from_mode(0o6711)).unwrap();
    rustix::fs::mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
    let device = rustix::fs::makedev(300, 70_000);
    rustix::fs::mknodat(CWD, root.join("dev"), FileType::BlockDevice, Mode::from(0o660), device).unwrap();
    unix::lchown(root.join("dev"), Some(3_000_000), Some(2_500_000)).unwrap();
    let mut sparse = File::create(root.join("sparse")).unwrap();
    for i in 0..40 {
        sparse.seek(SeekFrom::Start(i * 1_000_000)).unwrap();
        sparse.write_all(b"piece").unwrap();
    }
    sparse.set_len(100_000_000).unwrap();
    File::create(root.join("all hole")).unwrap().set_len(9 << 30).unwrap();
    set_times(root);
}

fn set_times(path: &Path) {
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in path.read_dir().unwrap() {
            set_times(&entry.unwrap().path());
        }
    }
    let time = Timespec { tv_sec: 1_600_000_000 + path.as_os_str().len() as i64, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn pack(root: &Path, options: &[&str]) -> Vec<u8> {
    let mut tar = Command::new("tar");
    tar.args(options).arg("-C").arg(root).args(["-c", "."]);
    let out = tar.output().expect("GNU tar is needed");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

#[test]
fn gnu_tar_in_all_its_formats() {
    let mut bench = Bench::new();
    let root = bench.path("tree");
    fs::create_dir(&root).unwrap();
    make_tree(&root);
    let want = look(&root);
    let formats: [&[&str]; 5] = [
        &["--format=gnu"],
        &["--format=gnu", "--sparse"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
    ];
    // Without holes the large ones would be zeros by the gibibyte.
    for options in &formats[1..] {
        let tar = pack(&root, options);
        for form in [LayerForm::Erofs, LayerForm::Directory] {
            let made = bench.layer(&tar, form).unwrap();
            assert_eq!(differing(&look(&made.seen), &want), [""; 0], "{options:?} {form:?}");
            assert!(made.info.size_on_disk < 4 << 20, "{:?}", made.info);
        }
    }
    fs::remove_file(root.join("all hole")).unwrap();
    set_times(&root);
    let made = bench.layer(&pack(&root, formats[0]), LayerForm::Erofs).unwrap();
    assert_eq!(differing(&look(&made.seen), &look(&root)), [""; 0]);
}

#[test]
fn old_formats_for_what_they_can_say() {
    let mut bench = Bench::new();
    let root = bench.path("tree");
    fs::create_dir_all(root.join("d/e")).unwrap();
    fs::write(root.join("d/e/f"), "data").unwrap();
    unix::symlink("d", root.join("l")).unwrap();
    let half = "p".repeat(90);
    fs::create_dir_all(root.join("d").join(&half)).unwrap();
    fs::write(root.join("d").join(&half).join("q".repeat(3)), "prefix").unwrap();
    set_times(&root);
    for options in [&["--format=ustar"], &["--format=v7"]] {
        let made = bench.layer(&pack(&root, options), LayerForm::Erofs).unwrap();
        assert_eq!(differing(&look(&made.seen), &look(&root)), [""; 0], "{options:?}");
    }
}

#[test]
fn attributes_and_nanoseconds() {
    let mut bench = Bench::new();
    let root = bench.path("tree");
    fs::create_dir(&root).unwrap();
    let file = root.join("f");
    fs::write(&file, "x").unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (name, value) in [("user.a", &b"bin\0ary\n="[..]), ("security.capability", &capability)] {
        rustix::fs::setxattr(&file, name, value, XattrFlags::empty()).unwrap();
    }
    File::open(&file).unwrap().set_modified(UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789)).unwrap();
    let tar = pack(&root, &["--format=posix", "--xattrs", "--xattrs-include=*"]);
    for form in [LayerForm::Erofs, LayerForm::Directory] {
        let made = bench.layer(&tar, form).unwrap();
        assert_eq!(differing(&look(&made.seen), &look(&root)), [""; 0]);
        assert!(look(&made.seen)["f"].contains("security.capability"));
    }
}
