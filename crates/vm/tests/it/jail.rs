//! What the VMM may do, and what is left when those who started it die.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::fixture::{Setup, await_gone};

/// What the kernel tells of a process.
struct Process(String);

impl Process {
    fn new(pid: u32) -> Self {
        Self(format!("/proc/{pid}"))
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(format!("{}/{name}", self.0)).unwrap()
    }

    /// A field of its status, in words.
    fn field(&self, name: &str) -> Vec<String> {
        let status = self.read("status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name}: {status}")).split_whitespace().map(str::to_owned).collect()
    }

    fn capabilities(&self, set: &str) -> u64 {
        u64::from_str_radix(&self.field(set)[0], 16).unwrap()
    }

    /// A hard limit.
    fn limit(&self, name: &str) -> String {
        let limits = self.read("limits");
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    }

    /// Names at a place of its root.
    fn list(&self, place: &str) -> Vec<String> {
        let entries = fs::read_dir(format!("{}/root{place}", self.0)).unwrap().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    /// It has these namespaces for itself, and no way out of that for the network.
    fn assert_apart(&self, namespaces: &[&str]) {
        for namespace in namespaces {
            let link = |process: &str| fs::read_link(format!("{process}/ns/{namespace}")).unwrap();
            assert_ne!(link(&self.0), link("/proc/self"), "{namespace}");
        }
        let devices = self.read("net/dev");
        let names: Vec<&str> =
            devices.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
        assert_eq!(names, ["lo"]);
    }

    fn assert_filtered(&self) {
        assert_eq!((&*self.field("NoNewPrivs")[0], &*self.field("Seccomp")[0]), ("1", "2"));
    }
}

#[test]
fn the_vmm_has_no_privileges_and_sees_nothing() {
    let mut setup = Setup::new("echo ready; busybox sleep 1000");
    let mut guest = setup.boot();
    guest.run_until("ready");
    let vmm = Process::new(guest.vm.pid());
    let ids = vmm.field("Uid");
    assert!(ids.iter().all(|id| id == &ids[0]) && ids[0].parse::<u32>().unwrap() >= 0x7000_0000, "{ids:?}");
    assert_eq!(vmm.field("Gid"), ids);
    assert!(!vmm.field("Groups").contains(&"0".to_owned()));
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(vmm.capabilities(set), 0, "{set}");
    }
    vmm.assert_filtered();
    vmm.assert_apart(&["mnt", "net", "ipc", "uts"]);
    for name in vmm.list("") {
        assert!(["usr", "lib", "lib64", "etc", "dev", "guest"].contains(&&*name), "{name}");
    }
    assert!(vmm.list("/etc").len() <= 1);
    assert_eq!(vmm.list("/dev"), ["urandom"]);
    assert!(fs::write(format!("{}/root/guest/kernel", vmm.0), "x").is_err(), "the kernel can be overwritten");
    assert_eq!(vmm.limit("Max core file size"), "0");
    // Its memory, its threads, and how far it may write in its disk.
    let bounded = |name: &str, most: u64| assert!(vmm.limit(name).parse::<u64>().unwrap() <= most, "{name}");
    // That which may come has room there too.
    bounded("Max address space", (256 << 20) + (128 << 20) + (4 << 30) + (4 << 30));
    bounded("Max processes", 1024);
    bounded("Max file size", fs::metadata(&setup.spec.rw_disk).unwrap().len() + (1 << 30));
}

/// It has its standard streams, its disks, the two sockets, and what the C library and QEMU wait on.
#[test]
fn the_vmm_has_no_descriptor_that_it_does_not_need() {
    let mut setup = Setup::new("echo ready; busybox sleep 1000");
    let mut guest = setup.boot();
    guest.run_until("ready");
    let disks = [&setup.spec.rw_disk, &setup.spec.layers[0]].map(|path| path.to_str().unwrap().to_owned());
    let mut sockets = 0;
    for entry in fs::read_dir(format!("/proc/{}/fd", guest.vm.pid())).unwrap() {
        let path = entry.unwrap().path();
        let target = fs::read_link(&path).unwrap().to_str().unwrap().to_owned();
        if target == disks[1] {
            // A layer is others' as well.
            let write = fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o200;
            assert_eq!(write, 0, "a layer is open for writing");
        }
        let usual =
            target == "/dev/null" || target.starts_with("/memfd:log") || target.starts_with("anon_inode:");
        sockets += u32::from(target.starts_with("socket:"));
        assert!(usual || target.starts_with("socket:") || disks.contains(&target), "{target}");
    }
    assert_eq!(sockets, 2);
}

/// A server of a share is root, since it makes files of all owners, without the rights that reach beyond files.
#[test]
fn the_server_of_a_share_sees_the_share_alone() {
    let mut setup = Setup::new("echo ready; busybox sleep 1000");
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("only"), "").unwrap();
    setup.bind(host.path(), "/rw", &["rbind"]);
    let mut guest = setup.boot();
    guest.run_until("ready");
    let [outer] = guest.vm.helper_pids()[..] else { panic!("one server") };
    let inner = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap();
    let server = Process::new(inner.trim().parse().unwrap());
    // CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_SYS_BOOT, CAP_MKNOD.
    let beyond = [12, 13, 16, 17, 19, 21, 22, 27].iter().fold(0, |set, bit| set | 1u64 << bit);
    assert_eq!(server.capabilities("CapEff") & beyond, 0, "{:x}", server.capabilities("CapEff"));
    assert_eq!(server.capabilities("CapPrm") & beyond, 0);
    server.assert_filtered();
    server.assert_apart(&["mnt", "net", "pid"]);
    assert_eq!(server.list(""), ["only"]);
}

/// The child of the next test: starts a guest, tells its processes, and waits to be killed.
#[test]
#[ignore = "run by the test below as a process of its own"]
#[allow(clippy::print_stderr, reason = "the test that started this process reads it")]
fn holds_a_guest() {
    let mut setup = Setup::new("busybox sleep 1000");
    let host = tempfile::tempdir().unwrap();
    setup.bind(host.path(), "/rw", &["rbind"]);
    let mut guest = setup.boot();
    guest.begin();
    let pids: Vec<String> =
        std::iter::once(guest.vm.pid()).chain(guest.vm.helper_pids()).map(|pid| pid.to_string()).collect();
    eprintln!("processes: {}", pids.join(" "));
    guest.await_end();
}

#[test]
fn a_killed_parent_leaves_nothing_running() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "jail::holds_a_guest", "--ignored", "--nocapture"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut said = Vec::new();
    let pids = lines.inspect(|line| said.push(line.clone())).find_map(|line| {
        let pids = line.strip_prefix("processes: ")?;
        Some(pids.split(' ').map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let pids = pids.unwrap_or_else(|| panic!("{}", said.join("\n")));
    assert_eq!(pids.len(), 2);
    await_gone(&pids);
}
