//! Guests that lie to the devices they have, as root of the guest with a driver of their own (`programs/virtio.c`):
//! queues that change while they work, chains that loop or lead out of memory, registers as memory, sectors, headers
//! and pages that are not there. A guest may end its own VMM, as it may power off; nobody else is harmed.

use std::fs;
use std::process::Command;

use crate::fixture::{Guest, Setup};
use crate::templates;

/// Most that a VMM may hold beside the guest's memory, KiB.
const OWN_MEMORY: u64 = 400 << 10;
/// What a hostile driver needs of the guest's kernel.
const RIGHTS: &[&str] =
    &["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_IPC_LOCK", "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE"];

/// Adds the driver, and has a script use it.
fn arm(setup: &mut Setup, script: &str) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/programs/virtio.c");
    setup.add_layer(|root| {
        fs::create_dir(root.join("bin")).unwrap();
        let mut build = Command::new("gcc");
        build.args(["-static", "-O1", source, "-o"]).arg(root.join("bin/virtio"));
        assert!(build.status().expect("this test needs gcc").success());
    });
    setup.grant(RIGHTS);
    setup.script(script);
}

fn attack(kind: &str, last: &str) {
    attack_by(&format!("virtio {kind} 2>&1"), last);
}

/// A neighbour lives through it.
fn attack_by(script: &str, last: &str) {
    let mut neighbour = Setup::new("echo kept > /file; busybox sync; cat /file");
    let mut setup = Setup::new("");
    setup.spec.id.push_str("hostile");
    setup.spec.layers.clone_from(&neighbour.spec.layers);
    arm(&mut setup, script);
    let before: Vec<_> = setup.spec.layers.iter().map(|layer| templates::checksum(layer)).collect();
    let mut other = neighbour.boot();
    let mut guest = setup.boot();
    let output = guest.run_to_any_end();
    assert_lied(&mut guest, &output, last);
    assert_eq!(other.run().0, "kept\n");
    other.shut_down();
    let after: Vec<_> = setup.spec.layers.iter().map(|layer| templates::checksum(layer)).collect();
    assert!(before == after, "a layer has changed");
}

/// The last of a balloon's lies. What it frees is memory of the liar's own as well, which can end it in the midst of that.
const OF_BALLOON: &str = "free pages that are none";
/// What is said before.
const BEFORE_IT_HURTS: &str = "pages that are not there";
/// Exit codes of programs that were ended by a signal are above.
const SIGNALLED: i32 = 128;

/// All was tried, unless the VMM has ended; then that is told in few words.
fn assert_lied(guest: &mut Guest, (output, code): &(String, Option<i32>), last: &str) {
    if let Some(exit) = guest.vm.try_wait().unwrap() {
        let error = guest.vm.died(exit).to_string();
        assert!(!output.is_empty() && error.lines().count() <= 16, "{output}\n{error}");
        return;
    }
    if last == OF_BALLOON && code.is_some_and(|code| code > SIGNALLED) {
        assert!(output.contains(BEFORE_IT_HURTS), "{output}");
    } else {
        assert!(output.contains(last) && output.ends_with("done\n"), "{code:?}: {output}");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", guest.vm.pid())).unwrap();
    let held = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let held: u64 = held.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(held < (256 << 10) + OWN_MEMORY, "the VMM holds {held} KiB");
}

#[test]
fn lies_to_a_network_device() {
    attack("net", "commands that lie");
}

#[test]
fn lies_to_a_disk() {
    attack("blk", "requests beyond the end");
}

/// It takes the agent's own port, so that nothing more is heard of it: only where all was tried, it ends its machine.
#[test]
fn lies_to_the_agents_port() {
    attack_by(
        "echo begins; virtio console > /tmp/said 2>&1 && echo c > /proc/sysrq-trigger",
        "nothing is heard",
    );
}

#[test]
fn lies_to_a_balloon() {
    attack("balloon", OF_BALLOON);
}

/// What a clone gives back, truly or not, is its own: the template and its other clones keep theirs.
#[test]
fn a_clone_that_lies_to_its_balloon() {
    let mut setup = templates::setup("true");
    arm(&mut setup, "virtio balloon 2>&1");
    templates::request(&setup).make().unwrap();
    let [template] = &templates::templates(&setup)[..] else { panic!("one template") };
    let before = templates::checksum(&template.join("memory"));
    setup.spec = templates::another(&setup, "one");
    let mut guest = templates::start(&setup).0;
    assert!(guest.vm.is_clone());
    let output = guest.run_to_any_end();
    assert_lied(&mut guest, &output, OF_BALLOON);
    assert!(templates::checksum(&template.join("memory")) == before, "the template has changed");
    setup.script("echo well");
    setup.spec = templates::another(&setup, "two");
    let mut other = templates::start(&setup).0;
    assert!(other.vm.is_clone());
    assert_eq!(other.run().0, "well\n");
}
