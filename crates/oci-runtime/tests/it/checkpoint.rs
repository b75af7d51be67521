//! checkpoint and restore, with criu: that of `PROA_TEST_CRIU`, or the one that is installed. Where it does not
//! work with the host's kernel the refusal is tested.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::support::{Bundle, wait};

/// Counts in its memory, and shows how far it is: in a volume and on standard output.
const COUNT: &str =
    "i=0; while :; do i=$((i+1)); echo $i > /vol/new; mv /vol/new /vol/n; echo $i; sleep 0.02; done";

fn criu() -> String {
    std::env::var("PROA_TEST_CRIU").unwrap_or_else(|_| "criu".to_owned())
}

fn works() -> bool {
    let mut check = Command::new(criu());
    check.arg("check").stdout(Stdio::null()).stderr(Stdio::null());
    check.status().expect("install criu: these tests checkpoint containers with it").success()
}

fn counter() -> Bundle {
    let bundle = Bundle::shell(COUNT);
    let volume = bundle.path("vol");
    fs::create_dir(&volume).unwrap();
    let path = format!("/proa/{}", bundle.id);
    bundle.with(|spec| {
        spec.linux_mut().cgroups_path = Some(path);
        spec.linux_mut().resources.get_or_insert_default().pids = Some(proa_oci::runtime::Pids { limit: 44 });
        spec.mounts.push(proa_oci::runtime::Mount {
            destination: "/vol".into(),
            kind: Some("bind".into()),
            source: Some(volume.display().to_string()),
            options: vec!["rbind".into()],
            ..proa_oci::runtime::Mount::default()
        });
    })
}

fn count(bundle: &Bundle) -> u64 {
    fs::read_to_string(bundle.path("vol/n")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn checkpoint<'a>(bundle: &'a Bundle, criu: &'a str, images: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let words = ["--criu", criu, "checkpoint", "--image-path", images];
    [&words[..], more, &[bundle.id.as_str()]].concat()
}

fn restore(bundle: &Bundle, images: &str, out: impl Into<Stdio>) -> Child {
    let mut command = bundle.command(&["--criu", &criu(), "restore", "--image-path", images, "--detach"]);
    command.arg("--bundle").arg(bundle.path("")).arg("--pid-file").arg(bundle.path("pid")).arg(&bundle.id);
    let errors = fs::File::create(bundle.path("errors")).unwrap();
    command.stdout(out).stderr(errors).spawn().unwrap()
}

fn restored(bundle: &Bundle, images: &str, out: impl Into<Stdio>) -> Option<ChildStdout> {
    let mut child = restore(bundle, images, out);
    assert!(child.wait().unwrap().success(), "{}", fs::read_to_string(bundle.path("errors")).unwrap());
    child.stdout.take()
}

#[test]
fn a_container_goes_on_where_it_was() {
    let bundle = counter();
    bundle.start();
    wait("it counts", || count(&bundle) > 3);
    let (criu, images) = (criu(), bundle.path("images").display().to_string());
    if !works() {
        let error = bundle.fails(&checkpoint(&bundle, &criu, &images, &[]));
        assert!(error.contains("criu dump failed"), "{error}");
        assert_eq!(bundle.status(), "running");
        return;
    }
    bundle.ok(&checkpoint(&bundle, &criu, &images, &["--leave-running"]));
    assert_eq!(bundle.status(), "running");
    fs::remove_dir_all(&images).unwrap();
    bundle.ok(&checkpoint(&bundle, &criu, &images, &[]));
    bundle.wait_status("stopped");
    let before = count(&bundle);
    bundle.ok(&["delete", &bundle.id]);
    bundle.assert_gone();

    // A file must be as long as it was; what is written now comes after that.
    let before_lines = bundle.out();
    let out = fs::OpenOptions::new().append(true).open(bundle.path("out")).unwrap();
    restored(&bundle, &images, out);
    assert_eq!(bundle.status(), "running");
    assert_eq!(fs::read_to_string(bundle.path("pid")).unwrap(), bundle.pid().to_string());
    wait("it counts on", || count(&bundle) > before + 3);
    let lines = bundle.out();
    let first: u64 = lines.strip_prefix(&before_lines).unwrap().lines().next().unwrap().parse().unwrap();
    assert!((before..before + 3).contains(&first), "{first} after {before}");
    // Its limits, its namespaces and what may be done with it are as before.
    let event: serde_json::Value =
        serde_json::from_str(&bundle.ok(&["events", "--stats", &bundle.id])).unwrap();
    assert_eq!(event["data"]["pids"]["limit"], 44);
    let text = bundle.ok(&["exec", &bundle.id, "sh", "-c", "readlink /proc/1/exe; cat /proc/self/cgroup"]);
    assert!(text.starts_with("/bin/busybox\n") && !text.contains(&bundle.id), "{text}");
    bundle.ok(&["pause", &bundle.id]);
    bundle.ok(&["resume", &bundle.id]);
    bundle.ok(&["delete", "--force", &bundle.id]);
    bundle.assert_gone();
}

#[test]
fn a_pipe_of_an_engine_is_replaced() {
    if !works() {
        return;
    }
    let bundle = counter();
    bundle.write();
    let errors = fs::File::create(bundle.path("errors")).unwrap();
    let mut command = bundle.command(&["create", "--bundle"]);
    command.arg(bundle.path("")).arg(&bundle.id).stdout(Stdio::piped()).stderr(errors);
    let mut child = command.spawn().unwrap();
    let mut old = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(child.wait().unwrap().success());
    bundle.ok(&["start", &bundle.id]);
    assert_eq!(old.next().unwrap().unwrap(), "1");
    let (criu, images) = (criu(), bundle.path("images").display().to_string());
    bundle.ok(&checkpoint(&bundle, &criu, &images, &[]));
    bundle.wait_status("stopped");
    bundle.ok(&["delete", &bundle.id]);
    let last: u64 = old.map(|line| line.unwrap().parse().unwrap()).last().unwrap_or(1);
    let out = restored(&bundle, &images, Stdio::piped()).unwrap();
    let next: u64 = BufReader::new(out).lines().next().unwrap().unwrap().parse().unwrap();
    assert!((last + 1..last + 3).contains(&next), "{next} after {last}");
}

#[test]
fn a_restore_in_the_foreground_waits_and_tidies_up() {
    if !works() {
        return;
    }
    let bundle = counter();
    bundle.start();
    let (criu, images) = (criu(), bundle.path("images").display().to_string());
    wait("it counts", || count(&bundle) > 3);
    bundle.ok(&checkpoint(&bundle, &criu, &images, &[]));
    bundle.wait_status("stopped");
    bundle.ok(&["delete", &bundle.id]);
    let before = count(&bundle);
    let out = fs::OpenOptions::new().append(true).open(bundle.path("out")).unwrap();
    let mut command = bundle.command(&["--criu", &criu, "restore", "--image-path", &images, "--bundle"]);
    let errors = fs::File::create(bundle.path("errors")).unwrap();
    let mut child = command.arg(bundle.path("")).arg(&bundle.id).stdout(out).stderr(errors).spawn().unwrap();
    wait("it counts on", || count(&bundle) > before);
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    assert_eq!(child.wait().unwrap().code(), Some(137));
    bundle.assert_gone();
}

#[test]
fn what_cannot_be_restored_leaves_nothing() {
    let bundle = counter();
    bundle.write();
    let images = bundle.path("images").display().to_string();
    let told = |images: &str| {
        assert!(!restore(&bundle, images, Stdio::null()).wait().unwrap().success());
        bundle.assert_gone();
        fs::read_to_string(bundle.path("errors")).unwrap()
    };
    assert!(told(&images).contains("--image-path"));
    fs::create_dir(&images).unwrap();
    let file = bundle.path("images/proa.json");
    fs::write(&file, r#"{"version":1,"cgroup":"proa/other","streams":[null,null,null]}"#).unwrap();
    assert!(told(&images).contains("cgroup"));
    let own = format!(r#"{{"version":1,"cgroup":"proa/{}","streams":[null,null,null]}}"#, bundle.id);
    fs::write(&file, own).unwrap();
    let text = told(&images);
    assert!(text.contains("criu restore failed") && text.contains("restore.log"), "{text}");
    fs::write(&file, r#"{"version":2,"cgroup":"","streams":[]}"#).unwrap();
    assert!(told(&images).contains("format 2"));
}

#[test]
fn what_cannot_be_checkpointed_is_refused_before_it_is_touched() {
    let bundle = counter();
    let images = bundle.path("images").display().to_string();
    bundle.start();
    let fails = |words: &[&str]| bundle.fails(&[words, &[bundle.id.as_str()]].concat());
    let no_criu = ["--criu", "/no/criu", "checkpoint", "--image-path", &images];
    assert!(fails(&no_criu).contains("install criu"));
    for option in ["--lazy-pages", "--pre-dump", "--parent-path=/x"] {
        assert!(fails(&["checkpoint", option]).contains("is not supported"), "{option}");
    }
    let mode = ["--criu", &criu(), "checkpoint", "--image-path", &images, "--manage-cgroups-mode", "x"];
    assert!(fails(&mode).contains("soft"));
    assert!(!bundle.path("images").exists());
    assert_eq!(bundle.status(), "running");
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait_status("stopped");
    assert!(fails(&["checkpoint"]).contains("not running"));
}
