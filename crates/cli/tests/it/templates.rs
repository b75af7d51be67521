//! Virtual machines that start from a template, as a user sees them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::{Output, Proa, workspace};

const RUN: [&str; 5] = ["run", "--rm", "--isolation", "vm", "busybox"];

/// A root with kernels and no templates.
pub fn proa() -> Proa {
    let proa = Proa::with_busybox();
    let shared = workspace().join("target/test-cache/vm/kernels");
    if !shared.exists() {
        // The first guest ever fetches a kernel, into the store that all tests share.
        assert_eq!(run(&proa, &["--no-template"], "true").code, 0);
    }
    let own = proa.root().join("vm");
    fs::remove_file(&own).unwrap();
    fs::create_dir(&own).unwrap();
    symlink(shared, own.join("kernels")).unwrap();
    proa
}

fn run(proa: &Proa, options: &[&str], script: &str) -> Output {
    let (options, image) = ([&RUN[..4], options].concat(), RUN[4]);
    proa.run(&[&options[..], &[image, "sh", "-c", script]].concat())
}

fn templates(proa: &Proa) -> Vec<String> {
    let list = proa.run(&["template", "ls", "-q"]);
    assert_eq!(list.code, 0, "{list:?}");
    list.stdout.lines().map(str::to_owned).collect()
}

/// Runs a machine that has to boot, and waits for the template that is made of it.
fn make_template(proa: &Proa) -> String {
    assert_eq!(run(proa, &[], "true").code, 0);
    let mut found = Vec::new();
    proa.wait_for("a template", || {
        found = templates(proa);
        !found.is_empty()
    });
    found.remove(0)
}

/// Whether a running machine is a clone: its VMM waited for a state.
fn is_clone(proa: &Proa, name: &str) -> bool {
    let pid = proa.run(&["inspect", "--format", "{{.State.Pid}}", name]);
    let line = fs::read_to_string(format!("/proc/{}/cmdline", pid.stdout.trim())).unwrap();
    line.contains("-incoming")
}

/// Starts a machine with these options; whether it is a clone.
fn starts_as_clone(proa: &Proa, name: &str, options: &[&str]) -> bool {
    let command = ["run", "-d", "--isolation", "vm", "--name", name];
    let output = proa.run(&[&command[..], options, &["busybox", "sleep", "1000"]].concat());
    assert_eq!(output.code, 0, "{output:?}");
    is_clone(proa, name)
}

fn directory(proa: &Proa, template: &str) -> PathBuf {
    proa.root().join("vm/templates").join(template)
}

#[test]
fn the_second_machine_starts_from_what_the_first_has_left() {
    let proa = proa();
    let template = make_template(&proa);
    assert!(starts_as_clone(&proa, "one", &[]) && starts_as_clone(&proa, "two", &[]));
    assert!(!starts_as_clone(&proa, "booted", &["--no-template"]));
    let ask = |name: &str, script: &str| proa.run(&["exec", name, "sh", "-c", script]).stdout;
    for script in ["head -c 16 /dev/urandom | od", "hostname", "cat /proc/sys/kernel/random/uuid"] {
        let answers = [ask("one", script), ask("two", script)];
        assert!(answers[0] != answers[1] && !answers[0].is_empty(), "{script}: {answers:?}");
    }
    // A machine that is started again has a disk of its own.
    ask("one", "echo kept > /file");
    assert_eq!(proa.run(&["restart", "-t", "0", "one"]).code, 0);
    assert_eq!(ask("one", "cat /file"), "kept\n");

    let list = proa.run(&["template", "ls", "--format", "json"]).stdout;
    assert!(list.contains("\"Memory\":\"512MiB\"") && list.contains(&template), "{list}");
    let usage = proa.run(&["system", "df", "--format", "json"]).stdout;
    assert!(usage.contains("\"Type\":\"Templates\""), "{usage}");

    // What runs does not need it any more.
    for id in templates(&proa) {
        let removed = proa.run(&["template", "rm", &id[..8]]);
        assert_eq!((removed.code, removed.stdout.trim()), (0, id.as_str()), "{removed:?}");
    }
    assert_eq!(ask("two", "echo here"), "here\n");
    assert_eq!(proa.run(&["rm", "-f", "one", "two", "booted"]).code, 0);
    let missing = proa.run(&["template", "rm", &template]);
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains(&format!("no such template: {template}")), "{missing:?}");
    await_makers(&proa);
}

#[test]
fn a_machine_of_a_known_kind_has_its_container_made_already() {
    let proa = proa();
    let for_all = make_template(&proa);
    // The first of its kind booted; the second has a template of the kind made.
    assert_eq!(run(&proa, &[], "true").code, 0);
    proa.wait_for("a template of the kind", || templates(&proa).len() == 2);
    let line = |name: &str| {
        let pid = proa.run(&["inspect", "--format", "{{.State.Pid}}", name]);
        fs::read_to_string(format!("/proc/{}/cmdline", pid.stdout.trim())).unwrap()
    };
    let start = |name: &str, options: &[&str], script: &str| {
        let command = ["run", "-d", "--isolation", "vm", "--name", name];
        let output = proa.run(&[&command[..], options, &["busybox", "sh", "-c", script]].concat());
        assert_eq!(output.code, 0, "{output:?}");
        // One that fits all images has places that are empty.
        line(name).contains("-incoming") && !line(name).contains("null-co")
    };
    let script = "echo $$ $ONE; id -u; hostname; cat /etc/hostname; sleep 1000";
    assert!(start("one", &["-e", "ONE=1", "-u", "7", "-h", "box"], script));
    assert!(start("two", &[], "sleep 1000"));
    // Another kind.
    assert!(!start("three", &["--read-only"], "sleep 1000"));

    proa.wait_for("its words", || proa.run(&["logs", "one"]).stdout.lines().count() == 4);
    assert_eq!(proa.run(&["logs", "one"]).stdout, "1 1\n7\nbox\nbox\n");
    let ask = |name: &str, script: &str| proa.run(&["exec", name, "sh", "-c", script]).stdout;
    for script in ["head -c 16 /dev/urandom | od", "hostname", "ip address show eth0"] {
        let answers = [ask("one", script), ask("two", script)];
        assert!(answers[0] != answers[1] && !answers[0].is_empty(), "{script}: {answers:?}");
    }
    assert_eq!(proa.run(&["exec", "-u", "0", "one", "touch", "/file"]).code, 0);
    assert_eq!(proa.run(&["kill", "one"]).code, 0);
    assert_eq!(proa.run(&["wait", "one"]).stdout.trim(), "137");
    // Started again, it has a disk of its own, and what is on it.
    assert_eq!(proa.run(&["start", "one"]).code, 0);
    assert!(ask("one", "ls /file").contains("/file"));

    let missing = proa.run(&["run", "--rm", "--isolation", "vm", "busybox", "/no/such"]);
    assert_eq!(missing.code, 127, "{missing:?}");
    let files = proa.run(&["create", "--isolation", "vm", "--name", "files", "busybox", "cat", "/given"]);
    assert_eq!(files.code, 0, "{files:?}");
    let given = proa.root().join("given");
    fs::write(&given, "given\n").unwrap();
    assert_eq!(proa.run(&["cp", given.to_str().unwrap(), "files:/given"]).code, 0);
    assert_eq!(proa.run(&["start", "-a", "files"]).stdout, "given\n");
    assert!(templates(&proa).contains(&for_all));
    assert_eq!(proa.run(&["rm", "-f", "one", "two", "three", "files"]).code, 0);
    await_makers(&proa);
}

/// Directories, a file and a volume, with one CPU (whose guest has no ACPI) and with two; more than a slot has room for.
#[test]
fn shares_come_to_a_clone() {
    let proa = proa();
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("f"), "shared\n").unwrap();
    let path = host.path().display();
    let binds: Vec<String> = (0..9).map(|number| format!("--volume={path}:/share{number}")).collect();
    for cpus in ["1", "2"] {
        let cpus = format!("--cpus={cpus}");
        let mut options = vec!["-v", "kept:/volume", &cpus];
        let file = format!("--volume={path}/f:/file:ro");
        options.push(&file);
        options.extend(binds.iter().map(String::as_str));
        proa.wait_for("a start from a template", || {
            starts_as_clone(&proa, "sharer", &options) || {
                proa.ok(&["rm", "-f", "sharer"]);
                false
            }
        });
        let script =
            "cat /share0/f /share8/f /file; echo no > /file; echo more >> /volume/log; wc -l < /volume/log";
        let said = proa.run(&["exec", "sharer", "sh", "-c", script]);
        assert!(said.stderr.contains("Read-only file system"), "{said:?}");
        let lines = if cpus.ends_with('1') { "1" } else { "2" };
        assert_eq!(said.stdout.lines().collect::<Vec<_>>(), ["shared", "shared", "shared", lines]);
        // Memory that comes is at the same bus, and the servers work in it as well.
        proa.ok(&["update", "-m", "900m", "--memory-swap", "-1", "sharer"]);
        let copy = "dd if=/share0/f of=/dev/null bs=600M count=1 2> /dev/null && cat /share3/f";
        assert_eq!(proa.ok(&["exec", "sharer", "sh", "-c", copy]).trim(), "shared");
        // It has a disk of its own by now.
        proa.ok(&["restart", "-t", "0", "sharer"]);
        assert_eq!(proa.ok(&["exec", "sharer", "cat", "/share1/f"]).trim(), "shared");
        proa.ok(&["rm", "-f", "sharer"]);
        await_makers(&proa);
    }
    proa.ok(&["volume", "rm", "kept"]);
}

/// What a machine starts from is there before its start is measured.
#[test]
fn compare_waits_for_the_templates() {
    let proa = proa();
    let report = proa.ok(&["compare", "-n", "1", "--format", "json", "busybox"]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let levels = report["levels"].as_array().unwrap();
    assert_eq!(levels.iter().map(|level| &level["level"]).collect::<Vec<_>>(), ["container", "vm"]);
    for level in levels {
        assert_eq!(level["start"]["samplesMs"].as_array().map(Vec::len), Some(1), "{level}");
        assert!(level["memory"].is_object() && level["processesVisible"].is_number(), "{level}");
    }
    assert_eq!(templates(&proa).len(), 2);
    await_makers(&proa);
}

#[test]
fn a_broken_template_is_told_of_removed_and_costs_nothing_but_time() {
    let proa = proa();
    let template = directory(&proa, &make_template(&proa));
    // It looks as it did when it was saved, to everybody but QEMU.
    fs::write(template.join("state"), "not what QEMU saves").unwrap();
    let sum = Command::new("sha256sum").arg(template.join("state")).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
    let description = fs::read_to_string(template.join("template.json")).unwrap();
    let mut description: serde_json::Value = serde_json::from_str(&description).unwrap();
    description["state_sha256"] = sum.into();
    fs::write(template.join("template.json"), description.to_string()).unwrap();

    let broken =
        proa.run_with_input(&["run", "--rm", "-i", "--isolation", "vm", "busybox", "cat"], b"said\n");
    assert_eq!((broken.code, broken.stdout.as_str()), (0, "said\n"), "{broken:?}");
    assert!(broken.stderr.contains("did not work") && broken.stderr.contains("boots instead"), "{broken:?}");
    assert!(!template.join("template.json").exists());
    let mended = run(&proa, &[], "exit 7");
    assert_eq!(mended.code, 7);
    assert!(!mended.stderr.contains("template"), "{mended:?}");
    await_makers(&proa);
}

#[test]
fn a_stop_of_everything_ends_who_makes_a_template() {
    let proa = proa();
    assert_eq!(run(&proa, &[], "true").code, 0);
    let partial = proa.root().join("vm/templates/.new");
    proa.wait_for("a template in the making", || partial.exists() || !templates(&proa).is_empty());
    assert_eq!(proa.run(&["system", "stop"]).code, 0);
    let lock = fs::File::open(proa.root().join("vm/templates.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
}

/// A process that makes a template is nobody's child; it must not outlive the root of the test.
pub fn await_makers(proa: &Proa) {
    let store = proa.root().join("vm");
    let store = store.to_str().unwrap();
    proa.wait_for("the makers' end", || {
        fs::read_dir("/proc").unwrap().flatten().all(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            !(line.contains("--template") && line.contains(store))
        })
    });
}
