//! Work on an instance's files, running and not.

use proa_protocol::frame::{Kind, MAX_STREAM};
use proa_protocol::message::{ChangeKind, ErrorKind, Request, Response};

use crate::client::Client;
use crate::fixture::{Fixture, until};

fn get(client: &mut Client, path: &str) -> Vec<u8> {
    match client.ask(&Request::ArchiveGet { path: path.into() }) {
        Response::Stat(_) => {}
        other => panic!("{other:?}"),
    }
    let mut tar = Vec::new();
    loop {
        let frame = client.next().unwrap();
        assert_eq!(frame.kind, Kind::Data);
        if frame.payload.is_empty() {
            break;
        }
        tar.extend(client.consume(frame));
    }
    assert_eq!(client.response(), Response::Ok);
    tar
}

fn put(client: &mut Client, path: &str, tar: &[u8]) -> Response {
    let request = Request::ArchivePut { path: path.into(), no_overwrite_dir: false };
    assert_eq!(client.ask(&request), Response::Ok);
    let mut credit = 256 * 1024;
    for chunk in tar.chunks(MAX_STREAM) {
        while credit < chunk.len() {
            let frame = client.next().unwrap();
            match frame.kind {
                Kind::Credit => credit += frame.credited() as usize,
                _ => return Response::parse(&frame.payload).unwrap(),
            }
        }
        credit -= chunk.len();
        client.frame(Kind::Data, chunk.to_vec());
    }
    client.frame(Kind::Data, Vec::new());
    client.response()
}

#[test]
fn a_tree_comes_out_and_goes_in_again() {
    let script = "mkdir -p /tmp/a/b; dd if=/dev/zero of=/tmp/a/b/big bs=1M count=8 2>/dev/null; \
                  echo x > /tmp/a/x; touch /tmp/ready; sleep 100";
    let mut fixture = Fixture::shell(script);
    let mut first = fixture.spawn();
    first.run(false);
    let mut client = fixture.connect();
    let ready = Request::Stat { path: "/tmp/ready".into() };
    until("the tree is there", || matches!(client.ask(&ready), Response::Stat(_)));
    let tar = get(&mut client, "/tmp/a");
    assert!(tar.len() > 8 << 20);
    assert_eq!(put(&mut client, "/root", &tar), Response::Ok);
    match client.ask(&Request::Stat { path: "/root/a/b/big".into() }) {
        Response::Stat(stat) => assert_eq!((stat.size, stat.name.as_str()), (8 << 20, "big")),
        other => panic!("{other:?}"),
    }
    assert!(matches!(put(&mut client, "/root", b"not a tar"), Response::Error { .. } | Response::Ok));
    client.send(&Request::Stat { path: "/nonexistent".into() });
    client.expect_error(ErrorKind::NoSuchPath);
    first.kill();
    first.exited();
}

#[test]
fn a_reader_that_stands_still_holds_up_nobody() {
    let mut fixture = Fixture::shell("dd if=/dev/zero of=/tmp/big bs=1M count=8 2>/dev/null; cat");
    fixture.config.launch.stdin = true;
    let mut first = fixture.spawn();
    first.run(true);
    // When the program answers, the file is there.
    first.frame(Kind::Stdin, b"done\n".to_vec());
    first.read_until("done\n");
    let slow = fixture.connect();
    slow.send(&Request::ArchiveGet { path: "/tmp/big".into() });
    for _ in 0..5 {
        let mut other = fixture.connect();
        assert!(matches!(other.ask(&Request::Stat { path: "/tmp/big".into() }), Response::Stat(_)));
    }
    drop(slow);
    first.kill();
    assert_eq!(first.exited().code, 137);
}

#[test]
fn changes_are_those_of_the_program() {
    let mut fixture = Fixture::shell("rm /etc/group; echo x >> /etc/passwd; echo y > /new; sleep 100");
    fixture.config.launch.files.insert("/etc/hosts".into(), "127.0.0.1 localhost\n".into());
    let mut first = fixture.spawn();
    first.run(false);
    let mut client = fixture.connect();
    let mut changes = Vec::new();
    until("the program has made its changes", || {
        match client.ask(&Request::Changes) {
            Response::Changes { changes: now } => changes = now,
            other => panic!("{other:?}"),
        }
        changes.iter().any(|change| change.path == "/new")
    });
    let seen: Vec<_> = changes.iter().map(|change| (change.path.as_str(), change.kind)).collect();
    let (modified, deleted, added) = (ChangeKind::Modified, ChangeKind::Deleted, ChangeKind::Added);
    assert_eq!(
        seen,
        [("/etc", modified), ("/etc/group", deleted), ("/etc/passwd", modified), ("/new", added)]
    );
}

#[test]
fn given_files_are_bound_and_readable_by_all() {
    let mut fixture = Fixture::new(&["/bin/cat", "/etc/hostname", "/etc/hosts"]);
    fixture.config.launch.user = "user".into();
    fixture.config.launch.files.insert("/etc/hostname".into(), "box\n".into());
    fixture.config.launch.files.insert("/etc/hosts".into(), "127.0.0.1 box\n".into());
    let mut client = fixture.spawn();
    client.run(false);
    assert_eq!(client.exited().code, 0);
    assert_eq!(client.text(), "box\n127.0.0.1 box\n");
    // The user comes through the root, whatever the umask of whoever made it.
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fixture.dir().join("upper").metadata().unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o755);
}

#[test]
fn maintenance_serves_the_files_of_a_stopped_instance() {
    let mut fixture = Fixture::shell("echo kept > /tmp/kept");
    let mut client = fixture.spawn();
    client.run(false);
    client.exited();
    let before = fixture.state();
    // A program that cannot be run must not keep anyone from its files.
    fixture.process().args = vec!["/nonexistent".into()];
    fixture.config.launch.user = "nobody-of-this-name".into();
    let mut client = fixture.spawn_with(&["--maintenance"]);
    let tar = get(&mut client, "/tmp/kept");
    assert!(tar.windows(5).any(|window| window == b"kept\n"));
    assert_eq!(put(&mut client, "/root", &tar), Response::Ok);
    client.send(&Request::Start);
    client.expect_error(ErrorKind::Conflict);
    match client.ask(&Request::Changes) {
        Response::Changes { changes } => assert!(changes.iter().any(|change| change.path == "/root/kept")),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.ask(&Request::Shutdown), Response::Ok);
    assert_eq!(fixture.state(), before);
    fixture.wait_monitor();
}

#[test]
fn maintenance_ends_with_its_last_client() {
    let mut fixture = Fixture::shell("true");
    let mut client = fixture.spawn_with(&["--maintenance"]);
    assert!(matches!(client.ask(&Request::Stat { path: "/bin/sh".into() }), Response::Stat(_)));
    drop(client);
    fixture.wait_monitor();
    assert!(!fixture.dir().join("state.json").exists());
}
