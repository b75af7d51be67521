//! When a resolver ends, and when its server starts again.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::dns::{A, Answer};
use crate::fixture::{Host, until};
use crate::hostile::children;

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

#[test]
fn there_is_one_and_it_ends_when_told_to() {
    let mut host = Host::new();
    let network = host.network(1, false);
    host.endpoint(&network, 2, &["one"], &[]);
    let first = host.start(&[]);
    until("the first holds the lock", || host.is_served());
    let second = host.start(&[]);
    assert!(host.wait(second));
    assert!(host.is_served());
    signal(first, Signal::TERM);
    assert!(host.wait(first));
    until("the lock is free", || !host.is_served());
}

#[test]
fn it_ends_when_nobody_is_left_to_serve() {
    let mut host = Host::new();
    let network = host.network(1, false);
    host.endpoint(&network, 2, &["one"], &[]);
    let pid = host.start(&["--idle", "1"]);
    let one = host.instance(&network, 2);
    assert_eq!(one.ask("one", A), Answer::addresses(&["10.1.0.2"]));
    host.remove(&network, 2);
    assert!(host.wait(pid));
    let other = host.start(&["--idle", "60"]);
    until("another holds the lock", || host.is_served());
    // The watch is there when the server is.
    until("it has a server", || !children(other).is_empty());
    fs::remove_dir_all(host.run().join("networks")).unwrap();
    assert!(host.wait(other));
}

#[test]
fn a_server_that_ends_is_followed_by_another() {
    let (mut host, _, one) = Host::with_one();
    let pid = host.start(&[]);
    assert_eq!(one.ask("one", A), Answer::addresses(&["10.1.0.2"]));
    let before = children(pid);
    signal(before.trim().parse().unwrap(), Signal::KILL);
    until("there is another server", || {
        let now = children(pid);
        !now.is_empty() && now != before
    });
    assert_eq!(one.ask("one", A), Answer::addresses(&["10.1.0.2"]));
}

#[test]
fn the_server_holds_no_privileges() {
    let (mut host, _, one) = Host::with_one();
    let pid = host.start(&[]);
    assert_eq!(one.ask("one", A), Answer::addresses(&["10.1.0.2"]));
    let server = children(pid);
    let status = fs::read_to_string(format!("/proc/{}/status", server.trim())).unwrap();
    for line in ["Uid:\t65534\t65534", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} in {status}");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.trim())).unwrap();
    assert!(limits.lines().any(|line| line.starts_with("Max core file size        0  ")), "{limits}");
    let steward = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(steward.contains("CapPrm:\t00000000000034c0"), "{steward}");
}
