//! A command that is killed at any moment leaves something that `delete --force` removes.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{Bundle, wait};

#[test]
fn a_create_killed_at_any_moment_can_be_deleted() {
    let bundle = Bundle::program(&["/bin/sleep", "1000"]).with(|spec| {
        let resources = spec.linux_mut().resources.get_or_insert_default();
        resources.pids = Some(proa_oci::runtime::Pids { limit: 33 });
    });
    bundle.write();
    let path = bundle.path("");
    let mut unfinished = 0;
    for step in 0..60 {
        let mut command = bundle.command(&["create", "--bundle", path.to_str().unwrap(), &bundle.id]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let end = Instant::now() + Duration::from_micros(step * 400);
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        unfinished += usize::from(!child.wait().unwrap().success());
        if bundle.state_dir().exists() {
            // Its process, if there is one yet, ends by itself or waits for its start.
            wait("a state that stays", || matches!(bundle.status().as_str(), "created" | "stopped"));
        }
        bundle.ok(&["delete", "--force", &bundle.id]);
        bundle.assert_gone();
    }
    assert!(unfinished > 5, "too few were killed half way: {unfinished}");
}

#[test]
fn a_start_killed_after_the_word_was_given_leaves_a_running_container() {
    let bundle = Bundle::program(&["/bin/sleep", "1000"]);
    bundle.create(&[]);
    bundle.ok(&["start", &bundle.id]);
    // As if nobody had come to remove the name.
    let _left = std::os::unix::net::UnixListener::bind(bundle.state_dir().join("gate")).unwrap();
    drop(_left);
    assert_eq!(bundle.status(), "running");
}

#[test]
fn nobody_reads_what_a_newer_version_wrote() {
    let bundle = Bundle::program(&["/bin/sleep", "1000"]);
    bundle.create(&[]);
    let file = bundle.state_dir().join("state.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"version\":1", "\"version\":2")).unwrap();
    assert!(bundle.fails(&["state", &bundle.id]).contains("format 2"));
    std::fs::write(&file, text).unwrap();
    assert_eq!(bundle.status(), "created");
}
