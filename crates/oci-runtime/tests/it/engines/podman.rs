use super::{Engine, drive};
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
    drive(&podman, &["--network=none", "--ulimit=host"]);
    podman.ok(&["system", "reset", "--force"]);
}
