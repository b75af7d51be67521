//! Debian's Docker.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use super::{IMPORT, Peer};
use crate::harness::{Output, Proa};

/// Debian's, wherever else there is one.
const CLIENT: &str = "/usr/bin/docker";

/// A daemon with all its state in a directory of its own, in the caller's network namespace.
pub struct Docker {
    child: Child,
    directory: tempfile::TempDir,
}

impl Docker {
    pub fn start(proa: &Proa) -> Self {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let at = |name: &str| directory.path().join(name);
        let log = File::create(at("log")).unwrap();
        let mut command = Command::new("dockerd");
        for (option, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            command.arg(option).arg(at(name));
        }
        command.arg("--host").arg(format!("unix://{}", at("socket").display()));
        command.args(["--storage-driver=overlay2", "--userland-proxy=false"]).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().expect("dockerd is needed: apt-get install docker.io");
        let docker = Self { child, directory };
        proa.wait_for("dockerd", || docker.run(proa, &["version"]).code == 0);
        let import = [IMPORT, &[Proa::busybox_tar(), "busybox"]].concat();
        let imported = docker.run(proa, &import);
        assert_eq!(imported.code, 0, "{imported:?}");
        docker
    }
}

impl Peer for Docker {
    fn run(&self, proa: &Proa, words: &[&str]) -> Output {
        let mut command = Command::new(CLIENT);
        let socket = self.directory.path().join("socket");
        command.arg("--host").arg(format!("unix://{}", socket.display())).args(words);
        proa.run_command(command, b"")
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // By SIGTERM it ends its containerd and its mounts.
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
        let netns = self.directory.path().join("exec/netns/default");
        let _ = Command::new("umount").arg("-q").arg(netns).stderr(Stdio::null()).status();
    }
}
