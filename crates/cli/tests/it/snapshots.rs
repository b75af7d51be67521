//! Snapshots and forks of virtual machines that run, as a user sees them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Output, Proa};
use crate::{rootless_vm, templates};

const PAGE: u64 = 4096;
/// A program that counts, and has its number in a file.
const COUNT: &str = "n=0; while :; do n=$((n+1)); echo $n > /count; sleep 0.1; done";

/// A virtual machine that runs.
pub fn start(proa: &Proa, name: &str, options: &[&str], script: &str) {
    let run = ["run", "-d", "--isolation", "vm", "--name", name];
    proa.ok(&[&run[..], options, &["busybox", "sh", "-c", script]].concat());
}

/// The same from a template: the first of a host boots, and has one made.
pub fn start_clone(proa: &Proa, name: &str) {
    proa.wait_for("a start from a template", || {
        start(proa, name, &[], COUNT);
        let line = fs::read_to_string(format!("/proc/{}/cmdline", pid(proa, name))).unwrap();
        let is_clone = line.contains("-incoming");
        if !is_clone {
            proa.ok(&["rm", "-f", name]);
        }
        is_clone
    });
}

pub fn pid(proa: &Proa, name: &str) -> u32 {
    proa.ok(&["inspect", "--format", "{{.State.Pid}}", name]).trim().parse().unwrap()
}

pub fn ask(proa: &Proa, name: &str, script: &str) -> String {
    proa.ok(&["exec", name, "sh", "-c", script]).trim().to_owned()
}

pub fn refused(proa: &Proa, arguments: &[&str]) -> String {
    let Output { code, stdout, stderr } = proa.run(arguments);
    assert!(code != 0 && stdout.is_empty(), "{arguments:?}: {code} {stdout} {stderr}");
    stderr
}

/// The directory of an instance's snapshot.
fn directory(proa: &Proa, instance: &str, snapshot: &str) -> PathBuf {
    let id = proa.ok(&["inspect", "--format", "{{.Id}}", instance]);
    proa.root().join("instances").join(id.trim()).join("snapshots").join(snapshot)
}

/// What a snapshot has for itself alone, bytes on disk.
fn own_size(proa: &Proa, instance: &str, snapshot: &str) -> u64 {
    let entries = fs::read_dir(directory(proa, instance, snapshot)).unwrap().flatten();
    let files = entries.filter(|entry| entry.file_name() != "base").map(|entry| entry.metadata().unwrap());
    files.filter(|metadata| metadata.nlink() == 1).map(|metadata| metadata.blocks() * 512).sum()
}

#[test]
fn a_snapshot_is_as_large_as_what_changed_and_brings_it_back() {
    let proa = Proa::with_busybox();
    start_clone(&proa, "one");
    ask(&proa, "one", "head -c 40000000 /dev/urandom > /dev/shm/data; echo kept > /file; sync");
    let sum = ask(&proa, "one", "md5sum /dev/shm/data");
    let number = |proa: &Proa| ask(proa, "one", "cat /count").parse::<u64>().unwrap();
    proa.wait_for("a program that has run for a while", || number(&proa) > 30);
    assert_eq!(proa.ok(&["snapshot", "create", "one"]), "snap0");
    let size = own_size(&proa, "one", "snap0");
    assert!(size < 52_000_000, "{size} bytes for 40 MB");
    // The next is a change of the first.
    ask(&proa, "one", "head -c 4000000 /dev/urandom > /dev/shm/more; echo changed > /file; rm /dev/shm/data");
    assert_eq!(proa.ok(&["snapshot", "create", "one", "second"]), "second");
    let size = own_size(&proa, "one", "second");
    assert!(size < 12_000_000, "{size} bytes for 4 MB more");
    assert_eq!(proa.ok(&["snapshot", "ls", "-q", "one"]), "snap0\nsecond");
    assert_eq!(proa.ok(&["snapshot", "ls", "-q"]), "one snap0\none second");
    let list = proa.ok(&["snapshot", "ls", "--format", "json", "one"]);
    assert!(
        list.contains("\"Instance\":\"one\",\"Memory\"")
            && list.contains("\"Name\":\"snap0\"")
            && list.contains("\"Size\":\"4"),
        "{list}"
    );

    assert_eq!(proa.ok(&["snapshot", "restore", "one", "snap0"]), "one");
    assert_eq!(
        ask(&proa, "one", "md5sum /dev/shm/data; cat /file; ls /dev/shm"),
        format!("{sum}\nkept\ndata")
    );
    // The program goes on where it was, in the present.
    let now = number(&proa);
    assert!(now > 30, "{now}");
    proa.wait_for("progress", || number(&proa) > now);
    let moment: i64 = ask(&proa, "one", "date +%s").parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert!((now - moment).abs() < 10, "{moment} at {now}");

    // One that others have pages in common with can go; and what is restored can be kept again.
    assert_eq!(proa.ok(&["snapshot", "rm", "one", "snap0"]), "snap0");
    assert_eq!(proa.ok(&["snapshot", "create", "one"]), "snap0");
    proa.ok(&["stop", "-t", "0", "one"]);
    proa.ok(&["snapshot", "restore", "one", "second"]);
    assert_eq!(ask(&proa, "one", "cat /file; ls /dev/shm"), "changed\nmore");
    proa.ok(&["rm", "-f", "one"]);
}

/// There is no template yet, so it boots.
#[test]
fn the_first_of_a_host_can_be_kept_as_well() {
    let proa = templates::proa();
    proa.ok(&["run", "-d", "--isolation", "vm", "--name", "one", "busybox", "sh", "-c", COUNT]);
    ask(&proa, "one", "echo kept > /dev/shm/file; echo kept > /file");
    proa.ok(&["snapshot", "create", "one"]);
    let size = own_size(&proa, "one", "snap0");
    assert!(size < 100_000_000, "{size} bytes");
    ask(&proa, "one", "rm /dev/shm/file /file");
    proa.ok(&["snapshot", "restore", "one", "snap0"]);
    assert_eq!(ask(&proa, "one", "cat /dev/shm/file /file"), "kept\nkept");
    assert_eq!(proa.ok(&["snapshot", "fork", "--name", "two", "one"]), "two");
    assert_eq!(ask(&proa, "two", "cat /dev/shm/file /file"), "kept\nkept");
    proa.ok(&["rm", "-f", "one", "two"]);
    templates::await_makers(&proa);
}

#[test]
fn twenty_forks_are_twenty_instances() {
    let proa = Proa::with_busybox();
    let script = "echo 0123456789abcdef0123456789abcdef > /etc/machine-id; httpd -f -h /etc";
    start(&proa, "origin", &["--network-alias", "all", "-p", "127.0.0.1:18461:80"], script);
    let fetch = |from: &str, of: &str| ask(&proa, from, &format!("wget -qO- http://{of}/hostname"));
    proa.wait_for("a server", || {
        proa.run(&["exec", "origin", "wget", "-qO-", "http://127.0.0.1/hostname"]).code == 0
    });
    let names = proa.ok(&["snapshot", "fork", "--count", "20", "--name", "copy", "origin"]);
    let names: Vec<&str> = names.lines().collect();
    let expected: Vec<String> = (1..=20).map(|number| format!("copy-{number}")).collect();
    assert_eq!(names, expected);
    assert_eq!(proa.ok(&["snapshot", "ls", "-q", "origin"]), "");
    let all = [&["origin"][..], &names].concat();
    let differ = |what: &str, script: &str| {
        let answers: Vec<String> = all.iter().map(|name| ask(&proa, name, script)).collect();
        let different: BTreeSet<&String> = answers.iter().collect();
        assert_eq!(different.len(), all.len(), "{what}: {answers:?}");
        assert!(answers.iter().all(|answer| !answer.is_empty()), "{what}: {answers:?}");
        answers
    };
    let hosts = differ("host name", "hostname");
    assert_eq!(differ("its file", "cat /etc/hostname"), hosts);
    differ("random bytes", "head -c 16 /dev/urandom | od -An -x");
    differ("uuid", "cat /proc/sys/kernel/random/uuid");
    differ("machine id", "cat /etc/machine-id");
    differ("MAC", "cat /sys/class/net/eth0/address");
    differ("address", "ip -4 -o addr show dev eth0 | cut -d' ' -f7");
    differ("hosts", "grep $(hostname) /etc/hosts");
    // What each serves, by its name, on the network, and at a port of the host's.
    for (name, host) in names.iter().zip(&hosts[1..]).take(3) {
        assert_eq!(&fetch("origin", name), host, "{name}");
        let port = proa.ok(&["port", name, "80"]);
        assert!(port.starts_with("127.0.0.1:") && !port.contains(":18461"), "{port}");
    }
    // And one goes its own way.
    ask(&proa, "copy-1", "echo mine > /mine");
    assert_eq!(ask(&proa, "copy-2", "ls /mine 2>&1 | wc -l; ls /mine 2> /dev/null | wc -l"), "1\n0");
    proa.ok(&[&["rm", "-f"][..], &all].concat());
}

#[test]
fn clients_are_served_as_if_nothing_had_been_copied() {
    let proa = Proa::with_busybox();
    start(&proa, "one", &[], COUNT);
    // A stream that is never at rest, and one that waits.
    let flood = proa.spawn(&[
        "exec",
        "one",
        "sh",
        "-c",
        "dd if=/dev/zero bs=1k count=40000 2> /dev/null | tee /dev/null",
    ]);
    let sleeper = proa.spawn(&["exec", "one", "sleep", "4321"]);
    let fifo = proa.root().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut echo = proa.command(&["exec", "-i", "one", "cat"]);
    echo.stdin(fs::File::options().read(true).write(true).open(&fifo).unwrap());
    let output = proa.root().join("output");
    echo.stdout(fs::File::create(&output).unwrap());
    let mut echo = echo.spawn().unwrap();
    let mut input = fs::File::options().write(true).open(&fifo).unwrap();
    proa.wait_for("the one that waits", || ask(&proa, "one", "ps").contains("sleep 4321"));
    for round in 0..3 {
        std::io::Write::write_all(&mut input, format!("round {round}\n").as_bytes()).unwrap();
        proa.ok(&["snapshot", "create", "one"]);
        let said = format!("round {round}\n");
        proa.wait_for("an echo", || fs::read_to_string(&output).unwrap().ends_with(&said));
    }
    let flooded = flood.finish();
    assert_eq!((flooded.code, flooded.stdout.len()), (0, 40_000 << 10));
    // Where it goes on from a copy, those clients are gone, and what they started is not.
    proa.ok(&["snapshot", "restore", "one", "snap0"]);
    assert_ne!(echo.wait().unwrap().code(), Some(0));
    assert_ne!(sleeper.finish().code, 0);
    assert!(ask(&proa, "one", "ps").contains("sleep 4321"));
    assert_eq!(ask(&proa, "one", "echo here"), "here");
    proa.ok(&["rm", "-f", "one"]);
}

#[test]
fn what_cannot_be_kept_or_used_is_refused_and_costs_nothing() {
    let proa = Proa::with_busybox();
    proa.ok(&["run", "-d", "--name", "plain", "--network", "none", "busybox", "sleep", "1000"]);
    assert!(refused(&proa, &["snapshot", "create", "plain"]).contains("plain is a container"));
    start(&proa, "one", &[], COUNT);
    assert!(refused(&proa, &["snapshot", "create", "one", "../x"]).contains("invalid snapshot name"));
    proa.ok(&["pause", "one"]);
    assert!(refused(&proa, &["snapshot", "create", "one"]).contains("is paused"));
    proa.ok(&["unpause", "one"]);
    proa.ok(&["snapshot", "create", "one", "good"]);
    assert!(refused(&proa, &["snapshot", "create", "one", "good"]).contains("has a snapshot good already"));
    assert!(refused(&proa, &["snapshot", "restore", "one", "other"]).contains("has no snapshot other"));
    let booted =
        ["run", "-d", "--name", "booted", "--isolation", "vm", "--no-template", "busybox", "sleep", "1000"];
    proa.ok(&booted);
    assert!(refused(&proa, &["snapshot", "create", "booted"]).contains("--no-template"));
    assert!(refused(&proa, &["snapshot", "fork", "--count", "0", "one"]).contains("--count 0"));
    proa.ok(&["network", "create", "more"]);
    proa.ok(&["network", "connect", "more", "one"]);
    assert!(refused(&proa, &["snapshot", "create", "one"]).contains("networks were changed"));
    proa.ok(&["network", "disconnect", "more", "one"]);
    proa.ok(&["snapshot", "create", "one", "bad"]);

    // A snapshot that is not what it was: the instance that runs runs on. What only its VMM can tell comes too late for
    // that; then it is down, with its own disk.
    ask(&proa, "one", "echo own > /dev/shm/own; echo own > /own; sync");
    let bad = directory(&proa, "one", "bad");
    let describe = |field: &str, value: &str| {
        let path = bad.join("snapshot.json");
        let text = fs::read_to_string(&path).unwrap();
        let mut info: serde_json::Value = serde_json::from_str(&text).unwrap();
        info["shape"][field] = value.into();
        fs::write(&path, info.to_string()).unwrap();
        text
    };
    for (field, told) in [("cpu", "another CPU"), ("accelerator", "accelerator"), ("vmm", "made with QEMU")] {
        let was = describe(field, "another");
        let why = refused(&proa, &["snapshot", "restore", "one", "bad"]);
        assert!(why.contains(told) && why.lines().count() <= 3, "{why}");
        fs::write(bad.join("snapshot.json"), was).unwrap();
        if field != "vmm" {
            assert_eq!(ask(&proa, "one", "cat /dev/shm/own"), "own");
        }
    }
    proa.ok(&["start", "one"]);
    assert_eq!(ask(&proa, "one", "cat /own; ls /dev/shm"), "own");
    let mut packs = fs::read_dir(&bad).unwrap().map(|entry| entry.unwrap().path());
    let is_own =
        |path: &PathBuf| path.to_string_lossy().contains("pack-") && fs::metadata(path).unwrap().nlink() == 1;
    let pack = packs.find(is_own).unwrap();
    fs::File::options().write(true).open(pack).unwrap().write_all_at(b"damage", PAGE).unwrap();
    assert!(refused(&proa, &["snapshot", "restore", "one", "bad"]).contains("damaged"));
    let why = refused(&proa, &["snapshot", "fork", "--count", "3", "--name", "copy", "one", "bad"]);
    assert!(why.contains("damaged"), "{why}");
    assert!(!proa.ok(&["ps", "-aq", "--filter", "name=copy"]).contains(char::is_alphanumeric));
    assert_eq!(ask(&proa, "one", "cat /own"), "own");
    proa.ok(&["snapshot", "restore", "one", "good"]);
    // What goes by itself when it ends cannot be ended to be brought back.
    start(&proa, "brief", &["--rm"], COUNT);
    proa.ok(&["snapshot", "create", "brief"]);
    let why = refused(&proa, &["snapshot", "restore", "brief", "snap0"]);
    assert!(why.contains("is removed when it ends") && why.contains("proa snapshot fork"), "{why}");
    proa.ok(&["rm", "-f", "plain", "one", "booted", "brief"]);
}

/// Whoever is killed leaves nothing but what the next command clears.
#[test]
fn a_kill_at_any_moment_loses_nothing() {
    let proa = Proa::with_busybox();
    start(&proa, "one", &["--restart", "always"], COUNT);
    ask(&proa, "one", "head -c 20000000 /dev/urandom > /dev/shm/data");
    proa.ok(&["snapshot", "create", "one", "good"]);
    let monitor = || -> u32 {
        proa.ok(&["inspect", "--format", "{{json .State}}", "one"]);
        proa.monitors()[0]
    };
    let kill = |pid: u32| _ = kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL);
    let fresh = directory(&proa, "one", ".new");
    for (number, wait) in ["memory.raw", "disk.raw", "shape.json", "index", "never"].iter().enumerate() {
        // The command, then the VMM, then the monitor.
        for who in 0..3 {
            let name = format!("bad-{number}-{who}");
            let running = proa.spawn(&["snapshot", "create", "one", &name]);
            let victim = match who {
                0 => running.pid(),
                1 => pid(&proa, "one"),
                _ => monitor(),
            };
            let found = fresh.join(wait);
            let mut patience = 400;
            while !found.exists() && patience > 0 {
                patience -= 1;
                std::thread::yield_now();
            }
            kill(victim);
            running.finish();
            proa.wait_for("the instance", || proa.run(&["exec", "one", "true"]).code == 0);
        }
    }
    proa.ok(&["snapshot", "create", "one", "again"]);
    assert!(!fresh.exists());
    for who in 0..2 {
        let running = proa.spawn(&["snapshot", "restore", "one", "good"]);
        if who == 0 {
            kill(running.pid());
        } else {
            proa.wait_for("a monitor", || !proa.monitors().is_empty());
            kill(monitor());
        }
        running.finish();
        proa.wait_for("the instance", || proa.run(&["start", "one"]).code == 0);
    }
    proa.ok(&["snapshot", "restore", "one", "good"]);
    assert_eq!(ask(&proa, "one", "wc -c < /dev/shm/data"), "20000000");
    proa.ok(&["rm", "-f", "one"]);
    assert!(!fresh.parent().unwrap().exists());
}

#[test]
fn an_ordinary_user_has_them_too() {
    let proa = rootless_vm::user().import_busybox();
    start(&proa, "one", &[], COUNT);
    ask(&proa, "one", "echo kept > /dev/shm/file");
    proa.ok(&["snapshot", "create", "one"]);
    ask(&proa, "one", "rm /dev/shm/file");
    proa.ok(&["snapshot", "restore", "one", "snap0"]);
    assert_eq!(ask(&proa, "one", "cat /dev/shm/file"), "kept");
    assert_eq!(proa.ok(&["snapshot", "fork", "--name", "other", "one", "snap0"]), "other");
    assert_eq!(ask(&proa, "other", "cat /dev/shm/file"), "kept");
    assert_ne!(ask(&proa, "one", "hostname"), ask(&proa, "other", "hostname"));
    proa.ok(&["rm", "-f", "one", "other"]);
}
