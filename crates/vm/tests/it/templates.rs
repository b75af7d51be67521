//! Guests that go on from a template: what they share, what they do not, and what happens when one is broken.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use proa_protocol::frame::{Frame, Kind};
use proa_protocol::message::{Request, Response};
use proa_vm::{TemplateRequest, plan_shares};
use sha2::{Digest, Sha256};

use crate::fixture::{Guest, LIMIT, Setup, await_gone, program, store};

const SCRIPT: &str = "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid; hostname; \
                      test $(($(date +%s) - 1700000000)) -lt 100 && echo on time; echo kept > /file; cat /file";

/// A guest whose store has kernels and no templates.
pub fn setup(script: &str) -> Setup {
    let mut setup = Setup::new(script);
    // Kernels are in the shared store as soon as a guest has booted from it.
    setup.boot().shut_down();
    fs::remove_file(&setup.spec.rw_disk).unwrap();
    let own = setup.scratch.path().join("store");
    fs::create_dir(&own).unwrap();
    std::os::unix::fs::symlink(store().join("kernels"), own.join("kernels")).unwrap();
    setup.spec.store = own;
    setup.spec.templates = true;
    setup
}

pub fn request(setup: &Setup) -> TemplateRequest {
    TemplateRequest {
        kernel: None,
        agent: setup.spec.agent.clone(),
        store: setup.spec.store.clone(),
        memory: setup.spec.memory,
        cpus: setup.spec.cpus,
        layers: setup.spec.layers.len(),
        kind: None,
        interfaces: 0,
        mounted: true,
        sharing: false,
    }
}

pub fn templates(setup: &Setup) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(setup.spec.store.join("templates")) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.join("template.json").exists()).collect()
}

/// Starts the guest and configures it; lines for the user.
pub fn start(setup: &Setup) -> (Guest, Vec<String>) {
    let mut notices = Vec::new();
    let mut guest = Guest::start_with(&setup.spec, &mut |line| notices.push(line)).unwrap();
    let answer = guest.configure(setup.config.clone(), setup.spec.layers.len(), &[]);
    assert_eq!(answer, Response::Ok);
    notices.retain(|line| line.contains("template"));
    (guest, notices)
}

/// Another instance of the same kind.
pub fn another(setup: &Setup, name: &str) -> proa_vm::VmSpec {
    let directory = setup.scratch.path().join(name);
    fs::create_dir_all(directory.join("run")).unwrap();
    proa_vm::VmSpec {
        id: format!("{}{name}", setup.spec.id),
        run_dir: directory.join("run"),
        rw_disk: directory.join("rw.img"),
        ..setup.spec.clone()
    }
}

pub fn checksum(path: &Path) -> Vec<u8> {
    let mut hash = Sha256::new();
    std::io::copy(&mut fs::File::open(path).unwrap(), &mut hash).unwrap();
    hash.finalize().to_vec()
}

#[test]
fn clones_have_all_their_own_and_cannot_change_their_template() {
    let mut setup = setup(SCRIPT);
    let first = start(&setup).0;
    assert!(!first.vm.is_clone());
    drop(first);
    fs::remove_file(&setup.spec.rw_disk).unwrap();

    request(&setup).make().unwrap();
    let [template] = &templates(&setup)[..] else { panic!("one template") };
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(template.parent().unwrap()), mode(&template.join("memory"))), (0o700, 0o600));
    let before = checksum(&template.join("memory"));

    let mut outputs = Vec::new();
    let mut guests = Vec::new();
    for name in ["one", "two"] {
        setup.spec = another(&setup, name);
        let (mut guest, notices) = start(&setup);
        assert!(guest.vm.is_clone() && notices.is_empty(), "{notices:?}");
        check_descriptors(guest.vm.pid(), &template.join("memory"));
        let (output, status) = guest.run();
        assert_eq!(status.code, 0, "{output}");
        outputs.push(output);
        guests.push(guest);
    }
    let lines: Vec<Vec<&str>> = outputs.iter().map(|output| output.lines().collect()).collect();
    assert_eq!(lines[0][2..], ["guest", "on time", "kept"], "{lines:?}");
    assert!(lines[0][0] != lines[1][0] && lines[0][1] != lines[1][1], "{lines:?}");

    guests.into_iter().for_each(Guest::shut_down);
    assert_eq!(checksum(&template.join("memory")), before);

    // What it wrote is there when it is started again, then from a disk of its own.
    setup.script("cat /file");
    let (mut again, _) = start(&setup);
    assert!(!again.vm.is_clone());
    assert_eq!(again.run().0, "kept\n");
    again.shut_down();
    TemplateRequest { mounted: false, ..request(&setup) }.make().unwrap();
    let (mut again, notices) = start(&setup);
    assert!(again.vm.is_clone() && notices.is_empty());
    assert_eq!(again.run().0, "kept\n");
}

/// Servers of shares write to the guest's memory: to that of a clone, not to what others start from.
#[test]
fn shares_come_to_a_clone_whose_memory_is_its_own() {
    let mut setup =
        setup("exec 2>&1; cat /one/f /two/f; echo back > /one/answer; echo no > /two/no; echo end");
    let host = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        fs::create_dir(host.path().join(name)).unwrap();
        fs::write(host.path().join(name).join("f"), format!("{name}\n")).unwrap();
    }
    setup.bind(&host.path().join("one"), "/one", &["rbind"]);
    setup.bind(&host.path().join("two"), "/two", &["rbind", "ro"]);
    TemplateRequest { sharing: true, ..request(&setup) }.make().unwrap();
    let [template] = &templates(&setup)[..] else { panic!("one template") };
    let memory = template.join("memory");
    let before = checksum(&memory);
    setup.spec = another(&setup, "clone");
    let mut guest = setup.boot();
    assert!(guest.vm.is_clone());
    assert_eq!(descriptors_of(guest.vm.pid(), &memory), [0; 0]);
    let (output, _) = guest.run();
    assert!(output.starts_with("one\ntwo\n") && output.ends_with("end\n"), "{output}");
    assert_eq!(output.matches("Read-only file system").count(), 1, "{output}");
    guest.shut_down();
    assert_eq!(fs::read_to_string(host.path().join("one/answer")).unwrap(), "back\n");
    assert_eq!(checksum(&memory), before);
}

/// How a process has opened this file, once for each of its descriptors: the access mode of `open(2)`.
fn descriptors_of(pid: u32, file: &Path) -> Vec<i32> {
    let inode = |path: &Path| fs::metadata(path).ok().map(|data| std::os::unix::fs::MetadataExt::ino(&data));
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().path());
    let of_file = entries.filter(|path| inode(path) == inode(file));
    let mode = |path: PathBuf| {
        let info = format!("/proc/{pid}/fdinfo/{}", path.file_name().unwrap().to_str().unwrap());
        let info = fs::read_to_string(info).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        i32::from_str_radix(flags.trim(), 8).unwrap() & 3
    };
    of_file.map(mode).collect()
}

/// The VMM can read the template's memory, and has no way to write to it.
fn check_descriptors(pid: u32, memory: &Path) {
    assert_eq!(descriptors_of(pid, memory), [0], "opened once, to be read");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let shared = maps.lines().filter(|line| line.contains(" rw-s ") && line.contains("memory"));
    assert_eq!(shared.count(), 0, "{maps}");
}

#[test]
fn a_template_that_was_changed_is_removed_and_the_machine_boots() {
    let setup = setup("echo works");
    for name in ["memory", "state", "disk"] {
        request(&setup).make().unwrap();
        let template = templates(&setup).remove(0);
        let path = template.join(name);
        match name {
            "memory" => fs::File::options().write(true).open(path).unwrap().set_len(4096).unwrap(),
            "state" => fs::write(path, "no state").unwrap(),
            _ => fs::remove_file(path).unwrap(),
        }
        let (mut guest, notices) = start(&setup);
        assert!(!guest.vm.is_clone(), "{name}");
        assert_eq!(guest.run().0, "works\n");
        drop(guest);
        fs::remove_file(&setup.spec.rw_disk).unwrap();
        assert!(notices[0].contains("cannot be used") && notices.len() == 1, "{name}: {notices:?}");
        assert!(!template.exists(), "{name}");
    }
}

#[test]
fn a_clone_that_dies_is_replaced_by_a_machine_that_boots() {
    let mut setup = setup("echo works");
    request(&setup).make().unwrap();
    let template = templates(&setup).remove(0);
    // One that looks right and is not.
    fs::write(template.join("state"), "not what QEMU saves").unwrap();
    let description = fs::read_to_string(template.join("template.json")).unwrap();
    let mut description: serde_json::Value = serde_json::from_str(&description).unwrap();
    let sum: String =
        Sha256::digest("not what QEMU saves").iter().map(|byte| format!("{byte:02x}")).collect();
    description["state_sha256"] = sum.into();
    fs::write(template.join("template.json"), description.to_string()).unwrap();

    let mut guest = Guest::start(&setup.spec).unwrap();
    assert!(guest.vm.is_clone());
    guest.await_end();
    let exit = guest.vm.wait().unwrap();
    let mut notices = Vec::new();
    let why = guest.vm.died(exit);
    guest.vm.boot_instead(&why, &setup.spec, &mut |line| notices.push(line)).unwrap();
    assert!(!guest.vm.is_clone() && !template.exists());
    assert!(notices[0].contains("did not work") && notices[0].contains("boots instead"), "{notices:?}");
    let shares = plan_shares(&mut setup.config).unwrap();
    assert_eq!(guest.configure(setup.config.clone(), 1, &shares), Response::Ok);
    assert_eq!(guest.run().0, "works\n");
}

#[test]
fn makers_work_one_at_a_time_and_a_killed_one_leaves_nothing_that_counts() {
    let setup = setup("echo works");
    let text = serde_json::to_string(&request(&setup)).unwrap();
    let make = || {
        let mut command = Command::new(program("proa-monitor"));
        command.args(["--template", &text]).stdin(Stdio::null()).spawn().unwrap()
    };
    let mut killed = make();
    let children = format!("/proc/{0}/task/{0}/children", killed.id());
    let deadline = Instant::now() + LIMIT;
    let vmm = loop {
        let text = fs::read_to_string(&children).unwrap_or_default();
        if let Some(pid) = text.split_whitespace().next().and_then(|pid| pid.parse().ok()) {
            break pid;
        }
        assert!(Instant::now() < deadline, "the maker starts no VMM");
        std::thread::yield_now();
    };
    killed.kill().unwrap();
    killed.wait().unwrap();
    await_gone(&[vmm]);
    assert!(templates(&setup).is_empty());

    let mut makers = [make(), make(), make()];
    assert!(makers.iter_mut().all(|maker| maker.wait().unwrap().success()));
    assert_eq!(templates(&setup).len(), 1);
    let left: Vec<_> = fs::read_dir(setup.spec.store.join("templates")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(start(&setup).0.vm.is_clone());
}

#[test]
fn a_template_that_cannot_be_made_is_not_tried_again_and_again() {
    let mut setup = setup("echo works");
    let mut request = request(&setup);
    // An agent that is none: the guest's kernel panics.
    request.agent = "/bin/true".into();
    let error = request.make().unwrap_err().to_string();
    assert!(error.contains("Kernel panic") || error.contains("ended"), "{error}");
    setup.spec.agent = request.agent.clone();
    let mut guest = Guest::start(&setup.spec).unwrap();
    assert!(guest.vm.take_template_request().is_none());
    drop(guest);
    setup.spec.agent = program("proa-agent");
    let mut guest = Guest::start(&setup.spec).unwrap();
    assert!(guest.vm.take_template_request().is_some());
    assert!(guest.vm.take_template_request().is_none());
}

/// Free memory of a clone is dropped, and is then what the template has there: its kernel clears it before use.
#[test]
fn a_clone_gives_back_what_it_does_not_use() {
    let mut setup = setup("true");
    request(&setup).make().unwrap();
    setup.script(
        "cd /tmp; busybox dd if=/dev/urandom of=file bs=1M count=100 2> /dev/null; echo filled; read line; \
         busybox rm file; read line; busybox dd if=/dev/zero bs=1M count=30 2> /dev/null | busybox tee zeros | \
         busybox sha256sum; busybox sha256sum < zeros",
    );
    let tmpfs = proa_oci::runtime::Mount {
        destination: "/tmp".to_owned(),
        kind: Some("tmpfs".to_owned()),
        source: Some("tmpfs".to_owned()),
        ..Default::default()
    };
    setup.config.mounts.push(tmpfs);
    setup.spec = another(&setup, "one");
    let mut guest = start(&setup).0;
    assert!(guest.vm.is_clone());
    let pid = guest.vm.pid();
    let before = anonymous(pid);
    guest.send(&Request::Attach { stdin: true, stdout: false, stderr: false }.frame(3));
    assert_eq!(guest.response(3), Response::Ok);
    guest.run_until("filled");
    assert!(anonymous(pid) > before + 90_000);
    guest.send(&Frame::new(3, Kind::Stdin, b"\n".to_vec()));
    let deadline = Instant::now() + LIMIT;
    while anonymous(pid) > before + 40_000 {
        assert!(Instant::now() < deadline, "{before} kB became {} kB", anonymous(pid));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    guest.send(&Frame::new(3, Kind::Stdin, b"\n".to_vec()));
    let (sums, _) = guest.follow(None);
    let sums: Vec<&str> = sums.lines().collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{sums:?}");
}

/// What a process has for itself and is in no file, kB.
fn anonymous(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
