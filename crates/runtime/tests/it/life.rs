//! The life of a container: created, started, joined, paused, signalled, deleted.

use std::os::fd::AsFd;

use proa_oci::defaults::{capability_sets, default_capabilities};
use proa_oci::runtime::{ConsoleSize, Process};
use proa_protocol::message::ErrorKind;
use proa_runtime::{Container, Owners, Stdio, archive};

use crate::support::{Fixture, fd, finish, read_all, read_until, tempdir, wait_readable};
use crate::{allocations, live_bytes};

crate::tests![
    created_is_not_started,
    created_and_started_at_once,
    exec_joins_everything,
    exec_with_a_terminal,
    exec_failures_have_sorts,
    sharing_exec_joins_everything,
    sharing_exec_with_a_terminal,
    sharing_exec_failures_have_sorts,
    sharing_leaves_nothing_in_memory,
    processes_and_stats,
    paused_and_resumed,
    signals_to_one_and_to_all,
    deleting_ends_everything,
    joining_the_cgroup_late,
    files_go_in_and_out,
    a_parent_that_dies_takes_what_waits_with_it,
];

fn sleeper() -> (Fixture, Container, proa_runtime::Handles) {
    sleeper_of(false)
}

fn sleeper_of(shares_memory: bool) -> (Fixture, Container, proa_runtime::Handles) {
    let mut fixture =
        Fixture::shell("sleep 100 & until grep -q ^sleep /proc/$!/cmdline; do :; done; echo up; wait");
    fixture.shares_memory = shares_memory;
    let (container, handles) = fixture.start();
    read_until(fd(&handles.stdout), "up\n");
    (fixture, container, handles)
}

fn process(args: &[&str]) -> Process {
    Process {
        args: args.iter().map(ToString::to_string).collect(),
        env: vec!["PATH=/bin".into()],
        cwd: "/".into(),
        capabilities: Some(capability_sets(default_capabilities())),
        ..Process::default()
    }
}

/// Runs a process to its end: code and output.
fn exec(container: &mut Container, process: &Process, user: &str) -> (i32, String) {
    let (child, handles) = container.exec(process, user, Stdio::Pipes { stdin: false }).unwrap();
    let out = read_all(handles.stdout.unwrap());
    wait_readable(child.pidfd.as_fd());
    (child.try_wait().unwrap().unwrap(), out)
}

fn created_is_not_started() {
    let fixture = Fixture::shell("echo ran");
    let (mut container, handles) = fixture.create().unwrap();
    assert!(!fixture.upper().join("ran").exists());
    assert!(container.pid() > 0);
    // The root is there to copy into.
    let root = container.root().unwrap();
    assert_eq!(archive::stat(root.as_fd(), "/etc/passwd").unwrap().name, "passwd");
    container.start().unwrap();
    assert_eq!(container.start().unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(finish(container, handles).stdout, "ran\n");
    let (container, _handles) = fixture.create().unwrap();
    container.delete().unwrap();
}

fn created_and_started_at_once() {
    let (container, handles) = Fixture::shell("echo ran").create_and_run().unwrap();
    assert!(container.mount_namespace().is_some());
    assert_eq!(finish(container, handles).stdout, "ran\n");
    let kind = |fixture: Fixture| fixture.create_and_run().map(drop).unwrap_err().kind();
    assert_eq!(kind(Fixture::program(&["nothing"])), ErrorKind::CommandNotFound);
    assert_eq!(kind(Fixture::program(&["/etc"])), ErrorKind::CommandNotExecutable);
    assert_eq!(kind(Fixture::shell("true").user("nobody")), ErrorKind::InvalidInput);
    let mut fixture = Fixture::shell("tty");
    fixture.stdio = Stdio::Terminal(ConsoleSize::default());
    let (container, handles) = fixture.create_and_run().unwrap();
    read_until(fd(&handles.terminal), "/dev/pts/0");
    wait_readable(container.pidfd());
    container.delete().unwrap();
}

fn exec_joins_everything() {
    joins_everything(sleeper());
}

fn sharing_exec_joins_everything() {
    joins_everything(sleeper_of(true));
}

fn joins_everything((_fixture, mut container, handles): (Fixture, Container, proa_runtime::Handles)) {
    let script = "for n in mnt net uts pid ipc cgroup; do readlink /proc/self/ns/$n; readlink /proc/1/ns/$n; done | sort | uniq -c | grep -c ' 2 '
        hostname; pwd; grep CapEff /proc/self/status; grep Seccomp: /proc/self/status; test $$ -gt 1 && echo pid";
    let (code, out) = exec(&mut container, &process(&["sh", "-c", script]), "");
    assert_eq!(code, 0, "{out}");
    assert_eq!(out, "6\ntesthost\n/\nCapEff:\t00000000a80425fb\nSeccomp:\t2\npid\n");
    let (_, out) = exec(&mut container, &process(&["id"]), "web");
    assert!(out.starts_with("uid=33(web)"), "{out}");
    // Ours are as they were.
    assert_eq!(
        std::fs::read_link("/proc/self/ns/pid").unwrap(),
        std::fs::read_link("/proc/self/ns/pid_for_children").unwrap()
    );
    for code in [0, 5] {
        assert_eq!(exec(&mut container, &process(&["sh", "-c", &format!("exit {code}")]), "").0, code);
    }
    container.delete().unwrap();
    drop(handles);
}

fn exec_with_a_terminal() {
    has_a_terminal(sleeper());
}

fn sharing_exec_with_a_terminal() {
    has_a_terminal(sleeper_of(true));
}

fn has_a_terminal((_fixture, mut container, _handles): (Fixture, Container, proa_runtime::Handles)) {
    let mut shell = process(&["sh", "-c", "tty; stty size; cat"]);
    shell.terminal = true;
    let size = ConsoleSize { height: 10, width: 20 };
    let (child, handles) = container.exec(&shell, "web", Stdio::Terminal(size)).unwrap();
    let terminal = fd(&handles.terminal);
    assert_eq!(read_until(terminal, "10 20\r\n"), "/dev/pts/0\r\n10 20\r\n");
    rustix::io::write(terminal, b"\x04").unwrap();
    wait_readable(child.pidfd.as_fd());
    assert_eq!(child.try_wait().unwrap(), Some(0));
    container.delete().unwrap();
}

fn exec_failures_have_sorts() {
    failures_have_sorts(sleeper());
}

fn sharing_exec_failures_have_sorts() {
    failures_have_sorts(sleeper_of(true));
}

/// What processes have allocated in memory that was ours as well is freed, whether their program runs or not.
fn sharing_leaves_nothing_in_memory() {
    let (_fixture, mut container, _handles) = sleeper_of(true);
    let mut run = |times: usize| {
        for _ in 0..times {
            assert_eq!(exec(&mut container, &process(&["true"]), "web").0, 0);
            assert!(container.exec(&process(&["nothing"]), "", Stdio::Null).is_err());
            assert!(container.exec(&process(&["true"]), "nobody", Stdio::Null).is_err());
        }
        live_bytes()
    };
    let before = run(10);
    assert_eq!(run(20), before);
    // What the process allocates is allocated here, where a copy's is not.
    let made_by_exec = |container: &mut Container| {
        let before = allocations();
        exec(container, &process(&["true"]), "");
        allocations() - before
    };
    let (_copied_fixture, mut copied, _copied_handles) = sleeper();
    assert!(made_by_exec(&mut container) > made_by_exec(&mut copied));
    copied.delete().unwrap();
    container.delete().unwrap();
}

fn failures_have_sorts((_fixture, mut container, _handles): (Fixture, Container, proa_runtime::Handles)) {
    let mut fails =
        |process: &Process, user: &str| container.exec(process, user, Stdio::Null).map(drop).unwrap_err();
    assert_eq!(fails(&process(&["nothing"]), "").kind(), ErrorKind::CommandNotFound);
    assert_eq!(fails(&process(&["/etc"]), "").kind(), ErrorKind::CommandNotExecutable);
    assert!(fails(&process(&["sh"]), "nobody").to_string().contains("'nobody'"));
    assert!(
        fails(&Process { cwd: "/etc/passwd".into(), ..process(&["sh"]) }, "")
            .to_string()
            .contains("working directory")
    );
    container.delete().unwrap();
}

fn processes_and_stats() {
    let (_fixture, mut container, _handles) = sleeper();
    let (child, _child_handles) = container.exec(&process(&["sleep", "200"]), "web", Stdio::Null).unwrap();
    for joined in [false, true] {
        let processes = container.processes().unwrap();
        let commands: Vec<_> = processes.iter().map(|process| process.command.as_str()).collect();
        assert_eq!(processes.len(), 3, "{commands:?}");
        assert!(commands.contains(&"sleep 100") && commands.contains(&"sleep 200"), "{commands:?}");
        assert!(processes.iter().any(|process| process.uid == 33 && process.pid == child.pid));
        let stats = container.stats().unwrap();
        assert!(stats.online_cpus > 0 && stats.memory_usage.is_some(), "{stats:?}");
        assert_eq!(stats.pids, Some(3), "joined: {joined}");
        container.join_cgroup_late().unwrap();
    }
    container.delete().unwrap();
}

fn paused_and_resumed() {
    let (fixture, mut container, handles) = sleeper();
    let (_child, _) = container
        .exec(&process(&["sh", "-c", "while :; do echo x >> /ticks; done"]), "", Stdio::Null)
        .unwrap();
    let ticks = fixture.upper().join("ticks");
    while std::fs::metadata(&ticks).is_err() {
        std::thread::yield_now();
    }
    container.pause().unwrap();
    let size = || std::fs::metadata(&ticks).unwrap().len();
    let frozen = size();
    for _ in 0..1000 {
        std::thread::yield_now();
    }
    assert_eq!(size(), frozen);
    container.resume().unwrap();
    while size() == frozen {
        std::thread::yield_now();
    }
    // A paused container can be deleted.
    container.pause().unwrap();
    container.delete().unwrap();
    drop(handles);
}

fn signals_to_one_and_to_all() {
    let fixture = Fixture::shell(
        "trap 'echo got' USR1; (trap 'echo child; exit' USR1; echo up; while :; do sleep 0.01; done) & echo up; while :; do sleep 0.01; done",
    );
    let (container, handles) = fixture.start();
    let out = fd(&handles.stdout);
    let mut seen = read_until(out, "up\n");
    while seen.matches("up").count() < 2 {
        seen += &read_until(out, "\n");
    }
    container.signal(10, false).unwrap();
    assert_eq!(read_until(out, "\n"), "got\n");
    container.signal(10, true).unwrap();
    let mut seen = String::new();
    while !(seen.contains("got") && seen.contains("child")) {
        seen += &read_until(out, "\n");
    }
    assert_eq!(container.signal(99, false).unwrap_err().kind(), ErrorKind::InvalidInput);
    container.signal(9, true).unwrap();
    assert_eq!(finish(container, handles).code, 137);
}

fn deleting_ends_everything() {
    let (_fixture, mut container, _handles) = sleeper();
    let (child, _) = container
        .exec(&process(&["sh", "-c", "trap '' TERM; sleep 300 & sleep 300"]), "", Stdio::Null)
        .unwrap();
    container.join_cgroup_late().unwrap();
    container.delete().unwrap();
    // Reaped, too.
    assert!(child.try_wait().is_err());
}

fn joining_the_cgroup_late() {
    let (fixture, mut container, _handles) = sleeper();
    let root = std::path::Path::new("/sys/fs/cgroup");
    let is_v2 = root.join("cgroup.controllers").exists();
    let group = if is_v2 { root.join("proa") } else { root.join("pids/proa") }.join(&fixture.id);
    let members = || std::fs::read_to_string(group.join("cgroup.procs")).unwrap().lines().count();
    // On v2 it is joined by the fork itself.
    assert_eq!(group.exists(), is_v2);
    container.join_cgroup_late().unwrap();
    assert_eq!(members(), 2);
    // What they held before is not charged there, and told all the same.
    assert!(container.stats().unwrap().memory_usage > Some(100_000));
    let (_child, _) = container.exec(&process(&["sleep", "300"]), "", Stdio::Null).unwrap();
    container.join_cgroup_late().unwrap();
    assert_eq!(members(), 3);
    container.delete().unwrap();
    assert!(!group.exists());
}

fn files_go_in_and_out() {
    let volume = tempdir();
    let source = volume.path().to_str().unwrap().to_owned();
    let fixture = Fixture::shell("echo up; read x; cat /volume/new; sleep 100").with(|spec| {
        spec.mounts.push(proa_oci::runtime::Mount {
            destination: "/volume".into(),
            kind: Some("bind".into()),
            source: Some(source),
            options: vec!["rbind".into()],
            ..Default::default()
        });
    });
    let (container, handles) = fixture.start();
    read_until(fd(&handles.stdout), "up\n");
    let root = container.root().unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, "new", &b"data\n"[..]).unwrap();
    archive::put(root.as_fd(), "/volume", &mut tar.into_inner().unwrap().as_slice(), false).unwrap();
    assert_eq!(std::fs::read_to_string(volume.path().join("new")).unwrap(), "data\n");
    rustix::io::write(fd(&handles.stdin), b"\n").unwrap();
    read_until(fd(&handles.stdout), "data\n");
    let mut out = Vec::new();
    archive::get(root.as_fd(), "/", &mut out).unwrap();
    let mut archive = tar::Archive::new(out.as_slice());
    let names: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert!(names.iter().any(|name| name.ends_with("volume/new")), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("proc/sys")), "the kernel's file systems are left out");
    container.delete().unwrap();
    let mountpoints: Vec<&str> = fixture.spec.mounts.iter().map(|mount| mount.destination.as_str()).collect();
    let changes = proa_runtime::changes::changes(
        &fixture.upper(),
        &[fixture.lower()],
        &mountpoints,
        &Owners::default(),
    )
    .unwrap();
    assert!(changes.is_empty(), "{changes:?}");
}

fn a_parent_that_dies_takes_what_waits_with_it() {
    let fixture = Fixture::shell("sleep 100");
    let (container, _handles) = fixture.create().unwrap();
    let pidfd = container.pidfd().try_clone_to_owned().unwrap();
    // As if we were killed: our end of the channel closes, nothing else is done.
    drop(container);
    wait_readable(pidfd.as_fd());
    let end = rustix::process::waitid(
        rustix::process::WaitId::PidFd(pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    );
    assert_eq!(end.unwrap().unwrap().exit_status(), Some(125));
    // Its cgroup, which on v2 it had already, is for whoever repairs.
    proa_runtime::remove_leftovers(&fixture.id, &fixture.spec, proa_runtime::CgroupPolicy::Auto).unwrap();
}
