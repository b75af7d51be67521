//! Limits: memory, CPU, tasks, rlimits, and what is said when one is reached.

use super::{Bed, at_both_levels};

at_both_levels!(rlimits, malformed; memory, out_of_memory, tasks, stats, update, growing; block_devices);

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
    bed.detach(
        "busy",
        &["-m", "128m", "--pids-limit", "50", "--network", "none"],
        &["sh", "-c", "while :; do :; done"],
    );
    let format = "{{.Name}} {{.MemUsage}} {{.PIDs}} {{.NetIO}} {{.CPUPerc}}";
    let seen = bed.ok(&["stats", "--no-stream", "--format", format, "busy"]);
    assert!(seen.starts_with("busy ") && seen.contains(" / 128MiB 1 0B / 0B "), "{seen}");
    let percent: f64 = seen.rsplit(' ').next().unwrap().trim_end_matches('%').parse().unwrap();
    assert!(percent > 5.0, "{seen}");
    let json = bed.ok(&["stats", "--no-stream", "--format", "json", "busy"]);
    for field in ["BlockIO", "CPUPerc", "Container", "ID", "MemPerc", "MemUsage", "Name", "NetIO", "PIDs"] {
        assert!(json.contains(&format!("\"{field}\":")), "{field} in {json}");
    }
    bed.ok(&["rm", "-f", "busy"]);
}

fn update(bed: &Bed) {
    let read = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; \
                cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null; true";
    let seen = || bed.ok(&["exec", "changed", "sh", "-c", read]);
    bed.detach("changed", &["-m", "96m", "--pids-limit", "20"], &["sleep", "1000"]);
    assert_eq!(seen(), format!("{}\n20", 96 << 20));
    assert_eq!(bed.ok(&["update", "-m", "80m", "--pids-limit", "30", "--cpus", "0.5", "changed"]), "changed");
    assert_eq!(seen(), format!("{}\n30", 80 << 20));
    let format = "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.PidsLimit}} {{.HostConfig.NanoCpus}}";
    let recorded = format!("{} {} 30 500000000", 80 << 20, 192 << 20);
    assert_eq!(bed.ok(&["inspect", "--format", format, "changed"]), recorded);
    // What cannot be is refused, and changes nothing.
    for (flags, word) in [
        (&["-m", "1g"][..], "memory"),
        (&["--cpu-quota", "5000"], "--cpus"),
        (&["-m", "1k"], "6m"),
        (&["--kernel-memory", "50m"], "no such limit"),
    ] {
        let refused = bed.proa(&[&["update"], flags, &["changed"]].concat());
        assert!(refused.code != 0 && refused.stderr.contains(word), "{flags:?}: {refused:?}");
    }
    assert_eq!(bed.ok(&["inspect", "--format", format, "changed"]), recorded);
    bed.ok(&["update", "--pids-limit", "-1", "changed"]);
    assert_eq!(seen(), format!("{}\nmax", 80 << 20));
    // The next start has them as well.
    bed.ok(&["stop", "-t", "0", "changed"]);
    bed.ok(&["update", "-m", "64m", "changed"]);
    bed.ok(&["start", "changed"]);
    assert!(seen().starts_with(&(64 << 20).to_string()));
    bed.ok(&["rm", "-f", "changed"]);
}

/// Memory and CPUs go up and down while it runs, and what was asked for last is in force, now and after a restart.
fn growing(bed: &Bed) {
    bed.detach("grown", &["-m", "64m", "--cpus", "0.5"], &["sleep", "1000"]);
    let limit = || bed.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}}", "grown"]);
    let fills = || bed.proa(&["exec", "grown", "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
    assert!(limit().ends_with("/ 64MiB") && fills().code != 0);
    bed.ok(&["update", "-m", "300m", "--memory-swap", "300m", "grown"]);
    assert!(limit().ends_with("/ 300MiB"), "{}", limit());
    let filled = fills();
    assert_eq!(filled.code, 0, "{filled:?}");
    bed.ok(&["update", "-m", "64m", "--memory-swap", "64m", "grown"]);
    assert!(limit().ends_with("/ 64MiB") && fills().code != 0);
    // CPUs that cannot come at once come with the next start, and that is said.
    let more = bed.proa(&["update", "--cpus", "1.5", "-m", "128m", "--memory-swap", "128m", "grown"]);
    assert!(more.code == 0 && more.stderr.contains("1 of 2") == bed.is_vm(), "{more:?}");
    bed.ok(&["restart", "-t", "0", "grown"]);
    assert!(limit().ends_with("/ 128MiB"), "{}", limit());
    if bed.is_vm() {
        assert_eq!(bed.ok(&["exec", "grown", "nproc"]), "2");
    }
    let format = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}";
    assert_eq!(bed.ok(&["inspect", "--format", format, "grown"]), format!("{} 1500000000", 128 << 20));
    bed.ok(&["rm", "-f", "grown"]);
}

/// On cgroup v1 an instance that nothing limits joins its cgroup late: an update joins it at once.
#[test]
fn an_unlimited_instance_can_be_limited() {
    let bed = Bed::new("container");
    bed.detach("free", &[], &["sleep", "1000"]);
    bed.ok(&["update", "--pids-limit", "4", "--cpuset-cpus", "0", "-m", "64m", "free"]);
    let forks = "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo all";
    let refused = bed.proa(&["exec", "free", "sh", "-c", forks]);
    assert!(refused.stderr.contains("fork") && !refused.stdout.contains("all"), "{refused:?}");
    assert_eq!(bed.ok(&["exec", "free", "nproc"]), "1");
    let format = "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.CpusetCpus}}";
    assert_eq!(bed.ok(&["inspect", "--format", format, "free"]), format!("{} {} 0", 64 << 20, 128 << 20));
    bed.ok(&["rm", "-f", "free"]);
}

/// Limits on block devices, which a guest has none of the host's of.
fn block_devices(bed: &Bed) {
    let devices = std::fs::read_dir("/sys/block").unwrap().flatten().map(|entry| entry.file_name());
    let device = devices.filter_map(|name| name.into_string().ok()).find(|name| !name.starts_with("loop"));
    let device = format!("/dev/{}", device.expect("a disk"));
    let throttle = format!("{device}:5mb");
    if bed.is_vm() {
        return bed.lacks(&bed.run(&["--device-read-bps", &throttle], &["true"]));
    }
    let read =
        "cat /sys/fs/cgroup/blkio/blkio.throttle.read_bps_device /sys/fs/cgroup/io.max 2>/dev/null; true";
    let seen = bed.run_ok(&["--device-read-bps", &throttle], &["sh", "-c", read]);
    assert!(seen.contains(&(5 << 20).to_string()), "{seen}");
    // A kernel without weights says so; one with them sets it.
    let weighed = bed.run(
        &["--blkio-weight", "300"],
        &["sh", "-c", "cat /sys/fs/cgroup/blkio/*weight /sys/fs/cgroup/io*weight 2>/dev/null; true"],
    );
    assert!(
        weighed.code == 0 && (weighed.stderr.contains("no weights") || weighed.stdout.contains("00")),
        "{weighed:?}"
    );
    let missing = bed.run(&["--device-read-bps", "/dev/no-such-disk:1mb"], &["true"]);
    assert!(missing.code == 125 && missing.stderr.contains("/dev/no-such-disk"), "{missing:?}");
}
