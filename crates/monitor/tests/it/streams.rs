//! Terminals, input, several clients, slow clients.

use proa_oci::runtime::ConsoleSize;
use proa_protocol::frame::{Kind, MAX_STREAM, WINDOW};
use proa_protocol::message::{ErrorKind, Request, Response};

use crate::client::exec;
use crate::fixture::{Fixture, until};

#[test]
fn input_reaches_the_program_and_its_end_too() {
    let mut fixture = Fixture::new(&["/bin/cat"]);
    fixture.config.launch.stdin = true;
    fixture.config.launch.stdin_once = true;
    let mut client = fixture.spawn();
    client.run(true);
    client.frame(Kind::Stdin, b"hello\n".to_vec());
    client.frame(Kind::Stdin, Vec::new());
    assert_eq!(client.exited().code, 0);
    assert_eq!(client.text(), "hello\n");
}

#[test]
fn without_stdin_once_input_outlives_its_client() {
    let mut fixture = Fixture::new(&["/bin/cat"]);
    fixture.config.launch.stdin = true;
    let mut client = fixture.spawn();
    client.run(true);
    client.frame(Kind::Stdin, b"one\n".to_vec());
    client.read_until("one\n");
    client.frame(Kind::Stdin, Vec::new());
    drop(client);
    let mut second = fixture.connect();
    second.attach(true);
    assert_eq!(second.response(), Response::Ok);
    second.frame(Kind::Stdin, b"two\n".to_vec());
    second.read_until("two\n");
    second.kill();
    assert_eq!(second.exited().code, 137);
}

#[test]
fn without_input_it_is_empty() {
    let mut fixture = Fixture::new(&["/bin/cat"]);
    let mut client = fixture.spawn();
    client.run(true);
    assert_eq!(client.exited().code, 0);
}

#[test]
fn all_attached_clients_see_the_same() {
    let mut fixture = Fixture::shell("read line; echo got $line");
    fixture.config.launch.stdin = true;
    let mut first = fixture.spawn();
    first.run(true);
    let mut others: Vec<_> = (0..3).map(|_| fixture.connect()).collect();
    for other in &mut others {
        other.attach(false);
        assert_eq!(other.response(), Response::Ok);
    }
    first.frame(Kind::Stdin, b"x\n".to_vec());
    for client in std::iter::once(&mut first).chain(&mut others) {
        assert_eq!(client.exited().code, 0);
        assert_eq!(client.text(), "got x\n");
    }
}

#[test]
fn a_terminal_has_its_size_and_follows_resizes() {
    let mut fixture = Fixture::shell(
        "trap 'exit 130' INT; trap 'stty size' WINCH; stty size; while :; do sleep 0.01; done",
    );
    fixture.process().terminal = true;
    fixture.config.launch.stdin = true;
    let mut client = fixture.spawn();
    client.attach(true);
    client.send(&Request::Resize(ConsoleSize { height: 31, width: 97 }));
    client.send(&Request::Start);
    client.read_until("31 97\r\n");
    client.send(&Request::Resize(ConsoleSize { height: 11, width: 22 }));
    client.read_until("11 22\r\n");
    // Ctrl-C.
    client.frame(Kind::Stdin, vec![3]);
    loop {
        if let Response::Exited(status) = client.response() {
            assert_eq!(status.code, 130);
            break;
        }
    }
    assert!(fixture.log().iter().any(|(stream, text)| stream == "stdout" && text == "31 97\r\n"));
}

#[test]
fn a_terminal_gives_all_of_its_last_output() {
    let mut fixture = Fixture::shell("seq 1 2000");
    fixture.process().terminal = true;
    let mut client = fixture.spawn();
    client.run(false);
    assert_eq!(client.exited().code, 0);
    let lines: Vec<String> = client.text().lines().map(str::to_owned).collect();
    assert_eq!((lines.len(), lines.last().map(String::as_str)), (2000, Some("2000")));
}

#[test]
fn exec_has_streams_of_its_own_and_an_exit_code() {
    let mut fixture = Fixture::new(&["/bin/sleep", "100"]);
    let mut first = fixture.spawn();
    first.run(false);
    let mut client = fixture.connect();
    client.send(&exec(&["/bin/sh", "-c", "cat; echo err >&2; exit 4"], true));
    client.expect_started();
    client.frame(Kind::Stdin, b"in\n".to_vec());
    client.frame(Kind::Stdin, Vec::new());
    assert_eq!(client.exited().code, 4);
    assert_eq!((client.text().as_str(), client.stderr.as_slice()), ("in\n", &b"err\n"[..]));
    assert!(fixture.log().is_empty());
    let mut missing = fixture.connect();
    missing.send(&exec(&["nonexistent"], false));
    missing.expect_error(ErrorKind::CommandNotFound);
}

#[test]
fn exec_ends_though_a_descendant_holds_its_output() {
    let mut fixture = Fixture::new(&["/bin/sleep", "100"]);
    fixture.spawn().run(false);
    let mut client = fixture.connect();
    client.exec(&["/bin/sh", "-c", "sleep 50 & echo now"]);
    assert_eq!(client.exited().code, 0);
    assert_eq!(client.text(), "now\n");
}

#[test]
fn exec_can_have_a_terminal_and_be_signalled() {
    let mut fixture = Fixture::new(&["/bin/sleep", "100"]);
    fixture.spawn().run(false);
    let mut client = fixture.connect();
    let mut request = exec(&["/bin/sh", "-c", "stty size; sleep 100"], true);
    if let Request::Exec(config) = &mut request {
        config.process.terminal = true;
        config.process.console_size = Some(ConsoleSize { height: 5, width: 6 });
    }
    client.send(&request);
    client.expect_started();
    client.read_until("5 6\r\n");
    client.send(&Request::Signal { signal: 9, all: false });
    assert_eq!(client.exited().code, 137);
    // The instance itself was not meant.
    assert_eq!(
        fixture.connect().ask(&Request::Stat { path: "/".into() }),
        fixture.connect().ask(&Request::Stat { path: "/".into() })
    );
}

#[test]
fn execs_end_with_the_instance_and_their_output_arrives() {
    let mut fixture = Fixture::new(&["/bin/sleep", "100"]);
    let mut first = fixture.spawn();
    first.run(false);
    let mut client = fixture.connect();
    client.exec(&["/bin/sh", "-c", "echo last; sleep 100"]);
    client.read_until("last\n");
    first.kill();
    assert_eq!(first.exited().code, 137);
    assert_eq!(client.exited().code, 137);
}

#[test]
fn a_slow_client_slows_the_program_and_costs_no_memory() {
    let mut fixture = Fixture::shell("dd if=/dev/zero bs=64k count=200 2>/dev/null; echo end");
    let mut client = fixture.spawn();
    client.attach(false);
    client.send(&Request::Start);
    // Without credit there comes a window, and no more.
    let mut held = Vec::new();
    let mut bytes = 0;
    while bytes < WINDOW as usize {
        let frame = client.next().unwrap();
        if frame.kind == Kind::Stdout {
            assert!(frame.payload.len() <= MAX_STREAM);
            bytes += frame.payload.len();
            held.push(frame);
        }
    }
    assert_eq!(bytes, WINDOW as usize);
    let monitor = fixture.monitor().id();
    let dirty = || private_dirty(monitor);
    assert!(dirty() < 4 << 20, "{}", dirty());
    for frame in held {
        let bytes = client.consume(frame);
        client.stdout.extend(bytes);
    }
    assert_eq!(client.exited().code, 0);
    assert_eq!(client.stdout.len(), 64 * 1024 * 200 + 4);
}

#[test]
fn a_client_that_stands_still_does_not_hold_up_the_end() {
    let mut fixture = Fixture::shell("dd if=/dev/zero bs=1k count=280 2>/dev/null; echo end");
    let mut client = fixture.spawn();
    client.attach(false);
    assert_eq!(client.response(), Response::Ok);
    // Connected before the end, after which there is no socket.
    let mut waiter = fixture.connect();
    waiter.send(&Request::Wait);
    client.send(&Request::Start);
    let mut bytes = 0;
    while bytes < WINDOW as usize {
        let frame = client.next().unwrap();
        bytes += if frame.kind == Kind::Stdout { frame.payload.len() } else { 0 };
    }
    assert_eq!(waiter.exited().code, 0);
    let logged: usize = fixture.log().iter().map(|(_, text)| text.len()).sum();
    assert!(logged >= 280 * 1024 + 4);
    // What it has not read is still there for it.
    client.frame(Kind::Credit, WINDOW.to_le_bytes().to_vec());
    assert_eq!(client.exited().code, 0);
    assert_eq!(bytes + client.stdout.len(), 280 * 1024 + 4);
    fixture.wait_monitor();
}

#[test]
fn nonsense_closes_the_connection_alone() {
    let mut fixture = Fixture::new(&["/bin/sleep", "100"]);
    let mut first = fixture.spawn();
    first.run(false);
    let mut client = fixture.connect();
    client.frame(Kind::Stdout, b"x".to_vec());
    client.send(&Request::Stats);
    until("the connection is used up", || {
        matches!(client.response(), Response::Error { .. } | Response::Stats(_))
    });
    let mut bad = fixture.connect();
    bad.frame(Kind::Request, b"{\"op\":\"nonsense\"}".to_vec());
    bad.expect_error(ErrorKind::InvalidInput);
    bad.frame(Kind::Request, b"[]".to_vec());
    bad.expect_error(ErrorKind::InvalidInput);
    first.kill();
    assert_eq!(first.exited().code, 137);
}

#[test]
fn more_input_than_the_window_is_refused() {
    let mut fixture = Fixture::new(&["/bin/sleep", "100"]);
    fixture.config.launch.stdin = true;
    let mut client = fixture.spawn();
    client.run(true);
    // The program reads nothing: a pipe takes 64 KiB, the window 256 KiB.
    for _ in 0..6 {
        client.frame(Kind::Stdin, vec![0; MAX_STREAM]);
    }
    client.expect_error(ErrorKind::InvalidInput);
    assert_eq!(fixture.connect().ask(&Request::Signal { signal: 9, all: false }), Response::Ok);
    fixture.wait_monitor();
}

/// Bytes of a process's own memory.
pub fn private_dirty(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Private_Dirty:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
