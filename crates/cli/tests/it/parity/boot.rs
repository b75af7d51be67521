//! What runs again after a boot, and what waits for what.

use super::{Bed, at_both_levels};

at_both_levels!(what_is_wanted_runs_after_a_boot, a_boot_after_a_power_cut, dependencies, conditions);

const NAMES: [&str; 5] = ["always", "always-stopped", "kept", "kept-stopped", "plain"];

fn what_is_wanted_runs_after_a_boot(bed: &Bed) {
    for name in NAMES {
        let policy = match name.split('-').next() {
            Some("always") => "always",
            Some("kept") => "unless-stopped",
            _ => "no",
        };
        bed.detach(name, &["--restart", policy], &["sleep", "1000"]);
    }
    bed.ok(&["stop", "-t", "0", "always-stopped", "kept-stopped"]);
    bed.ok(&[
        "create",
        "--isolation",
        bed.level,
        "--restart",
        "always",
        "--name",
        "fresh",
        "busybox",
        "sleep",
        "9",
    ]);
    // As the host goes down.
    bed.ok(&["system", "stop", "-t", "0"]);
    bed.proa.wait_for("the end of all monitors", || bed.proa.monitors().is_empty());
    let started = bed.ok(&["system", "boot"]);
    assert_eq!(started.lines().collect::<Vec<_>>(), ["always", "always-stopped", "kept"]);
    let running = bed.ok(&["ps", "--format", "{{.Names}}"]);
    let mut running: Vec<&str> = running.lines().collect();
    running.sort_unstable();
    assert_eq!(running, ["always", "always-stopped", "kept"]);
    // Once more changes nothing.
    assert_eq!(bed.ok(&["system", "boot"]), "");
    // For a moment after a start a monitor has a child that looks like it.
    bed.proa.wait_for("three monitors", || bed.proa.monitors().len() == 3);
    bed.ok(&[&["rm", "-f", "fresh"], &NAMES[..]].concat());
}

fn a_boot_after_a_power_cut(bed: &Bed) {
    let id = bed.detach("cut", &["--restart", "unless-stopped"], &["sleep", "1000"]);
    let run = bed.ok(&["info", "--format", "{{.RunRoot}}"]);
    bed.strike("cut", "State.MonitorPid");
    bed.proa.wait_for("the monitor's end", || bed.proa.monitors().is_empty());
    // No boot leaves anything there.
    std::fs::remove_dir_all(format!("{run}/instances/{id}")).unwrap();
    // Looking starts nothing then.
    assert_eq!(bed.field("cut", "State.Status"), "exited");
    assert!(bed.proa.monitors().is_empty());
    assert_eq!(bed.ok(&["system", "boot"]), "cut");
    assert_eq!((bed.field("cut", "State.Status"), bed.restarts("cut")), ("running".into(), 0));
    bed.ok(&["rm", "-f", "cut"]);
}

fn dependencies(bed: &Bed) {
    let run = |flags: &[&str]| {
        bed.proa(&[&["run", "--rm", "--isolation", bed.level], flags, &["busybox", "echo", "up"]].concat())
    };
    let refused = |flags: &[&str], why: &str| {
        let output = run(flags);
        assert!(output.code == 125 && output.stderr.contains(why), "{flags:?}: {output:?}");
    };
    refused(&["--depends-on", "db"], "no such instance: db");
    let line =
        ["--health-cmd", "test -e /root/ready", "--health-interval", "50ms", "--health-retries", "1000"];
    bed.detach("db", &line, &["sleep", "1000"]);
    assert_eq!(run(&["--depends-on", "db"]).stdout, "up\n");
    let waits =
        ["run", "--rm", "--isolation", bed.level, "--depends-on", "db:healthy", "busybox", "echo", "up"];
    let waiting = bed.proa.spawn(&waits);
    bed.proa.wait_for("the one that waits", || bed.ok(&["ps", "-aq"]).lines().count() == 2);
    bed.ok(&["exec", "db", "sh", "-c", "> /root/ready"]);
    assert_eq!(waiting.finish().stdout, "up\n");
    bed.ok(&["stop", "-t", "0", "db"]);
    refused(&["--depends-on", "db:healthy"], "db, which has ended with code 137");
    refused(&["--depends-on", "db:completed"], "db, which has failed with code 137");
    bed.ok(&["rm", "db"]);
    bed.detach("job", &[], &["sh", "-c", "sleep 0.2; exit 0"]);
    assert_eq!(run(&["--depends-on", "job:completed"]).stdout, "up\n");
    refused(&["--depends-on", "job:healthy"], "job, which has no health check");
    refused(&["--depends-on", "job"], "job, which has ended with code 0");
    let fresh = bed.ok(&["ps", "-aq", "--filter", "status=created"]);
    fresh.lines().for_each(|id| _ = bed.ok(&["rm", id]));
    bed.ok(&["rm", "job"]);
}

fn conditions(bed: &Bed) {
    bed.ok(&[
        "create",
        "--isolation",
        bed.level,
        "--name",
        "seen",
        "--health-cmd",
        "true",
        "--health-interval",
        "50ms",
        "busybox",
        "sleep",
        "1000",
    ]);
    assert_eq!(bed.ok(&["wait", "--condition", "created", "seen"]), "0");
    let healthy = bed.proa.spawn(&["wait", "--condition", "healthy", "seen"]);
    let stopped = bed.proa.spawn(&["wait", "--condition", "stopped", "seen"]);
    bed.ok(&["start", "seen"]);
    assert_eq!(healthy.finish().stdout, "-1\n");
    assert_eq!(bed.ok(&["wait", "--condition", "running", "--condition", "paused", "seen"]), "-1");
    bed.ok(&["stop", "-t", "0", "seen"]);
    assert_eq!(stopped.finish().stdout, "137\n");
    let refused = bed.proa(&["wait", "--condition", "well", "seen"]);
    assert!(refused.code != 0 && refused.stderr.contains("well"), "{refused:?}");
    let waiting = bed.proa.spawn(&["wait", "--condition", "running", "seen"]);
    bed.ok(&["rm", "seen"]);
    assert_ne!(waiting.finish().code, 0);
}
