//! What a monitor costs, and what it leaks.

use proa_protocol::message::Request;

use crate::client::exec;
use crate::fixture::{Fixture, until};
use crate::streams::private_dirty;

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn clients_and_execs_leave_no_descriptors_and_no_children() {
    let mut fixture = Fixture::new(&["/bin/sleep", "100"]);
    let mut first = fixture.spawn();
    first.run(false);
    let monitor = fixture.monitor().id();
    let once = |fixture: &Fixture| {
        let mut client = fixture.connect();
        client.exec(&["/bin/true"]);
        assert_eq!(client.exited().code, 0);
        let mut client = fixture.connect();
        client.ask(&Request::Stat { path: "/".into() });
        client.ask(&Request::Stats);
        let dropped = fixture.connect();
        dropped.send(&exec(&["/bin/true"], true));
    };
    once(&fixture);
    let settled = || {
        let children = std::fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children")).unwrap();
        (children.split_whitespace().count() == 1).then(|| descriptors(monitor))
    };
    let mut before = None;
    until("the first round is over", || {
        before = settled();
        before.is_some()
    });
    for _ in 0..20 {
        once(&fixture);
    }
    until("all is as before", || settled().is_some_and(|now| Some(now) <= before));
    first.kill();
    first.exited();
}

#[test]
fn an_idle_monitor_is_small() {
    let mut fixture = Fixture::shell("seq 1 100000; echo end; sleep 100");
    let mut client = fixture.spawn();
    client.run(false);
    client.read_until("end\n");
    let monitor = fixture.monitor().id();
    // An unoptimized, dynamically linked build; the release's bar is half a megabyte.
    until("free memory is returned", || private_dirty(monitor) < 1 << 20);
    client.kill();
    client.exited();
}

#[test]
fn processes_get_into_the_cgroup_and_nobody_waits_for_it() {
    let mut fixture = Fixture::new(&["/bin/sleep", "100"]);
    let mut first = fixture.spawn();
    first.run(false);
    let in_cgroup = |pid: u32| {
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        cgroups.contains(&fixture.config.id)
    };
    let mut client = fixture.connect();
    client.send(&exec(&["/bin/sleep", "100"], false));
    let further = client.expect_started();
    until("both are in the cgroup", || in_cgroup(fixture.pid()) && in_cgroup(further));
    // Once more, for a process that comes when the cgroup is there.
    let mut client = fixture.connect();
    client.send(&exec(&["/bin/sleep", "100"], false));
    let further = client.expect_started();
    until("the next is in the cgroup, too", || in_cgroup(further));
    first.kill();
    assert_eq!(first.exited().code, 137);
}
