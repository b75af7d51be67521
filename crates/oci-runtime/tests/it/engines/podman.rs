use std::fs;

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
    let machine = Machine::boot(if is_unified() { "v2" } else { "v1" }, &[&podman.path("")]);
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
    let tar = podman.image_tar();
    fs::write(podman.path("containers.conf"), "[containers]\ndefault_ulimits = []\n").unwrap();
    let directories = ["home", "run", "root", "runroot", "tmpdir"];
    let variables = [("HOME", "home"), ("XDG_RUNTIME_DIR", "run"), ("CONTAINERS_CONF", "containers.conf")];
    podman.line = podman.give_to_user(&directories, &variables);
    podman.line.push("podman".into());
    let own = directories[2..].iter().map(|name| format!("--{name}={}", podman.path(name).display()));
    podman.line.extend(own.collect::<Vec<_>>());
    podman.options(&["--cgroup-manager=cgroupfs", "--events-backend=file", "--storage-driver=vfs"]);
    let program = podman.path("proa-runtime");
    podman.options(&["--runtime", program.to_str().unwrap()]);
    podman.ok(&["import", "--quiet", tar.to_str().unwrap(), "busybox"]);
    drive(&podman, &["--network=none", "--ulimit=host"], false);
    assert!(podman.path("run/proa-runtime").is_dir(), "state is in the user's own directory");
    podman.ok(&["system", "reset", "--force"]);
}
