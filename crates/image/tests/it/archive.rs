//! `load`, `save`, `import`; skopeo reads what we write and writes what we read.

use std::fs::{self, File};
use std::path::Path;

use proa_image::archive::{ArchiveFormat, ImportOptions, import, load, save};
use proa_image::{Error, ErrorKind, PullOptions};
use proa_oci::reference::Reference;

use super::support::{Packing, TestImage, TestStore, archive_of, pack, run, sha256, tarball};

fn load_error(bytes: &[u8]) -> Error {
    let test = TestStore::new();
    let error = load(&test.store, bytes, &PullOptions::default(), &()).expect_err("it was taken");
    test.assert_empty();
    error
}

fn write(test: &TestStore, names: &[&str], format: ArchiveFormat, path: &Path) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    save(&test.store, &names, format, &mut File::create(path).unwrap()).unwrap();
}

#[test]
fn what_is_saved_loads_as_the_same_images() {
    let test = TestStore::new();
    let mixed = TestImage::new(&[(tarball(5, 9, 900), Packing::Zstd), (tarball(6, 9, 900), Packing::Plain)]);
    let first = test.load(&TestImage::small(1), "a:1");
    let second = test.load(&mixed, "localhost:5000/b:2");
    test.store.tag("a:1", &Reference::parse("team/also-a:3").unwrap()).unwrap();
    let path = test.dir.path().join("out.tar");
    for format in [ArchiveFormat::Docker, ArchiveFormat::Oci] {
        write(&test, &["a:1", "localhost:5000/b:2", "team/also-a:3"], format, &path);
        let other = TestStore::new();
        let loaded = load(&other.store, File::open(&path).unwrap(), &PullOptions::default(), &()).unwrap();
        assert_eq!(loaded.len(), 2);
        for (name, image) in [("a:1", &first), ("team/also-a:3", &first), ("localhost:5000/b:2", &second)] {
            let found = other.store.resolve(name).unwrap();
            assert_eq!((&found.id, &found.manifest), (&image.id, &image.manifest), "{format:?} {name}");
        }
        other.assert_sound();
    }
}

#[test]
fn skopeo_reads_what_we_write() {
    let test = TestStore::new();
    let source = TestImage::small(1);
    test.load(&source, "a:1");
    let path = test.dir.path().join("out.tar");
    for (format, kind) in [(ArchiveFormat::Docker, "docker-archive"), (ArchiveFormat::Oci, "oci-archive")] {
        write(&test, &["a:1"], format, &path);
        let from = format!("{kind}:{}", path.display());
        let to = test.dir.path().join(kind);
        run("skopeo", &["copy", "-q", &from, &format!("oci:{}:x", to.display())]);
        let config = run("skopeo", &["inspect", "--config", "--raw", &from]).stdout;
        assert_eq!(sha256(&config), source.config, "{kind}");
    }
}

#[test]
fn we_read_what_skopeo_writes() {
    let test = TestStore::new();
    let source = TestImage::small(1);
    let (ours, theirs) = (test.dir.path().join("ours.tar"), test.dir.path().join("theirs.tar"));
    fs::write(&ours, source.archive("a:1")).unwrap();
    for kind in ["docker-archive", "oci-archive"] {
        let _ = fs::remove_file(&theirs);
        let (from, to) =
            (format!("oci-archive:{}", ours.display()), format!("{kind}:{}:team/x:7", theirs.display()));
        run("skopeo", &["copy", "-q", &from, &to]);
        let bytes = fs::read(&theirs).unwrap();
        for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
            let other = TestStore::new();
            let packed = pack(&bytes, packing);
            let loaded = load(&other.store, packed.as_slice(), &PullOptions::default(), &()).unwrap();
            assert_eq!(loaded[0].names, ["docker.io/team/x:7"], "{kind}");
            assert_eq!(other.store.resolve("team/x:7").unwrap().layers.len(), 2);
            other.assert_sound();
        }
    }
}

#[test]
fn the_old_docker_archive_with_links_is_read() {
    let (lower, upper) = (tarball(1, 2, 50), tarball(2, 2, 50));
    let source = TestImage::new(&[
        (lower.clone(), Packing::Plain),
        (upper.clone(), Packing::Plain),
        (lower.clone(), Packing::Plain),
    ]);
    let config = &source.blobs[&source.config];
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    add("one/layer.tar", &lower);
    add("two/layer.tar", &upper);
    add("config.json", config);
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["old:1", "old:2"],
        "Layers": ["one/layer.tar", "two/layer.tar", "three/layer.tar"]}]);
    add("manifest.json", manifest.to_string().as_bytes());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "three/layer.tar", "../one/layer.tar").unwrap();
    let bytes = tar.into_inner().unwrap();
    let test = TestStore::new();
    let loaded = load(&test.store, bytes.as_slice(), &PullOptions::default(), &()).unwrap();
    assert_eq!(loaded[0].image.id, source.config);
    assert_eq!(loaded[0].image.layers.len(), 3);
    assert_eq!(test.store.resolve("old:2").unwrap().id, source.config);
    test.assert_sound();
}

#[test]
fn archives_that_lie_or_lack_are_refused() {
    let source = TestImage::small(1);
    let layer = format!("blobs/sha256/{}", source.layers[0].hex());
    let mut other = source.clone();
    other.blobs.insert(source.layers[0].clone(), b"other bytes".to_vec());
    assert!(matches!(load_error(&other.archive("a:1")), Error::DigestMismatch { .. }));
    other.blobs.remove(&source.layers[0]);
    assert!(load_error(&other.archive("a:1")).to_string().contains("missing"));
    let whole = source.archive("a:1");
    assert_eq!(load_error(&whole[..whole.len() / 2]).kind(), ErrorKind::Other);
    assert!(matches!(load_error(&whole.clone()[..0]), Error::Archive(_)));
    assert!(
        load_error(&archive_of(&[("etc/passwd".to_owned(), vec![])])).to_string().contains("proa import")
    );
    assert!(
        load_error(&archive_of(&[("manifest.json".to_owned(), b"[]".to_vec())]))
            .to_string()
            .contains("no image")
    );
    let climbing = r#"[{"Config":"../../etc/passwd","RepoTags":["x:1"],"Layers":["/etc/shadow"]}]"#;
    let climbing = archive_of(&[("manifest.json".to_owned(), climbing.as_bytes().to_vec())]);
    assert!(load_error(&climbing).to_string().contains("missing"));
    let bad_name = format!(r#"[{{"Config":"c","RepoTags":["Bad Name"],"Layers":["{layer}"]}}]"#);
    let config = source.blobs[&source.config].clone();
    let members = [
        ("manifest.json".to_owned(), bad_name.into_bytes()),
        ("c".to_owned(), config),
        (layer, source.blobs[&source.layers[0]].clone()),
    ];
    assert!(matches!(load_error(&archive_of(&members)), Error::Reference(_)));
}

#[test]
fn a_root_file_system_becomes_an_image() {
    let test = TestStore::new();
    let options = ImportOptions {
        changes: vec!["CMD [\"sh\"]".to_owned(), "ENV A=b".to_owned()],
        message: "made here".to_owned(),
        created: Some("2024-01-01T00:00:00Z".to_owned()),
        ..ImportOptions::default()
    };
    let target = Reference::parse("base:1").unwrap();
    let tar = tarball(1, 5, 100);
    let image =
        import(&test.store, pack(&tar, Packing::Gzip).as_slice(), Some(&target), &options, &()).unwrap();
    assert_eq!(image.config.rootfs.diff_ids, [sha256(&tar)]);
    assert_eq!(
        (image.config.config.cmd.as_slice(), image.config.config.env.as_slice()),
        (&["sh".to_owned()][..], &["A=b".to_owned()][..])
    );
    assert_eq!(test.store.history("base:1").unwrap()[0].entry.comment, "made here");
    // The same input at the same time is the same image.
    let again = import(&test.store, pack(&tar, Packing::Gzip).as_slice(), None, &options, &()).unwrap();
    assert_eq!(again, image);
    test.assert_sound();
    for bad in [&b""[..], b"not a tar at all, though long enough to be looked at", &tar[..700]] {
        let empty = TestStore::new();
        assert!(import(&empty.store, bad, Some(&target), &options, &()).is_err());
        empty.assert_empty();
    }
}

#[test]
fn saving_what_is_not_there_says_so() {
    let test = TestStore::new();
    let error =
        save(&test.store, &["none:1".to_owned()], ArchiveFormat::Docker, &mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
