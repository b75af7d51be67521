//! Start, end, state, errors.

use proa_protocol::instance::Status;
use proa_protocol::message::{ErrorKind, Request, Response};

use crate::client::exec;
use crate::fixture::{Fixture, until};

#[test]
fn output_comes_before_the_end_and_the_state_agrees() {
    let mut fixture = Fixture::shell("echo out; echo err >&2; exit 3");
    let mut client = fixture.spawn();
    client.run(false);
    let status = client.exited();
    assert_eq!((status.code, client.text().as_str(), client.stderr.as_slice()), (3, "out\n", &b"err\n"[..]));
    let state = fixture.state();
    assert_eq!((state.status, state.exit_code, state.pid, state.monitor_pid), (Status::Exited, 3, 0, 0));
    assert!(state.started_ns > 0 && state.finished_ns >= state.started_ns);
    assert!(!fixture.run_dir().join("monitor.sock").exists());
    assert_eq!(fixture.log(), [("stdout".into(), "out\n".into()), ("stderr".into(), "err\n".into())]);
    fixture.wait_monitor();
}

#[test]
fn the_lock_is_free_when_the_end_is_told_and_a_second_start_works_at_once() {
    let mut fixture = Fixture::shell("echo run >> /tmp/count; exit $(grep -c run /tmp/count)");
    for run in 1..=3 {
        let mut client = fixture.spawn();
        client.run(false);
        assert_eq!(client.exited().code, run);
        assert_eq!(fixture.state().exit_code, run);
    }
}

#[test]
fn a_signal_ends_with_128_and_its_number() {
    let mut fixture = Fixture::shell("kill -9 $$; sleep 100");
    fixture.process().args = vec!["/bin/sleep".into(), "100".into()];
    let mut client = fixture.spawn();
    client.run(false);
    let state = fixture.state();
    assert_eq!((state.status, state.monitor_pid), (Status::Running, fixture.monitor().id()));
    client.kill();
    assert_eq!(client.exited().code, 137);
}

#[test]
fn a_missing_program_is_told_from_one_that_cannot_run() {
    for (program, kind, code) in [
        ("/bin/nonexistent", ErrorKind::CommandNotFound, 127),
        ("nonexistent", ErrorKind::CommandNotFound, 127),
        ("/etc/passwd", ErrorKind::CommandNotExecutable, 126),
    ] {
        let mut fixture = Fixture::new(&[program]);
        let mut client = fixture.spawn();
        client.attach(false);
        client.send(&Request::Start);
        assert_eq!(client.response(), Response::Ok);
        assert!(client.expect_error(kind).contains(program));
        let state = fixture.state();
        assert_eq!((state.status, state.exit_code), (Status::Created, code), "{program}");
        assert!(state.error.contains(program));
        fixture.wait_monitor();
    }
}

#[test]
fn a_client_that_leaves_before_the_start_ends_the_monitor() {
    let mut fixture = Fixture::shell("true");
    let client = fixture.spawn();
    client.attach(false);
    drop(client);
    fixture.wait_monitor();
    assert!(!fixture.dir().join("state.json").exists());
}

#[test]
fn a_detached_instance_lives_on_and_can_be_waited_for() {
    let mut fixture = Fixture::shell("while [ ! -e /tmp/stop ]; do sleep 0.01; done; exit 5");
    let mut client = fixture.spawn();
    client.send(&Request::Start);
    client.expect_started();
    drop(client);
    let waiter = fixture.connect();
    waiter.send(&Request::Wait);
    let mut toucher = fixture.connect();
    toucher.exec(&["touch", "/tmp/stop"]);
    let mut waiter = waiter;
    assert_eq!(waiter.exited().code, 5);
    fixture.wait_monitor();
}

#[test]
fn a_second_monitor_is_refused() {
    let mut fixture = Fixture::shell("cat");
    fixture.process().args = vec!["/bin/sleep".into(), "100".into()];
    let mut first = fixture.spawn();
    first.run(false);
    let mut second = fixture.spawn();
    second.send(&Request::Start);
    second.expect_error(ErrorKind::Conflict);
    assert_eq!(first.ask(&Request::Start), {
        let message = "the instance is running already".to_owned();
        Response::Error { kind: ErrorKind::Conflict, message }
    });
    assert_eq!(fixture.state().status, Status::Running);
}

#[test]
fn a_broken_configuration_is_told_and_nothing_runs() {
    let mut fixture = Fixture::shell("true");
    fixture.config.layers[0].path = "/nonexistent/layer".into();
    let mut client = fixture.spawn();
    client.send(&Request::Start);
    assert!(client.expect_error(ErrorKind::Internal).contains("/nonexistent/layer"));
    fixture.wait_monitor();
}

#[test]
fn programs_start_with_default_signals_and_no_descriptors_of_ours() {
    let mut fixture = Fixture::shell("grep Sig /proc/self/status; ls /proc/self/fd");
    let mut client = fixture.spawn();
    client.run(false);
    assert_eq!(client.exited().code, 0);
    let text = client.text();
    for line in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"] {
        assert!(text.contains(line), "{text}");
    }
    // ls itself opens the directory as 3.
    let descriptors: Vec<&str> = text.lines().filter(|line| line.parse::<u32>().is_ok()).collect();
    assert_eq!(descriptors, ["0", "1", "2", "3"]);
    let mut exec_client = {
        let mut fixture = Fixture::new(&["/bin/sleep", "100"]);
        fixture.spawn().run(false);
        let mut client = fixture.connect();
        client.exec(&["/bin/sh", "-c", "grep SigIgn /proc/self/status; ls /proc/self/fd"]);
        assert_eq!(client.exited().code, 0);
        client
    };
    assert_eq!(exec_client.text(), "SigIgn:\t0000000000000000\n0\n1\n2\n3\n");
    exec_client.stdout.clear();
}

#[test]
fn pause_is_recorded_and_a_kill_ends_it() {
    let mut fixture = Fixture::new(&["/bin/sleep", "100"]);
    let mut client = fixture.spawn();
    client.run(false);
    let mut other = fixture.connect();
    assert_eq!(other.ask(&Request::Pause), Response::Ok);
    assert_eq!(fixture.state().status, Status::Paused);
    other.send(&Request::Pause);
    other.expect_error(ErrorKind::Conflict);
    other.send(&exec(&["true"], false));
    other.expect_error(ErrorKind::Conflict);
    assert_eq!(other.ask(&Request::Resume), Response::Ok);
    assert_eq!(fixture.state().status, Status::Running);
    assert_eq!(other.ask(&Request::Pause), Response::Ok);
    client.kill();
    assert_eq!(client.exited().code, 137);
}

#[test]
fn statistics_and_processes_are_told() {
    let mut fixture = Fixture::shell("sleep 100 & sleep 101 & wait");
    let mut client = fixture.spawn();
    client.run(false);
    let mut other = fixture.connect();
    until("three processes run", || match other.ask(&Request::Processes) {
        Response::Processes { processes } => {
            processes.iter().filter(|process| process.command.contains("sleep 10")).count() == 3
                || processes.len() == 3
        }
        other => panic!("{other:?}"),
    });
    match other.ask(&Request::Stats) {
        Response::Stats(stats) => assert!(stats.at_ns > 0 && stats.online_cpus > 0),
        other => panic!("{other:?}"),
    }
    client.kill();
    client.exited();
}

#[test]
fn the_reaper_is_left_to_a_connected_owner() {
    let run = |owner_stays: bool| {
        let mut fixture = Fixture::shell("while [ ! -e /tmp/stop ]; do sleep 0.01; done");
        let reaper = fixture.root().join("reaper");
        std::fs::write(&reaper, "#!/bin/sh\necho \"$@\" > \"$2/reaped\"\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&reaper, mode).unwrap();
        fixture.config.auto_remove = true;
        fixture.config.reaper = Some(reaper);
        let mut owner = Some(fixture.spawn());
        owner.as_mut().unwrap().run(false);
        if !owner_stays {
            owner = None;
        }
        let mut other = fixture.connect();
        other.exec(&["touch", "/tmp/stop"]);
        fixture.wait_monitor();
        let reaped = fixture.root().join("reaped");
        if owner.is_none() {
            let expected = format!(
                "--root {} --run {} system reap {}\n",
                fixture.root().display(),
                fixture.run_root().display(),
                fixture.config.id
            );
            until("the reaper ran", || std::fs::read_to_string(&reaped).is_ok_and(|text| text == expected));
        }
        reaped.exists()
    };
    assert!(run(false));
    assert!(!run(true));
}
