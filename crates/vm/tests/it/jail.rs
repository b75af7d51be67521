//! What the VMM may do, and what is left when those who started it die.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::fixture::{Setup, await_gone};

#[test]
fn the_vmm_has_no_privileges_and_sees_nothing() {
    let mut setup = Setup::new("echo ready; busybox sleep 1000");
    let mut guest = setup.boot();
    guest.run_until("ready");
    let process = format!("/proc/{}", guest.vm.pid());
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name}: {status}")).split_whitespace().collect::<Vec<_>>()
    };
    let ids = field("Uid");
    assert!(ids.iter().all(|id| id == &ids[0]) && ids[0].parse::<u32>().unwrap() >= 0x7000_0000, "{ids:?}");
    assert_eq!(field("Gid"), ids);
    assert!(!field("Groups").contains(&"0"), "{status}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), (vec!["1"], vec!["2"]));
    for namespace in ["mnt", "net", "ipc", "uts"] {
        let link = |process: &str| fs::read_link(format!("{process}/ns/{namespace}")).unwrap();
        assert_ne!(link(&process), link("/proc/self"), "{namespace}");
    }
    let root: Vec<_> = fs::read_dir(format!("{process}/root")).unwrap().flatten().collect();
    for entry in &root {
        let name = entry.file_name().into_string().unwrap();
        assert!(["usr", "lib", "lib64", "etc", "dev", "guest"].contains(&name.as_str()), "{name}");
    }
    let etc = fs::read_dir(format!("{process}/root/etc")).unwrap().count();
    assert!(etc <= 1, "{etc} entries of /etc");
    assert_eq!(fs::read_dir(format!("{process}/root/dev")).unwrap().count(), 1);
    assert!(fs::write(format!("{process}/root/guest/kernel"), "x").is_err(), "the kernel can be overwritten");
    let limits = fs::read_to_string(format!("{process}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
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
