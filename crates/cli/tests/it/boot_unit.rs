//! The systemd unit for the boot, written where no system of the host's sees it.

use std::process::Command;

use crate::harness::Proa;

#[test]
fn the_unit_is_installed_sound_and_removed() {
    let proa = Proa::new();
    let script = r#"
        set -e
        mount -t tmpfs tmpfs /etc/systemd
        mkdir /etc/systemd/system
        path=$("$0" --root "$1" system enable)
        cat "$path"
        ls /etc/systemd/system/multi-user.target.wants
        systemd-analyze verify "$path"
        "$0" --root "$1" system disable > /dev/null
        find /etc/systemd -type f -o -type l
        "$0" --root "$1" system disable || echo refused"#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(proa.binary()).arg(proa.root());
    let output = proa.run_command(command, b"");
    assert_eq!(output.code, 0, "{output:?}");
    let start = format!(
        "ExecStart=-\"{}\" --root \"{}\" system boot",
        proa.binary().display(),
        proa.root().display()
    );
    assert!(output.stdout.contains(&start), "{output:?}");
    // The link is the last line before the refusal: nothing is left.
    assert!(output.stdout.ends_with(".service\nrefused\n"), "{output:?}");
    assert!(output.stderr.contains("there is no unit"), "{output:?}");
}

#[test]
fn files_of_instances_become_units_of_systemds_by_its_generator() {
    let proa = Proa::with_busybox();
    let script = r#"
        set -e
        mount -t tmpfs tmpfs "$1/etc"
        mkdir "$1/etc/upper" "$1/etc/work"
        mount -t overlay -o "lowerdir=/etc,upperdir=$1/etc/upper,workdir=$1/etc/work" overlay /etc
        mount -t tmpfs tmpfs /etc/systemd
        mkdir -p /etc/proa/units /etc/systemd/system
        cd /etc/proa/units
        printf '[Container]\nImage=busybox\nVolume=data.volume:/data\nExec=sh -c "date > /data/seen"\n[Install]\nWantedBy=multi-user.target\n' > task.container
        printf '[Volume]\nLabel=kind=test\n' > data.volume
        printf '[Network]\nWrong=1\n' > net.network
        "$0" --root "$1" system enable > /dev/null
        generator=$(ls /etc/systemd/system-generators/*)
        "$generator" /etc/systemd/system /dev/null /dev/null && exit 1
        cd /etc/systemd/system
        find . -name '*task*' -o -name '*data*'
        systemd-analyze verify ./task.service ./data-volume.service
        sed -n 's/^ExecStart=//p' data-volume.service task.service | sh -e
        "$0" --root "$1" system disable > /dev/null
        ls /etc/systemd/system-generators"#;
    std::fs::create_dir(proa.root().join("etc")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(proa.binary()).arg(proa.root());
    let output = proa.run_command(command, b"");
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stderr.contains("net.network:2: unknown key Wrong in [Network]"), "{output:?}");
    let found: std::collections::BTreeSet<&str> = output.stdout.lines().collect();
    for line in
        ["./task.service", "./data-volume.service", "./multi-user.target.wants/task.service", "systemd-data"]
    {
        assert!(found.contains(line), "{line}: {output:?}");
    }
    let seen = proa.ok(&["run", "--rm", "-v", "systemd-data:/data", "busybox", "cat", "/data/seen"]);
    assert!(!seen.is_empty());
    assert!(!output.stdout.contains("generator"), "{output:?}");
}
