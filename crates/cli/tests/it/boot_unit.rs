//! The systemd unit for the boot, written where no system of the host's sees it.

use std::process::Command;

use crate::harness::Proa;

#[test]
fn the_unit_is_installed_sound_and_removed() {
    let proa = Proa::new();
    let script = r#"
        set -e
        mount -t tmpfs tmpfs /etc/systemd/system
        path=$("$0" --root "$1" system enable)
        cat "$path"
        ls /etc/systemd/system/multi-user.target.wants
        systemd-analyze verify "$path"
        "$0" --root "$1" system disable > /dev/null
        find /etc/systemd/system -type f -o -type l
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
