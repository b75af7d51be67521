//! Limits: memory, CPU, tasks, rlimits, and what is said when one is reached.

use super::{Bed, at_both_levels};

at_both_levels!(memory, out_of_memory, tasks, rlimits, malformed, stats);

fn memory(bed: &Bed) {
    let read = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true";
    assert_eq!(bed.run_ok(&["-m", "96m"], &["sh", "-c", read]), (96 << 20).to_string());
}

fn out_of_memory(bed: &Bed) {
    let output = bed.proa(&[
        "run",
        "--name",
        "hog",
        "-m",
        "64m",
        "--isolation",
        bed.level,
        "busybox",
        "tail",
        "/dev/zero",
    ]);
    assert_eq!(output.code, 137, "{output:?}");
    assert_eq!(
        bed.ok(&["inspect", "--format", "{{.State.OOMKilled}} {{.State.ExitCode}}", "hog"]),
        "true 137"
    );
    bed.ok(&["rm", "hog"]);
}

fn tasks(bed: &Bed) {
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; echo all";
    let output = bed.run(&["--pids-limit", "6"], &["sh", "-c", script]);
    assert!(!output.stdout.contains("all"), "{output:?}");
    assert!(output.stderr.contains("fork"), "{output:?}");
}

fn rlimits(bed: &Bed) {
    assert_eq!(
        bed.run_ok(&["--ulimit", "nofile=123:456"], &["sh", "-c", "ulimit -n; ulimit -Hn"]),
        "123\n456"
    );
}

fn malformed(bed: &Bed) {
    for flags in [
        &["-m", "lots"][..],
        &["--cpus", "-1"],
        &["--ulimit", "speed=9"],
        &["--pids-limit", "x"],
        &["-m", "1k"],
    ] {
        let output = bed.run(flags, &["true"]);
        assert_eq!(output.code, 125, "{flags:?}: {output:?}");
        assert!((1..=3).contains(&output.stderr.lines().count()), "{flags:?}: {output:?}");
    }
}

fn stats(bed: &Bed) {
    bed.detach("busy", &["-m", "128m", "--pids-limit", "50"], &["sh", "-c", "while :; do :; done"]);
    let used = || {
        let text = bed.ok(&["stats", "--no-stream", "--format", "json", "busy"]);
        assert!(text.contains("busy"), "{text}");
        text
    };
    assert!(used().contains("MemUsage"));
    bed.ok(&["rm", "-f", "busy"]);
}
