//! Several processes on one store, and processes that are killed.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proa_oci::reference::Reference;

use super::support::{Packing, Server, TestImage, TestStore, options, serve_image, tarball, wait_for};

/// Where the child of these tests finds its orders: `ROOT REFERENCE`.
const ORDERS: &str = "PROA_IMAGE_TEST_ORDERS";

/// Not a test of its own: what the other processes of these tests do.
#[test]
fn child() {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    let (root, reference) = orders.split_once(' ').unwrap();
    let store = proa_image::Store::open(Path::new(root)).unwrap();
    let reference = Reference::parse(reference).unwrap();
    proa_image::pull(&store, &reference, &options(), &()).unwrap();
    if let Ok(name) = std::env::var("PROA_IMAGE_TEST_REMOVE") {
        store.remove(&name, false, &()).unwrap();
    }
}

fn spawn(test: &TestStore, reference: &str, remove: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "crash::child"])
        .env(ORDERS, format!("{} {reference}", test.dir.path().display()));
    if remove {
        command.env("PROA_IMAGE_TEST_REMOVE", reference);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap()
}

fn server_of(image: &TestImage) -> Server {
    let image = image.clone();
    Server::start(move |request| serve_image(&image, request))
}

fn large() -> TestImage {
    let layers: Vec<_> = (0..4).map(|n| (tarball(n, 60, 20_000), Packing::Gzip)).collect();
    TestImage::new(&layers)
}

#[test]
fn of_many_that_pull_one_does_the_work() {
    let image = large();
    let server = server_of(&image);
    let test = TestStore::new();
    let name = server.name("x:1");
    let children: Vec<Child> = (0..5).map(|_| spawn(&test, &name, false)).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    for layer in &image.layers {
        assert_eq!(server.requests(layer.as_str()), 1, "a layer was fetched more than once");
    }
    assert_eq!(test.store.resolve(&name).unwrap().id, image.config);
    test.assert_sound();
}

#[test]
fn pulls_and_removals_do_not_disturb_each_other() {
    let image = large();
    let server = server_of(&image);
    let test = TestStore::new();
    let names: Vec<String> = (0..4).map(|n| server.name(&format!("x:{n}"))).collect();
    for round in 0..4 {
        let children: Vec<Child> =
            names.iter().map(|name| spawn(&test, name, (round + name.len()) % 2 == 0)).collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        for found in test.store.list().unwrap() {
            assert!(found.layers.iter().all(|layer| layer.path.exists()));
        }
        test.assert_sound();
    }
}

#[test]
fn killed_pulls_lose_and_leave_nothing() {
    let image = large();
    let server = server_of(&image);
    let test = TestStore::new();
    let kept = test.load(&TestImage::small(77), "kept:1");
    let name = server.name("x:1");
    for round in 0..30_u64 {
        let mut child = spawn(&test, &name, round % 2 == 0);
        // From before it opens the store to after it has ended.
        std::thread::sleep(Duration::from_millis((round * 7919) % 400));
        child.kill().unwrap();
        child.wait().unwrap();
        let problems = test.store.check(true, false, &()).unwrap();
        assert!(problems.iter().all(|problem| problem.repaired), "{problems:?}");
        test.assert_sound();
        assert_eq!(test.store.resolve("kept:1").unwrap(), kept);
        match test.store.resolve(&name) {
            Ok(found) => {
                assert_eq!(found.id, image.config);
                test.store.remove(&name, false, &()).unwrap();
            }
            Err(error) => assert_eq!(error.kind(), proa_image::ErrorKind::NotFound),
        }
    }
    assert_eq!(test.pull(&name, &options()).unwrap().id, image.config);
    test.store.remove(&name, false, &()).unwrap();
    test.store.remove("kept:1", false, &()).unwrap();
    test.assert_empty();
}

#[test]
fn what_a_killed_pull_finished_is_not_fetched_again() {
    let image = large();
    let last = image.layers.iter().min_by_key(|layer| image.blobs[*layer].len()).unwrap().clone();
    let dead = Arc::new(AtomicBool::new(false));
    let server = Server::start({
        let (image, last, dead) = (image.clone(), last.clone(), dead.clone());
        move |request| {
            if request.path.ends_with(last.as_str()) {
                // Holds the last layer back until the child is gone.
                wait_for("the child's end", || dead.load(Ordering::Relaxed).then_some(()));
            }
            serve_image(&image, request)
        }
    });
    let test = TestStore::new();
    let name = server.name("x:1");
    let mut child = spawn(&test, &name, false);
    let others: Vec<_> = image.layers.iter().filter(|layer| **layer != last).collect();
    wait_for("the other layers", || {
        let files = test.files();
        let published = |layer: &&proa_oci::reference::Digest| {
            files.contains(&Path::new("blobs/sha256").join(layer.hex()))
                && !files.contains(&Path::new("locks").join(layer.hex()))
        };
        others.iter().all(published).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    dead.store(true, Ordering::Relaxed);
    assert_eq!(test.pull(&name, &options()).unwrap().id, image.config);
    for layer in others {
        assert_eq!(server.requests(layer.as_str()), 1);
    }
    test.assert_sound();
}
