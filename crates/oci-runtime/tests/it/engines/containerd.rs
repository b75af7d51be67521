use std::fs;
use std::process::Command;

use super::{Daemon, Engine, SERVICE};
use crate::support::{PROGRAM, stdout, wait};

#[test]
fn containerd_runs_its_tasks_by_it() {
    let mut ctr = Engine::new("ctr");
    let config = ctr.path("config.toml");
    let (root, state, socket) = (ctr.path("root"), ctr.path("state"), ctr.path("socket"));
    let text = format!(
        "version = 2\nroot = {root:?}\nstate = {state:?}\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {socket:?}\n"
    );
    fs::write(&config, text).unwrap();
    let daemon = Daemon::start(Command::new("containerd").arg("-c").arg(&config), &ctr.path("log"));
    ctr.options(&["--address", socket.to_str().unwrap()]);
    wait("containerd", || ctr.output(&["version"]).status.success());
    ctr.ok(&["images", "import", docker_archive(&ctr).to_str().unwrap()]);
    let image = "docker.io/library/busybox:latest";
    let run = |options: &[&str], words: &[&str]| {
        let own = ["run", "--runc-binary", PROGRAM, "--snapshotter", "native"];
        ctr.output(&[&own[..], options, &[image], words].concat())
    };
    assert_eq!(stdout(&run(&["--rm"], &["one", "/bin/echo", "hi"])), "hi\n");
    assert_eq!(run(&["--rm"], &["two", "/bin/sh", "-c", "exit 9"]).status.code(), Some(9));
    let missing = run(&["--rm"], &["three", "no-such-program"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("executable file not found"), "{missing:?}");

    assert!(run(&["--detach"], &["service", "/bin/sh", "-c", SERVICE]).status.success());
    let exec = |id: &str, words: &[&str]| {
        ctr.output(&[&["task", "exec", "--exec-id", id, "service"], words].concat())
    };
    assert_eq!(stdout(&exec("one", &["/bin/echo", "inside"])), "inside\n");
    assert_eq!(exec("two", &["/bin/sh", "-c", "exit 3"]).status.code(), Some(3));
    ctr.ok(&["task", "pause", "service"]);
    assert!(ctr.ok(&["task", "ls"]).contains("PAUSED"));
    ctr.ok(&["task", "resume", "service"]);
    assert!(ctr.ok(&["task", "metrics", "service"]).contains("pids.current"));
    assert!(ctr.ok(&["task", "ps", "service"]).lines().count() >= 2);
    ctr.ok(&["task", "kill", "--signal", "SIGTERM", "service"]);
    wait("its end", || ctr.ok(&["task", "ls"]).contains("STOPPED"));
    let deleted = ctr.output(&["task", "delete", "service"]);
    assert!(String::from_utf8_lossy(&deleted.stderr).contains("non-zero exit code 5"), "{deleted:?}");
    ctr.ok(&["containers", "delete", "service"]);
    drop(daemon);
}

/// Docker's archive of the image, which is what `ctr image import` reads: a layer, a config and a list of both.
fn docker_archive(ctr: &Engine) -> std::path::PathBuf {
    let layer = ctr.image_tar();
    let sum = Command::new("sha256sum").arg(&layer).output().unwrap();
    let digest = stdout(&sum).split_whitespace().next().unwrap().to_owned();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["PATH=/bin"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#
    );
    fs::write(ctr.path("config.json"), config).unwrap();
    let manifest = r#"[{"Config":"config.json","RepoTags":["busybox:latest"],"Layers":["image.tar"]}]"#;
    fs::write(ctr.path("manifest.json"), manifest).unwrap();
    let archive = ctr.path("archive.tar");
    let files = ["manifest.json", "config.json", "image.tar"];
    let status =
        Command::new("tar").arg("-C").arg(ctr.path("")).arg("-cf").arg(&archive).args(files).status();
    assert!(status.unwrap().success());
    archive
}
