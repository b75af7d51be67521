//! The store: names, removal, collection, repair.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io;

use proa_image::{Error, ErrorKind, ImageId, RemoveHooks, Removed};
use proa_oci::reference::{Digest, Reference};

use super::support::{Packing, TestImage, TestStore, tarball};

/// Says that some images are in use, refuses some layers, and remembers what it was asked.
#[derive(Default)]
struct Hooks {
    used: BTreeSet<ImageId>,
    mounted: BTreeSet<Digest>,
    asked: RefCell<Vec<Digest>>,
}

impl RemoveHooks for Hooks {
    fn in_use(&self, id: &ImageId) -> Vec<String> {
        if self.used.contains(id) { vec!["web".to_owned()] } else { Vec::new() }
    }

    fn before_layer_delete(&self, diff_id: &Digest) -> io::Result<()> {
        self.asked.borrow_mut().push(diff_id.clone());
        if self.mounted.contains(diff_id) { Err(io::ErrorKind::ResourceBusy.into()) } else { Ok(()) }
    }
}

#[test]
fn an_image_is_found_by_name_id_and_beginning_of_its_id() {
    let test = TestStore::new();
    let image = test.load(&TestImage::small(1), "docker.io/library/one:latest");
    test.load(&TestImage::small(2), "localhost:5000/team/two:3");
    let id = image.id.to_string();
    for name in ["one", "one:latest", "docker.io/one", "library/one", &id, &id[7..], &id[7..20], &id[..20]] {
        assert_eq!(test.store.resolve(name).unwrap().id, image.id, "{name}");
    }
    for name in [
        "two",
        "one:2",
        "localhost:5000/team/two",
        "ffffffffffffffffffff",
        &format!("sha256:{}", "0".repeat(64)),
    ] {
        let error = test.store.resolve(name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{name}: {error}");
    }
    assert!(matches!(test.store.resolve("One"), Err(Error::Reference(_))));
    assert!(test.store.contains(&image.id).unwrap());
}

#[test]
fn an_ambiguous_beginning_is_an_error() {
    let test = TestStore::new();
    let mut firsts = BTreeSet::new();
    // Among 17 ids two begin with the same digit.
    for seed in 0..17 {
        let image = TestImage::new(&[(tarball(seed, 1, 10), Packing::Plain)]);
        let first = test.load(&image, &format!("i{seed}:1")).id.hex()[..1].to_owned();
        if !firsts.insert(first.clone()) {
            assert!(matches!(test.store.resolve(&first), Err(Error::AmbiguousId { .. })));
            return;
        }
    }
    unreachable!("17 ids with 17 first digits");
}

#[test]
fn what_is_resolved_is_all_a_container_needs() {
    let test = TestStore::new();
    let source = TestImage::small(1);
    let image = test.load(&source, "one:1");
    assert_eq!(image.id, source.config);
    assert_eq!(image.manifest, source.digest());
    assert_eq!(image.names, ["docker.io/library/one:1"]);
    assert_eq!(image.config.config.cmd, ["sh"]);
    assert_eq!(image.layers.len(), 2);
    assert!(image.layers.iter().all(|layer| layer.path.is_file()));
    assert_eq!(image.size, 3 * 2560 + 1024 + 2 * 1024 + 1024);
    test.assert_sound();
}

#[test]
fn an_image_without_layers_is_an_image() {
    let test = TestStore::new();
    let image = test.load(&TestImage::new(&[]), "none:1");
    assert_eq!((image.layers.len(), image.size), (0, 0));
    assert_eq!(test.store.resolve("none:1").unwrap(), image);
    test.assert_sound();
}

#[test]
fn tags_move_and_the_image_goes_with_its_last_one() {
    let test = TestStore::new();
    let (first, second) = (test.load(&TestImage::small(1), "a:1"), test.load(&TestImage::small(2), "b:1"));
    test.store.tag("a:1", &Reference::parse("c:9").unwrap()).unwrap();
    test.store.tag("b:1", &Reference::parse("a:1").unwrap()).unwrap();
    assert_eq!(test.store.resolve("a:1").unwrap().id, second.id);
    assert_eq!(test.store.resolve("c:9").unwrap().id, first.id);
    assert_eq!(test.store.remove("a:1", false, &()).unwrap(), [Removed::Untagged("a:1".to_owned())]);
    let removed = test.store.remove("c:9", false, &()).unwrap();
    assert_eq!(removed[0], Removed::Untagged("c:9".to_owned()));
    assert_eq!(removed[1], Removed::Deleted(first.id.clone()));
    assert_eq!(removed.len(), 4, "{removed:?}");
    assert!(first.layers.iter().all(|layer| !layer.path.exists()));
    let digest = format!("x@{}", first.id);
    assert!(matches!(test.store.tag("b:1", &Reference::parse(&digest).unwrap()), Err(Error::NotATag(_))));
    test.assert_sound();
    test.store.remove("b:1", false, &()).unwrap();
    test.assert_empty();
}

#[test]
fn an_image_in_use_or_with_several_names_needs_more_than_a_wish() {
    let test = TestStore::new();
    let image = test.load(&TestImage::small(1), "a:1");
    let hooks = Hooks { used: [image.id.clone()].into(), ..Hooks::default() };
    let error = test.store.remove("a:1", false, &hooks).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("web"), "{error}");
    test.store.tag("a:1", &Reference::parse("b:1").unwrap()).unwrap();
    assert!(matches!(test.store.remove(image.id.hex(), false, &()), Err(Error::SeveralNames { .. })));
    // One of two names may go though it is in use.
    test.store.remove("b:1", false, &hooks).unwrap();
    // Force takes the name of an image in use, never its content.
    test.store.remove("a:1", true, &hooks).unwrap();
    let left = test.store.resolve(image.id.hex()).unwrap();
    assert!(left.names.is_empty() && left.layers.iter().all(|layer| layer.path.exists()));
    assert!(matches!(test.store.remove(image.id.hex(), true, &hooks), Err(Error::InUse { .. })));
    assert_eq!(test.store.prune(true, &hooks).unwrap().removed, []);
    test.store.remove(image.id.hex(), false, &()).unwrap();
    test.assert_empty();
}

#[test]
fn shared_layers_stay_until_their_last_image_goes() {
    let test = TestStore::new();
    let shared = (tarball(1, 2, 500), Packing::Gzip);
    let first = test.load(&TestImage::new(&[shared.clone(), (tarball(2, 1, 9), Packing::Zstd)]), "a:1");
    let second = test.load(&TestImage::new(&[shared.clone(), (tarball(3, 1, 9), Packing::Plain)]), "b:1");
    assert_eq!(first.layers[0], second.layers[0]);
    let hooks = Hooks::default();
    test.store.remove("a:1", false, &hooks).unwrap();
    assert_eq!(*hooks.asked.borrow(), [first.layers[1].diff_id.clone()]);
    assert!(second.layers.iter().all(|layer| layer.path.exists()));
    test.assert_sound();
}

#[test]
fn a_mounted_layer_stays_and_goes_later() {
    let test = TestStore::new();
    let image = test.load(&TestImage::small(1), "a:1");
    let layer = &image.layers[0];
    let hooks = Hooks { mounted: [layer.diff_id.clone()].into(), ..Hooks::default() };
    test.store.remove("a:1", false, &hooks).unwrap();
    assert!(layer.path.exists() && !image.layers[1].path.exists());
    test.store.collect(&()).unwrap();
    test.assert_empty();
}

#[test]
fn prune_takes_what_has_no_name() {
    let test = TestStore::new();
    let old = test.load(&TestImage::small(1), "a:1");
    let new = test.load(&TestImage::small(2), "a:1");
    let pruned = test.store.prune(false, &()).unwrap();
    assert!(pruned.removed.contains(&Removed::Deleted(old.id.clone())) && pruned.bytes > 0);
    assert_eq!(test.store.list().unwrap().len(), 1);
    test.assert_sound();
    let pruned = test.store.prune(true, &()).unwrap();
    assert!(pruned.removed.contains(&Removed::Deleted(new.id)));
    test.assert_empty();
}

#[test]
fn inspect_and_history_have_dockers_shape() {
    let test = TestStore::new();
    let image = test.load(&TestImage::small(1), "team/one:1");
    let document = test.store.inspect("team/one:1").unwrap();
    assert_eq!(document["Id"], image.id.as_str());
    assert_eq!(document["RepoTags"], serde_json::json!(["team/one:1"]));
    assert_eq!(document["Config"]["Cmd"], serde_json::json!(["sh"]));
    assert_eq!(document["Config"]["Entrypoint"], serde_json::Value::Null);
    assert_eq!(document["RootFS"]["Layers"].as_array().unwrap().len(), 2);
    for key in ["RepoDigests", "Created", "Architecture", "Os", "Size", "GraphDriver", "Metadata", "Author"] {
        assert!(!document[key].is_null(), "{key}");
    }
    let history = test.store.history("team/one:1").unwrap();
    assert_eq!(history.len(), 2);
    assert_eq!(history[1].entry.created_by, "test");
    assert_eq!(history.iter().map(|row| row.size).sum::<u64>(), image.size);
}

#[test]
fn what_was_damaged_is_found_repaired_and_fetched_again() {
    let test = TestStore::new();
    let source = TestImage::small(1);
    let image = test.load(&source, "a:1");
    fs::remove_file(&image.layers[0].path).unwrap();
    let blob = test.dir.path().join("image/blobs/sha256").join(source.layers[1].hex());
    let mut bytes = fs::read(&blob).unwrap();
    bytes[40] ^= 1;
    fs::write(&blob, bytes).unwrap();
    fs::write(test.dir.path().join("image/layers/junk"), "x").unwrap();
    fs::write(test.dir.path().join("image/blobs/sha256").join("0".repeat(64)), "x").unwrap();
    fs::create_dir(test.dir.path().join("image/tmp/0123")).unwrap();
    fs::write(test.dir.path().join("image/tmp/0123/part"), "x").unwrap();
    fs::write(test.dir.path().join("image/locks/abc"), "").unwrap();
    assert!(test.store.check(false, true, &()).unwrap().iter().all(|problem| !problem.repaired));
    let problems = test.store.check(true, true, &()).unwrap();
    let unrepaired: Vec<_> = problems.iter().filter(|problem| !problem.repaired).collect();
    assert_eq!(problems.len() - unrepaired.len(), 5, "{problems:?}");
    assert!(unrepaired.iter().all(|problem| problem.what.contains("pull or load it again")), "{problems:?}");
    assert!(matches!(test.store.resolve("a:1"), Err(Error::Damaged { .. })));
    assert_eq!(test.load(&source, "a:1"), image);
    test.assert_sound();
}

#[test]
fn a_layer_with_long_runs_of_zeros_is_whole_unless_it_is_cut_off() {
    let test = TestStore::new();
    let mut tar = tar::Builder::new(Vec::new());
    let content = [vec![7; 1 << 20], vec![0; 3 << 20], vec![7; 1 << 20]].concat();
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "zeros", content.as_slice()).unwrap();
    let image = test.load(&TestImage::new(&[(tar.into_inner().unwrap(), Packing::Plain)]), "a:1");
    assert!(image.disk_size < 3 << 20, "no holes: {}", image.disk_size);
    assert_eq!(test.store.check(true, true, &()).unwrap(), []);
    let layer = fs::File::options().write(true).open(&image.layers[0].path).unwrap();
    layer.set_len(layer.metadata().unwrap().len() - 4096).unwrap();
    let problems = test.store.check(false, false, &()).unwrap();
    assert!(problems.iter().any(|problem| problem.what.contains("cut off")), "{problems:?}");
}

#[test]
fn a_damaged_image_can_be_removed() {
    let test = TestStore::new();
    let image = test.load(&TestImage::small(1), "a:1");
    fs::remove_file(&image.layers[0].path).unwrap();
    test.store.check(true, false, &()).unwrap();
    test.store.remove("a:1", false, &()).unwrap();
    test.assert_empty();
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    let test = TestStore::new();
    let path = test.dir.path().join("image/store.db");
    rusqlite::Connection::open(path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(proa_image::Store::open(test.dir.path()), Err(Error::Format { found: 99, .. })));
}

#[test]
fn a_store_with_a_log_loses_it_with_the_next_change() {
    let test = TestStore::new();
    test.load(&TestImage::small(1), "a:1");
    let path = test.dir.path().join("image/store.db");
    let ask = |database: &rusqlite::Connection, sql| {
        database.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap()
    };
    let other = rusqlite::Connection::open(&path).unwrap();
    assert_eq!(ask(&other, "PRAGMA journal_mode = WAL"), "wal");
    test.store.resolve("a:1").unwrap();
    // While others have it open nothing is waited for, and nothing is lost.
    test.store.tag("a:1", &Reference::parse("b:1").unwrap()).unwrap();
    assert_eq!(ask(&other, "PRAGMA journal_mode"), "wal");
    drop(other);
    test.store.tag("a:1", &Reference::parse("c:1").unwrap()).unwrap();
    assert_eq!(ask(&rusqlite::Connection::open(&path).unwrap(), "PRAGMA journal_mode"), "delete");
    assert_eq!(test.store.resolve("c:1").unwrap().names.len(), 3);
}

#[test]
fn many_may_open_a_new_store_at_once() {
    // What can go wrong here does so in a few of a hundred rounds, where all begin at one moment.
    for _ in 0..100 {
        let dir = tempfile::tempdir().unwrap();
        let start = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    proa_image::Store::open(dir.path()).unwrap().list().unwrap();
                });
            }
        });
    }
}

#[test]
fn many_may_write_at_once() {
    let test = TestStore::new();
    test.load(&TestImage::small(1), "a:1");
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let root = test.dir.path();
            scope.spawn(move || {
                let store = proa_image::Store::open(root).unwrap();
                for number in 0..20 {
                    let target = format!("t{thread}:{number}");
                    store.tag("a:1", &Reference::parse(&target).unwrap()).unwrap();
                    store.resolve(&target).unwrap();
                }
            });
        }
    });
    assert_eq!(test.store.resolve("a:1").unwrap().names.len(), 121);
}

#[test]
fn a_budget_takes_what_was_used_longest_ago_and_is_not_in_use() {
    let test = TestStore::new();
    let images: Vec<_> =
        (1..=4).map(|number| test.load(&TestImage::small(number), &format!("i{number}:1"))).collect();
    // The first is used, the second in use: so the third goes first.
    test.store.mark_used(&images[1]);
    test.store.mark_used(&images[0]);
    let hooks = Hooks { used: [images[1].id.clone()].into(), ..Hooks::default() };
    assert_eq!(test.store.prune_to(u64::MAX, None, &hooks).unwrap().removed, []);
    let gone = |pruned: &proa_image::store::Pruned| {
        let deleted = pruned.removed.iter().filter_map(|removed| match removed {
            Removed::Deleted(id) => images.iter().position(|image| image.id == *id),
            _ => None,
        });
        deleted.collect::<Vec<_>>()
    };
    let all = test.store.prune_to(0, Some(&images[3].id), &hooks).unwrap();
    assert_eq!(gone(&all), [2, 0]);
    assert!(all.bytes > 0 && test.store.list().unwrap().len() == 2);
    test.assert_sound();
}
