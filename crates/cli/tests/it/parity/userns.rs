//! User namespaces of root's containers: ids that no other instance has, and that are nobody's on the host.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::{Bed, at_both_levels};
use crate::harness::Output;

at_both_levels!(
    own_ids,
    nothing_of_the_hosts,
    ranges_are_ones_own,
    life_with_own_ids,
    maps,
    volumes_keep_their_owners,
    the_hosts_default
);

/// Flags that stand before the command: a host's configuration with ids for `auto`.
fn configured(bed: &Bed, more: &str) -> [String; 2] {
    let path = bed.proa.root().join("userns.toml");
    fs::write(&path, format!("[security]\nuserns-range = \"2000000000:2000000\"\n{more}")).unwrap();
    ["--config".to_owned(), path.to_str().unwrap().to_owned()]
}

fn proa(bed: &Bed, arguments: &[&str]) -> Output {
    let config = configured(bed, "");
    bed.proa(&[&[config[0].as_str(), &config[1]], arguments].concat())
}

fn ok(bed: &Bed, arguments: &[&str]) -> String {
    let output = proa(bed, arguments);
    assert_eq!(output.code, 0, "{arguments:?}: {output:?}");
    output.stdout.trim_end().to_owned()
}

/// Whether this bed has containers of root's. Elsewhere the refusal says why.
fn is_there(bed: &Bed) -> bool {
    if !bed.is_vm() && bed.proa.user().is_none() {
        return true;
    }
    let refused = bed.run(&["--userns", "auto"], &["true"]);
    bed.lacks(&refused);
    let why = if bed.is_vm() { "the guest's kernel is the wall" } else { "needs root" };
    assert!(refused.stderr.contains(why), "{refused:?}");
    false
}

fn own_ids(bed: &Bed) {
    if !is_there(bed) {
        return;
    }
    let script = "id -u; stat -c '%u:%g' / /bin/busybox /etc/hosts; touch /made && chown 33:44 /made \
        && stat -c '%u:%g' /made; echo more >> /etc/hosts && echo hosts; echo x > /dev/null; wc -l < /proc/self/uid_map; \
        hostname; cat /proc/self/gid_map | tr -s ' '; exit 7";
    let flags = ["run", "--rm", "--userns", "auto:size=2000", "--init", "--hostname", "boxed", "-m", "64m"];
    let output = proa(bed, &[&flags[..], &["busybox", "sh", "-c", script]].concat());
    assert_eq!(output.code, 7, "{output:?}");
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines[..8], ["0", "0:0", "0:0", "0:0", "33:44", "hosts", "1", "boxed"], "{output:?}");
    assert!(lines[8].starts_with(" 0 ") && lines[8].ends_with(" 2000") && !lines[8].contains(" 0 0 "));
    let terminal = ok(
        bed,
        &[
            "run",
            "--rm",
            "-t",
            "--userns",
            "auto",
            "-u",
            "12:34",
            "busybox",
            "sh",
            "-c",
            "tty; id -u; stat -c %u $(tty)",
        ],
    );
    assert_eq!(terminal.replace('\r', ""), "/dev/pts/0\n12\n12");
    let beyond = proa(bed, &["run", "--rm", "--userns", "auto:size=50", "-u", "60", "busybox", "true"]);
    assert!(beyond.code == 125 && beyond.stderr.contains("auto:size"), "{beyond:?}");
}

fn nothing_of_the_hosts(bed: &Bed) {
    if !is_there(bed) {
        return;
    }
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for (name, mode) in [("open", 0o644), ("secret", 0o600)] {
        fs::write(at(name), "host\n").unwrap();
        fs::set_permissions(at(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    fs::write(at("tool"), "#!/bin/sh\n").unwrap();
    let volume = format!("{}:/v", directory.path().display());
    let script = "cat /v/open; cd /v; for try in 'echo x >> open' 'echo x > new' 'rm -f open' 'cat secret' 'chmod 666 open' \
        'chown 0:0 open' 'mv open other' 'ln -s a link' 'mkdir d' 'chmod 4755 tool' 'cp /bin/busybox su' \
        'mknod n c 1 3' 'touch open' 'mount -o remount,rw /v' 'chroot /proc/1/root true && cat secret' \
        'setpriv --clear-groups cat secret'; do sh -c \"$try\" > /dev/null 2>&1 && echo \"done: $try\"; done; echo end";
    let flags = [
        "run",
        "--rm",
        "--userns",
        "auto",
        "-v",
        &volume,
        "--cap-add",
        "ALL",
        "--security-opt",
        "seccomp=unconfined",
    ];
    assert_eq!(ok(bed, &[&flags[..], &["busybox", "sh", "-c", script]].concat()), "host\nend");
    assert_eq!(fs::read_to_string(at("open")).unwrap(), "host\n");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    // What belongs to the range is the container's to write, and stays the range's outside.
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).unwrap();
    ok(bed, &["run", "--name", "writer", "--userns", "auto", "-v", &volume, "busybox", "touch", "/v/mine"]);
    assert_eq!(fs::metadata(at("mine")).unwrap().uid(), range(bed, "writer").0);
    ok(bed, &["rm", "writer"]);
}

/// First id and number of ids of an instance, the same of users and groups here.
fn range(bed: &Bed, name: &str) -> (u32, u32) {
    let map = ok(bed, &["inspect", "--format", "{{index .HostConfig.IDMappings.UidMap 0}}", name]);
    let numbers: Vec<u32> = map.split(':').map(|number| number.parse().unwrap()).collect();
    assert_eq!(numbers[0], 0, "{map}");
    (numbers[1], numbers[2])
}

fn ranges_are_ones_own(bed: &Bed) {
    if !is_there(bed) {
        return;
    }
    let config = configured(bed, "");
    let names: Vec<String> = (0..8).map(|number| format!("box{number}")).collect();
    let start = |name: &String| {
        let create = ["create", "--name", name, "--userns", "auto:size=5000", "busybox", "sleep", "1000"];
        bed.proa.spawn(&[&[config[0].as_str(), &config[1]], &create[..]].concat())
    };
    let created: Vec<_> = names.iter().map(start).collect();
    for command in created {
        let output = command.finish();
        assert_eq!(output.code, 0, "{output:?}");
    }
    let mut ranges: Vec<(u32, u32)> = names.iter().map(|name| range(bed, name)).collect();
    ranges.sort_unstable();
    assert!(ranges.iter().all(|(first, count)| *first > 65535 && *count == 5000), "{ranges:?}");
    assert!(ranges.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0), "{ranges:?}");
    let outside = |name: &str| -> u32 {
        ok(bed, &["start", name]);
        let pid = ok(bed, &["inspect", "--format", "{{.State.Pid}}", name]);
        fs::metadata(format!("/proc/{pid}")).unwrap().uid()
    };
    let seen: BTreeSet<u32> = names[..2].iter().map(|name| outside(name)).collect();
    assert_eq!(seen, names[..2].iter().map(|name| range(bed, name).0).collect());
    let freed = range(bed, "box3");
    ok(bed, &["rm", "box3"]);
    ok(bed, &["create", "--name", "heir", "--userns", "auto:size=5000", "busybox", "true"]);
    assert_eq!(range(bed, "heir"), freed);
    for name in names.iter().map(String::as_str).filter(|name| *name != "box3").chain(["heir"]) {
        ok(bed, &["rm", "-f", name]);
    }
}

fn life_with_own_ids(bed: &Bed) {
    if !is_there(bed) {
        return;
    }
    let directory = bed.directory();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(at("tree")).unwrap();
    fs::write(at("tree/file"), "copied\n").unwrap();
    ok(bed, &["run", "-d", "--name", "owner", "--userns", "auto", "busybox", "sleep", "1000"]);
    let (first, _) = range(bed, "owner");
    assert_eq!(ok(bed, &["inspect", "--format", "{{.HostConfig.UsernsMode}}", "owner"]), "auto");
    assert_eq!(ok(bed, &["exec", "-u", "7", "owner", "id", "-u"]), "7");
    ok(bed, &["cp", &at("tree"), "owner:/root/"]);
    let own = [
        "exec",
        "owner",
        "sh",
        "-c",
        "stat -c '%u %g' /root/tree/file; echo own > /root/own; chown 5:6 /root/own",
    ];
    assert_eq!(ok(bed, &own), "0 0");
    ok(bed, &["cp", "owner:/root/own", &at("back")]);
    assert_eq!(fs::read_to_string(at("back")).unwrap(), "own\n");
    let tar = proa(bed, &["cp", "owner:/root/own", "-"]);
    let listed =
        bed.proa.shell_with_input("tar --numeric-owner -tvf - | grep -c ' 5/6 '", tar.stdout.as_bytes());
    assert_eq!(listed, "1\n");
    let changes = "C /root\nA /root/own\nA /root/tree\nA /root/tree/file";
    assert_eq!(ok(bed, &["diff", "owner"]), changes);
    ok(bed, &["stop", "-t", "0", "owner"]);
    ok(bed, &["cp", &at("back"), "owner:/root/later"]);
    ok(bed, &["start", "owner"]);
    assert_eq!(range(bed, "owner").0, first);
    assert_eq!(ok(bed, &["exec", "owner", "stat", "-c", "%u", "/root/later"]), "0");
    assert_eq!(ok(bed, &["diff", "owner"]), format!("C /root\nA /root/later{}", &changes[7..]));
    assert_eq!(ok(bed, &["system", "check"]), "");
    ok(bed, &["rm", "-f", "owner"]);
}

fn maps(bed: &Bed) {
    if !is_there(bed) {
        return;
    }
    let shown = |flags: &[&str]| {
        let files = ["busybox", "sh", "-c", "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '"];
        ok(bed, &[&["run", "--rm"], flags, &files].concat())
    };
    let both = shown(&["--uidmap", "0:300000:10", "--uidmap", "10:400000:90"]);
    assert_eq!(both, "0 300000 10\n 10 400000 90\n 0 300000 10\n 10 400000 90".replacen("0", " 0", 1));
    let each = shown(&["--uidmap", "0:300000:10", "--gidmap", "0:500000:20"]);
    assert_eq!(each, " 0 300000 10\n 0 500000 20");
    for (flags, word) in [
        (&["--uidmap", "1:300000:10"][..], "root inside"),
        (&["--uidmap", "0:300000:10", "--userns", "auto"], "exclude"),
        (&["--userns", "auto", "--privileged"], "--userns host"),
        (&["--userns", "auto", "--network", "host"], "--userns host"),
        (&["--userns", "keep-id"], "keep-id"),
        (&["--userns", "container:x"], "auto:size=COUNT"),
        (&["--userns", "auto:size=4000000000"], "ids in a row"),
    ] {
        let output = proa(bed, &[&["run", "--rm"], flags, &["busybox", "true"]].concat());
        assert!(output.code == 125 && output.stderr.contains(word), "{flags:?}: {output:?}");
    }
    assert_eq!(ok(bed, &["ps", "-aq"]), "");
}

fn the_hosts_default(bed: &Bed) {
    let config = configured(bed, "userns = \"auto\"\n");
    let ids = |flags: &[&str]| {
        let run = ["run", "--rm", "--isolation", bed.level];
        let line = [
            &[config[0].as_str(), &config[1]],
            &run[..],
            flags,
            &["busybox"],
            &["cat", "/proc/self/uid_map"],
        ];
        let output = bed.proa(&line.concat());
        assert_eq!(output.code, 0, "{output:?}");
        output.stdout.split_whitespace().map(|number| number.parse().unwrap()).collect::<Vec<u32>>()
    };
    let own = ids(&[]);
    let has_own = !bed.is_vm() && bed.proa.user().is_none();
    assert_eq!(own[1] > 65535 && own[2] == 65536, has_own, "{own:?}");
    let host = ids(&["--userns", "host"]);
    assert_eq!(host[1], bed.uid());
    if has_own {
        assert_eq!(ids(&["--privileged", "--userns", "host"])[1], 0);
    }
}

/// A volume's owners are those inside, so that instances with ids of their own and others share it.
fn volumes_keep_their_owners(bed: &Bed) {
    if !is_there(bed) {
        return;
    }
    let run = |flags: &[&str], script: &str| {
        ok(bed, &[&["run", "--rm", "-v", "owned:/var/www"], flags, &["busybox", "sh", "-c", script]].concat())
    };
    let look = "stat -c '%u:%g %n' /var/www/*";
    let auto = ["--userns", "auto:size=2000"];
    assert_eq!(
        run(&auto, &format!("touch /var/www/new; chown 33:44 /var/www/new; {look}")),
        "0:0 /var/www/index.html\n33:44 /var/www/new"
    );
    assert_eq!(run(&[], look), "0:0 /var/www/index.html\n33:44 /var/www/new");
    assert_eq!(run(&auto, &format!("rm /var/www/index.html; {look}")), "33:44 /var/www/new");
    let new = fs::metadata(bed.proa.root().join("volumes/owned/_data/new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (33, 44));
}
