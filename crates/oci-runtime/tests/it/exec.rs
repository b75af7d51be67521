//! exec.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Bundle, stdout, wait};

#[test]
fn a_process_joins_the_container() {
    let bundle = Bundle::program(&["/bin/sleep", "1000"]);
    bundle.start();
    let id = bundle.id.as_str();
    let output = bundle.output(&["exec", id, "sh", "-c", "readlink /proc/1/exe; echo $$ -t; exit 4"]);
    assert_eq!(output.status.code(), Some(4));
    let text = stdout(&output);
    assert!(text.starts_with("/bin/busybox\n") && text.ends_with(" -t\n"), "{text}");
    let options = ["exec", "--cwd", "/tmp", "-e", "A=1", "--user", "5:6", "-g", "7"];
    let text = bundle.ok(&[&options[..], &[id, "sh", "-c", "pwd; echo $A; id -u; id -g; id -G"]].concat());
    assert_eq!(text, "/tmp\n1\n5\n6\n6 7\n");
    let text = bundle.ok(&[
        "exec",
        "--cap",
        "sys_time",
        "--no-new-privs",
        id,
        "grep",
        "-E",
        "CapEff|NoNew",
        "/proc/self/status",
    ]);
    assert!(text.contains("NoNewPrivs:\t1") && text.contains("CapEff:\t00000000aa"), "{text}");
    assert!(bundle.ok(&["exec", "-t", id, "tty"]).contains("/dev/pts/"));
}

#[test]
fn debug_tells_of_the_cpus_that_a_process_starts_on() {
    let bundle = Bundle::program(&["/bin/sleep", "1000"]).with_process(|process| {
        process.exec_cpu_affinity =
            Some(proa_oci::runtime::CpuAffinity { initial: Some("0".into()), after: None });
    });
    bundle.start();
    let output =
        bundle.output(&["--debug", "exec", &bundle.id, "grep", "Cpus_allowed_list", "/proc/self/status"]);
    assert_eq!(stdout(&output), "Cpus_allowed_list:\t0\n", "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("initial CPU affinity: 0x1\n"), "{output:?}");
    assert!(bundle.output(&["exec", &bundle.id, "true"]).stderr.is_empty());
}

#[test]
fn a_process_may_come_from_a_file_and_stay() {
    let bundle = Bundle::program(&["/bin/sleep", "1000"]);
    bundle.start();
    let process = bundle.path("process.json");
    let json = r#"{"args":["/bin/sh","-c","echo hi > /dev/shm/x; sleep 1000"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,"gid":0}}"#;
    fs::write(&process, json).unwrap();
    let pid_file = bundle.path("exec-pid");
    let options =
        ["--process", process.to_str().unwrap(), "--pid-file", pid_file.to_str().unwrap(), "--detach"];
    bundle.detached(&[&["exec"], &options[..], &[&bundle.id]].concat());
    let pid: u32 = fs::read_to_string(pid_file).unwrap().parse().unwrap();
    let pids = || serde_json::from_str::<Vec<u32>>(&bundle.ok(&["ps", "-f", "json", &bundle.id])).unwrap();
    wait("it shows", || pids().contains(&pid));
    wait("it writes", || bundle.output(&["exec", &bundle.id, "cat", "/dev/shm/x"]).stdout == b"hi\n");
    let table = bundle.ok(&["ps", &bundle.id]);
    assert!(table.lines().next().unwrap().contains("PID") && table.contains(&pid.to_string()), "{table}");
}

#[test]
fn what_cannot_be_run_is_told_by_the_exit_code() {
    let bundle = Bundle::program(&["/bin/sleep", "1000"]);
    bundle.create(&[]);
    assert_eq!(bundle.ok(&["exec", &bundle.id, "echo", "early"]), "early\n");
    let missing = bundle.output(&["exec", &bundle.id, "no-such-program"]);
    assert_eq!(missing.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("executable file not found in $PATH"));
    assert!(bundle.fails(&["exec", &bundle.id]).contains("a program to run"));
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait_status("stopped");
    assert!(bundle.fails(&["exec", &bundle.id, "true"]).contains("not running"));
}

#[test]
fn a_paused_container_takes_nobody() {
    let bundle = Bundle::program(&["/bin/sleep", "1000"]);
    bundle.start();
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.status(), "paused");
    assert!(bundle.fails(&["exec", &bundle.id, "true"]).contains("paused"));
    assert!(bundle.fails(&["pause", &bundle.id]).contains("paused"));
    bundle.ok(&["resume", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    assert!(bundle.fails(&["resume", &bundle.id]).contains("running"));
    bundle.ok(&["exec", &bundle.id, "true"]);
    bundle.ok(&["pause", &bundle.id]);
    bundle.ok(&["delete", "--force", &bundle.id]);
}

/// The container's directories in all hierarchies, and whether there is only one hierarchy.
fn cgroups(id: &str) -> (Vec<PathBuf>, bool) {
    let mount = Path::new("/sys/fs/cgroup");
    if mount.join("cgroup.procs").exists() {
        return (vec![mount.join("proa").join(id)], true);
    }
    let hierarchies = fs::read_dir(mount).unwrap().flatten();
    let own = hierarchies.map(|hierarchy| hierarchy.path().join("proa").join(id));
    (own.filter(|dir| dir.is_dir()).collect(), false)
}

#[test]
fn a_process_may_join_a_cgroup_below_the_containers() {
    let bundle = Bundle::program(&["/bin/sleep", "1000"]).with(|spec| {
        let resources = spec.linux_mut().resources.get_or_insert_default();
        resources.pids = Some(proa_oci::runtime::Pids { limit: 33 });
    });
    bundle.start();
    let id = bundle.id.as_str();
    let (own, unified) = cgroups(id);
    assert!(!own.is_empty());
    own.iter().for_each(|dir| fs::create_dir_all(dir.join("sub/deep")).unwrap());
    let exec = |cgroup: &str| bundle.ok(&["exec", "--cgroup", cgroup, id, "cat", "/proc/self/cgroup"]);
    let ends = |text: &str, end: &str| text.lines().filter(|line| line.ends_with(end)).count();
    for path in ["sub/deep", "/sub/deep"] {
        assert_eq!(ends(&exec(path), ":/sub/deep"), own.len(), "{path}");
    }
    assert_eq!(ends(&exec("/"), "/sub"), 0);
    let refused = |cgroup: &str| bundle.fails(&["exec", "--cgroup", cgroup, id, "true"]);
    if unified {
        assert!(refused("cpu:sub").contains("v2"));
    } else {
        assert_eq!(ends(&exec("cpu:sub"), ":/sub"), 1);
        assert!(refused("no-such:sub").contains("'no-such'"));
    }
    assert!(refused("missing").contains("does not exist"));
    for path in ["..", "../..", "sub/../../..", "/../x", "pids:.."] {
        assert!(refused(path).contains("--cgroup"), "{path}");
    }
    // Nobody was left outside, and all of it goes with the container.
    bundle.ok(&["delete", "--force", id]);
}
