//! Namespaces that an instance shares with the host or with another one, and the place of its cgroup.

use super::{Bed, at_both_levels};

at_both_levels!(
    system_vs_objects_of_its_own,
    the_hosts_name,
    the_hosts_view_of_cgroups,
    memory_of_another_instance;
    a_place_for_the_cgroup,
    processes_of_another_instance,
    what_is_shared_ends_with_its_owner;
    processes_of_the_host,
);

/// What a command of the level container prints; the other level refuses it.
fn shared(bed: &Bed, flags: &[&str], command: &[&str]) -> Option<String> {
    if !bed.is_vm() {
        return Some(bed.run_ok(flags, command));
    }
    bed.lacks(&bed.run(flags, command));
    None
}

fn system_vs_objects_of_its_own(bed: &Bed) {
    let mounted = ["sh", "-c", "grep -c /dev/shm /proc/mounts"];
    assert_eq!(bed.run_ok(&["--ipc", "private"], &mounted), "1");
    assert_eq!(bed.run(&["--ipc", "none"], &mounted).stdout, "0\n");
    let refused = bed.run(&["--ipc", "public"], &["true"]);
    assert!(refused.code == 125 && refused.stderr.contains("--ipc"), "{refused:?}");
}

fn the_hosts_name(bed: &Bed) {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let seen = shared(bed, &["--uts", "host"], &["sh", "-c", "hostname; cat /etc/hostname"]);
    assert!(seen.is_none_or(|seen| seen == format!("{host}{}", host.trim_end())));
    let both = bed.run(&["--uts", "host", "-h", "other"], &["true"]);
    assert_eq!(both.code, 125, "{both:?}");
}

fn the_hosts_view_of_cgroups(bed: &Bed) {
    let host = std::fs::read_link("/proc/self/ns/cgroup").unwrap();
    let seen = shared(bed, &["--cgroupns", "host"], &["readlink", "/proc/self/ns/cgroup"]);
    assert!(seen.is_none_or(|seen| host.to_str() == Some(&seen)));
}

/// The other instance's memory and queues, its own where the other one does not share them.
fn memory_of_another_instance(bed: &Bed) {
    let write = ["sh", "-c", "echo shared > /dev/shm/x; exec sleep 1000"];
    let flags: &[&str] = if bed.is_vm() { &[] } else { &["--ipc", "shareable"] };
    bed.detach("first", flags, &write);
    bed.detach("closed", &[], &["sleep", "1000"]);
    let seen = shared(bed, &["--ipc", "container:first"], &["cat", "/dev/shm/x"]);
    assert!(seen.is_none_or(|seen| seen == "shared"));
    let refused = bed.run(&["--ipc", "container:closed"], &["true"]);
    assert_eq!(refused.code, 125, "{refused:?}");
    if !bed.is_vm() {
        assert!(refused.stderr.contains("--ipc shareable"), "{refused:?}");
        bed.ok(&[
            "create",
            "--name",
            "second",
            "--ipc",
            "container:first",
            "busybox",
            "sh",
            "-c",
            "echo new > /dev/shm/y",
        ]);
        // Files of it are worked on whether the other one runs or not.
        bed.ok(&["stop", "-t", "0", "first"]);
        bed.ok(&["cp", "/etc/hostname", "second:/copied"]);
        let gone = bed.proa(&["start", "second"]);
        assert!(gone.code == 1 && gone.stderr.contains("proa start"), "{gone:?}");
        bed.ok(&["start", "first"]);
        bed.ok(&["start", "-a", "second"]);
        assert_eq!(bed.ok(&["exec", "first", "cat", "/dev/shm/y"]), "new");
        bed.ok(&["rm", "second"]);
    }
    bed.ok(&["rm", "-f", "first", "closed"]);
}

fn a_place_for_the_cgroup(bed: &Bed) {
    let parent = format!("/proa-test-{}", std::process::id());
    let own = ["sh", "-c", "cat /proc/self/cgroup"];
    let flags = ["--cgroup-parent", &parent, "--cgroupns", "host"];
    let refused = bed.run(&["--cgroup-parent", "/a/../b"], &["true"]);
    assert_eq!(refused.code, 125, "{refused:?}");
    let seen = shared(bed, if bed.is_vm() { &flags[..2] } else { &flags }, &own);
    if let Some(seen) = seen {
        assert!(seen.contains(&parent), "{seen}");
        bed.detach("placed", &flags[..2], &["sleep", "1000"]);
        assert_eq!(bed.ok(&["inspect", "-f", "{{.HostConfig.CgroupParent}}", "placed"]), parent);
        bed.ok(&["pause", "placed"]);
        bed.ok(&["unpause", "placed"]);
        bed.ok(&["rm", "-f", "placed"]);
        // It is the user's, and stays. Nothing is in it.
        let removed = crate::oracle::remove_cgroup(parent.trim_start_matches('/'));
        assert!(removed > 0 || bed.proa.user().is_some());
    }
}

fn processes_of_another_instance(bed: &Bed) {
    bed.detach("first", &[], &["sleep", "999"]);
    let seen = shared(bed, &["--pid", "container:first"], &["sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline"]);
    assert!(seen.is_none_or(|seen| seen == "sleep 999 "));
    if !bed.is_vm() {
        // Its own processes alone are its own, and end with it.
        bed.detach("second", &["--pid", "container:first"], &["sh", "-c", "sleep 998 & exec sleep 997"]);
        bed.proa.wait_for("both processes", || bed.ok(&["top", "second"]).lines().count() == 3);
        let seen = bed.ok(&["top", "second", "-o", "pid,args"]);
        assert!(seen.contains("sleep 998") && !seen.contains("sleep 999"), "{seen}");
        bed.ok(&["stop", "-t", "0", "second"]);
        let left = bed.ok(&["exec", "first", "ps"]);
        assert!(left.contains("sleep 999") && !left.contains("sleep 998"), "{left}");
        bed.ok(&["rm", "second"]);
    }
    bed.ok(&["rm", "-f", "first"]);
}

fn what_is_shared_ends_with_its_owner(bed: &Bed) {
    bed.detach("first", &[], &["sleep", "1000"]);
    let flags = ["--pid", "container:first"];
    if bed.is_vm() {
        bed.lacks(&bed.run(&flags, &["true"]));
        bed.ok(&["rm", "-f", "first"]);
        return;
    }
    bed.detach("second", &flags, &["sleep", "1000"]);
    bed.ok(&["restart", "-t", "0", "first"]);
    let state = || bed.ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "second"]);
    bed.proa.wait_for("the end of who was in it", || state() == "exited 137");
    // That of the new run is another.
    bed.ok(&["start", "second"]);
    assert_eq!(bed.ok(&["exec", "second", "cat", "/proc/1/comm"]), "sleep");
    bed.ok(&["rm", "-f", "first"]);
    bed.proa.wait_for("the end of who was in it", || state() == "exited 137");
    let gone = bed.proa(&["start", "second"]);
    assert_eq!(gone.code, 1, "{gone:?}");
    bed.ok(&["rm", "second"]);
}

fn processes_of_the_host(bed: &Bed) {
    let own = std::fs::read_link("/proc/self/ns/pid").unwrap();
    let seen = shared(bed, &["--pid", "host"], &["readlink", "/proc/self/ns/pid"]);
    assert!(seen.is_none_or(|seen| own.to_str() == Some(&seen)));
    if bed.is_vm() {
        return;
    }
    // Whoever leaves its parent is found all the same, by a stop and by whoever finds the monitor dead.
    let orphans = ["sh", "-c", "(sleep 998 &); exec sleep 997"];
    bed.detach("wide", &["--pid", "host"], &orphans);
    let id = bed.ok(&["inspect", "-f", "{{.Id}}", "wide"]);
    let left = || !cgroup_is_empty(&id);
    bed.proa.wait_for("both processes", || bed.ok(&["top", "wide"]).lines().count() == 3);
    bed.ok(&["stop", "-t", "0", "wide"]);
    assert!(!left());
    bed.ok(&["start", "wide"]);
    bed.proa.wait_for("both processes", || bed.ok(&["top", "wide"]).lines().count() == 3);
    let monitor: i32 = bed.ok(&["inspect", "-f", "{{.State.MonitorPid}}", "wide"]).parse().unwrap();
    let monitor = rustix::process::Pid::from_raw(monitor).unwrap();
    rustix::process::kill_process(monitor, rustix::process::Signal::KILL).unwrap();
    let state = || bed.ok(&["inspect", "-f", "{{.State.Status}}", "wide"]);
    bed.proa.wait_for("the end", || state() == "exited");
    assert!(!left());
    bed.ok(&["rm", "wide"]);
}

/// Whether nobody is in the cgroup of an instance.
fn cgroup_is_empty(id: &str) -> bool {
    let mount = std::path::Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(mount).unwrap().flatten().map(|entry| entry.path());
    hierarchies.chain([mount.to_owned()]).all(|hierarchy| {
        let procs = std::fs::read_to_string(hierarchy.join("proa").join(id).join("cgroup.procs"));
        procs.unwrap_or_default().is_empty()
    })
}
