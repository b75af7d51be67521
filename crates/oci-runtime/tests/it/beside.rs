//! What `proa` itself limits, beside a real systemd that has the same hierarchies.
//!
//! systemd hands down what its own units need and takes back what they do not, at each change of them; the limits of
//! instances must outlast that.

use std::path::{Path, PathBuf};

use crate::machine::{Machine, is_unified};
use crate::support::{Bundle, stdout};

/// A unit with limits, whose coming and going has systemd look at all controllers again.
const UNIT: &str = "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/sleep 1000\nMemoryMax=64M\nTasksMax=9\n\
                    CPUQuota=50%\nAllowedCPUs=0\nIOWeight=50\n";

/// `proa` in the system, with a store that lies on the host.
struct Proa<'m> {
    machine: &'m Machine,
    line: String,
}

impl Proa<'_> {
    fn ok(&self, arguments: &str) -> String {
        let output = self.machine.shell(&format!("{} {arguments}", self.line));
        assert!(output.status.success(), "{arguments}: {output:?}");
        stdout(&output).trim().to_owned()
    }

    /// What the cgroup's files hold, by their names on cgroup v2 and on v1.
    fn limits(&self, id: &str, files: &[(&str, &str)]) -> String {
        let file = |&(new, old): &(&str, &str)| if is_unified() { new.to_owned() } else { old.to_owned() };
        let find = |name: String| format!("cat $(find /sys/fs/cgroup/ -path '*/proa/{id}/{name}')");
        let script: Vec<String> = files.iter().map(|names| find(file(names))).collect();
        let output = self.machine.shell(&script.join("\n"));
        assert!(output.status.success(), "{output:?}");
        stdout(&output).split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

fn dist() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/dist");
    std::env::var_os("PROA_TEST_BIN").map_or(built, PathBuf::from).canonicalize().expect("cargo xtask dist")
}

/// systemd reads its units again, and one with limits of its own comes and goes.
fn stir(machine: &Machine) {
    let script = "systemctl daemon-reload && systemctl start other.service && systemctl stop other.service";
    let output = machine.shell(script);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn limits_outlast_what_systemd_does() {
    let bundle = Bundle::program(&["/bin/true"]);
    let dist = dist();
    let machine = Machine::boot(if is_unified() { "v2" } else { "v1" }, &[&bundle.path(""), &dist]);
    let unit = format!("printf '{}' > /etc/systemd/system/other.service", UNIT.replace('%', "%%"));
    assert!(machine.shell(&unit).status.success());
    let line = format!("{}/proa --root {}", dist.display(), bundle.path("store").display());
    let proa = Proa { machine: &machine, line };
    proa.ok(&format!("import - busybox < {}", tar(&bundle).display()));
    let id = proa
        .ok("run -d --name box -m 64m --memory-reservation 32m --cpus 0.5 --cpu-shares 512 --cpuset-cpus 0 \
         --pids-limit 33 --device-write-bps /dev/loop0:1mb busybox sleep 1000");
    let (quota, weight) = if is_unified() { ("50000 100000", "59") } else { ("50000", "512") };
    let files = [
        ("memory.max", "memory.limit_in_bytes"),
        ("memory.low", "memory.soft_limit_in_bytes"),
        ("cpu.max", "cpu.cfs_quota_us"),
        ("cpu.weight", "cpu.shares"),
        ("cpuset.cpus", "cpuset.cpus"),
        ("pids.max", "pids.max"),
        ("io.max", "blkio.throttle.write_bps_device"),
    ];
    let all = |limits: &str| {
        let io = if is_unified() { "7:0 rbps=max wbps=1048576 riops=max wiops=max" } else { "7:0 1048576" };
        assert_eq!(proa.limits(&id, &files), format!("{limits} {io}"));
    };
    let first = format!("{} {} {quota} {weight} 0 33", 64 << 20, 32 << 20);
    all(&first);
    stir(&machine);
    all(&first);
    proa.ok("update -m 48m --cpus 0.25 --pids-limit 44 box");
    let second = format!("{} {} {} {weight} 0 44", 48 << 20, 32 << 20, quota.replace("50000", "25000"));
    all(&second);
    stir(&machine);
    all(&second);
    let used = proa.ok("stats --no-stream --format '{{.MemUsage}} {{.PIDs}}' box");
    assert!(used.ends_with(" / 48MiB 1"), "{used}");
    proa.ok("pause box");
    stir(&machine);
    let frozen = proa.limits(&id, &[("cgroup.freeze", "freezer.state")]);
    assert_eq!(frozen, if is_unified() { "1" } else { "FROZEN" });
    assert_eq!(proa.ok("inspect --format '{{.State.Status}}' box"), "paused");
    proa.ok("unpause box");
    assert_eq!(proa.ok("exec box busybox nproc"), "1");
    let hog = machine.shell(&format!("{} run --rm -m 16m busybox busybox tail /dev/zero", proa.line));
    assert_eq!(hog.status.code(), Some(137), "{hog:?}");
    let forks = "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo all";
    let forks = machine.shell(&format!("{} run --rm --pids-limit 4 busybox sh -c '{forks}'", proa.line));
    assert!(!stdout(&forks).contains("all"), "{forks:?}");
    proa.ok("rm -f box");
    proa.ok("system stop");
    let left = machine.shell(&format!("find /sys/fs/cgroup/ -path '*/{id}'"));
    assert!(left.stdout.is_empty(), "{left:?}");
}

/// The bundle's root as an archive.
fn tar(bundle: &Bundle) -> PathBuf {
    let archive = bundle.path("root.tar");
    let mut command = std::process::Command::new("tar");
    let status = command.arg("-C").arg(bundle.path("rootfs")).arg("-cf").arg(&archive).arg(".").status();
    assert!(status.unwrap().success());
    archive
}
