use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use super::{Daemon, Engine, drive};
use crate::support::{PROGRAM, wait};

#[test]
fn docker_runs_its_containers_by_it() {
    let mut docker = Engine::new("docker");
    let socket = format!("unix://{}", docker.path("socket").display());
    let mut command = Command::new("dockerd");
    for (option, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
        command.arg(option).arg(docker.path(name));
    }
    command.args(["--host", &socket, "--bridge=none", "--iptables=false", "--storage-driver=vfs"]);
    command.args(["--add-runtime", &format!("proa={PROGRAM}"), "--default-runtime=proa"]);
    let daemon = Daemon::start(&mut command, &docker.path("log"));
    docker.options(&["--host", &socket]);
    wait("dockerd", || docker.output(&["version"]).status.success());
    docker.ok(&["import", docker.image_tar().to_str().unwrap(), "busybox"]);
    assert!(docker.ok(&["info", "--format", "{{.DefaultRuntime}}"]).contains("proa"));
    drive(&docker, &["--network=none"], true);
    drop(daemon);
}

/// As an ordinary user, by Docker's own script. There is no cgroup for the user here, so nothing is limited or paused,
/// and no traffic: the daemon makes no network, and containers have none.
#[test]
fn an_ordinary_users_docker_runs_its_containers_by_it() {
    let script = "/usr/share/docker.io/contrib/dockerd-rootless.sh";
    let mut docker = Engine::new("docker");
    let tar = docker.image_tar();
    let directories = ["home", "run", "data", "exec"];
    let words = docker.give_to_user(&directories, &[("HOME", "home"), ("XDG_RUNTIME_DIR", "run")]);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).current_dir("/");
    command.args(["DOCKERD_ROOTLESS_ROOTLESSKIT_NET=host", "DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER=none"]);
    command.arg(script);
    for (option, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "run/pid")] {
        command.arg(option).arg(docker.path(name));
    }
    command.args(["--bridge=none", "--iptables=false", "--ip-forward=false", "--storage-driver=vfs"]);
    let program = docker.path("proa-runtime");
    command.args([&format!("--add-runtime=proa={}", program.display()), "--default-runtime=proa"]);
    let daemon = Daemon::start(&mut command, &docker.path("log"));
    docker.line = words;
    docker.line.push("docker".into());
    let socket = format!("unix://{}", docker.path("run/docker.sock").display());
    docker.options(&["--host", &socket]);
    wait("dockerd, which needs rootlesskit and uidmap: scripts/test installs them", || {
        docker.output(&["version"]).status.success()
    });
    docker.ok(&["import", tar.to_str().unwrap(), "busybox"]);
    let info = docker.ok(&["info", "--format", "{{.DefaultRuntime}} {{.SecurityOptions}}"]);
    assert!(info.starts_with("proa ") && info.contains("rootless"), "{info}");
    drive(&docker, &["--network=none"], false);
    let map = ["run", "--rm", "--network=none", "busybox", "/bin/cat", "/proc/self/uid_map"];
    let uid = fs::metadata(docker.path("home")).unwrap().uid().to_string();
    assert_eq!(docker.ok(&map).split_whitespace().nth(1), Some(uid.as_str()));
    drop(daemon);
}
