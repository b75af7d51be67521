//! Guests whose agent has been taken over: whatever it says, the instance ends with an error in few words, and nobody
//! else hears of it.

use std::fs;

use crate::harness::{Output, Proa, program};

/// Most that a monitor may hold, kB.
const MONITOR: u64 = 64 << 10;

/// A root whose guests have the agent of `programs/agent.c`, lying in a way of its own.
fn lied_to(lie: u32) -> (Proa, Output) {
    let agent = program("agent");
    let proa = Proa::with_busybox().with_agent(&agent.path().join("agent"));
    let word = format!("proa.lie={lie}");
    let run = ["run", "--name", "liar", "--isolation", "vm", "--network", "none", "--kernel-arg", &word];
    let output = proa.run(&[&run[..], &["busybox", "true"]].concat());
    (proa, output)
}

/// The instance has failed, which is told in these words.
fn failed(lie: u32, words: &str) {
    let (proa, output) = lied_to(lie);
    assert_ne!(output.code, 0, "{output:?}");
    assert!(output.stderr.contains(words), "{output:?}");
    assert_harmless(&proa, &output);
}

/// The instance is over, and what is said of it harms no terminal.
fn assert_harmless(proa: &Proa, output: &Output) {
    assert!(output.stderr.len() < 20_000 && output.stderr.lines().count() < 12, "{output:?}");
    let is_harmless = |letter: char| letter == '\n' || !letter.is_control();
    assert!(output.stderr.chars().all(is_harmless), "{output:?}");
    proa.wait_for("the monitor's end", || proa.monitors().is_empty());
    let state = proa.ok(&["inspect", "--format", "{{.State.Status}}", "liar"]);
    assert!(state == "exited" || state == "created", "{state}");
    proa.ok(&["rm", "liar"]);
}

#[test]
fn a_frame_of_four_gigabytes() {
    failed(1, "no agent sends");
}

#[test]
fn a_frame_of_no_kind() {
    failed(2, "no agent sends");
}

#[test]
fn a_request_to_the_monitor() {
    failed(3, "no agent sends");
}

#[test]
fn an_error_for_the_terminal() {
    failed(4, "all is well");
}

#[test]
fn channels_that_nobody_opened() {
    // What it says of its own program is believed: it could run any.
    let (proa, output) = lied_to(5);
    assert_harmless(&proa, &output);
}

/// Output without end and beyond what was granted holds up nobody but its own instance, which can be ended.
#[test]
fn output_without_end() {
    let agent = program("agent");
    let proa = Proa::with_busybox().with_agent(&agent.path().join("agent"));
    let run = ["run", "-d", "--name", "liar", "--isolation", "vm", "--network", "none"];
    let started = proa.run(&[&run[..], &["--kernel-arg", "proa.lie=6", "busybox", "true"]].concat());
    if started.code == 0 {
        for monitor in proa.monitors() {
            let status = fs::read_to_string(format!("/proc/{monitor}/status")).unwrap_or_default();
            let held = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
            let held: u64 = held.trim().trim_end_matches(" kB").parse().unwrap();
            assert!(held < MONITOR, "the monitor holds {held} kB");
        }
        proa.run(&["kill", "liar"]);
    }
    proa.wait_for("the monitor's end", || proa.monitors().is_empty());
    proa.ok(&["rm", "-f", "liar"]);
}
