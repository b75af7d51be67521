//! Volumes: named and anonymous, filled from the image, shared, kept while they are had.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Bed, at_both_levels};
use crate::harness::Output;

at_both_levels!(
    named_volumes_outlive_instances,
    empty_volumes_are_filled_from_the_image,
    what_is_in_a_volume_stays,
    anonymous_volumes_go_with_their_instance,
    mounts_of_other_instances,
    volumes_in_use_stay,
    mount_options,
    parts_of_volumes,
    hostile_images_fill_nothing_else,
    one_volume_in_both_levels,
    out_and_in_again,
    events_of_volumes;;
    a_size_is_a_limit,
    file_systems_of_volumes
);

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

fn data(bed: &Bed, name: &str) -> PathBuf {
    bed.proa.root().join("volumes").join(name).join("_data")
}

/// Makes the image `name` with these files, of which those of the list have another owner than root.
fn image(bed: &Bed, name: &str, script: &str, changes: &[&str]) {
    let tree = tempfile::tempdir().unwrap();
    let (root, tar) = (tree.path().join("root"), tree.path().join("tar"));
    fs::create_dir(&root).unwrap();
    let from = crate::harness::Proa::busybox_tar();
    let make = format!(
        "cd {} && tar xf {from} && {{ {script}; }} && tar --numeric-owner -cf {} .",
        root.display(),
        tar.display()
    );
    bed.proa.shell_with_input(&make, b"");
    let mut arguments = vec!["import", "--change", "CMD [\"sh\"]", "--change", "ENV PATH=/bin"];
    changes.iter().for_each(|change| arguments.extend(["--change", change]));
    arguments.extend(["-", name]);
    let imported = bed.proa.run_with_input(&arguments, &fs::read(tar).unwrap());
    assert_eq!(imported.code, 0, "{imported:?}");
}

/// Runs another image than `busybox`.
fn run_of(bed: &Bed, image: &str, flags: &[&str], script: &str) -> Output {
    bed.proa(&[&["run", "--rm", "--isolation", bed.level], flags, &[image, "sh", "-c", script]].concat())
}

fn named_volumes_outlive_instances(bed: &Bed) {
    assert_eq!(bed.ok(&["volume", "create", "--label", "tier=one", "data"]), "data");
    assert_eq!(bed.ok(&["volume", "create", "data"]), "data");
    bed.run_ok(&["-v", "data:/data"], &["sh", "-c", "echo kept > /data/file; mkdir /data/dir"]);
    assert_eq!(bed.run_ok(&["-v", "data:/other:ro"], &["cat", "/other/file"]), "kept");
    let refused = bed.run(&["-v", "data:/data:ro"], &["touch", "/data/new"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    // One that is not there is made by who names it.
    bed.run_ok(&["-v", "fresh:/data"], &["touch", "/data/x"]);
    assert_eq!(lines(&bed.ok(&["volume", "ls", "-q"])), ["data", "fresh"]);
    assert_eq!(bed.ok(&["volume", "ls", "-q", "-f", "label=tier=one", "-f", "dangling=true"]), "data");
    let mountpoint = bed.ok(&["volume", "inspect", "-f", "{{.Mountpoint}}", "data"]);
    assert_eq!(fs::read_to_string(Path::new(&mountpoint).join("file")).unwrap(), "kept\n");
    assert_eq!(fs::metadata(&mountpoint).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(Path::new(&mountpoint).join("file")).unwrap().uid(), bed.uid());
    assert_eq!(lines(&bed.ok(&["volume", "rm", "data", "fresh"])), ["data", "fresh"]);
    assert!(!data(bed, "data").exists());
    let missing = bed.proa(&["volume", "inspect", "data"]);
    assert!(missing.code == 1 && missing.stderr.contains("no such volume: data"), "{missing:?}");
    assert_eq!(bed.proa(&["volume", "rm", "-f", "data"]).code, 0);
}

fn empty_volumes_are_filled_from_the_image(bed: &Bed) {
    let script = "mkdir -p app/sub; echo one > app/one; echo two > app/sub/two; ln app/one app/again; \
        ln -s one app/link; chmod 4750 app/one; chmod 1775 app; chown 7:8 app/sub/two; chown 7:8 app";
    let script = if bed.proa.has_ids() { script } else { script.split("; chown").next().unwrap() };
    image(bed, "app", script, &[]);
    let look =
        "stat -c '%a %u %g %n' /app /app/one /app/sub /app/sub/two; stat -c %h /app/one; readlink /app/link";
    let expected = run_of(bed, "app", &[], look).stdout;
    assert_eq!(run_of(bed, "app", &["-v", "filled:/app"], look).stdout, expected);
    assert_eq!(run_of(bed, "app", &["-v", "bare:/app:nocopy"], "ls -A /app").stdout, "");
    let nocopy = "type=volume,src=bare,dst=/app,volume-nocopy";
    assert_eq!(run_of(bed, "app", &["--mount", nocopy], "ls -A /app").stdout, "");
    // A place that the image has not, one that is a file of it, one behind a link, and a part below.
    assert_eq!(run_of(bed, "app", &["-v", "none:/new"], "ls -A /new").stdout, "");
    let deep = run_of(bed, "app", &["-v", "deep:/app/sub"], "cat /app/sub/two; cat /app/one");
    assert_eq!(deep.stdout, "two\none\n");
    // What the instance was started with once is its users' from then on.
    let create =
        ["create", "--isolation", bed.level, "--name", "again", "-v", "mine:/app", "app", "sh", "-c"];
    bed.ok(&[&create[..], &["ls -A /app; rm -rf /app/*"]].concat());
    assert!(fs::read_dir(data(bed, "mine")).unwrap().next().is_none(), "filled before the start");
    assert_eq!(lines(&bed.ok(&["start", "-a", "again"])), ["again", "link", "one", "sub"]);
    assert_eq!(bed.ok(&["start", "-a", "again"]), "");
    bed.ok(&["rm", "again"]);
}

fn what_is_in_a_volume_stays(bed: &Bed) {
    bed.run_ok(&["-v", "used:/data"], &["touch", "/data/mine"]);
    assert_eq!(bed.run_ok(&["-v", "used:/var/www"], &["ls", "-A", "/var/www"]), "mine");
}

fn anonymous_volumes_go_with_their_instance(bed: &Bed) {
    image(bed, "declares", "mkdir -p store; echo image > store/file", &["VOLUME /store"]);
    let volumes = || bed.ok(&["volume", "ls", "-q"]);
    assert_eq!(run_of(bed, "declares", &["-v", "/more"], "cat /store/file; ls -A /more").stdout, "image\n");
    assert_eq!(volumes(), "");
    // A mount at its place, or memory, is there in its stead.
    run_of(bed, "declares", &["--tmpfs", "/store", "-v", "named:/more"], "true");
    assert_eq!(volumes(), "named");
    let start = [
        "run",
        "-d",
        "--isolation",
        bed.level,
        "--name",
        "box",
        "-v",
        "named:/n",
        "declares",
        "sleep",
        "1000",
    ];
    bed.ok(&start);
    let anonymous = bed.ok(&[
        "inspect",
        "-f",
        "{{range .Mounts}}{{if eq .Destination \"/store\"}}{{.Name}}{{end}}{{end}}",
        "box",
    ]);
    assert_eq!(anonymous.len(), 64, "{anonymous}");
    assert_eq!(
        bed.ok(&["volume", "inspect", "-f", "{{json .Labels}}", &anonymous]),
        r#"{"com.docker.volume.anonymous":""}"#
    );
    bed.ok(&["rm", "-f", "box"]);
    assert_eq!(lines(&volumes()).len(), 2);
    let pruned = bed.ok(&["volume", "prune", "-f"]);
    assert_eq!(lines(&pruned)[..2], ["Deleted Volumes:", anonymous.as_str()]);
    assert_eq!(volumes(), "named");
    bed.ok(&start);
    bed.ok(&["rm", "-f", "-v", "box"]);
    assert_eq!(volumes(), "named");
    assert!(bed.ok(&["volume", "prune", "-a", "-f"]).contains("named"));
    assert_eq!(volumes(), "");
}

fn mounts_of_other_instances(bed: &Bed) {
    let directory = bed.directory();
    fs::write(directory.path().join("host"), "host\n").unwrap();
    let bind = format!("{}:/bound", directory.path().display());
    bed.detach("first", &["-v", &bind, "-v", "shared:/data:ro", "-v", "/anon"], &["sleep", "1000"]);
    bed.run_ok(&["-v", "shared:/data"], &["sh", "-c", "echo volume > /data/file"]);
    bed.ok(&["exec", "first", "sh", "-c", "echo anon > /anon/file"]);
    let from = ["--volumes-from", "first"];
    assert_eq!(bed.run_ok(&from, &["cat", "/bound/host", "/data/file", "/anon/file"]), "host\nvolume\nanon");
    let write = "touch /bound/x /anon/x && echo wrote; touch /data/x || echo read-only";
    assert_eq!(bed.run(&from, &["sh", "-c", write]).stdout, "wrote\nread-only\n");
    let refused = bed.run(&["--volumes-from", "first:ro"], &["touch", "/anon/y"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    let missing = bed.run(&["--volumes-from", "nobody"], &["true"]);
    assert!(missing.code == 125 && missing.stderr.contains("nobody"), "{missing:?}");
    // What the second has as well stays until it is gone.
    let second = [
        "create",
        "--isolation",
        bed.level,
        "--name",
        "second",
        "--volumes-from",
        "first",
        "busybox",
        "cat",
        "/anon/file",
    ];
    bed.ok(&second);
    bed.ok(&["rm", "-f", "-v", "first"]);
    assert_eq!(bed.ok(&["start", "-a", "second"]), "anon");
    bed.ok(&["rm", "-v", "second"]);
    assert_eq!(bed.ok(&["volume", "ls", "-q"]), "shared");
}

fn volumes_in_use_stay(bed: &Bed) {
    bed.ok(&["create", "--isolation", bed.level, "--name", "holder", "-v", "held:/data", "busybox", "true"]);
    for flags in [&["volume", "rm", "held"][..], &["volume", "rm", "-f", "held"]] {
        let refused = bed.proa(flags);
        assert!(refused.code == 1 && refused.stderr.contains("holder"), "{refused:?}");
    }
    assert!(!bed.ok(&["volume", "prune", "-a", "-f"]).contains("held"));
    assert_eq!(
        bed.ok(&["ps", "-aq", "--filter", "volume=held", "--format", "{{.Names}} {{.Mounts}}"]),
        "holder held"
    );
    bed.ok(&["rm", "-v", "holder"]);
    assert_eq!(bed.ok(&["volume", "rm", "held"]), "held");
}

fn mount_options(bed: &Bed) {
    let mount = "type=volume,src=made,dst=/data,volume-label=a=b,readonly";
    let refused = bed.run(&["--mount", mount], &["touch", "/data/x"]);
    assert!(refused.code != 0 && refused.stderr.contains("ead-only"), "{refused:?}");
    assert_eq!(bed.ok(&["volume", "inspect", "-f", "{{json .Labels}}", "made"]), r#"{"a":"b"}"#);
    let create = [
        "create",
        "--isolation",
        bed.level,
        "--name",
        "looked",
        "--mount",
        mount,
        "-v",
        "made:/two",
        "busybox",
    ];
    bed.ok(&create);
    let seen = bed.ok(&["inspect", "-f", "{{json .Mounts}}", "looked"]);
    let seen: serde_json::Value = serde_json::from_str(&seen).unwrap();
    let source = data(bed, "made").canonicalize().unwrap();
    let expected = |destination: &str, writable: bool| {
        serde_json::json!({
            "Type": "volume", "Name": "made", "Source": source, "Destination": destination, "Driver": "local",
            "Mode": "z", "RW": writable, "Propagation": "",
        })
    };
    assert_eq!(seen, serde_json::json!([expected("/data", false), expected("/two", true)]));
    bed.ok(&["rm", "looked"]);
    for (flags, word) in [
        (&["--volume-driver", "nfs", "-v", "xx:/y"][..], "nfs"),
        (&["-v", "xx:/y:rshared"], "rshared"),
        (&["-v", "xx:/y", "-v", "zz:/y"], "/y"),
        (&["-v", "xx:y"], "absolute"),
        (&["--mount", "type=volume,src=made,dst=/y,volume-label=other=1"], "made"),
        (&["--mount", "type=volume,dst=/y,volume-opt=colour=red"], "colour"),
    ] {
        let refused = bed.run(flags, &["true"]);
        assert!(refused.code == 125 && refused.stderr.contains(word), "{flags:?}: {refused:?}");
    }
    assert_eq!(bed.ok(&["volume", "ls", "-q"]), "made");
}

fn parts_of_volumes(bed: &Bed) {
    let script = "mkdir -p /d/a/b; echo deep > /d/a/b/file; ln -s a/b /d/inside; ln -s /etc /d/outside; ln -s ../.. /d/up";
    bed.run_ok(&["-v", "parts:/d"], &["sh", "-c", script]);
    for part in ["a/b", "inside"] {
        let mount = format!("type=volume,src=parts,dst=/part,volume-subpath={part}");
        assert_eq!(
            bed.run_ok(&["--mount", &mount], &["sh", "-c", "cat /part/file; ls -A /part"]),
            "deep\nfile"
        );
    }
    for part in ["outside", "up", "none", "../..", "/etc"] {
        let mount = format!("type=volume,src=parts,dst=/part,volume-subpath={part}");
        let refused = bed.run(&["--mount", &mount], &["ls", "/part"]);
        assert!(refused.code == 125 && refused.stdout.is_empty(), "{part}: {refused:?}");
    }
}

/// Links of the image at the volume's place and in what is copied lead nowhere but into the image or stay links.
fn hostile_images_fill_nothing_else(bed: &Bed) {
    let host = bed.directory();
    fs::write(host.path().join("secret"), "secret\n").unwrap();
    let path = host.path().display();
    let script = format!(
        "mkdir -p real/in; echo inside > real/in/file; ln -s real way; ln -s {path} gone; \
         ln -s {path}/secret real/leak; mkfifo real/pipe; ln -s ../../../../..{path} real/up"
    );
    image(bed, "hostile", &script, &[]);
    let look = "cat /way/in/file; [ -L /way/leak ] && [ -p /way/pipe ] && cat /way/leak";
    let seen = run_of(bed, "hostile", &["-v", "one:/way"], look);
    assert_eq!(seen.stdout, "inside\n", "{seen:?}");
    assert!(data(bed, "one").join("leak").is_symlink());
    let seen = run_of(bed, "hostile", &["-v", "two:/gone"], "true");
    assert!(!seen.stdout.contains("secret"), "{seen:?}");
    assert!(fs::read_dir(data(bed, "two")).unwrap().next().is_none());
    assert_eq!(fs::read_dir(host.path()).unwrap().count(), 1);
}

fn one_volume_in_both_levels(bed: &Bed) {
    let other = if bed.is_vm() { "container" } else { "vm" };
    bed.detach("here", &["-v", "both:/data"], &["sleep", "1000"]);
    let script = "cat /data/from; echo there > /data/back";
    bed.ok(&["exec", "here", "sh", "-c", "echo here > /data/from"]);
    if bed.proa.user().is_none() || bed.proa.has_ids() {
        let run = ["run", "--rm", "--isolation", other, "-v", "both:/data", "busybox", "sh", "-c", script];
        assert_eq!(bed.ok(&run), "here");
        assert_eq!(bed.ok(&["exec", "here", "cat", "/data/back"]), "there");
    }
    bed.ok(&["rm", "-f", "here"]);
}

fn out_and_in_again(bed: &Bed) {
    let script = "cd /d; mkdir -p a/.wh.b; echo one > a/file; ln a/file hard; ln -s /etc/passwd soft; chmod 2750 a; echo x > .wh.x";
    bed.run_ok(&["-v", "source:/d"], &["sh", "-c", script]);
    let directory = bed.directory();
    let tar = directory.path().join("volume.tar").display().to_string();
    bed.ok(&["volume", "export", "-o", &tar, "source"]);
    bed.ok(&["volume", "import", "target", &tar]);
    let look = "cd /d; find . | sort; stat -c '%a %h %n' a hard; readlink soft; cat a/file";
    let expected = bed.run_ok(&["-v", "source:/d:ro"], &["sh", "-c", look]);
    assert!(expected.contains("./.wh.x") && expected.contains("2750 "), "{expected}");
    assert_eq!(bed.run_ok(&["-v", "target:/d:ro"], &["sh", "-c", look]), expected);
    let refused = bed.proa(&["volume", "import", "target", &tar]);
    assert!(refused.code == 1 && refused.stderr.contains("not empty"), "{refused:?}");
    assert_eq!(bed.ok(&["volume", "snapshot", "source", "copied"]), "copied");
    bed.run_ok(&["-v", "source:/d"], &["sh", "-c", "echo changed > /d/a/file"]);
    assert_eq!(bed.run_ok(&["-v", "copied:/d:ro"], &["sh", "-c", look]), expected);
    // What is no archive, or leads out, leaves nothing.
    for bad in [&b"no archive at all, but long enough to look at"[..], &evil_tar()] {
        let failed = bed.proa.run_with_input(&["volume", "import", "broken", "-"], bad);
        assert_eq!(failed.code, 1, "{failed:?}");
        assert!(fs::read_dir(data(bed, "broken")).unwrap().next().is_none());
    }
    assert_eq!(bed.run(&["-v", "broken:/var/www"], &["ls", "/var/www"]).stdout, "index.html\n");
}

/// An archive with a name that leads out.
fn evil_tar() -> Vec<u8> {
    let mut block = [0u8; 512];
    block[..9].copy_from_slice(b"../../out");
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(b"00000000000");
    block[136..147].copy_from_slice(b"00000000000");
    block[156] = b'0';
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    [&block[..], &[0; 1024]].concat()
}

fn events_of_volumes(bed: &Bed) {
    bed.run_ok(&["--name", "teller", "-v", "told:/data"], &["true"]);
    bed.ok(&["volume", "rm", "told"]);
    let format = "{{.Action}} {{.Actor.ID}}";
    let events = ["events", "--since", "1h", "--until", "0s", "--filter", "type=volume", "--format", format];
    assert_eq!(lines(&bed.ok(&events)), ["create told", "mount told", "unmount told", "destroy told"]);
    let attributes = [
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "--filter",
        "event=mount",
        "--format",
        "{{json .Actor.Attributes}}",
    ];
    let mount: serde_json::Value = serde_json::from_str(&bed.ok(&attributes)).unwrap();
    assert_eq!((&mount["destination"], &mount["read/write"]), (&"/data".into(), &"true".into()));
}

fn a_size_is_a_limit(bed: &Bed) {
    bed.ok(&["volume", "create", "--opt", "size=16m", "small"]);
    let script =
        "dd if=/dev/zero of=/data/big bs=1M count=40 2>&1; cat /data/index.html; stat -c %s /data/big";
    let full = bed.run(&["-v", "small:/data", "-v", "small:/var/www"], &["sh", "-c", script]);
    assert!(full.stdout.contains("No space left"), "{full:?}");
    let size: u64 = full.stdout.lines().last().unwrap().parse().unwrap();
    assert!((1 << 20..16 << 20).contains(&size), "{size}");
    assert!(full.stdout.contains("<h1>"), "{full:?}");
    let place = data(bed, "small").with_file_name("fs").display().to_string();
    let is_mounted = || fs::read_to_string("/proc/mounts").unwrap().contains(&place);
    assert!(!is_mounted(), "unmounted when the last user has gone");
    bed.detach("one", &["-v", "small:/data"], &["sleep", "1000"]);
    assert_eq!(bed.run_ok(&["-v", "small:/data"], &["stat", "-c", "%s", "/data/big"]), size.to_string());
    assert!(is_mounted());
    // Whoever is killed leaves a mount that the next command and the next user know what to do with.
    let monitors = bed.proa.monitors();
    monitors
        .into_iter()
        .for_each(|pid| drop(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()));
    bed.proa.wait_for("the end", || bed.ok(&["ps", "-q"]).is_empty());
    bed.proa.wait_for("the repair", || {
        bed.ok(&["system", "check", "--repair"]);
        !is_mounted()
    });
    assert_eq!(bed.ok(&["start", "one"]), "one");
    let refused = bed.proa(&["volume", "snapshot", "small", "copy"]);
    assert!(refused.code == 1 && refused.stderr.contains("in use"), "{refused:?}");
    bed.ok(&["rm", "-f", "one"]);
    bed.ok(&["volume", "snapshot", "small", "copy"]);
    assert_eq!(bed.run_ok(&["-v", "copy:/data"], &["stat", "-c", "%s", "/data/big"]), size.to_string());
    bed.ok(&["volume", "rm", "small", "copy"]);
}

fn file_systems_of_volumes(bed: &Bed) {
    let tmpfs = ["--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=4m,uid=7,mode=700"];
    bed.ok(&[&["volume", "create"], &tmpfs[..], &["memory"]].concat());
    let look = "stat -f -c %T /data; stat -c '%u %a' /data; touch /data/x";
    let seen = bed.run_ok(&["-v", "memory:/data"], &["sh", "-c", look]);
    assert!(seen.ends_with("7 700"), "{seen}");
    assert_eq!(bed.run_ok(&["-v", "memory:/data"], &["ls", "/data"]), "");
    let host = bed.directory();
    let device = format!("device={}", host.path().display());
    bed.ok(&["volume", "create", "--opt", "type=none", "--opt", &device, "--opt", "o=bind", "bound"]);
    bed.run_ok(&["-v", "bound:/data"], &["touch", "/data/seen"]);
    assert!(host.path().join("seen").exists());
    let refused = bed.run(&["--policy", "baseline", "-v", "bound:/data"], &["true"]);
    assert!(refused.code == 125 && refused.stderr.contains("HostPath"), "{refused:?}");
    bed.ok(&["volume", "rm", "bound", "memory"]);
    assert!(host.path().join("seen").exists());
}
