//! Debian's Podman.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};

use super::{IMPORT, Peer, remove_cgroup};
use crate::harness::{Output, Proa};

/// Root's, with all its state in a directory of its own and in a mount namespace that covers what it shares with other
/// Podmans of the host; in the caller's network namespace.
pub struct Podman {
    directory: tempfile::TempDir,
    /// Keeps the mount namespace.
    keeper: Child,
}

/// Covers these, of which each Podman of root's has the same.
const COVER: &str = "for at in /run/containers /run/netns /dev/shm; do
    mkdir -p $at && mount -t tmpfs -o mode=1777 podman $at || exit 1
done
echo ready
exec sleep infinity";

impl Podman {
    pub fn start(proa: &Proa) -> Self {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let networks = directory.path().join("networks");
        // A host may not let us raise the limits that it asks for by itself; crun knows no hybrid cgroups.
        let config = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{}\"\n\
             [engine]\nruntime = \"runc\"\n",
            networks.display()
        );
        fs::write(directory.path().join("containers.conf"), config).unwrap();
        let mut keeper = Command::new("unshare");
        keeper.args(["--mount", "sh", "-c", COVER]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut keeper = keeper.spawn().unwrap();
        let mut ready = [0; 6];
        keeper.stdout.take().unwrap().read_exact(&mut ready).expect("a mount namespace for podman");
        let podman = Self { directory, keeper };
        let import = [IMPORT, &["--quiet", Proa::busybox_tar(), "localhost/busybox"]].concat();
        let imported = podman.run(proa, &import);
        assert_eq!(imported.code, 0, "podman, netavark and runc are needed: {imported:?}");
        podman
    }

    fn command(&self, words: &[&str]) -> Command {
        let at = |name: &str| self.directory.path().join(name);
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.keeper.id())).arg("podman");
        command.env("CONTAINERS_CONF", at("containers.conf"));
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(at(name));
        }
        command.args(["--cgroup-manager=cgroupfs", "--events-backend=file", "--storage-driver=overlay"]);
        command.args(words);
        command
    }
}

impl Peer for Podman {
    fn run(&self, proa: &Proa, words: &[&str]) -> Output {
        proa.run_command(self.command(words), b"")
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.command(&["rm", "--all", "--force", "--time=0"]).output();
        // Its mounts go with the namespace.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        remove_cgroup("libpod_parent");
    }
}
