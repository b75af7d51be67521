//! What the entries of a layer mean, in both forms.

use std::io::Read;
use std::os::unix::fs::MetadataExt;

use proa_image::layer::{LayerForm, Limits};

use super::mounted::{Bench, differing, look, xattrs};
use super::tarball::{Item, SparseFormat, What, tar};

/// Looks at a layer in both forms, which must be the same, and gives what is in it but for the root.
fn both(items: &[Item]) -> Vec<(String, String)> {
    let mut bench = Bench::new();
    let tar = tar(items);
    let erofs = look(&bench.layer(&tar, LayerForm::Erofs).unwrap().seen);
    let dir = look(&bench.layer(&tar, LayerForm::Directory).unwrap().seen);
    assert_eq!(differing(&erofs, &dir), [""; 0]);
    erofs.into_iter().filter(|(name, _)| !name.is_empty()).collect()
}

fn names(items: &[Item]) -> Vec<String> {
    both(items).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn names_are_cleaned_as_docker_does() {
    let items = [
        Item::file("./a", "1"),
        Item::file("/b", "2"),
        Item::file("c//d/./e", "3"),
        Item::file("x/../f", "4"),
        Item::file("/../g", "5"),
        Item::dir("h/"),
    ];
    assert_eq!(names(&items), ["a", "b", "c", "c/d", "c/d/e", "f", "g", "h"]);
}

#[test]
fn the_last_of_a_name_wins() {
    let seen = both(&[
        Item::file("file", "old"),
        Item::file("file", "newer").mode(0o600),
        Item::dir("dir").mode(0o700),
        Item::file("dir/kept", ""),
        Item::dir("dir").mode(0o711).owner(5, 6),
        Item::dir("gone"),
        Item::file("gone/inside", ""),
        Item::file("gone", "a file now"),
        Item::file("was", "a file"),
        Item::dir("was"),
        Item::file("was/inside", ""),
    ]);
    let names: Vec<_> = seen.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["dir", "dir/kept", "file", "gone", "was", "was/inside"]);
    assert!(seen[0].1.starts_with("40711 5:6"), "{}", seen[0].1);
    assert!(seen[2].1.contains("100600") && seen[2].1.contains("size 5"), "{}", seen[2].1);
}

#[test]
fn directories_nobody_named_are_plain() {
    let seen = both(&[Item::file("a/b/c", "")]);
    assert_eq!(seen[0].1, "40755 0:0 0.000000000");
    assert_eq!(seen[1].1, "40755 0:0 0.000000000");
}

#[test]
fn the_root_may_be_given() {
    let mut bench = Bench::new();
    let tar = tar(&[Item::dir("./").mode(0o1777).owner(7, 8).time(5, 6)]);
    for form in [LayerForm::Erofs, LayerForm::Directory] {
        let made = bench.layer(&tar, form).unwrap();
        assert_eq!(look(&made.seen)[""], "41777 7:8 5.000000006");
        assert_eq!(made.info.entries, 1);
    }
    let empty = bench.layer(&[], LayerForm::Erofs).unwrap();
    assert_eq!(look(&empty.seen)[""], "40755 0:0 0.000000000");
}

#[test]
fn links_inside_the_layer_are_followed_and_never_leave_it() {
    let seen = names(&[
        Item::dir("usr"),
        Item::dir("usr/lib"),
        Item::symlink("lib", "usr/lib"),
        Item::file("lib/a", ""),
        Item::symlink("up", "../../../../usr"),
        Item::file("up/b", ""),
        Item::symlink("root", "/"),
        Item::file("root/c", ""),
        Item::symlink("later", "made/by/need"),
        Item::file("later/d", ""),
        Item::link("lib/e", "/lib/a"),
    ]);
    let want = [
        "c",
        "later",
        "lib",
        "made",
        "made/by",
        "made/by/need",
        "made/by/need/d",
        "root",
        "up",
        "usr",
        "usr/b",
        "usr/lib",
        "usr/lib/a",
        "usr/lib/e",
    ];
    assert_eq!(seen, want);
}

#[test]
fn hard_links_share_an_inode_of_any_kind() {
    let mut bench = Bench::new();
    let tar = tar(&[
        Item::file("a", "data").mode(0o640),
        Item::link("b", "a"),
        Item::link("b", "./b"),
        Item::dir("d"),
        Item::link("d/c", "/a"),
        Item::symlink("s", "a"),
        Item::link("t", "s"),
        Item::new("p", What::Fifo),
        Item::link("q", "p"),
        Item::new("n", What::Char(1, 3)),
        Item::link("m", "n"),
    ]);
    for form in [LayerForm::Erofs, LayerForm::Directory] {
        let made = bench.layer(&tar, form).unwrap();
        let inode = |name: &str| {
            let meta = made.seen.join(name).symlink_metadata().unwrap();
            (meta.ino(), meta.nlink())
        };
        assert_eq!(inode("a").1, 3);
        for (one, other) in [("a", "b"), ("a", "d/c"), ("s", "t"), ("p", "q"), ("n", "m")] {
            assert_eq!(inode(one), inode(other), "{one} {other}");
        }
        assert_eq!(made.info.entries, 6);
    }
}

#[test]
fn whiteouts_hide_what_is_below_whatever_their_place_in_the_tar() {
    let mut bench = Bench::new();
    let below = [
        Item::file("file", "below"),
        Item::dir("dir"),
        Item::file("dir/below", ""),
        Item::dir("opaque"),
        Item::file("opaque/below", ""),
        Item::dir("again"),
        Item::file("again/below", ""),
        Item::dir("merged"),
        Item::file("merged/below", ""),
        Item::file("replaced", "below"),
        Item::file("kept", "below"),
    ];
    let upper = [
        Item::file(".wh.file", ""),
        Item::file(".wh.dir", ""),
        Item::dir("opaque"),
        Item::file("opaque/above", ""),
        Item::file("opaque/.wh..wh..opq", ""),
        Item::dir("again"),
        Item::file("again/above", ""),
        Item::file(".wh.again", ""),
        Item::file("merged/above", ""),
        Item::file(".wh.replaced", ""),
        Item::file("replaced", "above"),
        Item::file(".wh..wh.aufs", ""),
        Item::dir(".wh..wh.plnk"),
        Item::file(".wh..wh.plnk/1.2", "bookkeeping"),
        Item::file(".wh..wh..opaque-like", ""),
    ];
    let want = "|again|again/above|kept|merged|merged/above|merged/below|opaque|opaque/above|replaced";
    for form in [LayerForm::Erofs, LayerForm::Directory] {
        for reversed in [false, true] {
            let mut upper = upper.to_vec();
            if reversed {
                upper.reverse();
            }
            let lower = bench.layer(&tar(&below), form).unwrap();
            let upper = bench.layer(&tar(&upper), form).unwrap();
            let merged = look(&bench.overlay(&[&lower, &upper]));
            let names: Vec<_> = merged.keys().cloned().collect();
            assert_eq!(names.join("|"), want);
            assert!(merged["replaced"].contains("size 5"));
        }
    }
}

#[test]
fn an_opaque_root_is_told() {
    let mut bench = Bench::new();
    let lower = bench.layer(&tar(&[Item::file("below", "")]), LayerForm::Erofs).unwrap();
    let upper = tar(&[Item::file(".wh..wh..opq", ""), Item::file("above", "")]);
    let upper = bench.layer(&upper, LayerForm::Erofs).unwrap();
    assert!(upper.info.opaque_root && !lower.info.opaque_root);
    let merged = look(&bench.overlay(&[&lower, &upper]));
    assert_eq!(merged.into_keys().collect::<Vec<_>>(), ["", "above"]);
}

#[test]
fn metadata_of_every_kind() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // Owner, a named user, group, mask, others.
    let rights = [(1, 6, u32::MAX), (2, 6, 77), (4, 4, u32::MAX), (16, 6, u32::MAX), (32, 4, u32::MAX)];
    let mut acl = vec![2, 0, 0, 0];
    for (tag, right, id) in rights {
        acl.extend([tag, 0, right, 0]);
        acl.extend(id.to_le_bytes());
    }
    let seen = both(&[
        Item::file("suid", "x").mode(0o4755).xattr("security.capability", capability),
        Item::dir("sticky").mode(0o3777).xattr("user.dir", "1").xattr("trusted.mine", "2"),
        Item::file("ids", "").owner(4_294_967_294, 70_000),
        Item::file("old", "").time(-2, 750_000_000),
        Item::file("new", "").time(4_100_000_000, 999_999_999),
        Item::new("big", What::Block(4095, 1_048_575)),
        Item::new("tty", What::Char(5, 1)).mode(0o620),
        Item::new("pipe", What::Fifo),
        Item::symlink("link", &"x/".repeat(2000)).owner(9, 9).time(7, 8).xattr("user.no", "symlinks can't"),
        Item::file("acl", "").xattr("system.posix_acl_access", acl).mode(0o664),
        Item::file("empty-value", "").xattr("user.empty", ""),
        Item::file("label", "").xattr("security.selinux", "of the builder").xattr("lustre.x", "y"),
        Item::file("many", "")
            .xattr("user.big", vec![7; 3900])
            .xattr("user.a", "b")
            .xattr("user.big2", vec![8; 100]),
    ]);
    let of = |name: &str| &seen.iter().find(|(n, _)| n == name).unwrap().1;
    assert!(of("suid").contains("security.capability=\\x01"), "{}", of("suid"));
    assert!(of("acl").contains("posix_acl_access"), "{}", of("acl"));
    assert!(of("old").contains("-2.750000000") && of("new").contains("4100000000.999999999"));
    assert!(of("big").ends_with("4095:1048575") && of("ids").contains("4294967294:70000"));
    assert!(!of("label").contains('=') && !of("link").contains("user."));
    assert_eq!(of("sticky"), "43777 0:0 1700000000.000000000 trusted.mine=2 user.dir=1");
}

#[test]
fn a_huge_attribute_spans_blocks() {
    // Only on EROFS: few other file systems hold so much.
    let mut bench = Bench::new();
    let tar =
        tar(&[Item::file("f", "data").xattr("user.x", vec![7; 65_000]).xattr("user.y", vec![1; 60_000])]);
    let made = bench.layer(&tar, LayerForm::Erofs).unwrap();
    let found = xattrs(&made.seen.join("f"));
    assert_eq!(found["user.x"], vec![7; 65_000]);
    assert_eq!(found["user.y"], vec![1; 60_000]);
    assert_eq!(std::fs::read(made.seen.join("f")).unwrap(), b"data");
}

#[test]
fn directories_of_many_and_of_long_names() {
    let mut items: Vec<Item> =
        (0..5000).map(|i| Item::file(&format!("many/{}", i * 7919 % 5000), "")).collect();
    items.extend((0..40).map(|i| Item::file(&format!("long/{i:0255}"), format!("{i}"))));
    for odd in ["!", "-", ".a", "..b", "\u{1}", "\u{ff}", "~"] {
        items.push(Item::file(&format!("odd/{odd}"), odd));
    }
    items.push(Item::new(b"odd/\xff\xfe".to_vec(), What::File(b"not UTF-8".to_vec())));
    let seen = names(&items);
    assert_eq!(seen.iter().filter(|name| name.starts_with("many/")).count(), 5000);
    assert_eq!(seen.iter().filter(|name| name.starts_with("long/")).count(), 40);
    assert_eq!(seen.iter().filter(|name| name.starts_with("odd/")).count(), 8);
    let mut bench = Bench::new();
    let made = bench.layer(&tar(&items), LayerForm::Erofs).unwrap();
    // Each name is found when asked for, not only when listed.
    for i in 0..5000 {
        assert!(made.seen.join(format!("many/{i}")).exists(), "{i}");
    }
    assert!(!made.seen.join("many/5000").exists() && !made.seen.join("many/x").exists());
}

#[test]
fn files_of_every_size_around_the_blocks() {
    let sizes = [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 6144, 6145, 8191, 8192, 300_001];
    let items: Vec<Item> = sizes
        .iter()
        .map(|&size| Item::file(&format!("{size}"), (0..size).map(|i| (i % 251) as u8).collect::<Vec<_>>()))
        .collect();
    assert_eq!(both(&items).len(), sizes.len());
}

fn sparse(path: &str, pieces: &[(u64, usize)], size: u64, format: SparseFormat) -> Item {
    let pieces =
        pieces.iter().map(|&(offset, length)| (offset, vec![(offset % 255) as u8 + 1; length])).collect();
    Item::new(path, What::Sparse(pieces, size, format))
}

#[test]
fn sparse_files_of_all_formats() {
    use SparseFormat::{Old, Pax00, Pax01, Pax10};
    let mut items = Vec::new();
    for format in [Old, Pax00, Pax01, Pax10] {
        let name = |what: &str| format!("{what}-{format:?}");
        items.push(sparse(&name("hole"), &[], 1 << 20, format));
        items.push(sparse(&name("ends"), &[(0, 10), (1 << 20, 5)], (1 << 20) + 5, format));
        items.push(sparse(&name("mid"), &[(123_456, 70_000)], 1 << 20, format));
        items.push(sparse(&name("small"), &[(10, 10), (100, 1)], 150, format));
        let many: Vec<_> = (0..300).map(|i| (i * 20_000 + i % 7 * 512, 600)).collect();
        items.push(sparse(&name("many"), &many, 6_000_000 + 4096, format));
        items.push(sparse(&name("huge"), &[(5 << 30, 4096), ((6 << 30) + 77, 3)], 1 << 33, format));
    }
    let seen = both(&items);
    for group in 0..6 {
        let lines: Vec<_> = seen[group * 4..group * 4 + 4].iter().map(|(_, line)| line).collect();
        assert!(lines.windows(2).all(|pair| pair[0] == pair[1]), "{lines:?}");
    }
    let mut bench = Bench::new();
    let made = bench.layer(&tar(&items), LayerForm::Erofs).unwrap();
    assert!(made.info.size_on_disk < 16 << 20, "{:?}", made.info);
    assert!(made.path.metadata().unwrap().blocks() * 512 < 16 << 20);
}

#[test]
fn a_file_of_more_than_four_gibibytes_stored_whole() {
    let mut bench = Bench::new();
    let size = (4 << 30) + 5u64;
    let mut head = Vec::new();
    super::tarball::header(b"big", b'0', size).finish(&mut head);
    let mut end = b"fin\0\0".to_vec();
    end.resize(512 + 1024, 0);
    let stream = head.chain(std::io::repeat(0).take(4 << 30)).chain(&end[..]);
    let made = bench.layer_within(stream, LayerForm::Erofs, &Limits::default()).unwrap();
    let file = std::fs::File::open(made.seen.join("big")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    let mut tail = [1; 6];
    assert_eq!(std::os::unix::fs::FileExt::read_at(&file, &mut tail, (4 << 30) - 1).unwrap(), 6);
    assert_eq!(&tail, b"\0fin\0\0");
    assert!(made.info.size_on_disk < 1 << 20, "zeros were not left out: {:?}", made.info);
}

#[test]
fn the_same_tar_gives_the_same_image() {
    let mut bench = Bench::new();
    let items: Vec<Item> =
        (0..500).map(|i| Item::file(&format!("d{}/{i}", i % 9), vec![i as u8; i * 37 % 9000])).collect();
    let first = bench.layer(&tar(&items), LayerForm::Erofs).unwrap();
    let second = bench.layer(&tar(&items), LayerForm::Erofs).unwrap();
    assert!(std::fs::read(&first.path).unwrap() == std::fs::read(&second.path).unwrap());
    let other = bench.layer(&tar(&items[1..]), LayerForm::Erofs).unwrap();
    let uuid = |path| std::fs::read(path).unwrap()[1024 + 48..1024 + 64].to_vec();
    assert_ne!(uuid(&first.path), uuid(&other.path));
}
