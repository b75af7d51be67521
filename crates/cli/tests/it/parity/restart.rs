//! Restart policies, at each level: who is told what, what ends the restarting, and who begins it anew.

use super::{Bed, at_both_levels};

at_both_levels!(
    failures_are_counted_and_told,
    commands_between_two_runs,
    who_is_stopped_stays_down,
    a_lost_first_process_or_guest_is_a_failure,
    a_killed_monitor_is_replaced_by_who_looks,
    a_killed_monitor_of_a_stopped_one_is_not,
    policies_can_be_changed,
    many_restarts_leave_nothing,
);

impl Bed {
    pub fn field(&self, name: &str, field: &str) -> String {
        self.ok(&["inspect", "--format", &format!("{{{{.{field}}}}}"), name])
    }

    pub fn wait_status(&self, name: &str, status: &str) {
        self.proa.wait_for(status, || self.field(name, "State.Status") == status);
    }

    pub fn restarts(&self, name: &str) -> u32 {
        self.field(name, "RestartCount").parse().unwrap()
    }

    /// Ends a process of the instance's by force: its monitor, or what carries it.
    pub fn strike(&self, name: &str, field: &str) {
        let pid: i32 = self.field(name, field).parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
}

fn failures_are_counted_and_told(bed: &Bed) {
    let run = ["run", "--isolation", bed.level, "--name", "failing", "--restart", "on-failure:2"];
    let command = ["busybox", "sh", "-c", "echo run; exit 3"];
    // Who is attached sees one run, as in Docker.
    let first = bed.proa(&[&run[..], &command].concat());
    assert_eq!((first.code, first.stdout.as_str()), (3, "run\n"), "{first:?}");
    let follower = bed.proa.spawn(&["logs", "-f", "failing"]);
    bed.wait_status("failing", "exited");
    assert_eq!(follower.finish().stdout, "run\n".repeat(3));
    assert_eq!((bed.restarts("failing"), bed.field("failing", "State.ExitCode")), (2, "3".into()));
    assert_eq!(bed.field("failing", "HostConfig.RestartPolicy.Name"), "on-failure");
    assert_eq!(bed.field("failing", "HostConfig.RestartPolicy.MaximumRetryCount"), "2");
    let told = ["events", "--since", "1", "--until", "0s", "--format", "{{.Action}}"];
    let told: Vec<String> = bed.ok(&told).lines().map(str::to_owned).collect();
    let runs = ["connect", "start", "die", "disconnect"].into_iter().cycle().take(12);
    assert!(told.ends_with(&runs.map(str::to_owned).collect::<Vec<_>>()), "{told:?}");
    // A user's start begins anew.
    assert_eq!(bed.proa(&["start", "-a", "failing"]).code, 3);
    bed.proa.wait_for("both restarts", || bed.restarts("failing") == 2);
    bed.ok(&["rm", "-f", "failing"]);
    // A program that ends well is done.
    let well =
        ["run", "--isolation", bed.level, "--name", "well", "--restart", "on-failure", "busybox", "true"];
    assert_eq!(bed.proa(&well).code, 0);
    assert_eq!((bed.field("well", "State.Status"), bed.restarts("well")), ("exited".into(), 0));
    bed.ok(&["rm", "well"]);
}

/// An instance that waits to be run again, and will for a while.
fn restarting(bed: &Bed, name: &str) {
    bed.detach(name, &["--restart", "always"], &["sh", "-c", "exit 7"]);
    bed.proa.wait_for("a long wait", || {
        bed.restarts(name) >= 5 && bed.field(name, "State.Status") == "restarting"
    });
}

fn commands_between_two_runs(bed: &Bed) {
    restarting(bed, "again");
    let state =
        bed.ok(&["inspect", "--format", "{{.State.Running}} {{.State.Restarting}} {{.State.Pid}}", "again"]);
    assert_eq!(state, "true true 0");
    assert!(bed.ok(&["ps", "--format", "{{.Status}}"]).starts_with("Restarting (7) "));
    assert_eq!(bed.ok(&["ps", "-q", "--filter", "status=restarting"]).lines().count(), 1);
    for arguments in
        [&["exec", "again", "true"][..], &["attach", "again"], &["pause", "again"], &["rm", "again"]]
    {
        let refused = bed.proa(arguments);
        assert_ne!(refused.code, 0, "{arguments:?}: {refused:?}");
        assert!(refused.stderr.contains("again") || refused.stderr.contains("restarting"), "{refused:?}");
    }
    // It runs already, as far as Docker is concerned.
    bed.ok(&["start", "again"]);
    assert_eq!(bed.proa(&["wait", "again"]).stdout, "7\n");
    bed.ok(&["rm", "-f", "again"]);
    assert_eq!(bed.ok(&["ps", "-aq"]), "");
}

fn who_is_stopped_stays_down(bed: &Bed) {
    for end in [&["stop", "again"][..], &["kill", "again"], &["kill", "-s", "TERM", "again"]] {
        restarting(bed, "again");
        bed.ok(end);
        bed.wait_status("again", "exited");
        bed.proa.wait_for("the monitor's end", || bed.proa.monitors().is_empty());
        assert_eq!(
            (bed.field("again", "State.ExitCode"), bed.field("again", "State.Restarting")),
            ("7".into(), "false".into())
        );
        bed.ok(&["rm", "again"]);
    }
    // The same of one that runs, by whatever asks it to end.
    for (name, end) in [("stopped", &["stop", "-t", "0", "stopped"][..]), ("killed", &["kill", "killed"])] {
        bed.detach(name, &["--restart", "unless-stopped"], &["sleep", "1000"]);
        bed.ok(end);
        bed.proa.wait_for("the monitor's end", || bed.proa.monitors().is_empty());
        assert_eq!((bed.field(name, "State.Status"), bed.restarts(name)), ("exited".into(), 0));
        bed.ok(&["rm", name]);
    }
    // Another signal asks for nothing of the kind.
    let script = "trap 'exit 5' HUP; echo ready; while :; do sleep 0.05; done";
    bed.detach("reloaded", &["--restart", "always"], &["sh", "-c", script]);
    bed.proa.wait_for("ready", || bed.ok(&["logs", "reloaded"]).contains("ready"));
    bed.ok(&["kill", "-s", "HUP", "reloaded"]);
    bed.proa.wait_for("the restart", || bed.restarts("reloaded") == 1);
    bed.ok(&["restart", "-t", "0", "reloaded"]);
    assert_eq!((bed.field("reloaded", "State.Status"), bed.restarts("reloaded")), ("running".into(), 0));
    bed.ok(&["rm", "-f", "reloaded"]);
}

fn a_lost_first_process_or_guest_is_a_failure(bed: &Bed) {
    bed.detach("lost", &["--restart", "on-failure"], &["sleep", "1000"]);
    for count in 1..=2 {
        bed.strike("lost", "State.Pid");
        bed.proa.wait_for("the restart", || bed.restarts("lost") == count);
        bed.wait_status("lost", "running");
        assert_eq!(bed.restarts("lost"), count);
    }
    assert_eq!(bed.ok(&["exec", "lost", "echo", "alive"]), "alive");
    bed.ok(&["rm", "-f", "lost"]);
}

fn a_killed_monitor_is_replaced_by_who_looks(bed: &Bed) {
    bed.detach("kept", &["--restart", "always"], &["sleep", "1000"]);
    bed.strike("kept", "State.MonitorPid");
    // Of many that look at once one starts it, once.
    let looks: Vec<_> = (0..4).map(|_| bed.proa.spawn(&["ps", "-a"])).collect();
    assert!(looks.into_iter().all(|look| look.finish().code == 0));
    bed.wait_status("kept", "running");
    assert_eq!(bed.restarts("kept"), 1);
    // For a moment after a start a monitor has a child that looks like it.
    bed.proa.wait_for("one monitor", || bed.proa.monitors().len() == 1);
    assert_eq!(bed.ok(&["exec", "kept", "echo", "alive"]), "alive");
    bed.ok(&["rm", "-f", "kept"]);
    // Killed while it waits: what was decided holds.
    restarting(bed, "waiting");
    let before = bed.restarts("waiting");
    bed.strike("waiting", "State.MonitorPid");
    bed.proa.wait_for("another run", || bed.restarts("waiting") > before);
    bed.strike("waiting", "State.MonitorPid");
    bed.ok(&["rm", "-f", "waiting"]);
}

fn a_killed_monitor_of_a_stopped_one_is_not(bed: &Bed) {
    let script = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    bed.detach("stubborn", &["--restart", "always"], &["sh", "-c", script]);
    bed.proa.wait_for("ready", || bed.ok(&["logs", "stubborn"]).contains("ready"));
    bed.ok(&["kill", "-s", "TERM", "stubborn"]);
    bed.strike("stubborn", "State.MonitorPid");
    bed.wait_status("stubborn", "exited");
    assert_eq!((bed.field("stubborn", "State.ExitCode"), bed.restarts("stubborn")), ("137".into(), 0));
    bed.ok(&["rm", "stubborn"]);
    let passing =
        bed.proa(&["run", "--rm", "--restart", "always", "--isolation", bed.level, "busybox", "true"]);
    assert_eq!(passing.code, 125, "{passing:?}");
    assert!(passing.stderr.contains("--rm"), "{passing:?}");
}

fn policies_can_be_changed(bed: &Bed) {
    bed.detach("changed", &[], &["true"]);
    bed.wait_status("changed", "exited");
    bed.ok(&["update", "--restart", "on-failure:1", "changed"]);
    assert_eq!(bed.field("changed", "HostConfig.RestartPolicy.Name"), "on-failure");
    bed.ok(&["rm", "changed"]);
    // While it runs, it holds for that very run.
    bed.detach("live", &["--restart", "always"], &["sleep", "1000"]);
    bed.ok(&["update", "--restart", "no", "live"]);
    bed.strike("live", "State.Pid");
    bed.wait_status("live", "exited");
    bed.ok(&["start", "live"]);
    bed.ok(&["update", "--restart", "unless-stopped", "live"]);
    bed.strike("live", "State.Pid");
    bed.proa.wait_for("the restart", || bed.restarts("live") == 1);
    bed.ok(&["rm", "-f", "live"]);
    let refused = bed.proa(&["update", "--restart", "always:2", "live"]);
    assert_ne!(refused.code, 0, "{refused:?}");
}

/// What is left is found when the bed goes.
fn many_restarts_leave_nothing(bed: &Bed) {
    let rounds = if bed.is_vm() { 12 } else { 50 };
    bed.detach("phoenix", &["--restart", "always"], &["sleep", "1000"]);
    for round in 1..=rounds {
        // A new monitor begins with the shortest wait.
        bed.strike("phoenix", "State.MonitorPid");
        bed.proa.wait_for("the next run", || {
            // In one look: between two the one monitor may die and the next begin.
            let seen = bed.ok(&["inspect", "--format", "{{.State.Status}} {{.RestartCount}}", "phoenix"]);
            seen == format!("running {round}")
        });
    }
    bed.proa.wait_for("one monitor", || bed.proa.monitors().len() == 1);
    bed.ok(&["stop", "-t", "0", "phoenix"]);
    bed.ok(&["rm", "phoenix"]);
}
