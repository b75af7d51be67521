//! `--isolation vm` of an ordinary user: the VMM is neither root nor the user, and layers are disks for the guest.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::harness::{Proa, User, workspace};

/// A store of the user's with `busybox`.
fn proa() -> Proa {
    user().import_busybox()
}

/// A store of the user's, with the guest's kernel as other tests have it already.
pub fn user() -> Proa {
    let cache = workspace().join("target/test-cache/vm");
    let has_kernel = || fs::read_dir(cache.join("kernels")).is_ok_and(|mut found| found.next().is_some());
    if !has_kernel() {
        let root = Proa::with_busybox();
        let made = root.run(&["run", "--rm", "--isolation", "vm", "busybox", "true"]);
        assert_eq!(made.code, 0, "{made:?}");
    }
    let proa = Proa::of_user("proa-test");
    // What is in the making there begins with a dot.
    let script = "mkdir -p \"$1/kernels\" && cp -a \"$0\"/kernels/[!.]* \"$1/kernels/\"";
    let to = proa.root().join("vm");
    let copied = Command::new("sh").args(["-c", script]).arg(&cache).arg(&to).status().unwrap();
    assert!(copied.success());
    proa.give(&to);
    proa
}

fn run(proa: &Proa, flags: &[&str], script: &str) -> String {
    let run = ["run", "--rm", "--isolation", "vm"];
    proa.ok(&[&run[..], flags, &["busybox", "sh", "-c", script]].concat())
}

/// First id of the user's range.
fn range() -> u32 {
    let text = fs::read_to_string("/etc/subuid").unwrap();
    let line = text.lines().find(|line| line.starts_with("proa-test:")).unwrap();
    line.split(':').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_guest_from_its_start_to_its_end() {
    let proa = proa();
    let layers = proa.root().join("image/layers");
    assert_eq!(fs::read_dir(&layers).unwrap().count(), 1);
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let seen = run(
        &proa,
        &[],
        "id -u; stat -c %u:%g / /bin/busybox; uname -r; touch /new; chown 7:8 /new; ls -n /new",
    );
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[..3], ["0", "0:0", "0:0"], "{seen}");
    assert_ne!(lines[3], host.trim());
    assert!(lines[4].split_whitespace().skip(2).take(2).eq(["7", "8"]), "{seen}");
    // The layer is there as a directory for containers, and as an image.
    assert_eq!(fs::read_dir(&layers).unwrap().count(), 2);
    assert_eq!(proa.ok(&["system", "check"]), "");
    proa.ok(&["run", "-d", "--name", "guest", "--isolation", "vm", "-m", "128m", "busybox", "sleep", "1000"]);
    assert_eq!(proa.ok(&["exec", "guest", "hostname"]).len(), 12);
    let pid = proa.ok(&["inspect", "--format", "{{.State.Pid}}", "guest"]);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let vmm = fs::metadata(format!("/proc/{pid}")).unwrap().uid();
    assert!((range() + 32768..range() + 65536).contains(&vmm), "{vmm}: {status}");
    for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let mut view: Vec<_> =
        fs::read_dir(format!("/proc/{pid}/root")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    view.sort();
    assert!(
        view.iter()
            .all(|name| ["dev", "etc", "guest", "lib", "lib64", "usr"].contains(&name.to_str().unwrap())),
        "{view:?}"
    );
    proa.ok(&["exec", "guest", "sh", "-c", "echo kept > /root/file"]);
    proa.ok(&["pause", "guest"]);
    proa.ok(&["unpause", "guest"]);
    proa.ok(&["stop", "-t", "0", "guest"]);
    assert_eq!(proa.ok(&["diff", "guest"]), "C /root\nA /root/file");
    proa.ok(&["start", "guest"]);
    assert_eq!(proa.ok(&["exec", "guest", "cat", "/root/file"]), "kept");
    proa.ok(&["rm", "-f", "guest"]);
    assert_eq!(proa.ok(&["run", "--rm", "busybox", "echo", "container"]), "container");
    proa.ok(&["rmi", "busybox"]);
    assert_eq!(fs::read_dir(&layers).unwrap().count(), 0);
}

#[test]
fn shares_belong_to_the_user() {
    let proa = proa();
    let User { uid, .. } = *proa.user().unwrap();
    let home = proa.root().join("home/share");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("mine"), "mine\n").unwrap();
    proa.give(&home);
    let volume = format!("{}:/v", home.display());
    let script = "cat /v/mine; stat -c %u /v/mine; echo x > /v/new; touch /v/other; chown 5 /v/other";
    assert_eq!(run(&proa, &["-v", &volume], script), "mine\n0");
    assert_eq!(fs::metadata(home.join("new")).unwrap().uid(), uid);
    assert_eq!(fs::metadata(home.join("other")).unwrap().uid(), range() + 4);
    let outside = run(
        &proa,
        &["-v", "/etc:/v"],
        "touch /v/x 2>/dev/null || echo no; cat /v/shadow 2>/dev/null || echo no",
    );
    assert_eq!(outside, "no\nno");
}

#[test]
fn without_ids_for_vmms_it_is_refused() {
    let plain = Proa::of_user("proa-test-plain").import_busybox();
    let refused = plain.run(&["run", "--rm", "--isolation", "vm", "busybox", "true"]);
    assert_eq!(refused.code, 125, "{refused:?}");
    assert!(refused.stderr.contains("newuidmap") && refused.stderr.contains("/etc/subuid"), "{refused:?}");
    assert_eq!(refused.stdout, "");
}
