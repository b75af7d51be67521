use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::{Engine, drive};
use crate::machine::{Machine, is_unified};
use crate::support::PROGRAM;

#[test]
fn podman_runs_its_containers_by_it() {
    let mut podman = Engine::new("podman");
    let config = podman.path("containers.conf");
    // A host may not let us raise the limits that podman asks for by itself.
    std::fs::write(&config, "[containers]\ndefault_ulimits = []\n").unwrap();
    podman.environment.push(("CONTAINERS_CONF", config));
    let options =
        ["root", "runroot", "tmpdir"].map(|name| format!("--{name}={}", podman.path(name).display()));
    podman.options(&options.each_ref().map(String::as_str));
    podman.options(&["--cgroup-manager=cgroupfs", "--events-backend=file", "--storage-driver=vfs"]);
    podman.options(&["--runtime", PROGRAM]);
    podman.ok(&["import", "--quiet", podman.image_tar().to_str().unwrap(), "busybox"]);
    drive(&podman, &["--network=none", "--ulimit=host"], true);
    podman.ok(&["system", "reset", "--force"]);
}

/// As on a host with systemd, where this is podman's own choice.
#[test]
fn podman_has_its_scopes_made_by_systemd() {
    let mut podman = Engine::new("podman");
    let tar = podman.image_tar();
    let config = podman.path("containers.conf");
    fs::write(&config, "[containers]\ndefault_ulimits = []\n").unwrap();
    let machine = Machine::boot(if is_unified() { "v2" } else { "v1" }, &podman.path(""));
    podman.line = machine.entry();
    podman.line.extend([format!("CONTAINERS_CONF={}", config.display()), "podman".to_owned()]);
    let options =
        ["root", "runroot", "tmpdir"].map(|name| format!("--{name}={}", podman.path(name).display()));
    podman.options(&options.each_ref().map(String::as_str));
    podman.options(&["--cgroup-manager=systemd", "--events-backend=file", "--storage-driver=vfs"]);
    podman.options(&["--runtime", PROGRAM]);
    podman.ok(&["import", "--quiet", tar.to_str().unwrap(), "busybox"]);
    let run = ["run", "-d", "--name=scoped", "--network=none", "--ulimit=host", "--pids-limit=33", "busybox"];
    let id = podman.ok(&[&run[..], &["/bin/sleep", "1000"]].concat());
    let unit = format!("libpod-{}.scope", id.trim());
    assert_eq!(machine.property(&unit, "ActiveState"), "active");
    assert_eq!(machine.property(&unit, "TasksMax"), "33");
    podman.ok(&["rm", "--force", "--time=0", "scoped"]);
    // All that is left of podman goes with the machine.
    drive(&podman, &["--network=none", "--ulimit=host"], true);
}

/// As an ordinary user, who is root in a user namespace of podman's. The user has no cgroup here, so nothing is
/// limited or paused.
#[test]
fn an_ordinary_users_podman_runs_its_containers_by_it() {
    let mut podman = Engine::new("podman");
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with("proa-test:"));
    let fields: Vec<&str> = line.expect("run scripts/test-users").split(':').collect();
    let tar = podman.image_tar();
    // The checkout may be in a place that others cannot enter.
    let program = podman.path("proa-runtime");
    fs::copy(PROGRAM, &program).unwrap();
    let config = podman.path("containers.conf");
    fs::write(&config, "[containers]\ndefault_ulimits = []\n").unwrap();
    for name in ["home", "run", "root", "runroot", "tmpdir"] {
        fs::create_dir(podman.path(name)).unwrap();
        fs::set_permissions(podman.path(name), PermissionsExt::from_mode(0o700)).unwrap();
    }
    let owner = format!("{}:{}", fields[2], fields[3]);
    assert!(Command::new("chown").args(["-R", &owner]).arg(podman.path("")).status().unwrap().success());
    let assign = |name: &str, path: &str| format!("{name}={}", podman.path(path).display());
    let environment = [
        assign("HOME", "home"),
        assign("XDG_RUNTIME_DIR", "run"),
        assign("CONTAINERS_CONF", "containers.conf"),
    ];
    let ids = [format!("--reuid={}", fields[2]), format!("--regid={}", fields[3])];
    let directories =
        ["root", "runroot", "tmpdir"].map(|name| format!("--{name}={}", podman.path(name).display()));
    let mut line = vec!["setpriv".to_owned()];
    line.extend(ids);
    line.extend(["--clear-groups", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"].map(str::to_owned));
    line.extend(environment);
    line.push("podman".into());
    line.extend(directories);
    podman.line = line;
    podman.options(&["--cgroup-manager=cgroupfs", "--events-backend=file", "--storage-driver=vfs"]);
    podman.options(&["--runtime", program.to_str().unwrap()]);
    podman.ok(&["import", "--quiet", tar.to_str().unwrap(), "busybox"]);
    drive(&podman, &["--network=none", "--ulimit=host"], false);
    assert!(podman.path("run/proa-runtime").is_dir(), "state is in the user's own directory");
    podman.ok(&["system", "reset", "--force"]);
}
