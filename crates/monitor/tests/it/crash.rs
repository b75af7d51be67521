//! Monitors that are killed, and what repairs after them.

use std::path::Path;

use proa_protocol::instance::Status;
use proa_protocol::message::{Request, Response};

use crate::client::{Client, exec};
use crate::fixture::{Fixture, until};

fn running(pid: u32) -> bool {
    // A zombie waits for whoever inherited it, and runs no more.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with('Z'))
}

#[test]
fn a_killed_monitor_takes_the_instance_along_and_repair_finishes_the_state() {
    let mut fixture = Fixture::shell("sleep 100 & sleep 100");
    let mut client = fixture.spawn();
    client.run(false);
    let pid = fixture.pid();
    fixture.monitor().kill().unwrap();
    fixture.wait_monitor();
    until("the first process is gone", || !running(pid));
    assert_eq!(fixture.state().status, Status::Running);
    fixture.repair();
    let state = fixture.state();
    assert_eq!((state.status, state.exit_code, state.pid), (Status::Exited, 137, 0));
    assert!(state.finished_ns >= state.started_ns && !state.error.is_empty());
    assert!(!fixture.run_dir().join("monitor.sock").exists());
    // Once more changes nothing.
    fixture.repair();
    assert_eq!(fixture.state(), state);
}

#[test]
fn a_killed_monitor_takes_along_what_exec_runs() {
    let mut fixture = Fixture::new(&["/bin/sleep", "100"]);
    fixture.spawn().run(false);
    let mut client = fixture.connect();
    client.send(&exec(&["/bin/sleep", "1000"], false));
    let pid = client.expect_started();
    fixture.monitor().kill().unwrap();
    until("the further process is gone", || !running(pid));
    fixture.repair();
}

#[test]
fn the_next_start_repairs_by_itself() {
    let mut fixture = Fixture::new(&["/bin/sleep", "100"]);
    // A limit: its cgroup stays behind.
    let linux = fixture.config.spec.linux_mut();
    linux.resources.get_or_insert_default().pids = Some(proa_oci::runtime::Pids { limit: 50 });
    fixture.spawn().run(false);
    let pid = fixture.pid();
    fixture.monitor().kill().unwrap();
    fixture.wait_monitor();
    let mut client = fixture.spawn();
    client.run(false);
    assert_ne!(fixture.pid(), pid);
    assert!(!running(pid));
    client.kill();
    assert_eq!(client.exited().code, 137);
}

#[test]
fn repair_leaves_a_living_monitor_alone() {
    let mut fixture = Fixture::new(&["/bin/sleep", "100"]);
    let mut client = fixture.spawn();
    client.run(false);
    fixture.repair();
    assert_eq!(fixture.state().status, Status::Running);
    client.kill();
    assert_eq!(client.exited().code, 137);
}

#[test]
fn signals_meant_for_programs_do_not_end_a_monitor() {
    let mut fixture = Fixture::new(&["/bin/sleep", "100"]);
    let mut client = fixture.spawn();
    client.run(false);
    let monitor = rustix::process::Pid::from_child(fixture.monitor());
    use rustix::process::Signal;
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        rustix::process::kill_process(monitor, signal).unwrap();
    }
    let mut other = fixture.connect();
    assert!(matches!(other.ask(&Request::Stat { path: "/".into() }), Response::Stat(_)));
    client.kill();
    assert_eq!(client.exited().code, 137);
}

#[test]
fn killed_at_any_moment_of_a_start_nothing_is_left() {
    for delay_us in (0..40).map(|step| step * 250) {
        let mut fixture = Fixture::shell("sleep 100");
        let client = fixture.spawn();
        client.attach(false);
        client.send(&Request::Start);
        std::thread::sleep(std::time::Duration::from_micros(delay_us));
        fixture.monitor().kill().unwrap();
        fixture.wait_monitor();
        fixture.repair();
        if Path::new(&fixture.dir().join("state.json")).exists() {
            assert_ne!(fixture.state().status, Status::Running);
        }
        // Dropping the fixture looks for what is left.
    }
}

#[test]
fn who_waits_for_the_end_of_a_monitor_that_lost_its_client_does_not_put_it_off() {
    for mode in [&[][..], &["--maintenance"]] {
        let mut fixture = Fixture::new(&["/bin/sleep", "100"]);
        let mut client = fixture.spawn_with(mode);
        let refused = |client: &mut Client| {
            assert!(matches!(client.ask(&Request::Pause), Response::Error { .. }));
        };
        // It listens when it answers, and takes one connection with each further request at the latest.
        refused(&mut client);
        let mut silent = fixture.connect();
        let mut waiting = fixture.connect();
        waiting.send(&Request::Wait);
        refused(&mut client);
        refused(&mut client);
        drop(client);
        while silent.next().is_some() {}
        while waiting.next().is_some() {}
        fixture.wait_monitor();
    }
}
