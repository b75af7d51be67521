//! `--systemd-cgroup` with a real systemd: a small system of its own, over the host's files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use proa_oci::runtime::{Cpu, Memory, Pids};

use crate::support::{Bundle, PROGRAM, stdout, wait, wait_within};

/// Longest that each half of a boot may take.
const BOOT: Duration = Duration::from_secs(90);
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/programs/machine.sh");

/// The running system. Its processes are in a cgroup of its own, in all hierarchies.
pub struct Machine {
    child: Child,
    /// Its systemd, by our number.
    pid: String,
    cgroups: Vec<PathBuf>,
    _scratch: tempfile::TempDir,
}

pub fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

impl Machine {
    /// Boots it with `v1` or `v2`; `shared` are directories of the host's that it sees.
    pub fn boot(layout: &str, shared: &[&Path]) -> Self {
        assert!(Path::new("/lib/systemd/systemd").exists(), "install systemd and dbus: this test boots them");
        let scratch = tempfile::Builder::new().prefix("proa-machine-").tempdir().unwrap();
        let cgroups = own_cgroups(scratch.path());
        let programs = Path::new(PROGRAM).parent().unwrap();
        let enter = "for dir in $CGROUPS; do echo $$ > $dir/cgroup.procs; done; exec unshare \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", enter, "sh", "-Cmpfuin", "--kill-child", "sh", SCRIPT]);
        command.arg(scratch.path()).arg(layout).arg(programs).args(shared);
        let list: Vec<_> = cgroups.iter().map(|dir| dir.to_str().unwrap()).collect();
        command.env("CGROUPS", list.join(" ")).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let first = || fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
        let is_systemd =
            |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "systemd\n");
        wait("its first process", || !first().is_empty());
        if is_unified() {
            leave(child.id());
        }
        wait_within(BOOT, "systemd", || is_systemd(&first()));
        let machine = Self { child, pid: first(), cgroups, _scratch: scratch };
        wait_within(BOOT, "its bus", || {
            machine.shell("systemctl is-active dbus.service").stdout == b"active\n"
        });
        machine
    }

    /// The beginning of a command line that is run in it.
    pub fn entry(&self) -> Vec<String> {
        // Where namespaces are borders of delegation, nobody moves a process out of a cgroup that it does not see.
        let join = match is_unified() {
            true => format!(
                "mkdir -p {0} && echo $$ >{0}/cgroup.procs && ",
                self.cgroups[0].join("entered").display()
            ),
            false => String::new(),
        };
        let line =
            ["sh", "-c", &format!("{join}exec \"$@\""), "sh", "nsenter", "-t", &self.pid, "-m", "-p", "-u"];
        let rest = ["-i", "-n", "-C", "-r", "-w", "--", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"];
        line.iter().chain(&rest).map(ToString::to_string).collect()
    }

    /// Runs a command in it.
    fn command(&self, args: &[&str]) -> Output {
        let entry = self.entry();
        let output = Command::new(&entry[0]).args(&entry[1..]).args(args).output().unwrap();
        assert!(output.status.success() || args[0] == "sh", "{args:?}: {output:?}");
        output
    }

    pub fn shell(&self, script: &str) -> Output {
        self.command(&["sh", "-c", script])
    }

    fn runtime(&self, args: &[&str]) -> String {
        stdout(&self.command(&[&[PROGRAM, "--root", "/run/state"], args].concat()))
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        let told = self.command(&["systemctl", "show", "--value", "-p", name, unit]);
        stdout(&told).trim().to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its systemd dies with it, and all others with that.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for dir in &self.cgroups {
            wait("its cgroups go", || {
                remove(dir);
                !dir.exists()
            });
        }
    }
}

/// Takes a process to our own cgroup: one that has processes of its own hands no controllers down.
fn leave(pid: u32) {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    fs::write(Path::new("/sys/fs/cgroup").join(own).join("cgroup.procs"), pid.to_string()).unwrap();
}

/// A cgroup in each hierarchy.
fn own_cgroups(scratch: &Path) -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let hierarchies = match is_unified() {
        true => vec![root],
        false => fs::read_dir(root).unwrap().flatten().map(|entry| entry.path()).collect(),
    };
    let mut made = Vec::new();
    for hierarchy in hierarchies.iter().filter(|dir| dir.join("cgroup.procs").exists()) {
        let dir = hierarchy.join(scratch.file_name().unwrap());
        fs::create_dir(&dir).unwrap();
        // Without them nobody may join on cgroup v1.
        for file in
            ["cpuset.cpus", "cpuset.mems"].iter().filter(|file| !is_unified() && dir.join(file).exists())
        {
            fs::copy(hierarchy.join(file), dir.join(file)).unwrap();
        }
        made.push(dir);
    }
    made
}

fn remove(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove(&entry.path());
    }
    let _ = fs::remove_dir(dir);
}

fn bundle() -> Bundle {
    let mut bundle = Bundle::program(&["/bin/sleep", "1000"]);
    bundle.spec.linux_mut().cgroups_path = Some("machine-a.slice:test:box".into());
    bundle
}

/// Creates and starts; what it says in the background must not keep our pipes.
fn run(machine: &Machine, bundle: &Bundle) {
    bundle.write();
    let path = bundle.path("");
    let command = format!(
        "{PROGRAM} --root /run/state --systemd-cgroup run -d -b {} box </dev/null >/run/out 2>&1",
        path.display()
    );
    let output = machine.shell(&format!("{command} || {{ cat /run/out; exit 1; }}"));
    assert!(output.status.success(), "{output:?}");
}

fn assert_runs(machine: &Machine) {
    for (name, value) in [
        ("ActiveState", "active"),
        ("Slice", "machine-a.slice"),
        ("ControlGroup", "/machine.slice/machine-a.slice/test-box.scope"),
        ("Delegate", "yes"),
        ("DevicePolicy", "strict"),
    ] {
        assert_eq!(machine.property("test-box.scope", name), value, "{name}");
    }
    // systemd takes another look at all its units.
    machine.command(&["systemctl", "daemon-reload"]);
    let read = machine.runtime(&["exec", "box", "sh", "-c", "head -c 3 /dev/zero | wc -c"]);
    assert_eq!(read.trim(), "3", "its devices are as they were");
    machine.runtime(&["pause", "box"]);
    assert!(machine.runtime(&["state", "box"]).contains("\"paused\""));
    machine.runtime(&["resume", "box"]);
}

fn assert_goes(machine: &Machine) {
    machine.runtime(&["kill", "box", "KILL"]);
    wait("it stops", || machine.runtime(&["state", "box"]).contains("\"stopped\""));
    machine.runtime(&["delete", "box"]);
    wait("systemd forgets it", || machine.property("test-box.scope", "LoadState") == "not-found");
    let left = machine
        .shell("ls -d /sys/fs/cgroup/*/machine.slice/*/*.scope /sys/fs/cgroup/machine.slice/*/*.scope");
    assert!(left.stdout.is_empty(), "{left:?}");
}

#[test]
fn a_real_systemd_makes_scopes_on_cgroup_v2() {
    let bundle = bundle();
    if !is_unified() && !Path::new("/sys/fs/cgroup/unified").exists() {
        return;
    }
    let machine = Machine::boot("v2", &[&bundle.path("")]);
    run(&machine, &bundle);
    assert_runs(&machine);
    assert_goes(&machine);
}

#[test]
fn a_real_systemd_knows_the_limits() {
    let layout = if is_unified() { "v2" } else { "v1" };
    let bundle = bundle().with(|spec| {
        let resources = spec.linux_mut().resources.get_or_insert_default();
        resources.memory = Some(Memory { limit: Some(64 << 20), ..Memory::default() });
        resources.pids = Some(Pids { limit: 33 });
        let cpus = Some("0".to_owned());
        resources.cpu = Some(Cpu { quota: Some(50_000), period: Some(100_000), cpus, ..Cpu::default() });
    });
    let machine = Machine::boot(layout, &[&bundle.path("")]);
    run(&machine, &bundle);
    assert_runs(&machine);
    // systemd's word, and the kernel's.
    let holds = |property: &str, told: &str, file: &str, written: &str| {
        assert_eq!(machine.property("test-box.scope", property), told);
        let file = machine.shell(&format!("cat $(find /sys/fs/cgroup/ -path '*test-box.scope/{file}')"));
        assert_eq!(stdout(&file).trim(), written, "{property}");
    };
    let limits = |pids: &str, quota_ms: u32, memory: &str| {
        holds("TasksMax", pids, "pids.max", pids);
        let told = format!("{}ms", quota_ms * 10);
        let written = (quota_ms * 1000).to_string();
        if is_unified() {
            holds("CPUQuotaPerSecUSec", &told, "cpu.max", &format!("{written} 100000"));
            holds("MemoryMax", memory, "memory.max", memory);
            holds("AllowedCPUs", "0", "cpuset.cpus", "0");
        } else {
            holds("CPUQuotaPerSecUSec", &told, "cpu.cfs_quota_us", &written);
            holds("MemoryLimit", memory, "memory.limit_in_bytes", memory);
        }
    };
    limits("33", 50, &(64 << 20).to_string());
    let memory = (48 << 20).to_string();
    machine.runtime(&["update", "--pids-limit", "44", "--cpu-quota", "25000", "--memory", &memory, "box"]);
    limits("44", 25, &memory);
    machine.command(&["systemctl", "daemon-reload"]);
    limits("44", 25, &memory);
    let stats: serde_json::Value =
        serde_json::from_str(&machine.runtime(&["events", "--stats", "box"])).unwrap();
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], 48 << 20);
    assert!(stats["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0, "{stats}");
    // Killed from outside.
    machine.command(&["systemctl", "kill", "-s", "KILL", "test-box.scope"]);
    wait("it stops", || machine.runtime(&["state", "box"]).contains("\"stopped\""));
    machine.runtime(&["delete", "box"]);
    run(&machine, &bundle);
    assert_goes(&machine);
}
