//! Mounts of every kind and with every option, and devices that open where the spec lets them.

use std::path::Path;
use std::process::Command;

use proa_oci::runtime::{Device, IdMapping, Mount, Pids};

use crate::support::{Fixture, finish, tempdir};

crate::tests![
    mounts_are_listed_in_the_order_of_the_spec,
    an_id_mapped_volume,
    recursive_attributes,
    a_tmpfs_that_begins_with_what_it_covers,
    other_attributes_for_a_mount_that_is_there,
    file_systems_of_the_host,
    a_source_relative_to_the_bundle,
    propagation_of_the_root,
    nodes_that_open,
    the_kernels_files_are_not_covered,
];

pub fn volume(destination: &str, source: &Path) -> Mount {
    Mount {
        destination: destination.into(),
        kind: Some("bind".into()),
        source: Some(source.to_str().unwrap().into()),
        options: vec!["rbind".into()],
        ..Mount::default()
    }
}

fn mount(destination: &str, kind: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        kind: Some(kind.into()),
        options: options.iter().map(ToString::to_string).collect(),
        ..Mount::default()
    }
}

/// A tmpfs of the host with a second one in it, both gone with the value.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let dir = tempdir();
        for path in [dir.path().to_owned(), dir.path().join("below")] {
            std::fs::create_dir_all(&path).unwrap();
            let status =
                Command::new("mount").args(["-t", "tmpfs", "proa-test"]).arg(&path).status().unwrap();
            assert!(status.success());
        }
        std::fs::write(dir.path().join("file"), "x").unwrap();
        std::fs::write(dir.path().join("below/file"), "x").unwrap();
        Self(dir)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        Command::new("umount").arg("-R").arg(self.0.path()).status().unwrap();
    }
}

fn an_id_mapped_volume() {
    let tree = Tree::new();
    let map = || vec![IdMapping { container_id: 0, host_id: 1000, size: 10 }];
    for (option, below) in [("idmap", "0"), ("ridmap", "1000")] {
        let fixture =
            Fixture::shell("stat -c '%u %g' /data/file; stat -c %u /data/below/file").with(|spec| {
                let mut volume = volume("/data", tree.0.path());
                volume.options.push(option.into());
                (volume.uid_mappings, volume.gid_mappings) = (map(), map());
                spec.mounts.push(volume);
            });
        assert_eq!(fixture.run().stdout, format!("1000 1000\n{below}\n"), "{option}");
    }
    let fixture = Fixture::shell("true").with(|spec| {
        let mut volume = volume("/data", tree.0.path());
        volume.options.push("idmap".into());
        spec.mounts.push(volume);
    });
    assert!(fixture.fails().to_string().contains("idmap needs uidMappings"));
}

fn recursive_attributes() {
    let tree = Tree::new();
    let script =
        "for f in /data/file /data/below/file; do echo y 2>/dev/null > $f && echo written; done; true";
    for (option, expected) in [("rro", ""), ("ro", "written\n"), ("rw", "written\nwritten\n")] {
        let fixture = Fixture::shell(script).with(|spec| {
            let mut volume = volume("/data", tree.0.path());
            volume.options.push(option.into());
            spec.mounts.push(volume);
        });
        assert_eq!(fixture.run().stdout, expected, "{option}");
    }
    let options = ["rnosuid", "rnoexec", "rnoatime", "rnodev", "rnosymfollow"];
    let fixture = Fixture::shell(
        "grep -c 'nosuid.*noexec.*noatime' /proc/mounts; grep proa-test /proc/mounts",
    )
    .with(|spec| {
        let mut volume = volume("/data", tree.0.path());
        volume.options.extend(options.map(ToOwned::to_owned));
        spec.mounts.push(volume);
    });
    let output = fixture.run().stdout;
    let lines: Vec<_> = output.lines().filter(|line| line.contains("proa-test")).collect();
    assert_eq!(lines.len(), 2, "{output}");
    for line in lines {
        for name in ["nosuid", "nodev", "noexec", "noatime", "nosymfollow"] {
            assert!(line.contains(name), "{name}: {line}");
        }
    }
}

fn a_tmpfs_that_begins_with_what_it_covers() {
    let fixture = Fixture::shell(
        "cat /etc/deep/file; readlink /etc/link; stat -c '%a %u' /etc/deep/file; stat -c %F /etc/fifo
        touch /etc/new && grep -c ' /etc tmpfs' /proc/mounts; wc -l < /etc/passwd",
    )
    .file("/etc/deep/file", "deep\n")
    .with(|spec| spec.mounts.push(mount("/etc", "tmpfs", &["tmpcopyup", "size=1m"])));
    let etc = fixture.lower().join("etc");
    std::os::unix::fs::symlink("/nowhere", etc.join("link")).unwrap();
    std::os::unix::fs::chown(etc.join("deep/file"), Some(5), Some(6)).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
    std::fs::set_permissions(etc.join("deep/file"), mode).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, etc.join("fifo"), rustix::fs::Mode::RWXU).unwrap();
    assert_eq!(fixture.run().stdout, "deep\n/nowhere\n640 5\nfifo\n1\n2\n");
    // It stays within its size.
    let fixture = Fixture::shell("true")
        .file("/big/file", &"x".repeat(100_000))
        .with(|spec| spec.mounts.push(mount("/big", "tmpfs", &["tmpcopyup", "size=16k"])));
    assert!(fixture.fails().to_string().contains("tmpcopyup"));
}

fn other_attributes_for_a_mount_that_is_there() {
    let fixture =
        Fixture::shell("touch /t/x 2>/dev/null || echo ro; grep ' /t ' /proc/mounts").with(|spec| {
            spec.mounts.push(mount("/t", "tmpfs", &["size=1m"]));
            spec.mounts.push(mount("/t", "tmpfs", &["remount", "ro", "noexec", "size=2m"]));
        });
    let output = fixture.run().stdout;
    assert!(
        output.starts_with("ro\n") && output.contains("noexec") && output.contains("size=2048k"),
        "{output}"
    );
}

fn file_systems_of_the_host() {
    let fixture = Fixture::shell(
        "grep -c '^ram /r ramfs' /proc/mounts; touch /r/x; grep -c 'sync' /proc/mounts; echo ok",
    )
    .with(|spec| {
        let ram =
            Mount { source: Some("ram".into()), ..mount("r/", "ramfs", &["mode=700", "sync", "silent"]) };
        spec.mounts.push(ram);
    });
    assert_eq!(fixture.run().stdout, "1\n1\nok\n");
    let fixture = Fixture::shell("true").with(|spec| spec.mounts.push(mount("/r", "nosuchfs", &[])));
    let error = fixture.fails().to_string();
    assert!(error.contains("the kernel has no file system 'nosuchfs'"), "{error}");
    let fixture = Fixture::shell("true").with(|spec| spec.mounts.push(mount("/r", "tmpfs", &["bogus=1"])));
    assert!(fixture.fails().to_string().contains("option bogus"));
}

fn a_source_relative_to_the_bundle() {
    let fixture = Fixture::shell("cat /data/file").with(|spec| {
        let relative = Mount { source: Some("volume".into()), ..mount("/data", "bind", &["rbind"]) };
        spec.mounts.push(relative);
    });
    std::fs::create_dir(fixture.dir.path().join("volume")).unwrap();
    std::fs::write(fixture.dir.path().join("volume/file"), "of the bundle\n").unwrap();
    assert_eq!(fixture.run().stdout, "of the bundle\n");
}

fn propagation_of_the_root() {
    let line = |propagation: &str| {
        let mut fixture = Fixture::shell("grep ' / / ' /proc/self/mountinfo");
        fixture.spec.linux_mut().rootfs_propagation = Some(propagation.into());
        fixture.run().stdout
    };
    assert!(line("shared").contains("shared:"));
    assert!(line("rshared").contains("shared:"));
    assert!(line("unbindable").contains("unbindable"));
    for private in ["private", "rprivate", "slave", "rslave", "runbindable"] {
        assert!(!line(private).contains("shared:"), "{private}");
    }
    // A slave of the host's mount sees what is mounted there later.
    let tree = Tree::new();
    Command::new("mount").arg("--make-shared").arg(tree.0.path()).status().unwrap();
    let source = tree.0.path().join("rootfs");
    let status = Command::new("cp").arg("-a").arg(Fixture::shell("").lower()).arg(&source).status().unwrap();
    assert!(status.success());
    let fixture = Fixture::shell("grep ' / / \\| /rootfs / ' /proc/self/mountinfo")
        .with(|spec| spec.linux_mut().rootfs_propagation = Some("rslave".into()));
    let rootfs = proa_runtime::Rootfs::Directory(source);
    let create = proa_runtime::Create { rootfs, ..fixture.config() };
    let (container, handles) = proa_runtime::Container::run(create).unwrap();
    let output = finish(container, handles).stdout;
    assert!(output.contains("master:"), "{output}");
}

fn nodes_that_open() {
    let script = "mknod /tmp/null c 1 3; echo x > /tmp/null && echo opened; stat -c '%a %u %g %t %T' /dev/mine /dev/sub/deep
        echo x > /dev/null && stat -c %F /dev/pipe; grep -c ' /dev/null ' /proc/mounts; ls -l /dev/fd | tr -s ' ' | cut -d' ' -f9-";
    let device = |kind: &str, path: &str| Device {
        kind: kind.into(),
        path: path.into(),
        major: 1,
        minor: 5,
        file_mode: Some(0o640),
        uid: Some(7),
        gid: Some(8),
    };
    let mut fixture = Fixture::shell(script).with(|spec| {
        let devices = [device("c", "/dev/mine"), device("u", "/dev/sub/deep"), device("p", "/dev/pipe")];
        spec.linux_mut().devices = devices.to_vec();
        // The device rules hold from the start where something is limited.
        spec.linux_mut().resources.as_mut().unwrap().pids = Some(Pids { limit: 100 });
        spec.mounts.push(mount("/tmp", "tmpfs", &[]));
    });
    fixture.nodev = false;
    let outcome = fixture.run();
    let expected = "opened\n640 7 8 1 5\n640 7 8 1 5\nfifo\n0\n/dev/fd -> /proc/self/fd\n";
    assert_eq!(outcome.stdout, expected, "{outcome:?}");
    fixture.nodev = true;
    let outcome = fixture.run();
    let expected = "640 7 8 1 5\n640 7 8 1 5\nfifo\n1\n/dev/fd -> /proc/self/fd\n";
    assert_eq!(outcome.stdout, expected, "{outcome:?}");
}

/// CVE-2019-16884: by a tmpfs, or through a link of the image.
fn the_kernels_files_are_not_covered() {
    for destination in ["/proc/sys", "/proc/self/attr", "/way/acpi"] {
        let fixture = Fixture::shell("true").with(|spec| spec.mounts.push(mount(destination, "tmpfs", &[])));
        std::os::unix::fs::symlink("/proc", fixture.lower().join("way")).unwrap();
        let error = fixture.fails().to_string();
        assert!(error.contains("/proc cannot be covered") || error.contains("no such file"), "{error}");
    }
}

/// Whoever reads the list takes the last of a place for the one on top.
fn mounts_are_listed_in_the_order_of_the_spec() {
    let mut fixture = Fixture::shell("grep -o ' /data[^ ]* ' /proc/self/mountinfo").with(|spec| {
        let mount = |kind: &str, place: &str, source: &str| Mount {
            destination: place.into(),
            kind: Some(kind.into()),
            source: Some(source.into()),
            options: vec!["rbind".to_owned()].into_iter().filter(|_| kind == "bind").collect(),
            ..Mount::default()
        };
        spec.mounts.extend([
            mount("tmpfs", "/data-1", "tmpfs"),
            mount("bind", "/data-2", "/etc"),
            mount("tmpfs", "/data-3", "tmpfs"),
            mount("bind", "/data-3", "/etc"),
        ]);
    });
    fixture.nodev = false;
    let listed = fixture.run().stdout;
    let version = rustix::system::uname();
    let mut numbers = version.release().to_str().unwrap().split(['.', '-']).map(|part| part.parse::<u32>());
    let version = (numbers.next().unwrap().unwrap(), numbers.next().unwrap().unwrap());
    // Between the two versions the order is that of the taking.
    if !((6, 8)..(6, 15)).contains(&version) {
        assert_eq!(listed, " /data-1 \n /data-2 \n /data-3 \n /data-3 \n");
    }
    assert!(listed.contains("/data-2"), "{listed}");
}
