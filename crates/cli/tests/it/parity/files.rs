//! Files: bind mounts, tmpfs, the writable layer, cp and diff.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::{Bed, at_both_levels};

at_both_levels!(
    bind_mounts,
    single_file,
    missing_source,
    temporary,
    writable_layer,
    copy,
    copy_stopped,
    copy_beside_moving_links,
    differences,
    temporary_dir
);

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

fn bind_mounts(bed: &Bed) {
    let directory = bed.directory();
    fs::write(directory.path().join("from-host"), "host\n").unwrap();
    let volume = format!("{}:/data", text(directory.path()));
    let script = "cat /data/from-host; echo instance > /data/from-instance; mkdir /data/sub";
    assert_eq!(bed.run_ok(&["-v", &volume], &["sh", "-c", script]), "host");
    assert_eq!(fs::read_to_string(directory.path().join("from-instance")).unwrap(), "instance\n");
    assert_eq!(fs::metadata(directory.path().join("from-instance")).unwrap().uid(), bed.uid());
    let read_only =
        bed.run(&["-v", &format!("{volume}:ro")], &["sh", "-c", "cat /data/from-host; touch /data/no"]);
    assert_ne!(read_only.code, 0);
    assert_eq!(read_only.stdout, "host\n");
    assert!(!directory.path().join("no").exists());
    let mount = format!("type=bind,source={},target=/long,readonly", text(directory.path()));
    assert_eq!(bed.run_ok(&["--mount", &mount], &["cat", "/long/from-host"]), "host");
}

fn single_file(bed: &Bed) {
    let directory = bed.directory();
    let file = directory.path().join("shared.conf");
    fs::write(&file, "one file\n").unwrap();
    fs::write(directory.path().join("sibling"), "secret\n").unwrap();
    bed.proa.give(directory.path());
    let volume = format!("{}:/etc/app/shared.conf", text(&file));
    let script = "cat /etc/app/shared.conf; ls /etc/app; echo changed > /etc/app/shared.conf";
    assert_eq!(bed.run_ok(&["-v", &volume], &["sh", "-c", script]), "one file\nshared.conf");
    assert_eq!(fs::read_to_string(&file).unwrap(), "changed\n");
}

fn missing_source(bed: &Bed) {
    let output = bed.run(&["--mount", "type=bind,source=/no/such/place,target=/data"], &["true"]);
    assert_eq!(output.code, 125, "{output:?}");
    assert!(output.stderr.contains("/no/such/place"), "{output:?}");
}

fn temporary(bed: &Bed) {
    let script = "grep ' /scratch ' /proc/mounts; df -k /scratch | tail -n 1";
    let seen = bed.run_ok(&["--tmpfs", "/scratch:size=8m,mode=1777"], &["sh", "-c", script]);
    assert!(seen.contains("tmpfs") && seen.contains("nosuid") && seen.contains("nodev"), "{seen}");
    assert!(seen.contains("8192"), "{seen}");
}

fn writable_layer(bed: &Bed) {
    let name = "keeper";
    bed.ok(&[
        "create",
        "--isolation",
        bed.level,
        "--name",
        name,
        "busybox",
        "sh",
        "-c",
        "echo run >> /count; cat /count",
    ]);
    assert_eq!(bed.ok(&["start", "-a", name]), "run");
    assert_eq!(bed.ok(&["start", "-a", name]), "run\nrun");
    // Another instance of the image sees nothing of it.
    assert_eq!(bed.run(&[], &["cat", "/count"]).code, 1);
    bed.ok(&["rm", name]);
}

fn copy(bed: &Bed) {
    let directory = bed.directory();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("tree/deep")).unwrap();
    fs::write(at("tree/deep/file"), "deep\n").unwrap();
    std::os::unix::fs::symlink("deep/file", at("tree/link")).unwrap();
    bed.detach("target", &[], &["sleep", "1000"]);
    bed.ok(&["cp", text(&at("tree")), "target:/root/"]);
    assert_eq!(bed.ok(&["exec", "target", "cat", "/root/tree/link"]), "deep");
    bed.ok(&["exec", "target", "sh", "-c", "echo inside > /root/tree/new"]);
    bed.ok(&["cp", "target:/root/tree", text(&at("back"))]);
    assert_eq!(fs::read_to_string(at("back/new")).unwrap(), "inside\n");
    assert_eq!(fs::read_link(at("back/link")).unwrap().to_str(), Some("deep/file"));
    let missing = bed.proa(&["cp", "target:/no/such/file", text(&at("x"))]);
    assert_eq!(missing.code, 1, "{missing:?}");
    assert!(missing.stderr.contains("/no/such/file"), "{missing:?}");
    bed.ok(&["rm", "-f", "target"]);
}

fn copy_stopped(bed: &Bed) {
    let directory = bed.directory();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("in"), "into a stopped one\n").unwrap();
    bed.ok(&["create", "--isolation", bed.level, "--name", "asleep", "busybox", "cat", "/in"]);
    bed.ok(&["cp", text(&at("in")), "asleep:/in"]);
    assert_eq!(bed.ok(&["start", "-a", "asleep"]), "into a stopped one");
    bed.ok(&["cp", "asleep:/in", text(&at("out"))]);
    assert_eq!(fs::read_to_string(at("out")).unwrap(), "into a stopped one\n");
    bed.ok(&["rm", "asleep"]);
}

/// A directory on the way changes places with a link to a path of the host, by the hand of the instance itself
/// (CVE-2018-15664; of an ordinary user's instances, which nobody can pause for that, CVE-2019-10152).
fn copy_beside_moving_links(bed: &Bed) {
    let host = bed.directory();
    let secret = host.path().join("secret");
    fs::write(&secret, "the host's\n").unwrap();
    let script = format!(
        "mkdir -p /race/way; echo inside > /race/way/secret; ln -s {} /race/link; touch /ready; \
         while :; do mv /race/way /race/kept; mv /race/link /race/way; \
           mv /race/way /race/link; mv /race/kept /race/way; sleep 0.005; done",
        text(host.path())
    );
    bed.detach("racer", &[], &["sh", "-c", &script]);
    bed.proa.wait_for("the racer", || bed.proa(&["exec", "racer", "test", "-e", "/ready"]).code == 0);
    let outside = bed.directory();
    let (out, gift) = (outside.path().join("out"), outside.path().join("gift"));
    fs::write(&gift, "a gift\n").unwrap();
    let rounds = if bed.is_vm() { 10 } else { 50 };
    let (mut tried, mut copied) = (0, 0);
    while tried < rounds || copied == 0 {
        tried += 1;
        assert!(tried < 20 * rounds, "no copy met the file in its place");
        // Whether the file is found depends on the moment.
        bed.proa(&["cp", "racer:/race/way/secret", text(&out)]);
        match fs::read_to_string(&out) {
            Ok(content) => assert_eq!(content, "inside\n"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
        }
        copied += usize::from(fs::remove_file(&out).is_ok());
        bed.proa(&["cp", text(&gift), "racer:/race/way/"]);
        bed.proa(&["cp", "-L", "racer:/race/way", text(&out)]);
        // What became a link after it was looked at is copied as one, which nobody has followed.
        if out.is_symlink() {
            fs::remove_file(&out).unwrap();
        }
        assert_ne!(fs::read_to_string(out.join("secret")).unwrap_or_default(), "the host's\n");
        if out.exists() {
            fs::remove_dir_all(&out).unwrap();
        }
    }
    assert_eq!(fs::read_to_string(&secret).unwrap(), "the host's\n");
    assert_eq!(fs::read_dir(host.path()).unwrap().count(), 1);
    bed.ok(&["rm", "-f", "racer"]);
}

fn differences(bed: &Bed) {
    bed.detach("changed", &[], &["sleep", "1000"]);
    bed.ok(&["exec", "changed", "sh", "-c", "echo x > /root/new; rm /etc/group; echo y >> /etc/passwd"]);
    let seen = bed.ok(&["diff", "changed"]);
    let lines: Vec<&str> = seen.lines().collect();
    for expected in ["A /root/new", "C /root", "D /etc/group", "C /etc/passwd", "C /etc"] {
        assert!(lines.contains(&expected), "{expected} in {seen}");
    }
    bed.ok(&["rm", "-f", "changed"]);
}

fn temporary_dir(bed: &Bed) {
    assert_eq!(bed.run_ok(&[], &["stat", "-c", "%a", "/tmp"]), "1777");
}
