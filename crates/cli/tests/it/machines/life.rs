//! The life of a machine: the verbs of all instances, its console, its power button.

use std::fs;

use super::Bed;
use crate::harness::Proa;
use crate::resize::enclosure;

#[test]
fn a_machine_lives_under_the_verbs_of_all_instances() {
    let bed = Bed::new();
    bed.create("pc", &["--label", "a=b", "--cpus", "1"]);
    assert_eq!(bed.state("pc"), "created 0");
    bed.ok(&["start", "pc"]);
    bed.expect("pc", "ready");
    assert_eq!(bed.ok(&["ps", "--filter", "label=a=b", "--format", "{{.Names}} {{.Isolation}}"]), "pc vm");
    assert_eq!(
        bed.ok(&["machine", "ls", "--format", "{{.Name}} {{.Status}} {{.Firmware}}"]),
        "pc running bios"
    );
    let stats = bed.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}}", "pc"]);
    assert!(stats.ends_with("/ 64MiB"), "{stats}");
    bed.ok(&["pause", "pc"]);
    assert_eq!(bed.state("pc"), "paused 0");
    bed.ok(&["unpause", "pc"]);
    bed.ok(&["rename", "pc", "box"]);
    bed.ok(&["update", "--restart", "on-failure:1", "box"]);
    let grown = bed.refused(&["update", "--memory", "128m", "box"]);
    assert!(grown.contains("stop it, update it, start it"), "{grown}");
    let waiting = bed.proa.spawn(&["wait", "box"]);
    // The guest hears its power button, and powers itself off: that is no failure, and no reason for a restart.
    bed.ok(&["stop", "box"]);
    assert_eq!((bed.state("box").as_str(), waiting.finish().stdout.trim()), ("exited 0", "0"));
    assert!(bed.ok(&["logs", "box"]).ends_with("button"), "{}", bed.ok(&["logs", "box"]));
    bed.ok(&["update", "--memory", "128m", "box"]);
    bed.ok(&["start", "box"]);
    assert!(bed.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}}", "box"]).ends_with("/ 128MiB"));
    bed.ok(&["kill", "box"]);
    assert_eq!(bed.state("box"), "exited 137");
    let events = bed.ok(&["events", "--since", "1h", "--until", "0s", "--format", "{{.Action}}"]);
    for what in ["create", "start", "pause", "unpause", "rename", "update", "stop", "kill", "die"] {
        assert!(events.lines().any(|line| line == what), "{what}: {events}");
    }
    bed.ok(&["container", "prune", "-f"]);
    assert_eq!(bed.state("box"), "exited 137");
    bed.ok(&["rm", "box"]);
    assert_eq!(bed.ok(&["machine", "ls", "-q"]), "");
}

#[test]
fn the_console_goes_both_ways_and_can_be_left() {
    let bed = Bed::new();
    bed.create("pc", &[]);
    bed.ok(&["start", "pc"]);
    bed.expect("pc", "ready");
    let mut terminal = bed.attach("pc");
    terminal.send("hel");
    terminal.expect("HEL");
    terminal.send("\x10\x11");
    assert_eq!(terminal.wait(), 0);
    assert_eq!(bed.state("pc"), "running 0");
    let mut terminal = bed.attach("pc");
    terminal.send("lo");
    terminal.expect("LO");
    // It powers itself off.
    terminal.send("q");
    assert_eq!(terminal.wait(), 0);
    assert_eq!(bed.state("pc"), "exited 0");
    assert!(bed.ok(&["logs", "pc"]).contains("HELLO"));
    bed.ok(&["rm", "pc"]);
}

#[test]
fn its_vmm_has_a_cgroup_that_goes_with_it() {
    let bed = Bed::new();
    bed.create("pc", &[]);
    bed.ok(&["start", "pc"]);
    bed.expect("pc", "ready");
    let place = enclosure(&bed.proa, "pc");
    let limit = |place: &str| fs::read_to_string(place).unwrap().trim().parse::<u64>().unwrap();
    let memory = place.replace("/pids/", "/memory/");
    let files = ["memory.max", "memory.limit_in_bytes"].map(|file| format!("{memory}/{file}"));
    let file = files.iter().find(|file| fs::metadata(file).is_ok()).unwrap();
    assert_eq!(limit(file), (64 + 512) << 20);
    let members = fs::read_to_string(format!("{place}/cgroup.procs")).unwrap();
    assert_eq!(members.trim(), bed.ok(&["inspect", "-f", "{{.State.Pid}}", "pc"]));
    bed.ok(&["kill", "pc"]);
    bed.ok(&["wait", "pc"]);
    assert!(!fs::exists(&place).unwrap(), "{place}");
    bed.ok(&["rm", "pc"]);
}

#[test]
fn a_reset_is_no_end() {
    let bed = Bed::new();
    bed.create("pc", &[]);
    bed.ok(&["start", "pc"]);
    bed.expect("pc", "ready");
    let mut terminal = bed.attach("pc");
    terminal.send("r");
    terminal.expect("ready");
    terminal.send("\x10\x11");
    terminal.wait();
    assert_eq!(bed.state("pc"), "running 0");
    bed.ok(&["rm", "-f", "pc"]);
}

#[test]
fn what_needs_somebody_inside_is_refused_in_a_line() {
    let bed = Bed::new();
    bed.create("pc", &[]);
    let stopped = [&["diff", "pc"][..], &["cp", "pc:/etc/passwd", "-"]];
    for line in stopped {
        let said = bed.refused(line);
        assert!(said.contains("nothing on the host reads its disks"), "{line:?}: {said}");
    }
    bed.ok(&["start", "pc"]);
    bed.expect("pc", "ready");
    for line in [&["exec", "pc", "true"][..], &["top", "pc"], &["diff", "pc"], &["cp", "pc:/etc/passwd", "-"]]
    {
        let said = bed.refused(line);
        assert!(said.contains("proa attach"), "{line:?}: {said}");
    }
    assert!(bed.refused(&["kill", "-s", "USR1", "pc"]).contains("power button"));
    assert!(bed.refused(&["snapshot", "create", "pc"]).contains("memory cannot be copied"));
    bed.ok(&["rm", "-f", "pc"]);
}

#[test]
fn the_screen_is_seen_by_pictures_and_viewers() {
    let bed = Bed::new();
    bed.create("pc", &[]);
    bed.ok(&["start", "pc"]);
    bed.expect("pc", "ready");
    let picture = bed.path("screen.png");
    bed.ok(&["machine", "screenshot", "-o", &picture, "pc"]);
    bed.ok(&["machine", "screenshot", "-o", &picture, "pc"]);
    let png = fs::read(&picture).unwrap();
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n") && png.len() > 200, "{} bytes", png.len());
    let size = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    assert!(size(16) >= 640 && size(20) >= 400, "{}x{}", size(16), size(20));
    let socket = bed.ok(&["inspect", "--format", "{{.State.Screen}}", "pc"]);
    let mut viewer = std::os::unix::net::UnixStream::connect(socket).unwrap();
    let mut greeting = [0; 12];
    viewer.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    std::io::Read::read_exact(&mut viewer, &mut greeting).unwrap();
    assert!(greeting.starts_with(b"RFB 003."), "{greeting:?}");
    bed.ok(&["rm", "-f", "pc"]);
}

#[test]
fn a_killed_monitor_leaves_a_machine_that_can_be_started() {
    let bed = Bed::new();
    bed.create("pc", &[]);
    bed.ok(&["start", "pc"]);
    bed.expect("pc", "ready");
    let vmm = bed.ok(&["inspect", "--format", "{{.State.Pid}}", "pc"]);
    for pid in bed.proa.monitors() {
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid as i32).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
    }
    bed.proa.wait_for("the machine to be ended", || bed.state("pc") == "exited 137");
    bed.proa.wait_for("the VMM to be gone", || !std::path::Path::new(&format!("/proc/{vmm}")).exists());
    bed.ok(&["start", "pc"]);
    bed.proa.wait_for("the second boot", || bed.ok(&["logs", "pc"]).matches("ready").count() == 2);
    // A VMM that dies by itself is a failure, which is said.
    let vmm: i32 = bed.ok(&["inspect", "--format", "{{.State.Pid}}", "pc"]).parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(vmm).unwrap(),
        rustix::process::Signal::SEGV,
    )
    .unwrap();
    bed.proa.wait_for("the end", || bed.state("pc") == "exited 137");
    let error = bed.ok(&["inspect", "--format", "{{.State.Error}}", "pc"]);
    assert!(error.contains("killed by signal 11"), "{error}");
    bed.ok(&["rm", "pc"]);
}

#[test]
fn policies_hold_for_machines() {
    let bed = Bed::new();
    bed.create("pc", &["--restart", "unless-stopped"]);
    bed.ok(&["start", "pc"]);
    bed.expect("pc", "ready");
    let mut terminal = bed.attach("pc");
    terminal.send("q");
    assert_eq!(terminal.wait(), 0);
    bed.proa.wait_for("the next start", || bed.ok(&["logs", "pc"]).matches("ready").count() == 2);
    assert_eq!(bed.ok(&["inspect", "--format", "{{.RestartCount}}", "pc"]), "1");
    // As after a power cut.
    bed.ok(&["system", "stop"]);
    bed.ok(&["system", "boot"]);
    bed.proa.wait_for("the start at boot", || bed.ok(&["logs", "pc"]).matches("ready").count() == 3);
    bed.ok(&["stop", "pc"]);
    assert_eq!(bed.state("pc"), "exited 0");
    bed.ok(&["rm", "pc"]);
}

#[test]
fn an_ordinary_user_has_machines() {
    let bed = Bed::of(Proa::of_user("proa-test"));
    if !bed.proa.has_ids() {
        return;
    }
    let tiny = bed.tiny();
    bed.sh(&format!(
        "qemu-img convert -f raw -O vmdk {tiny} tiny.vmdk && chmod 755 . && chmod 600 tiny.vmdk"
    ));
    bed.proa.give(bed.path("tiny.vmdk").as_ref());
    bed.ok(&["machine", "create", "--disk", &bed.path("tiny.vmdk"), "-m", "64m", "pc"]);
    bed.ok(&["start", "pc"]);
    bed.expect("pc", "ready");
    let vmm = bed.ok(&["inspect", "--format", "{{.State.Pid}}", "pc"]);
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{vmm}")).unwrap());
    assert_ne!(owner, bed.proa.user().unwrap().uid, "the VMM is somebody else");
    bed.ok(&["stop", "pc"]);
    assert_eq!(bed.state("pc"), "exited 0");
    bed.ok(&["rm", "pc"]);
}
