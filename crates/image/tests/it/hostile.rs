//! Registries that lie, break off, or refuse: an error that says so, and nothing left; or a pull that succeeds
//! in spite of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proa_image::registry::RegistryError;
use proa_image::{Error, ErrorKind, PullOptions};
use proa_oci::image::{Descriptor, media_type};
use proa_oci::reference::Reference;

use super::support::{
    Packing, Recorder, Reply, Request, Server, TestImage, TestStore, options, ranged, run, serve_image,
    sha256, tarball,
};

/// Serves an image, where `twist` does not answer otherwise.
fn twisted(
    image: &TestImage,
    twist: impl Fn(&TestImage, &Request) -> Option<Reply> + Send + Sync + 'static,
) -> Server {
    let image = image.clone();
    Server::start(move |request| twist(&image, request).unwrap_or_else(|| serve_image(&image, request)))
}

fn fast() -> PullOptions {
    let mut options = options();
    options.registry.attempts = 2;
    options
}

/// The error of a pull from such a registry, after which nothing must be left.
fn refused(
    image: &TestImage,
    twist: impl Fn(&TestImage, &Request) -> Option<Reply> + Send + Sync + 'static,
) -> Error {
    let server = twisted(image, twist);
    let test = TestStore::new();
    let error = test.pull(&server.name("x:1"), &fast()).expect_err("the pull was not refused");
    assert!(error.to_string().lines().count() <= 2, "{error}");
    test.assert_empty();
    error
}

fn big() -> TestImage {
    TestImage::new(&[(tarball(1, 40, 50_000), Packing::Gzip), (tarball(2, 2, 500), Packing::Gzip)])
}

fn is_layer(image: &TestImage, request: &Request, number: usize) -> bool {
    request.path.ends_with(image.layers[number].as_str())
}

#[test]
fn a_blob_with_other_bytes_is_refused() {
    let error = refused(&big(), |image, request| {
        is_layer(image, request, 0).then(|| {
            let mut bytes = image.blobs[&image.layers[0]].clone();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            Reply::ok(bytes)
        })
    });
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn a_config_with_other_bytes_is_refused() {
    let error = refused(&big(), |image, request| {
        request
            .path
            .ends_with(image.config.as_str())
            .then(|| Reply::ok(vec![b' '; image.blobs[&image.config].len()]))
    });
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

#[test]
fn a_body_that_is_longer_or_shorter_than_said_is_refused() {
    for extra in [-1_i64, 1, 1000] {
        let error = refused(&big(), move |image, request| {
            is_layer(image, request, 1).then(|| {
                let mut bytes = image.blobs[&image.layers[1]].clone();
                bytes.resize((bytes.len() as i64 + extra) as usize, 0);
                Reply::ok(bytes)
            })
        });
        assert!(matches!(error, Error::SizeMismatch { .. }), "{extra}: {error}");
    }
}

#[test]
fn a_longer_body_of_unknown_length_is_refused() {
    let error = refused(&big(), |image, request| {
        is_layer(image, request, 1).then(|| {
            let mut bytes = image.blobs[&image.layers[1]].clone();
            bytes.extend_from_slice(b"more");
            let mut body = format!("{:x}\r\n", bytes.len()).into_bytes();
            body.extend_from_slice(&bytes);
            body.extend_from_slice(b"\r\n0\r\n\r\n");
            Reply::ok(body).header("Transfer-Encoding", "chunked")
        })
    });
    assert!(matches!(error, Error::SizeMismatch { .. } | Error::Registry(_)), "{error}");
}

#[test]
fn a_layer_that_is_not_the_configs_is_refused() {
    let tar = tarball(1, 3, 100);
    let image = TestImage::with_diff_ids(&[(tar, Packing::Gzip)], &[sha256(b"another")]);
    let error = refused(&image, |_, _| None);
    assert!(matches!(error, Error::WrongDiffId { .. }), "{error}");
}

#[test]
fn a_known_blob_is_not_taken_for_another_layer() {
    let tar = tarball(1, 3, 100);
    let honest = TestImage::new(&[(tar.clone(), Packing::Gzip)]);
    let other = TestImage::new(&[(tarball(9, 1, 9), Packing::Gzip)]);
    let liar = TestImage::with_diff_ids(&[(tar, Packing::Gzip)], &[sha256(&tarball(9, 1, 9))]);
    let test = TestStore::new();
    test.load(&honest, "honest:1");
    test.load(&other, "other:1");
    let server = twisted(&liar, |_, _| None);
    let error = test.pull(&server.name("x:1"), &fast()).unwrap_err();
    assert!(matches!(error, Error::WrongDiffId { .. }), "{error}");
    assert_eq!(test.store.list().unwrap().len(), 2);
    test.assert_sound();
}

#[test]
fn config_and_manifest_must_agree_on_the_number_of_layers() {
    let tar = tarball(1, 1, 9);
    for diff_ids in [vec![], vec![sha256(&tar), sha256(&tar)]] {
        let image = TestImage::with_diff_ids(&[(tar.clone(), Packing::Gzip)], &diff_ids);
        let error = refused(&image, |_, _| None);
        assert!(matches!(error, Error::Document { .. }), "{error}");
    }
}

#[test]
fn what_is_no_layer_is_refused() {
    let junk = vec![b'x'; 5000];
    let cases = [
        (junk.clone(), Packing::Plain),
        (junk.clone(), Packing::Gzip),
        (tarball(1, 1, 9)[..600].to_vec(), Packing::Zstd),
    ];
    for (tar, packing) in cases {
        let error = refused(&TestImage::new(&[(tar, packing)]), |_, _| None);
        assert!(matches!(error, Error::Layer { .. }), "{error}");
    }
    let mut image = TestImage::new(&[(junk, Packing::Gzip)]);
    let cut = image.blobs.remove(&image.layers[0]).unwrap();
    let cut = cut[..cut.len() - 5].to_vec();
    let text =
        String::from_utf8(image.manifest).unwrap().replace(image.layers[0].as_str(), sha256(&cut).as_str());
    let text = text.replace(&format!("\"size\":{}", cut.len() + 5), &format!("\"size\":{}", cut.len()));
    image.manifest = text.into_bytes();
    image.layers = vec![sha256(&cut)];
    image.blobs.insert(sha256(&cut), cut);
    let error = refused(&image, |_, _| None);
    assert!(matches!(error, Error::Decompress { .. } | Error::Layer { .. }), "{error}");
}

#[test]
fn a_bomb_is_stopped() {
    let mut header = tar::Header::new_ustar();
    let zeros = vec![0; 40 << 20];
    header.set_size(zeros.len() as u64);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, "zeros", zeros.as_slice()).unwrap();
    let image = TestImage::new(&[(tar.into_inner().unwrap(), Packing::Zstd)]);
    let server = twisted(&image, |_, _| None);
    let test = TestStore::new();
    let mut options = fast();
    options.limits.max_uncompressed = 8 << 20;
    let error = test.pull(&server.name("x:1"), &options).unwrap_err();
    assert!(matches!(error, Error::Layer { .. }), "{error}");
    test.assert_empty();
}

#[test]
fn a_manifest_for_another_digest_is_refused() {
    let image = big();
    let server = twisted(&image, |_, _| None);
    let test = TestStore::new();
    let wrong = format!("{}@{}", server.name("x"), sha256(b"another"));
    let error = test.pull(&wrong, &fast()).unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    let right = format!("{}@{}", server.name("x"), image.digest());
    let pulled = test.pull(&right, &fast()).unwrap();
    assert!(pulled.names.is_empty());
    assert_eq!(test.store.resolve(&right).unwrap().id, pulled.id);
    let error = refused(&image, |image, request| {
        let reply = Reply::ok(image.manifest.clone()).header("Docker-Content-Digest", sha256(b"another"));
        request.path.contains("/manifests/").then_some(reply)
    });
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

#[test]
fn documents_of_other_kinds_are_refused() {
    for text in ["", "{}", "<html>", r#"{"schemaVersion":1}"#, r#"{"schemaVersion":2,"mediaType":"x/y"}"#] {
        let error =
            refused(&big(), move |_, request| request.path.contains("/manifests/").then(|| Reply::ok(text)));
        assert!(matches!(error, Error::Document { .. }), "{error}");
    }
    let error = refused(&big(), |_, request| {
        request.path.contains("/manifests/").then(|| Reply::ok(vec![b' '; (4 << 20) + 1]))
    });
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[test]
fn indexes_that_lead_nowhere_end() {
    // Each names the next, deeper than any honest registry nests them.
    let error = refused(&big(), |_, request| {
        let name = request.path.split_once("/manifests/")?.1;
        let mut index = r#"{"schemaVersion":2,"manifests":[]}"#.to_owned();
        let mut chain = Vec::new();
        for _ in 0..12 {
            let descriptor =
                Descriptor::new(media_type::OCI_INDEX, sha256(index.as_bytes()), index.len() as u64);
            chain.push(index);
            index = format!(
                r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
                serde_json::to_string(&descriptor).unwrap()
            );
        }
        let known = chain.iter().find(|text| sha256(text.as_bytes()).as_str() == name);
        let body = known.cloned().unwrap_or(index);
        Some(Reply::ok(body).header("Content-Type", media_type::OCI_INDEX))
    });
    assert!(error.to_string().contains("index"), "{error}");
}

#[test]
fn a_transfer_that_breaks_off_goes_on_where_it_was() {
    let image = big();
    let count = Arc::new(AtomicUsize::new(0));
    let server = twisted(&image, {
        let count = count.clone();
        move |image, request| {
            let first = is_layer(image, request, 0) && count.fetch_add(1, Ordering::Relaxed) < 3;
            first.then(|| {
                let reply = ranged(&image.blobs[&image.layers[0]], request);
                let cut = reply.body.len() / 2;
                reply.cut(cut)
            })
        }
    });
    let (test, recorder) = (TestStore::new(), Recorder::default());
    let reference = Reference::parse(&server.name("x:1")).unwrap();
    let pulled = proa_image::pull(&test.store, &reference, &options(), &recorder).unwrap();
    assert_eq!(pulled.id, image.config);
    assert_eq!((recorder.count("Retry"), server.requests("bytes=")), (3, 3));
    test.assert_sound();
}

#[test]
fn a_registry_without_ranges_is_read_again_from_the_start() {
    let image = big();
    let count = Arc::new(AtomicUsize::new(0));
    let server = twisted(&image, move |image, request| {
        is_layer(image, request, 0).then(|| {
            let bytes = image.blobs[&image.layers[0]].clone();
            let cut = bytes.len() / 2;
            let reply = Reply::ok(bytes);
            if count.fetch_add(1, Ordering::Relaxed) == 0 { reply.cut(cut) } else { reply }
        })
    });
    let test = TestStore::new();
    assert_eq!(test.pull(&server.name("x:1"), &options()).unwrap().id, image.config);
}

#[test]
fn a_range_that_begins_elsewhere_is_refused() {
    let error = refused(&big(), |image, request| {
        is_layer(image, request, 0).then(|| {
            let bytes = &image.blobs[&image.layers[0]];
            match request.headers.contains_key("range") {
                false => Reply::ok(bytes.clone()).cut(bytes.len() / 2),
                true => {
                    let range = format!("bytes 7-{}/{}", bytes.len() - 1, bytes.len());
                    Reply::new("206 Partial Content", bytes[7..].to_vec()).header("Content-Range", range)
                }
            }
        })
    });
    assert!(matches!(error, Error::Registry(RegistryError::Protocol { .. })), "{error}");
}

#[test]
fn a_transfer_that_never_gets_far_is_given_up() {
    let error = refused(&big(), |image, request| {
        is_layer(image, request, 0).then(|| ranged(&image.blobs[&image.layers[0]], request).cut(10))
    });
    assert!(matches!(error, Error::Registry(RegistryError::Interrupted { .. })), "{error}");
}

#[test]
fn passing_failures_are_tried_again() {
    let image = big();
    let count = Arc::new(AtomicUsize::new(0));
    let server = twisted(&image, move |_, request| {
        let fails = request.path.len() > 4 && count.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        fails.then(|| Reply::new("503 Service Unavailable", "{}"))
    });
    let test = TestStore::new();
    test.pull(&server.name("x:1"), &options()).unwrap();
    test.assert_sound();
}

#[test]
fn statuses_have_words() {
    let status = |status: &'static str, header: Option<(&'static str, &'static str)>| {
        refused(&big(), move |_, request| {
            let reply = Reply::new(status, r#"{"errors":[{"code":"X","message":"because"}]}"#);
            let reply = header.into_iter().fold(reply, |reply, (name, value)| reply.header(name, value));
            (request.path.len() > 4).then_some(reply)
        })
    };
    let error = status("404 Not Found", None);
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = status("403 Forbidden", None);
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("proa login"), "{error}");
    let error = status("429 Too Many Requests", Some(("Retry-After", "600")));
    assert!(error.to_string().contains("600 seconds"), "{error}");
    let error = status("500 Internal Server Error", None);
    assert!(error.to_string().contains("because"), "{error}");
    let error = status("401 Unauthorized", Some(("WWW-Authenticate", "Digest realm=x")));
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

#[test]
fn nobody_at_the_address() {
    let test = TestStore::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = test.pull(&format!("127.0.0.1:{port}/x"), &options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("refused"), "{error}");
    let error = test.pull("registry.invalid/x", &options()).unwrap_err();
    assert!(matches!(error, Error::Registry(RegistryError::UnknownHost { .. })), "{error}");
    test.assert_empty();
}

#[test]
fn a_redirect_takes_no_password_along() {
    let image = big();
    let elsewhere = twisted(&image, |image, request| {
        assert!(!request.headers.contains_key("authorization"), "the password went to another host");
        let digest = request.path.strip_prefix("/store/")?.parse().ok()?;
        Some(ranged(&image.blobs[&digest], request))
    });
    let port = elsewhere.port;
    let server = twisted(&image, move |_, request| {
        if request.headers.get("authorization").is_none_or(|header| header != "Basic dTpw") {
            return Some(Reply::new("401 Unauthorized", "").header("WWW-Authenticate", "Basic realm=\"x\""));
        }
        let digest = request.path.split_once("/blobs/")?.1;
        let location = format!("http://127.0.0.1:{port}/store/{digest}");
        Some(Reply::new("307 Temporary Redirect", "").header("Location", location))
    });
    let test = TestStore::new();
    let mut options = options();
    let path = test.dir.path().join("config.json");
    let host = format!("localhost:{}", server.port);
    let text = serde_json::json!({"auths": {host: {"auth": "dTpw"}}});
    std::fs::write(&path, text.to_string()).unwrap();
    options.registry.credentials = Some(path);
    test.pull(&server.name("x:1"), &options).unwrap();
    assert_eq!(elsewhere.requests("GET /store/"), 3);
}

#[test]
fn redirects_end() {
    let error = refused(&big(), |_, request| {
        let location = request.path.clone();
        (request.path.len() > 4).then(|| Reply::new("302 Found", "").header("Location", location))
    });
    assert!(error.to_string().contains("redirect"), "{error}");
}

#[test]
fn a_registry_that_falls_silent_is_given_up() {
    let image = big();
    let server = twisted(&image, |image, request| {
        is_layer(image, request, 0).then(|| {
            let bytes = image.blobs[&image.layers[0]].clone();
            let half = bytes[..bytes.len() / 2].to_vec();
            // Half of what it announced, and then nothing though the connection stays.
            Reply { length: Some(bytes.len()), silent: true, ..Reply::ok(half) }
        })
    });
    let test = TestStore::new();
    let mut options = fast();
    options.registry.stall = Duration::from_millis(300);
    let error = test.pull(&server.name("x:1"), &options).unwrap_err();
    assert!(matches!(error, Error::Registry(RegistryError::Interrupted { .. })), "{error}");
    test.assert_empty();
}

/// A file system of a few megabytes, gone when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(megabytes: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m");
        run("mount", &["-t", "tmpfs", "-o", &size, "proa-test", &dir.path().display().to_string()]);
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", &["-l", &self.0.path().display().to_string()]);
    }
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let layers: Vec<_> = (0..3).map(|n| (tarball(n, 40, 50_000), Packing::Gzip)).collect();
    let image = TestImage::new(&layers);
    let server = twisted(&image, |_, _| None);
    for megabytes in [1, 2, 3, 4, 6] {
        let disk = SmallDisk::new(megabytes);
        let store = proa_image::Store::open(disk.0.path()).unwrap();
        let reference = Reference::parse(&server.name("x:1")).unwrap();
        let error = proa_image::pull(&store, &reference, &fast(), &()).unwrap_err();
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(next) = cause {
            text.push_str(&next.to_string());
            cause = next.source();
        }
        assert!(text.contains("No space left") || text.contains("disk is full"), "{text}");
        store.collect(&()).unwrap();
        assert_eq!(store.check(true, true, &()).unwrap(), []);
        assert!(store.list().unwrap().is_empty());
        let left = std::fs::read_dir(disk.0.path().join("image/blobs/sha256")).unwrap().count();
        assert_eq!(left, 0, "{megabytes} MB");
    }
}
