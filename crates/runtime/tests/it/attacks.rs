//! What a hostile image or container tries. Numbers are those of the public reports.

use std::os::unix::fs::symlink;

use rustix::fs::CWD;

use crate::mounts::volume;
use crate::support::{Fixture, compile, fd, process, read_until, tempdir};

crate::tests![
    descriptors_do_not_leak_into_the_working_directory,
    our_executable_cannot_be_written,
    our_executable_as_entrypoint,
    proc_and_sys_as_links,
    dev_null_in_the_image,
    mount_destinations_as_links,
    mount_destinations_that_move,
    a_symlinked_working_directory_stays_inside,
    exec_does_not_trust_the_containers_devices,
    a_hostile_passwd,
    a_hostile_path,
    the_hosts_root_is_gone,
];

/// CVE-2024-21626.
fn descriptors_do_not_leak_into_the_working_directory() {
    for number in 3..64 {
        for path in [format!("/proc/self/fd/{number}"), format!("/proc/self/fd/{number}/../../..")] {
            let fixture = Fixture::shell("pwd; ls").with(|spec| process(spec).cwd = path.clone());
            match fixture.create() {
                Err(error) => assert!(error.to_string().contains("working directory"), "{error}"),
                Ok((container, _handles)) => {
                    container.delete().unwrap();
                    panic!("{path} was entered");
                }
            }
        }
    }
    // And by exec.
    let fixture = Fixture::shell("echo up; sleep 100");
    let (mut container, handles) = fixture.start();
    read_until(fd(&handles.stdout), "up\n");
    for number in 3..64 {
        let mut spec = fixture.spec.clone();
        process(&mut spec).cwd = format!("/proc/self/fd/{number}");
        let error = container
            .exec(spec.process.as_ref().unwrap(), "", proa_runtime::Stdio::Null)
            .map(drop)
            .unwrap_err();
        assert!(error.to_string().contains("working directory"), "{error}");
    }
    container.delete().unwrap();
}

fn own_hash() -> Vec<u8> {
    std::fs::read(std::env::current_exe().unwrap()).unwrap()
}

/// CVE-2019-5736: as the program that exec joins with, seen from inside.
fn our_executable_cannot_be_written() {
    let before = own_hash();
    let script = "echo up; while :; do for p in /proc/[0-9]*; do (echo overwritten > $p/exe) 2>/dev/null && echo WROTE $p $(readlink $p/exe); done; done";
    let fixture = Fixture::shell(script).capabilities(&["CAP_SYS_PTRACE"]);
    let (mut container, handles) = fixture.start();
    read_until(fd(&handles.stdout), "up\n");
    let mut spec = fixture.spec.clone();
    process(&mut spec).args = vec!["/bin/true".into()];
    for _ in 0..50 {
        let (child, _) =
            container.exec(spec.process.as_ref().unwrap(), "", proa_runtime::Stdio::Null).unwrap();
        crate::support::wait_readable(std::os::fd::AsFd::as_fd(&child.pidfd));
        child.try_wait().unwrap();
    }
    container.delete().unwrap();
    let written = crate::support::read_all(handles.stdout.unwrap());
    // Its own programs are the container's to break; ours never.
    assert!(!written.lines().any(|line| line.contains("/it-") || line.contains("deleted")), "{written}");
    assert!(own_hash() == before, "the executable changed");
}

fn our_executable_as_entrypoint() {
    let before = own_hash();
    let fixture = Fixture::program(&["/entry"]).file("/entry", "#!/proc/self/exe\n");
    std::fs::set_permissions(
        fixture.lower().join("entry"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    // The interpreter is resolved after the kernel has let go of ours: the loop is an error, or it is run.
    match fixture.create() {
        Err(error) => panic!("{error}"),
        Ok((mut container, _handles)) => {
            let _ = container.start();
            container.delete().unwrap();
        }
    }
    assert!(own_hash() == before);
}

/// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642.
fn proc_and_sys_as_links() {
    for (link, target) in [("proc", "/tmp"), ("sys", "/tmp"), ("dev", "/tmp"), ("proc", "tmp/deep")] {
        let fixture = Fixture::shell("true");
        symlink(target, fixture.lower().join(link)).unwrap();
        let error = fixture.fails();
        assert!(error.to_string().contains("mounts: "), "{error}");
    }
}

/// CVE-2025-31133: the image's own `/dev/null` is never looked at.
fn dev_null_in_the_image() {
    let fixture = Fixture::shell("cat /proc/kcore | wc -c; ls -l /dev/null | cut -c1");
    std::fs::create_dir(fixture.lower().join("dev")).unwrap();
    symlink("/etc/passwd", fixture.lower().join("dev/null")).unwrap();
    assert_eq!(fixture.run().stdout, "0\nc\n");
    // Nor one in a /dev that is the image's.
    let fixture = Fixture::shell("true")
        .with(|spec| spec.mounts.retain(|mount| !mount.destination.starts_with("/dev")));
    std::fs::create_dir(fixture.lower().join("dev")).unwrap();
    symlink("/etc/passwd", fixture.lower().join("dev/null")).unwrap();
    let error = fixture.fails().to_string();
    assert!(error.contains("/dev/null"), "{error}");
}

fn mount_destinations_as_links() {
    let outside = tempdir();
    let source = tempdir();
    std::fs::write(source.path().join("file"), "volume").unwrap();
    std::fs::create_dir(outside.path().join("target")).unwrap();
    let fixture = Fixture::shell("cat /a/file; cat /b/x/file").with(|spec| {
        spec.mounts.push(volume("/a", source.path()));
        spec.mounts.push(volume("/b/x", source.path()));
    });
    // Absolute and climbing links to a directory of the host; inside, the same names exist too.
    let host = outside.path().join("target");
    std::fs::create_dir_all(fixture.lower().join(host.strip_prefix("/").unwrap())).unwrap();
    symlink(&host, fixture.lower().join("a")).unwrap();
    symlink(format!("../../../../../..{}", host.display()), fixture.lower().join("b")).unwrap();
    assert_eq!(fixture.run().stdout, "volumevolume");
    assert_eq!(std::fs::read_dir(&host).unwrap().count(), 0, "nothing was made outside");
    // Into /proc by a link: the kernel's files stay the kernel's.
    let fixture = Fixture::shell("true").with(|spec| spec.mounts.push(volume("/way/sys", source.path())));
    symlink("/proc", fixture.lower().join("way")).unwrap();
    assert!(fixture.fails().to_string().contains("/proc cannot be covered"));
}

/// CVE-2021-30465, CVE-2024-45310: another container exchanges a directory of a shared volume with a link
/// while mountpoints are made and mounted on.
fn mount_destinations_that_move() {
    let shared = tempdir();
    let outside = tempdir();
    let source = tempdir();
    std::fs::create_dir_all(shared.path().join("dir/in")).unwrap();
    symlink(outside.path(), shared.path().join("link")).unwrap();
    let climbing = format!("../../../../../../../..{}", outside.path().display());
    symlink(climbing, shared.path().join("climb")).unwrap();
    let tools = Fixture::shell("");
    compile(&tools, "swap", &[]);
    // A process, not a thread: the runtime forks.
    let mut racer = std::process::Command::new(tools.lower().join("bin/swap"))
        .args(["dir", "link", "climb"])
        .current_dir(shared.path())
        .spawn()
        .unwrap();
    let mut made = 0;
    for _ in 0..100 {
        let fixture = Fixture::shell("true").with(|spec| {
            spec.mounts.push(volume("/shared", shared.path()));
            spec.mounts.push(volume("/shared/dir/in", source.path()));
            spec.mounts.push(volume("/shared/dir/new/deep", source.path()));
        });
        match fixture.create() {
            Ok((container, _handles)) => {
                made += 1;
                container.delete().unwrap();
            }
            Err(error) => assert!(error.to_string().starts_with("mounts: "), "{error}"),
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(outside.path().to_str().unwrap()));
    }
    racer.kill().unwrap();
    racer.wait().unwrap();
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0, "nothing was made outside");
    assert!(made > 0, "not once was it what it should be");
}

fn a_symlinked_working_directory_stays_inside() {
    let fixture = Fixture::shell("pwd -P; ls").with(|spec| process(spec).cwd = "/way/out".into());
    symlink("../../../..", fixture.lower().join("way")).unwrap();
    std::fs::create_dir(fixture.lower().join("out")).unwrap();
    assert_eq!(fixture.run().stdout, "/out\n");
}

fn exec_does_not_trust_the_containers_devices() {
    // With the right to mount, a container can make its /dev whatever it likes.
    let fixture = Fixture::shell("umount /dev/null; rm /dev/null; echo evil > /dev/null; mount -t tmpfs x /dev/pts && echo x > /dev/pts/ptmx; echo up; sleep 100")
        .capabilities(&["CAP_SYS_ADMIN"]);
    let (mut container, handles) = fixture.start();
    read_until(fd(&handles.stdout), "up\n");
    let program = fixture.spec.process.as_ref().unwrap();
    let error = container.exec(program, "", proa_runtime::Stdio::Null).map(drop).unwrap_err();
    assert!(error.to_string().contains("/dev/null is not the null device"), "{error}");
    let terminal = proa_runtime::Stdio::Terminal(proa_oci::runtime::ConsoleSize::default());
    let error = container.exec(program, "", terminal).map(drop).unwrap_err();
    assert!(error.to_string().contains("not a terminal multiplexer"), "{error}");
    container.delete().unwrap();
}

/// CVE-2026-46680, CVE-2024-40635.
fn a_hostile_passwd() {
    let fixture = Fixture::shell("id -u; id -g").file("/etc/passwd", "1000:x:0:0::/:/bin/sh\n").user("1000");
    assert_eq!(fixture.run().stdout, "1000\n0\n");
    // A file that never ends, and one that is not a file.
    let fixture = Fixture::shell("grep Uid /proc/self/status | cut -f2").user("1000");
    std::fs::remove_file(fixture.lower().join("etc/passwd")).unwrap();
    symlink("/dev/zero", fixture.lower().join("etc/passwd")).unwrap();
    assert_eq!(fixture.run().stdout, "1000\n");
    let fixture = Fixture::shell("grep Uid /proc/self/status | cut -f2").user("1000");
    std::fs::remove_file(fixture.lower().join("etc/passwd")).unwrap();
    rustix::fs::mkfifoat(CWD, fixture.lower().join("etc/passwd"), rustix::fs::Mode::RWXU).unwrap();
    assert_eq!(fixture.run().stdout, "1000\n");
}

fn a_hostile_path() {
    let fixture = Fixture::program(&["tool"]).file("/work/tool", "#!/bin/sh\n").with(|spec| {
        process(spec).cwd = "/work".into();
        process(spec).env = vec!["PATH=.::work:/bin".into()];
    });
    std::fs::set_permissions(
        fixture.lower().join("work/tool"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    assert_eq!(fixture.fails().kind(), proa_protocol::message::ErrorKind::CommandNotFound);
}

fn the_hosts_root_is_gone() {
    let fixture = Fixture::shell(
        "umount -l / 2>/dev/null; umount /.. 2>/dev/null; ls /; cat /proc/self/mountinfo | wc -l",
    )
    .capabilities(&["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"]);
    let outcome = fixture.run();
    assert!(!outcome.stdout.contains("lost+found") && !outcome.stdout.contains("boot"), "{outcome:?}");
}
