//! Tars that lie, break off or ask for too much: an error that says what, and nothing left behind.

use proa_image::layer::{LayerForm, Limits};

use super::mounted::Bench;
use super::tarball::{Item, SparseFormat, What, header, pad, record, tar};

/// The error that both forms give.
fn error(tar: &[u8]) -> String {
    error_within(tar, &Limits::default())
}

fn error_within(tar: &[u8], limits: &Limits) -> String {
    let mut bench = Bench::new();
    let mut errors = [LayerForm::Erofs, LayerForm::Directory].map(|form| {
        let error = bench.layer_within(tar, form, limits).err().expect("must be refused");
        error.to_string()
    });
    assert_eq!(errors[0], errors[1]);
    std::mem::take(&mut errors[0])
}

#[track_caller]
fn refused(items: &[Item], reason: &str) {
    let error = error(&tar(items));
    assert!(error.contains(reason), "{error}");
}

#[test]
fn names_that_lead_out() {
    refused(&[Item::file("../evil", "")], "leads out");
    refused(&[Item::file("a/../../evil", "")], "leads out");
    refused(&[Item::link("a", "../../etc/shadow")], "leads out");
}

#[test]
fn names_that_cannot_be() {
    refused(&[Item::file(&"n".repeat(256), "")], "longer than 255");
    refused(&[Item::file(&"d/".repeat(600), "")], "nested too deeply");
    refused(&[Item::file(&format!("a/{}", "n/".repeat(3000)), "")], "bytes in a path");
    refused(&[Item::file("f", ""), Item::file("f/g", "")], "not a directory");
    refused(&[Item::symlink("/", "x")], "must be a directory");
    refused(&[Item::symlink("loop", "loop"), Item::file("loop/x", "")], "too many symbolic links");
    refused(&[Item::symlink("s", "")], "impossible target");
    refused(&[Item::file("\x1b[31mred\x07/../../x", "")], "\\x1b[31mred\\x07");
}

#[test]
fn whiteouts_that_hide_nothing_or_are_directories() {
    refused(&[Item::file(".wh.", "")], "whiteout of no name");
    refused(&[Item::file("d/.wh..", "")], "whiteout of no name");
    refused(&[Item::file("d/.wh...", "")], "whiteout of no name");
    refused(&[Item::file("d/.wh.x/y", "")], "whiteout can't be a directory");
}

#[test]
fn hard_links_to_nothing_or_to_directories() {
    refused(&[Item::link("a", "b")], "hard link to \"b\", which is not before it");
    refused(&[Item::dir("d"), Item::link("a", "d")], "hard link to a directory");
    refused(&[Item::link("a", "/")], "hard link to");
}

#[test]
fn overlay_metadata_from_an_image() {
    for name in ["trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.metacopy"] {
        refused(&[Item::dir("d").xattr(name, "y")], "only overlayfs may set");
    }
}

#[test]
fn devices_and_owners_out_of_range() {
    refused(&[Item::new("d", What::Char(4096, 0))], "bad device number");
    refused(&[Item::new("d", What::Block(1, 1 << 20))], "bad device number");
    refused(&[Item::file("f", "").owner(u64::from(u32::MAX), 0)], "bad owner");
    refused(&[Item::file("f", "").owner(0, 1 << 33)], "bad group");
    let mut odd = Vec::new();
    header(b"f", b'Z', 0).finish(&mut odd);
    assert!(error(&odd).contains("type 'Z'"));
}

#[test]
fn a_stream_that_breaks_off_anywhere() {
    let items = [
        Item::file("a", vec![1; 700]).xattr("user.a", "b"),
        Item::new(
            "s",
            What::Sparse(vec![(0, vec![1; 10]), (9000, vec![2; 10])], 10_000, SparseFormat::Pax10),
        ),
        Item::file("b", ""),
    ];
    let whole = tar(&items);
    let mut bench = Bench::new();
    let end = whole.len() - 1024;
    // Where an entry could begin, the end of the stream is the end of the archive.
    let mut accepted = Vec::new();
    for cut in (0..end).step_by(64) {
        match bench.layer(&whole[..cut], LayerForm::Erofs) {
            Ok(_) => accepted.push(cut),
            Err(error) => assert!(error.to_string().contains("damaged tar stream"), "{cut}: {error}"),
        }
    }
    assert!(accepted.iter().all(|cut| cut % 512 == 0) && accepted.len() <= 5, "{accepted:?}");
}

#[test]
fn bytes_that_changed() {
    let whole = tar(&[Item::file("a", vec![1; 700])]);
    // The byte after the sum's end is not read.
    for at in (0..512).filter(|&at| at != 155) {
        let mut broken = whole.clone();
        broken[at] ^= 0x55;
        assert!(error(&broken).contains("damaged tar stream"), "{at}");
    }
}

#[test]
fn a_bad_map_of_a_sparse_file() {
    let with = |pieces: &[(u64, usize)], size| {
        let pieces = pieces.iter().map(|&(offset, length)| (offset, vec![1; length])).collect();
        tar(&[Item::new("s", What::Sparse(pieces, size, SparseFormat::Pax01))])
    };
    assert!(error(&with(&[(0, 100), (50, 100)], 1000)).contains("bad map"));
    assert!(error(&with(&[(0, 100), (950, 100)], 1000)).contains("bad map"));
    assert!(error(&with(&[(u64::MAX - 5, 100)], u64::MAX)).contains("bad map"));
    assert!(error(&with(&[(0, 1)], u64::MAX)).contains("bad size"));
}

#[test]
fn extended_headers_that_are_bombs() {
    let mut bomb = Vec::new();
    header(b"x", b'x', 1 << 40).finish(&mut bomb);
    assert!(error(&bomb).contains("more than 1048576 bytes in an extended header"));
    let mut long = Vec::new();
    header(b"x", b'L', 1 << 40).finish(&mut long);
    assert!(error(&long).contains("bytes in an extended header"));
    let many: Vec<u8> =
        (0..3000).flat_map(|i| record(format!("SCHILY.xattr.user.{i}").as_bytes(), &[7; 200])).collect();
    let mut tar = Vec::new();
    header(b"x", b'x', many.len() as u64).finish(&mut tar);
    pad(&mut tar, &many);
    header(b"f", b'0', 0).finish(&mut tar);
    assert!(error(&tar).contains("bytes of attributes on one file"));
}

#[test]
fn more_than_the_limits() {
    let limits = Limits { max_entries: 10, ..Limits::default() };
    let flat: Vec<Item> = (0..20).map(|i| Item::file(&i.to_string(), "")).collect();
    assert!(error_within(&tar(&flat), &limits).contains("more than 10 entries"));
    // Directories that nobody named count as well.
    assert!(
        error_within(&tar(&[Item::file("1/2/3/4/5/6/7/8/9/10/11/12", "")]), &limits).contains("10 entries")
    );
    // And so do files of one name.
    let same: Vec<Item> = (0..20).map(|_| Item::file("same", "")).collect();
    assert!(error_within(&tar(&same), &limits).contains("10 entries"));
    let limits = Limits { max_uncompressed: 100_000, ..Limits::default() };
    let big = tar(&[Item::file("f", vec![1; 200_000])]);
    assert!(error_within(&big, &limits).contains("bytes of tar stream"));
    let limits = Limits { max_memory: 20_000, ..Limits::default() };
    let long: Vec<Item> = (0..200).map(|i| Item::file(&format!("{i:0200}"), "")).collect();
    assert!(error_within(&tar(&long), &limits).contains("bytes of names and metadata"));
    let limits = Limits { max_path: 50, ..Limits::default() };
    assert!(error_within(&tar(&long), &limits).contains("bytes in a path"));
}

#[test]
fn trailing_bytes_count_too() {
    let limits = Limits { max_uncompressed: 100_000, ..Limits::default() };
    let mut whole = tar(&[Item::file("f", "")]);
    whole.resize(200_000, 0);
    assert!(error_within(&whole, &limits).contains("bytes of tar stream"));
}

#[test]
fn a_sparse_file_too_large_to_map() {
    let mut bench = Bench::new();
    let huge =
        |size| tar(&[Item::new("s", What::Sparse(vec![(size / 2, vec![1; 9])], size, SparseFormat::Pax01))]);
    let error = bench.layer(&huge(i64::MAX as u64), LayerForm::Erofs).err().unwrap().to_string();
    assert!(error.contains("bytes of maps of sparse files"), "{error}");
    let made = bench.layer(&huge(8 << 40), LayerForm::Erofs).unwrap();
    assert!(made.info.size_on_disk < 16 << 20, "{:?}", made.info);
}

#[test]
fn a_reader_that_fails_is_told_apart() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("digest mismatch"))
        }
    }
    let mut bench = Bench::new();
    let error = bench.layer_within(Broken, LayerForm::Erofs, &Limits::default()).err().unwrap();
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "digest mismatch");
}
