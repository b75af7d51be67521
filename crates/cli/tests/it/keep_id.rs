//! `--userns keep-id`: an ordinary user who is itself in its containers, over layers that are unpacked once more.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use crate::harness::{Output, Proa, User};

const KEEP: &[&str] = &["--userns", "keep-id"];

fn proa() -> Proa {
    Proa::of_user("proa-test").import_busybox()
}

/// What a script prints in a container with these flags.
fn run(proa: &Proa, flags: &[&str], script: &str) -> String {
    proa.ok(&[&["run", "--rm"], flags, &["busybox", "sh", "-c", script]].concat())
}

fn refused(output: &Output, words: &[&str]) {
    assert_eq!(output.code, 125, "{output:?}");
    assert!((1..=2).contains(&output.stderr.lines().count()), "{output:?}");
    for word in words {
        assert!(output.stderr.contains(word), "{word}: {output:?}");
    }
}

/// What is in the store's directory of layers, without the layers themselves.
fn copies(proa: &Proa) -> Vec<PathBuf> {
    let entries = fs::read_dir(proa.root().join("image/layers")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| path.to_str().unwrap().contains(".keep-")).collect();
    paths.sort();
    paths
}

/// First id of the user's range.
fn range(file: &str) -> u32 {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find(|line| line.starts_with("proa-test:")).unwrap();
    line.split(':').nth(1).unwrap().parse().unwrap()
}

/// A directory of the user's with a file that nobody else reads.
fn home(proa: &Proa) -> (PathBuf, String) {
    let home = proa.root().join("home/kept");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("mine"), "mine\n").unwrap();
    fs::set_permissions(home.join("mine"), PermissionsExt::from_mode(0o600)).unwrap();
    proa.give(&home);
    let volume = format!("{}:/v", home.display());
    (home, volume)
}

#[test]
fn the_user_is_itself_inside() {
    let proa = proa();
    let User { uid, gid } = *proa.user().unwrap();
    let (home, volume) = home(&proa);
    let flags = [KEEP, &["-v", &volume]].concat();
    let script = "id -u; id -g; stat -c %u:%g / /bin/busybox /etc/hosts /v/mine; cat /v/mine; echo x > /v/new; \
        hostname > /dev/null; touch /etc/x 2>/dev/null || echo no; grep CapEff /proc/self/status | tr -d '\\t'";
    let expected = format!("{uid}\n{gid}\n0:0\n0:0\n0:0\n{uid}:{gid}\nmine\nno\nCapEff:0000000000000000");
    assert_eq!(run(&proa, &flags, script), expected);
    let new = fs::metadata(home.join("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (uid, gid));
    // Root inside is one of the ranges, who may do what root may with the container's own files and the user's.
    let as_root = [&flags[..], &["-u", "0"]].concat();
    let script = "touch /etc/x; stat -c %u:%g /etc/x; cat /v/mine; touch /v/root; chown 33:44 /v/root; id -G";
    assert_eq!(run(&proa, &as_root, script), format!("0:0\nmine\n0 {gid}"));
    let other = fs::metadata(home.join("root")).unwrap();
    assert_eq!((other.uid(), other.gid()), (range("/etc/subuid") + 33, range("/etc/subgid") + 44));
    // Users of the host are nobody inside, and cannot be reached.
    let roots = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(roots.path(), PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(roots.path().join("secret"), "secret\n").unwrap();
    fs::set_permissions(roots.path().join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    let volume = format!("{}:/host", roots.path().display());
    let outside = [KEEP, &["-u", "0", "-v", &volume]].concat();
    let script = "stat -c %u /host/secret; cat /host/secret 2>/dev/null || echo no; touch /host/x 2>/dev/null || echo no";
    assert_eq!(run(&proa, &outside, script), "65534\nno\nno");
}

#[test]
fn other_ids_and_other_users() {
    let proa = proa();
    let User { uid, gid } = *proa.user().unwrap();
    let (_, volume) = home(&proa);
    let ids = "id -u; id -g; stat -c %u:%g /v/mine /bin/busybox";
    let with =
        |mode: &str, more: &[&str]| run(&proa, &[&["--userns", mode, "-v", &volume], more].concat(), ids);
    assert_eq!(with("keep-id:uid=7,gid=8", &[]), "7\n8\n7:8\n0:0");
    assert_eq!(with("keep-id:uid=7", &[]), format!("7\n{gid}\n7:{gid}\n0:0"));
    assert_eq!(with("keep-id:gid=100000", &[]), format!("{uid}\n100000\n{uid}:100000\n0:0"));
    assert_eq!(with("keep-id:uid=7", &["-u", "5:6"]), format!("5\n6\n7:{gid}\n0:0"));
    assert_eq!(with("keep-id:uid=0,gid=0", &[]), "0\n0\n0:0\n0:0");
    let map = run(&proa, &["--userns", "keep-id:uid=7"], "tr -s ' ' < /proc/self/uid_map");
    assert_eq!(map, " 7 0 1\n 0 1 7\n 8 8 65529".trim_start().replacen('7', " 7", 1));
    // The image's user goes before, as with Podman.
    let import = ["import", "--change", "USER 5:6", "--change", "ENV PATH=/bin", "-", "five"];
    let imported = proa.run_with_input(&import, &fs::read(Proa::busybox_tar()).unwrap());
    assert_eq!(imported.code, 0, "{imported:?}");
    let five = [&["run", "--rm"], KEEP, &["five", "sh", "-c", "id -u; id -g; id -G"]].concat();
    assert_eq!(proa.ok(&five), format!("5\n6\n6 {gid}"));
    for mode in ["keep-id:uid=x", "keep-id:name=me", "keep-id:"] {
        refused(&proa.run(&["run", "--rm", "--userns", mode, "busybox", "true"]), &["keep-id:uid=ID,gid=ID"]);
    }
}

#[test]
fn life_of_a_container_that_keeps_the_id() {
    let proa = proa();
    let User { uid, gid } = *proa.user().unwrap();
    let directory = proa.root().join("home/tree");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "copied\n").unwrap();
    proa.give(&directory);
    proa.ok(&[&["run", "-d", "--init", "--name", "kept"], KEEP, &["busybox", "sleep", "1000"]].concat());
    let format = "{{.HostConfig.UsernsMode}} {{.Config.User}} {{index .HostConfig.IDMappings.UidMap 0}}";
    assert_eq!(proa.ok(&["inspect", "--format", format, "kept"]), format!("keep-id {uid}:{gid} {uid}:0:1"));
    let pid = proa.ok(&["inspect", "--format", "{{.State.Pid}}", "kept"]);
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), uid);
    assert_eq!(proa.ok(&["exec", "kept", "id", "-u"]), uid.to_string());
    assert_eq!(proa.ok(&["exec", "-u", "0", "kept", "sh", "-c", "mkdir /tmp/r; id -u"]), "0");
    assert_eq!(proa.ok(&["exec", "-t", "kept", "tty"]), "/dev/pts/0");
    proa.ok(&["cp", directory.to_str().unwrap(), "kept:/tmp/"]);
    assert_eq!(proa.ok(&["exec", "kept", "stat", "-c", "%u", "/tmp/tree/file"]), "0");
    let back = proa.root().join("home/back");
    proa.ok(&["cp", "kept:/tmp/tree/file", back.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&back).unwrap(), "copied\n");
    assert_eq!(fs::metadata(&back).unwrap().uid(), uid);
    let changes = "C /tmp\nA /tmp/r\nA /tmp/tree\nA /tmp/tree/file";
    assert_eq!(proa.ok(&["diff", "kept"]), changes);
    proa.ok(&["stop", "-t", "0", "kept"]);
    assert_eq!(proa.ok(&["diff", "kept"]), changes);
    proa.ok(&["start", "kept"]);
    assert_eq!(proa.ok(&["exec", "kept", "cat", "/tmp/tree/file"]), "copied");
    proa.ok(&["rm", "-f", "kept"]);
    for flags in [&["--privileged"][..], &["--network", "host"], &["--read-only", "--tmpfs", "/t"]] {
        assert_eq!(run(&proa, &[KEEP, flags].concat(), "id -u"), uid.to_string());
    }
}

#[test]
fn layers_are_copied_once_and_go_with_the_image() {
    let proa = proa();
    assert_eq!(copies(&proa), [] as [PathBuf; 0]);
    let command = [&["run", "--rm"], KEEP, &["busybox", "stat", "-c", "%h", "/bin/sh"]].concat();
    let commands: Vec<_> = (0..6).map(|_| proa.spawn(&command)).collect();
    for command in commands {
        let output = command.finish();
        assert!(output.stdout.trim_end().parse::<u32>().unwrap() > 100, "hard links stay: {output:?}");
    }
    let [first] = &copies(&proa)[..] else { panic!("{:?}", copies(&proa)) };
    let inode = fs::metadata(first).unwrap().ino();
    // The owner of root's files is the first of the user's range.
    assert_eq!(fs::metadata(first).unwrap().uid(), range("/etc/subuid"));
    run(&proa, KEEP, "true");
    assert_eq!(fs::metadata(first).unwrap().ino(), inode);
    run(&proa, &["--userns", "keep-id:uid=7"], "true");
    assert_eq!(copies(&proa).len(), 2);
    assert_eq!(proa.ok(&["system", "check"]), "");
    proa.ok(&[&["create", "--name", "user"], KEEP, &["busybox", "true"]].concat());
    assert_ne!(proa.run(&["rmi", "busybox"]).code, 0);
    assert_eq!(copies(&proa).len(), 2);
    proa.ok(&["rm", "user"]);
    proa.ok(&["rmi", "busybox"]);
    assert_eq!(fs::read_dir(proa.root().join("image/layers")).unwrap().count(), 0);
    // A copy of no layer, and one of no name of ours.
    let copy = proa.root().join(format!("image/layers/{}.keep-1-1", "0".repeat(64)));
    let strange = proa.root().join(format!("image/layers/{}.keep-1-x", "0".repeat(64)));
    for path in [&copy, &strange] {
        fs::create_dir(path).unwrap();
        proa.give(path);
    }
    let found = proa.run(&["system", "check"]);
    assert_eq!(found.stdout.lines().count(), 2, "{found:?}");
    proa.ok(&["system", "check", "--repair"]);
    assert!(!copy.exists() && !strange.exists());
    assert_eq!(proa.ok(&["system", "check"]), "");
}

/// An image whose layer takes a while to unpack.
fn import_large(proa: &Proa) {
    let tree = tempfile::tempdir().unwrap();
    let script = "set -e; mkdir -p bin data; cp $(command -v busybox) bin/; ln bin/busybox bin/true; \
        for n in $(seq 4000); do echo $n > data/$n; done; head -c 8000000 /dev/urandom > data/large; \
        tar --numeric-owner --owner=0 --group=0 -cf - .";
    let tar =
        std::process::Command::new("sh").args(["-c", script]).current_dir(tree.path()).output().unwrap();
    assert!(tar.status.success(), "{tar:?}");
    let import = proa.run_with_input(&["import", "--change", "ENV PATH=/bin", "-", "large"], &tar.stdout);
    assert_eq!(import.code, 0, "{import:?}");
}

#[test]
fn killed_while_it_unpacks_it_leaves_nothing() {
    let proa = Proa::of_user("proa-test");
    import_large(&proa);
    let sessions = proa.root().join("image/tmp");
    // In the spool, in the tree, and wherever else a kill may meet it.
    for step in ["copy.layer.files", "copy.layer/data", "copy.layer"] {
        let create = proa.spawn(&[&["create", "--name", "killed"], KEEP, &["large", "true"]].concat());
        proa.wait_for("the copy to be in the making", || {
            let mut sessions = fs::read_dir(&sessions).unwrap().flatten();
            sessions.any(|session| session.path().join(step).exists())
        });
        let pid = rustix::process::Pid::from_raw(create.pid() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        assert_eq!(create.finish().code, 137);
        assert_eq!(copies(&proa), [] as [PathBuf; 0]);
        proa.ok(&["system", "check", "--repair"]);
        assert_eq!(fs::read_dir(&sessions).unwrap().count(), 0);
        assert_eq!(proa.ok(&["ps", "-aq"]), "");
        assert_eq!(proa.ok(&["system", "check"]), "");
    }
    proa.ok(&[&["run", "--rm"], KEEP, &["large", "true"]].concat());
    assert_eq!(copies(&proa).len(), 1);
    proa.ok(&["rmi", "large"]);
    assert_eq!(fs::read_dir(proa.root().join("image/layers")).unwrap().count(), 0);
}

#[test]
fn the_default_of_a_configuration() {
    let proa = proa();
    let User { uid, .. } = *proa.user().unwrap();
    let path = proa.root().join("home/keep.toml");
    fs::write(&path, "[security]\nuserns = \"keep-id\"\n").unwrap();
    let config = ["--config", path.to_str().unwrap()];
    let seen =
        |flags: &[&str]| proa.ok(&[&config, &["run", "--rm"], flags, &["busybox", "id", "-u"]].concat());
    assert_eq!(seen(&[]), uid.to_string());
    assert_eq!(seen(&["--userns", "host"]), "0");
    assert_eq!(seen(&["--userns", "keep-id:uid=5"]), "5");
}

#[test]
fn who_cannot_have_it_hears_why() {
    let plain = Proa::of_user("proa-test-plain").import_busybox();
    refused(
        &plain.run(&[&["run", "--rm"], KEEP, &["busybox", "true"]].concat()),
        &["/etc/subuid", "newuidmap"],
    );
    // Who is root inside needs no other id.
    assert_eq!(run(&plain, &["--userns", "keep-id:uid=0,gid=0"], "id -u"), "0");
    let root = Proa::with_busybox();
    refused(&root.run(&[&["run", "--rm"], KEEP, &["busybox", "true"]].concat()), &["ordinary users", "auto"]);
}
