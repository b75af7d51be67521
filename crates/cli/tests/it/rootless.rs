//! Proa as an ordinary user: where state is, which ids there are, what is refused and how that is said. What such a
//! user has in common with root is in `parity`.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Output, Proa, User};

fn proa() -> Proa {
    Proa::of_user("proa-test").import_busybox()
}

fn refused(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, code, "{output:?}");
    assert!((1..=2).contains(&output.stderr.lines().count()), "{output:?}");
    for word in words {
        assert!(output.stderr.contains(word), "{word}: {output:?}");
    }
}

/// A tar made by a shell script in an empty directory, with owners as they are.
fn tar(script: &str) -> Vec<u8> {
    let tree = tempfile::tempdir().unwrap();
    let script = format!("set -e; {script}; tar --numeric-owner --xattrs -cf - .");
    let output = Command::new("sh").args(["-c", &script]).current_dir(tree.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// What a directory takes on disk.
fn mega_bytes(directory: &Path) -> f64 {
    let output = Command::new("du").args(["-s", "--block-size=1"]).arg(directory).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e6
}

/// The process that keeps the user's namespace.
fn holder(proa: &Proa) -> Option<u32> {
    let run = format!("proa-userns\0{}\0", proa.root().join("run").display());
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == run.as_bytes()))
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn root_inside_is_the_user_and_others_are_its_ranges() {
    let proa = proa();
    let run = |flags: &[&str], script: &str| {
        proa.ok(&[&["run", "--rm"], flags, &["busybox", "sh", "-c", script]].concat())
    };
    let volume = proa.root().join("home");
    let bind = format!("{}:/v", volume.display());
    run(&["-v", &bind], "touch /v/root; touch /v/other; chown 33:44 /v/other");
    let user = proa.user().unwrap();
    assert_eq!(fs::metadata(volume.join("root")).unwrap().uid(), user.uid);
    let other = fs::metadata(volume.join("other")).unwrap();
    let range = |file: &str| -> u32 {
        let text = fs::read_to_string(file).unwrap();
        let line = text.lines().find(|line| line.starts_with("proa-test:")).unwrap();
        line.split(':').nth(1).unwrap().parse().unwrap()
    };
    assert_eq!(other.uid(), range("/etc/subuid") + 32);
    assert_eq!(other.gid(), range("/etc/subgid") + 43);
    assert_eq!(run(&["-u", "33:44"], "id -u; id -g"), "33\n44");
    let beyond = proa.run(&["run", "--rm", "-u", "100000", "busybox", "true"]);
    refused(&beyond, 125, &["100000", "/etc/subuid"]);
    // What is the user's business alone: nothing of root's outside can be written to.
    let outside = proa.run(&["run", "--rm", "-v", "/etc:/host", "busybox", "touch", "/host/proa-test"]);
    assert_eq!(outside.code, 1, "{outside:?}");
    assert!(!Path::new("/etc/proa-test").exists());
    let shadow = proa.run(&["run", "--rm", "-v", "/etc:/host", "busybox", "cat", "/host/shadow"]);
    assert_eq!(shadow.code, 1, "{shadow:?}");
}

#[test]
fn state_is_in_the_users_own_directories() {
    let proa = proa();
    let info = |wrap: &dyn Fn(&mut Command)| {
        let mut command = proa.plain_command();
        wrap(&mut command);
        command.args(["info", "--format", "{{.Root}} {{.RunRoot}} {{.Driver}}"]);
        proa.run_command(command, b"")
    };
    let home = proa.root().join("home");
    let seen = info(&|_| {});
    let expected = format!(
        "{} {} overlay\n",
        home.join(".local/share/proa").display(),
        proa.root().join("run/proa").display()
    );
    assert_eq!(seen.stdout, expected, "{seen:?}");
    assert_eq!(fs::metadata(home.join(".local/share/proa")).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn a_planted_runtime_directory_is_refused() {
    let proa = Proa::of_user("proa-test-plain");
    let user = proa.user().unwrap();
    let fallback = PathBuf::from(format!("/tmp/proa-run-{}", user.uid));
    assert!(!fallback.exists(), "{} is in the way of the test", fallback.display());
    // Open to others, it is no place for sockets: neither the one named nor the fallback.
    fs::set_permissions(proa.root().join("run"), PermissionsExt::from_mode(0o755)).unwrap();
    symlink("/var/tmp", &fallback).unwrap();
    let planted = proa.run(&["ps"]);
    fs::remove_file(&fallback).unwrap();
    refused(&planted, 1, &[fallback.to_str().unwrap(), "XDG_RUNTIME_DIR"]);
    let used = proa.run(&["ps"]);
    assert_eq!(used.code, 0, "{used:?}");
    let made = fs::symlink_metadata(&fallback).unwrap();
    assert_eq!((made.uid(), made.mode() & 0o7777), (user.uid, 0o700));
    assert!(fs::metadata(fallback.join("proa-userns.sock")).unwrap().file_type().is_socket());
    proa.ok(&["system", "stop"]);
    fs::remove_dir_all(&fallback).unwrap();
    fs::set_permissions(proa.root().join("run"), PermissionsExt::from_mode(0o700)).unwrap();
}

#[test]
fn a_single_id_is_enough_for_files_of_root_alone() {
    let proa = Proa::of_user("proa-test-plain");
    let first = proa.run(&["images"]);
    assert!(first.stderr.contains("/etc/subuid") && first.stderr.contains("proa-test-plain"), "{first:?}");
    let again = proa.run(&["images"]);
    assert_eq!((again.code, again.stderr.as_str()), (0, ""));
    let proa = proa.import_busybox();
    assert_eq!(proa.ok(&["run", "--rm", "busybox", "id", "-u"]), "0");
    assert_eq!(proa.ok(&["run", "--rm", "-i", "busybox", "cat"]), "");
    let nobody = proa.run(&["run", "--rm", "-u", "65534", "busybox", "true"]);
    refused(&nobody, 125, &["65534", "newuidmap"]);
    let foreign = tar("touch mail; chown 0:8 mail");
    let import = proa.run_with_input(&["import", "-", "foreign"], &foreign);
    refused(&import, 1, &["mail", "group 8", "newuidmap", "/etc/subgid"]);
    assert_eq!(proa.ok(&["images", "-q"]).lines().count(), 1);
    assert_eq!(proa.ok(&["system", "check"]), "");
}

#[test]
fn the_holder_may_be_killed_at_any_time() {
    let proa = proa();
    proa.ok(&["run", "-d", "--name", "stays", "busybox", "sleep", "1000"]);
    for _ in 0..5 {
        kill(holder(&proa).expect("a holder runs"));
        assert_eq!(proa.ok(&["exec", "stays", "echo", "alive"]), "alive");
    }
    kill(holder(&proa).unwrap());
    // Many first commands at once: one starts the holder, all are served.
    let commands: Vec<_> = (0..8).map(|_| proa.spawn(&["run", "--rm", "busybox", "echo", "one"])).collect();
    for command in commands {
        assert_eq!(command.finish().stdout, "one\n");
    }
    proa.ok(&["rm", "-f", "stays"]);
}

#[test]
fn what_cannot_be_made_is_left_out_and_said() {
    let proa = proa();
    let special = tar("mkdir dev; mknod dev/sda b 8 0; mknod dev/null c 1 3; mkfifo pipe; echo x > plain");
    let import = proa.run_with_input(&["import", "--change", "CMD [\"x\"]", "-", "special"], &special);
    assert_eq!(import.code, 0, "{import:?}");
    assert!(import.stderr.contains("2 device nodes"), "{import:?}");
}

#[test]
fn whiteouts_and_opaque_directories_of_upper_layers() {
    let proa = proa();
    let base = tempfile::tempdir().unwrap();
    let layout = base.path().join("image.tar");
    let script = r#"
        set -e
        mkdir lower upper && cd lower
        mkdir gone replaced && echo 1 > gone/file && echo 1 > single && echo 1 > replaced/old
        tar --numeric-owner -cf ../lower.tar gone single replaced && cd ../upper
        mkdir replaced && touch .wh.single .wh.gone replaced/.wh..wh..opq && echo 2 > replaced/new
        tar --numeric-owner -cf ../upper.tar .wh.single .wh.gone replaced && cd ..
        digest() { sha256sum "$1" | cut -d' ' -f1; }
        printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%s","sha256:%s","sha256:%s"]}}' \
            "$(digest "$1")" "$(digest lower.tar)" "$(digest upper.tar)" > config.json
        cp "$1" busybox.tar
        printf '[{"Config":"config.json","RepoTags":["marks:1"],"Layers":["busybox.tar","lower.tar","upper.tar"]}]' > manifest.json
        tar -cf "$2" manifest.json config.json busybox.tar lower.tar upper.tar"#;
    let script = script.replace("amd64", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" });
    let made = Command::new("sh")
        .args(["-c", &script, "sh", Proa::busybox_tar(), layout.to_str().unwrap()])
        .current_dir(base.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let load = proa.run_with_input(&["load"], &fs::read(&layout).unwrap());
    assert_eq!(load.code, 0, "{load:?}");
    let list = ["run", "--rm", "marks:1", "/bin/sh", "-c", "ls -d /gone /single 2>/dev/null; ls /replaced"];
    assert_eq!(proa.ok(&list), "new");
    // A container's own marks count as well.
    proa.ok(&[
        "run",
        "--name",
        "own",
        "marks:1",
        "/bin/sh",
        "-c",
        "rm -r /replaced /bin/ls; mkdir /replaced",
    ]);
    let changes = proa.ok(&["diff", "own"]);
    assert!(changes.lines().any(|line| line == "D /replaced/new"), "{changes}");
    assert!(changes.lines().any(|line| line == "D /bin/ls"), "{changes}");
    proa.ok(&["rm", "own"]);
}

#[test]
fn images_are_kept_saved_and_removed_as_roots_are() {
    let proa = proa();
    let archive = proa.root().join("home/saved.tar");
    proa.ok(&["save", "-o", archive.to_str().unwrap(), "busybox"]);
    let id = proa.ok(&["images", "-q", "--no-trunc"]);
    proa.ok(&["rmi", "busybox"]);
    assert_eq!(proa.ok(&["images", "-q"]), "");
    let layers = proa.root().join("image/layers");
    assert_eq!(fs::read_dir(&layers).unwrap().count(), 0);
    proa.ok(&["load", "-i", archive.to_str().unwrap()]);
    assert_eq!(proa.ok(&["images", "-q", "--no-trunc"]), id);
    assert_eq!(proa.ok(&["run", "--rm", "busybox", "echo", "again"]), "again");
    let told = proa.ok(&["system", "df", "--format", "{{.Size}}"]);
    let told = told.lines().next().and_then(|line| line.strip_suffix("MB")).map(str::parse::<f64>);
    let used = mega_bytes(&proa.root().join("image"));
    assert!(
        told.clone().is_some_and(|told| told.is_ok_and(|told| (told - used).abs() < 0.2)),
        "{told:?} of {used}"
    );
    proa.ok(&["image", "prune", "-a", "-f"]);
    assert_eq!(fs::read_dir(&layers).unwrap().count(), 0);
    assert_eq!(proa.ok(&["system", "check"]), "");
}

#[test]
fn limits_say_what_they_need() {
    let proa = proa();
    for limit in [&["-m", "64m"][..], &["--cpus", "0.5"], &["--pids-limit", "9"]] {
        let output = proa.run(&[&["run", "--rm"], limit, &["busybox", "true"]].concat());
        if proa.has_cgroup() {
            assert_eq!(output.code, 0, "{output:?}");
            continue;
        }
        refused(&output, 125, &["cgroup"]);
        assert!(output.stderr.contains("root") || output.stderr.contains("Delegate="), "{output:?}");
    }
}

#[test]
fn shared_processes_say_what_they_need() {
    let proa = proa();
    let run = |flags: &[&str]| proa.run(&[&["run", "--rm"], flags, &["busybox", "true"]].concat());
    refused(&run(&["--pid", "host"]), 125, &["root", "/proc"]);
    proa.ok(&["run", "-d", "--name", "first", "busybox", "sleep", "1000"]);
    for flags in [["--pid", "container:first"], ["--cgroup-parent", "/parent"]] {
        let output = run(&flags);
        if proa.has_cgroup() {
            assert_eq!(output.code, 0, "{output:?}");
        } else {
            refused(&output, 125, &["cgroup"]);
        }
    }
    proa.ok(&["rm", "-f", "first"]);
}

/// In a namespace whose own limit is none, as on a host where they are switched off.
#[test]
fn forbidden_namespaces_are_one_line_that_names_the_switch() {
    let proa = Proa::of_user("proa-test");
    let inner = proa.command(&["ps"]);
    let mut arguments: Vec<_> = inner.get_args().map(std::ffi::OsStr::to_os_string).collect();
    let at = arguments.iter().position(|argument| *argument == *proa.binary()).unwrap();
    let switch = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
    let wrap = ["unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-c", switch, "sh"];
    arguments.splice(at..at, wrap.map(Into::into));
    let mut command = Command::new(inner.get_program());
    command.args(arguments).current_dir("/");
    let output = proa.run_command(command, b"");
    refused(&output, 1, &["user.max_user_namespaces"]);
}

#[test]
fn files_of_other_ranges_are_not_taken_for_ours() {
    let proa = proa();
    let maps = proa.root().join("idmaps");
    let noted = fs::read_to_string(&maps).unwrap();
    let User { uid, .. } = proa.user().unwrap();
    assert!(noted.starts_with(&format!("uid_map 0 {uid} 1\nuid_map 1 ")), "{noted}");
    fs::write(&maps, noted.replace("uid_map 1 ", "uid_map 1 7")).unwrap();
    refused(&proa.run(&["ps"]), 1, &["/etc/subuid", "--root"]);
    fs::write(&maps, noted).unwrap();
    proa.ok(&["ps"]);
}

#[test]
fn the_hosts_network_and_devices() {
    let proa = proa();
    let seen = proa.ok(&["run", "--rm", "--network", "host", "busybox", "ls", "/sys/class/net"]);
    let mut own: Vec<String> = fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    own.sort();
    let mut seen: Vec<&str> = seen.split_whitespace().collect();
    seen.sort_unstable();
    assert_eq!(seen, own);
    let zero = ["run", "--rm", "--device", "/dev/zero", "busybox", "head", "-c", "3", "/dev/zero"];
    assert_eq!(proa.run(&zero).stdout, "\0\0\0");
    let read_only = proa.run(&["run", "--rm", "--device", "/dev/zero:/dev/zero:r", "busybox", "true"]);
    refused(&read_only, 125, &["/dev/zero", "root"]);
}

/// What an ordinary user cannot have of volumes, and that the rest is its own.
#[test]
fn volumes_without_root() {
    let proa = proa();
    for (options, word) in [
        (&["--opt", "size=64m"][..], "needs root"),
        (&["--opt", "type=tmpfs", "--opt", "device=tmpfs"], "needs root"),
    ] {
        refused(&proa.run(&[&["volume", "create"], options, &["limited"]].concat()), 1, &[word]);
    }
    assert_eq!(proa.ok(&["volume", "ls", "-q"]), "");
    proa.ok(&["run", "--rm", "-v", "mine:/var/www", "busybox", "true"]);
    let page = proa.root().join("volumes/mine/_data/index.html");
    assert_eq!(fs::metadata(page).unwrap().uid(), proa.user().unwrap().uid);
    proa.ok(&["volume", "rm", "mine"]);
}
