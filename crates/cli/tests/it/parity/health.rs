//! Health checks, at each level.

use super::{Bed, at_both_levels};

at_both_levels!(
    well_and_not_well,
    checks_that_harm_nobody,
    the_images_check,
    the_unhealthy_are_ended,
    checks_begin_anew_with_each_run;
    the_frozen_are_not_checked
);

/// Checks as often as can be.
const OFTEN: [&str; 4] = ["--health-interval", "50ms", "--health-retries", "2"];

impl Bed {
    fn health(&self, name: &str) -> String {
        self.ok(&["inspect", "--format", "{{.State.Health.Status}}", name])
    }

    fn wait_health(&self, name: &str, status: &str) {
        self.proa.wait_for(status, || self.health(name) == status);
    }

    /// The checks that are remembered.
    fn checks(&self, name: &str) -> Vec<serde_json::Value> {
        let log = self.ok(&["inspect", "--format", "{{json .State.Health.Log}}", name]);
        serde_json::from_str(&log).unwrap()
    }

    fn checked(&self, name: &str, line: &str, flags: &[&str], command: &[&str]) {
        self.detach(name, &[&["--health-cmd", line], &OFTEN[..], flags].concat(), command);
    }
}

fn well_and_not_well(bed: &Bed) {
    let line = "cat /root/ok || exit 3";
    bed.checked("web", line, &[], &["sleep", "1000"]);
    bed.wait_health("web", "unhealthy");
    assert!(bed.ok(&["ps", "--format", "{{.Status}}"]).ends_with(" (unhealthy)"));
    let last = bed.checks("web").pop().unwrap();
    assert_eq!(last["ExitCode"], 3);
    assert!(last["Output"].as_str().unwrap().contains("/root/ok"), "{last}");
    assert!(last["Start"].as_str() < last["End"].as_str(), "{last}");
    bed.ok(&["exec", "web", "sh", "-c", "echo fine > /root/ok"]);
    bed.wait_health("web", "healthy");
    assert_eq!(bed.ok(&["inspect", "--format", "{{.State.Health.FailingStreak}}", "web"]), "0");
    assert_eq!(bed.checks("web").last().unwrap()["Output"], "fine\n");
    bed.proa.wait_for("more checks than are kept", || {
        bed.checks("web").iter().filter(|check| check["ExitCode"] == 0).count() == 5
    });
    assert_eq!(bed.checks("web").len(), 5);
    assert!(bed.ok(&["ps", "--format", "{{.Status}}"]).ends_with(" (healthy)"));
    for (word, shown) in [("healthy", 1), ("unhealthy", 0), ("starting", 0), ("none", 0)] {
        let listed = bed.ok(&["ps", "-q", "--filter", &format!("health={word}")]);
        assert_eq!(listed.lines().count(), shown, "{word}");
    }
    let told = ["events", "--since", "1", "--until", "0s", "--format", "{{.Action}}", "--filter"];
    let told = |event: &str| bed.ok(&[&told[..], &[&format!("event={event}")]].concat());
    assert_eq!(told("health_status"), "health_status: unhealthy\nhealth_status: healthy");
    assert!(told("exec_start").contains(line));
    bed.ok(&["stop", "-t", "0", "web"]);
    // As in Docker: what does not run is not well, and not spoken of.
    assert_eq!(bed.health("web"), "unhealthy");
    assert!(bed.ok(&["ps", "-a", "--format", "{{.Status}}"]).starts_with("Exited (137) "));
    bed.ok(&["rm", "web"]);
}

fn checks_that_harm_nobody(bed: &Bed) {
    // One that never ends, with all it has started.
    bed.checked("slow", "sleep 998 & sleep 999", &["--health-timeout", "300ms"], &["sleep", "1000"]);
    bed.wait_health("slow", "unhealthy");
    let last = bed.checks("slow").pop().unwrap();
    assert_eq!(last["ExitCode"], -1);
    assert!(last["Output"].as_str().unwrap().contains("Health check exceeded timeout (300ms)"), "{last}");
    let sleeps = bed.ok(&["top", "slow"]).lines().filter(|line| line.contains("sleep 99")).count();
    assert!(sleeps <= 4, "{sleeps} processes of checks");
    assert_eq!(bed.ok(&["exec", "slow", "echo", "alive"]), "alive");
    bed.ok(&["rm", "-f", "slow"]);
    // One that floods.
    bed.checked("flood", "yes", &["--health-timeout", "1s"], &["sleep", "1000"]);
    bed.wait_health("flood", "unhealthy");
    let is_cut = |check: &serde_json::Value| {
        let output = check["Output"].as_str().unwrap();
        output.len() == 4099 && output.ends_with("...")
    };
    assert!(bed.checks("flood").iter().any(is_cut), "{:?}", bed.checks("flood"));
    assert_eq!(bed.ok(&["logs", "flood"]), "");
    bed.ok(&["rm", "-f", "flood"]);
    // One that does not exist.
    let flags = [&OFTEN[..], &["--health-cmd", "/no/such/program"]].concat();
    bed.detach("none", &flags, &["sleep", "1000"]);
    bed.wait_health("none", "unhealthy");
    assert_eq!(bed.checks("none").pop().unwrap()["ExitCode"], 127);
    bed.ok(&["rm", "-f", "none"]);
}

fn the_images_check(bed: &Bed) {
    let check = r#"HEALTHCHECK --interval=50ms --retries=1 CMD ["/bin/sh", "-c", "test -e /root/ok"]"#;
    let import = ["import", "--change", "CMD [\"sleep\", \"1000\"]", "--change", "ENV PATH=/bin"];
    let tar = std::fs::read(crate::harness::Proa::busybox_tar()).unwrap();
    let import = [&import[..], &["--change", check, "-", "checked"]].concat();
    let imported = bed.proa.run_with_input(&import, &tar);
    assert_eq!(imported.code, 0, "{imported:?}");
    let run = |name: &str, flags: &[&str]| {
        let start = ["run", "-d", "--isolation", bed.level, "--name", name];
        bed.ok(&[&start, flags, &["checked"]].concat());
    };
    run("as-is", &[]);
    bed.wait_health("as-is", "unhealthy");
    bed.ok(&["rm", "-f", "as-is"]);
    run("other", &["--health-cmd", "true"]);
    bed.wait_health("other", "healthy");
    let interval =
        ["inspect", "--format", "{{.Config.Healthcheck.Interval}} {{.Config.Healthcheck.Test}}", "other"];
    assert_eq!(bed.ok(&interval), "50000000 [CMD-SHELL true]");
    bed.ok(&["rm", "-f", "other"]);
    run("without", &["--no-healthcheck"]);
    assert_eq!(bed.ok(&["ps", "-q", "--filter", "health=none"]).lines().count(), 1);
    assert!(!bed.ok(&["inspect", "--format", "{{json .State}}", "without"]).contains("Health"));
    bed.ok(&["rm", "-f", "without"]);
}

fn the_unhealthy_are_ended(bed: &Bed) {
    bed.checked("killed", "false", &["--health-on-failure", "kill"], &["sleep", "1000"]);
    bed.wait_status("killed", "exited");
    assert_eq!(bed.ok(&["inspect", "--format", "{{.State.ExitCode}}", "killed"]), "137");
    bed.ok(&["rm", "killed"]);
    let policy = ["--health-on-failure", "kill", "--restart", "on-failure:1"];
    bed.checked("again", "false", &policy, &["sleep", "1000"]);
    bed.wait_status("again", "exited");
    assert_eq!(bed.restarts("again"), 1);
    bed.ok(&["rm", "again"]);
    // A file of the first run makes the second well.
    let line = "test -e /root/twice";
    let program = "if [ -e /root/once ]; then > /root/twice; fi; > /root/once; trap 'exit 0' TERM; while :; do sleep 0.05; done";
    bed.checked("restarted", line, &["--health-on-failure", "restart"], &["sh", "-c", program]);
    bed.wait_health("restarted", "healthy");
    assert_eq!(bed.restarts("restarted"), 1);
    bed.ok(&["rm", "-f", "restarted"]);
    // Neither the policy nor a deaf program keeps it up.
    let stop = ["--health-on-failure", "stop", "--restart", "always", "--stop-timeout", "1"];
    bed.checked("stopped", "false", &stop, &["sleep", "1000"]);
    bed.wait_status("stopped", "exited");
    assert_eq!(
        (bed.restarts("stopped"), bed.ok(&["inspect", "--format", "{{.State.ExitCode}}", "stopped"])),
        (0, "137".into())
    );
    bed.ok(&["rm", "stopped"]);
    let refused = bed.run(&["--health-on-failure", "kill"], &["true"]);
    assert!(refused.code == 125 && refused.stderr.contains("--health-cmd"), "{refused:?}");
}

fn checks_begin_anew_with_each_run(bed: &Bed) {
    let slow = ["--health-interval", "1h", "--health-start-period", "1h", "--health-start-interval", "50ms"];
    bed.detach(
        "twice",
        &[&["--health-cmd", "true", "--restart", "always"], &slow[..]].concat(),
        &["sleep", "1000"],
    );
    bed.wait_health("twice", "healthy");
    bed.strike("twice", "State.Pid");
    bed.proa.wait_for("the restart", || bed.restarts("twice") == 1);
    // What was found before is kept, and the start period begins again.
    bed.proa.wait_for("a check of the second run", || bed.checks("twice").len() == 2);
    bed.wait_health("twice", "healthy");
    bed.strike("twice", "State.MonitorPid");
    bed.proa.wait_for("a check of the third run", || bed.checks("twice").len() == 3);
    bed.ok(&["rm", "-f", "twice"]);
}

fn the_frozen_are_not_checked(bed: &Bed) {
    bed.checked("frozen", "true", &["-m", "64m", "--health-timeout", "5s"], &["sleep", "1000"]);
    bed.wait_health("frozen", "healthy");
    bed.ok(&["pause", "frozen"]);
    let before = bed.checks("frozen");
    assert!(bed.ok(&["ps", "--format", "{{.Status}}"]).ends_with(" (Paused)"));
    bed.ok(&["unpause", "frozen"]);
    bed.proa.wait_for("another check", || bed.checks("frozen") != before);
    assert_eq!(bed.health("frozen"), "healthy");
    bed.ok(&["rm", "-f", "frozen"]);
}
