//! Virtual machines that stand by, as a user sees them: an instance that gets one is as any other.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Output, Proa};
use crate::templates::{self, await_makers};

/// A root with a template of the kind of what [`run`] runs, where one virtual machine may stand by.
fn proa() -> Proa {
    let mut proa = templates::proa();
    proa.stand_by(1);
    // The first has a template made for all images, the second boots for its own kind.
    for count in [1, 2] {
        assert_eq!(run(&proa, &[], "true").code, 0);
        proa.wait_for("a template", || proa.ok(&["template", "ls", "-q"]).lines().count() == count);
        await_makers(&proa);
    }
    assert_eq!(places(&proa), Vec::<PathBuf>::new());
    proa
}

fn run(proa: &Proa, options: &[&str], script: &str) -> Output {
    let command = ["run", "--rm", "--isolation", "vm"];
    proa.run(&[&command[..], options, &["busybox", "sh", "-c", script]].concat())
}

fn start(proa: &Proa, name: &str, options: &[&str], script: &str) -> u32 {
    let command = ["run", "-d", "--isolation", "vm", "--name", name];
    proa.ok(&[&command[..], options, &["busybox", "sh", "-c", script]].concat());
    proa.ok(&["inspect", "-f", "{{.State.Pid}}", name]).parse().unwrap()
}

fn directory(proa: &Proa) -> PathBuf {
    Path::new(&proa.ok(&["info", "-f", "{{.RunRoot}}"])).join("standby")
}

/// Those that can be had.
fn places(proa: &Proa) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory(proa)).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join("socket").exists()).collect()
}

/// Waits for one; its monitor and its VMM.
fn await_one(proa: &Proa) -> (u32, u32) {
    let mut found = None;
    proa.wait_for("one that stands by", || {
        found = places(proa).first().and_then(|place| processes(place));
        found.is_some()
    });
    assert_eq!(proa.ok(&["info", "-f", "{{.StandbyMachines}}"]), "1");
    found.unwrap()
}

fn processes(place: &Path) -> Option<(u32, u32)> {
    let monitor = fs::read_to_string(place.join("lock")).ok()?;
    let children = fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children")).ok()?;
    Some((monitor.parse().ok()?, children.trim().parse().ok()?))
}

/// Starts an instance that comes from a template, so that one stands by for the next.
fn prepare(proa: &Proa) -> (u32, u32) {
    assert_eq!(run(proa, &[], "true").code, 0);
    await_one(proa)
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn user_of(pid: u32) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{pid}")).unwrap())
}

#[test]
fn what_stood_by_becomes_an_instance_as_any_other() {
    let proa = proa();
    let (monitor, vmm) = prepare(&proa);
    let script = "echo $$ $ONE; id -u; hostname; cat /etc/hostname; date +%s; sleep 1000";
    assert_eq!(start(&proa, "one", &["-e", "ONE=1", "-u", "7", "-h", "box", "-p", "8000:80"], script), vmm);
    proa.wait_for("its words", || proa.ok(&["logs", "one"]).lines().count() == 5);
    let said = proa.ok(&["logs", "one"]);
    let (said, time) = said.rsplit_once('\n').unwrap();
    assert_eq!(said, "1 1\n7\nbox\nbox");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now - time.parse::<u64>().unwrap() < 60);
    let told = proa.ok(&["inspect", "-f", "{{.State.MonitorPid}}", "one"]);
    assert_eq!(told, monitor.to_string());

    // It has been at work for a moment, and the next one stands by.
    let (_, next) = await_one(&proa);
    assert_eq!(start(&proa, "two", &[], "sleep 1000"), next);
    // Neither is who the other is.
    assert!(user_of(vmm) != user_of(next) && user_of(vmm) >= 0x7000_0000);
    let ask = |name: &str, script: &str| proa.ok(&["exec", name, "sh", "-c", script]);
    for script in [
        "head -c 16 /dev/urandom | od",
        "hostname",
        "ip address show eth0",
        "cat /proc/sys/kernel/random/uuid",
    ] {
        let answers = [ask("one", script), ask("two", script)];
        assert!(answers[0] != answers[1] && !answers[0].is_empty(), "{script}: {answers:?}");
    }
    // Nothing of the rehearsal is left, and what it was is not told.
    assert_eq!(ask("two", "ls -a /; mount; ps").matches("rehears").count(), 0);
    let address = proa.ok(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "one"]);
    ask("two", &format!("ping -c 1 -W 5 {address} && ping -c 1 -W 5 one"));
    proa.ok(&["exec", "-u", "0", "one", "touch", "/file"]);
    proa.ok(&["restart", "-t", "0", "one"]);
    assert_eq!(ask("one", "ls /file"), "/file");
    proa.ok(&["pause", "two"]);
    proa.ok(&["unpause", "two"]);
    proa.ok(&["network", "disconnect", "bridge", "two"]);
    proa.ok(&["network", "connect", "bridge", "two"]);
    assert!(ask("two", "ip address").contains("eth0"));
    proa.ok(&["rm", "-f", "one", "two"]);
    assert_eq!(proa.ok(&["system", "check"]), "");
}

#[test]
fn an_instance_of_another_kind_leaves_it_alone() {
    let proa = proa();
    let (_, vmm) = prepare(&proa);
    assert_ne!(start(&proa, "other", &["--read-only"], "sleep 1000"), vmm);
    assert_ne!(start(&proa, "small", &["-m", "64m"], "sleep 1000"), vmm);
    assert_ne!(start(&proa, "volume", &["-v", "/data"], "sleep 1000"), vmm);
    assert_ne!(start(&proa, "booted", &["--no-template"], "sleep 1000"), vmm);
    assert!(is_alive(vmm));
    // Several at once: one has it.
    let command = ["run", "-d", "--isolation", "vm", "busybox", "sh", "-c", "sleep 1000"];
    let started: Vec<_> = (0..4).map(|_| proa.spawn(&command)).collect();
    let ids: Vec<String> =
        started.into_iter().map(|one| one.finish()).map(|output| output.stdout.trim().to_owned()).collect();
    let pids = ids.iter().map(|id| proa.ok(&["inspect", "-f", "{{.State.Pid}}", id]));
    assert_eq!(pids.filter(|pid| *pid == vmm.to_string()).count(), 1);
    let all: Vec<&str> = ids.iter().map(String::as_str).collect();
    proa.ok(&[&["rm", "-f", "-v", "other", "small", "volume", "booted"][..], &all].concat());
    await_makers(&proa);
}

#[test]
fn whatever_is_killed_the_next_one_starts_and_nothing_is_left() {
    let proa = proa();
    let (monitor, vmm) = prepare(&proa);
    kill(vmm);
    proa.wait_for("its end", || !is_alive(monitor) && places(&proa).is_empty());
    let (monitor, vmm) = prepare(&proa);
    kill(monitor);
    proa.wait_for("the end of its machine", || !is_alive(vmm));
    let dead = places(&proa);
    assert_eq!(dead.len(), 1);
    let found = proa.run(&["system", "check"]);
    assert!(found.code == 1 && found.stdout.matches("stood by").count() == 2, "{found:?}");
    // Its socket is there, and nobody behind it.
    assert_eq!(run(&proa, &[], "exit 7").code, 7);
    let (_, vmm) = await_one(&proa);
    assert_eq!(proa.ok(&["system", "check"]), "");
    // One in the making.
    assert_eq!(start(&proa, "it", &[], "sleep 1000"), vmm);
    proa.wait_for("one in the making", || fs::read_dir(directory(&proa)).unwrap().count() > 0);
    let place = fs::read_dir(directory(&proa)).unwrap().next().unwrap().unwrap().path();
    let maker = || fs::read_to_string(place.join("lock")).unwrap_or_default().parse();
    proa.wait_for("its maker", || maker().is_ok());
    kill(maker().unwrap());
    assert_eq!(run(&proa, &[], "exit 8").code, 8);
    proa.ok(&["rm", "-f", "it"]);
    await_one(&proa);
    proa.ok(&["system", "stop"]);
    assert!(!directory(&proa).exists() && !proa.root().join("standby").exists());
}

#[test]
fn one_of_another_kind_puts_the_oldest_out_and_none_is_wanted_where_the_host_says_so() {
    let mut proa = proa();
    let (_, vmm) = prepare(&proa);
    for count in [2, 3] {
        assert_eq!(run(&proa, &["--read-only"], "true").code, 0);
        proa.wait_for("a template", || proa.ok(&["template", "ls", "-q"]).lines().count() == count);
        await_makers(&proa);
    }
    assert!(is_alive(vmm));
    assert_eq!(run(&proa, &["--read-only"], "true").code, 0);
    proa.wait_for("the end of the first", || !is_alive(vmm));
    let (_, other) = await_one(&proa);
    proa.stand_by(0);
    assert_ne!(start(&proa, "last", &["--read-only"], "sleep 1000"), other);
    assert!(is_alive(other) && places(&proa).len() == 1);
    proa.ok(&["rm", "-f", "last"]);
}
