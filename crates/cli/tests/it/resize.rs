//! Memory and CPUs that come to a virtual machine while it runs, and the cgroup of its VMM.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::Proa;
use crate::snapshots::{ask, pid, refused, start, start_clone};

/// All memory of a guest, MiB.
fn memory(proa: &Proa, name: &str) -> u64 {
    let text = ask(proa, name, "grep MemTotal /proc/meminfo | tr -s ' ' | cut -d ' ' -f 2");
    text.parse::<u64>().unwrap() >> 10
}

#[test]
fn memory_comes_to_a_clone_and_goes_again() {
    let proa = Proa::with_busybox();
    start_clone(&proa, "grown");
    let before = memory(&proa, "grown");
    let updated = proa.run(&["update", "-m", "1g", "--memory-swap", "-1", "grown"]);
    assert!(updated.code == 0 && updated.stderr.is_empty(), "{updated:?}");
    let grown = memory(&proa, "grown");
    assert!((before + 550..1200).contains(&grown), "{before} {grown}");
    // All of it can be used at once, and what is in it stays.
    let fill = "dd if=/dev/zero of=/dev/null bs=800M count=1 2> /dev/null && echo filled";
    assert_eq!(ask(&proa, "grown", fill), "filled");
    let told = refused(&proa, &["snapshot", "create", "grown", "late"]);
    assert!(told.contains("restart it first"), "{told}");
    // More than there are places for is refused, and changes nothing.
    let told = refused(&proa, &["update", "-m", "40g", "grown"]);
    assert!(told.contains("stop it, update it, start it"), "{told}");
    proa.ok(&["update", "-m", "256m", "grown"]);
    let given = memory(&proa, "grown");
    assert!(given + 400 < grown, "{given} of {grown}");
    proa.ok(&["update", "-m", "700m", "grown"]);
    proa.wait_for("the memory that came again", || memory(&proa, "grown") > given + 200);
    proa.ok(&["restart", "-t", "0", "grown"]);
    let again = memory(&proa, "grown");
    assert!((700..840).contains(&again), "{again}");
    proa.ok(&["rm", "-f", "grown"]);
}

#[test]
fn memory_comes_to_a_guest_that_has_acpi() {
    let proa = Proa::with_busybox();
    start(&proa, "two", &["--cpus", "2", "-m", "128m"], "sleep 1000");
    assert_eq!(ask(&proa, "two", "nproc"), "2");
    let before = memory(&proa, "two");
    proa.ok(&["update", "-m", "384m", "--memory-swap", "-1", "two"]);
    proa.wait_for("the memory that came", || memory(&proa, "two") > before + 200);
    proa.ok(&["rm", "-f", "two"]);
}

/// Where its VMM is bounded, when that is so.
pub fn enclosure(proa: &Proa, name: &str) -> String {
    let mut place = String::new();
    proa.wait_for("the VMM's cgroup", || {
        place = proa.ok(&["inspect", "--format", "{{json .State}}", name]);
        place.contains("VmmCgroup")
    });
    let state: serde_json::Value = serde_json::from_str(&place).unwrap();
    state["VmmCgroup"].as_str().unwrap().to_owned()
}

/// The same in the hierarchy that bounds memory, where there are several.
fn memory_of(place: &str) -> String {
    place.replace("/pids/", "/memory/")
}

#[test]
fn a_vmm_has_a_cgroup_that_goes_with_it() {
    let proa = Proa::with_busybox();
    start(&proa, "bounded", &["-m", "64m"], "sleep 1000");
    let place = memory_of(&enclosure(&proa, "bounded"));
    let vmm = pid(&proa, "bounded");
    let groups = fs::read_to_string(format!("/proc/{vmm}/cgroup")).unwrap();
    let id = proa.ok(&["inspect", "--format", "{{.Id}}", "bounded"]);
    for controller in ["memory", "pids"] {
        let line = groups.lines().find(|line| line.contains(controller) || line.starts_with("0::/proa"));
        assert!(line.is_some_and(|line| line.ends_with(id.trim())), "{controller}: {groups}");
    }
    let limit = |place: &str| -> u64 {
        let text = ["memory.max", "memory.limit_in_bytes"]
            .iter()
            .find_map(|file| fs::read_to_string(Path::new(place).join(file)).ok());
        text.unwrap().trim().parse().unwrap()
    };
    assert_eq!(limit(&place), (64 + 128 + 512) << 20);
    proa.ok(&["update", "-m", "192m", "--memory-swap", "-1", "bounded"]);
    assert_eq!(limit(&place), (192 + 128 + 512) << 20);
    // Its monitor is killed; whoever looks next clears up.
    let monitor = proa.ok(&["inspect", "--format", "{{.State.MonitorPid}}", "bounded"]);
    kill_process(Pid::from_raw(monitor.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    proa.wait_for("the repair", || {
        proa.ok(&["ps", "-a"]);
        !Path::new(&place).exists()
    });
    proa.ok(&["start", "bounded"]);
    enclosure(&proa, "bounded");
    proa.ok(&["stop", "-t", "0", "bounded"]);
    assert!(!Path::new(&place).exists(), "{place}");
    proa.ok(&["rm", "bounded"]);
}

/// What serves its shares is in there with it, and a share may be used as long as it likes.
#[test]
fn servers_of_shares_are_in_the_cgroup_of_their_vmm() {
    let proa = Proa::with_busybox();
    let shared = tempfile::tempdir().unwrap();
    for name in 0..200 {
        fs::write(shared.path().join(name.to_string()), "x").unwrap();
    }
    let bind = format!("{}:/shared", shared.path().display());
    start(&proa, "sharer", &["-m", "64m", "-v", &bind], "sleep 1000");
    let place = memory_of(&enclosure(&proa, "sharer"));
    let members = fs::read_to_string(Path::new(&place).join("cgroup.procs")).unwrap();
    let name_of = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let servers = members.lines().filter(|pid| name_of(pid).starts_with("virtiofsd")).count();
    // The one outside of its namespaces and the one inside.
    assert_eq!((servers, members.lines().count()), (2, 3), "{members}");
    assert_eq!(proa.ok(&["exec", "sharer", "sh", "-c", "cat /shared/* | wc -c"]).trim(), "200");
    proa.ok(&["rm", "-f", "sharer"]);
    assert!(!Path::new(&place).exists(), "{place}");
}

/// On cgroup v1 the kernel lets no process of real time into a group for CPU time: it is bounded all the same, and what was
/// made for it goes, which the harness checks.
#[test]
fn a_vmm_of_real_time_is_bounded_as_well() {
    let proa = Proa::with_busybox();
    let run = ["run", "-d", "--isolation", "vm", "--name", "urgent", "busybox", "sleep", "1000"];
    let plain = proa.command(&run);
    let mut command = Command::new("chrt");
    command.args(["-f", "1"]).arg(plain.get_program()).args(plain.get_args());
    plain.get_envs().for_each(|(name, value)| _ = value.map(|value| command.env(name, value)));
    let started = proa.run_command(command, &[]);
    assert_eq!(started.code, 0, "{started:?}");
    let place = enclosure(&proa, "urgent");
    assert!(Path::new(&place).is_dir(), "{place}");
    proa.ok(&["rm", "-f", "urgent"]);
}
