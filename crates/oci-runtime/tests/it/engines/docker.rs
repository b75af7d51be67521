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
