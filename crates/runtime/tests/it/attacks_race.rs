//! Attacks that win by a race, tried for some seconds each against a process that exchanges names without a pause; and
//! what a config or a privileged container may try.

use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use proa_oci::runtime::{ConsoleSize, Mount, NamespaceKind, Spec};
use proa_runtime::Stdio;

use crate::mounts::volume;
use crate::support::{Fixture, compile, fd, process, read_all, read_until, tempdir, wait_readable};

crate::tests![
    the_null_device_is_exchanged,
    the_console_is_exchanged,
    destinations_are_exchanged,
    the_working_directory_is_exchanged,
    a_proc_of_the_containers_own_making,
    cgroups_and_their_release_agents,
    no_inheritable_capabilities,
    a_joining_process_cannot_be_traced,
    values_beyond_reason,
];

/// How long a race is tried.
const TIME: Duration = Duration::from_secs(3);

/// Exchanges names in a directory until it is dropped. A process, not a thread: the runtime forks.
struct Racer(Child);

impl Racer {
    fn new(dir: &Path, names: &[&str]) -> Self {
        let tools = Fixture::shell("");
        compile(&tools, "swap", &[]);
        let program = tools.lower().join("bin/swap");
        let mut command = Command::new(&program);
        let child = command.args(names).current_dir(dir).spawn().unwrap();
        // Its executable goes with the fixture, once it runs.
        let exe = format!("/proc/{}/exe", child.id());
        crate::support::poll_until("the racer", || {
            std::fs::read_link(&exe).is_ok_and(|path| path == program)
        });
        Self(child)
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Creates containers again and again; `check` looks at what came out. Returns how many could be made.
fn race(fixture: &Fixture, errors: &[&str], mut check: impl FnMut(u32)) -> u32 {
    let begin = Instant::now();
    let mut made = 0;
    while begin.elapsed() < TIME {
        match fixture.create() {
            Ok((container, _handles)) => {
                made += 1;
                check(container.pid());
                container.delete().unwrap();
            }
            Err(error) => {
                let text = error.to_string();
                assert!(errors.iter().any(|known| text.starts_with(known)), "{text}");
            }
        }
    }
    made
}

/// A `/dev` that another container can write to: a volume in the place of the tmpfs.
fn shared_dev(spec: &mut Spec, dev: &Path) {
    spec.mounts.retain(|mount| !mount.destination.starts_with("/dev"));
    spec.mounts.push(volume("/dev", dev));
}

/// CVE-2025-31133, CVE-2025-62161: what masks is the null device, or nothing is masked and nothing runs.
fn the_null_device_is_exchanged() {
    let dev = tempdir();
    let outside = tempdir();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "secret").unwrap();
    std::fs::write(dev.path().join("null"), "").unwrap();
    symlink("/proc/sys/kernel/core_pattern", dev.path().join("link")).unwrap();
    symlink(&victim, dev.path().join("out")).unwrap();
    std::fs::write(dev.path().join("file"), "a file of the attacker").unwrap();
    let fixture = Fixture::shell("sleep 100").with(|spec| {
        shared_dev(spec, dev.path());
        spec.linux_mut().masked_paths = vec!["/proc/interrupts".into(), "/etc/passwd".into()];
    });
    let _racer = Racer::new(dev.path(), &["null", "link", "out", "file"]);
    let made = race(&fixture, &["mounts: ", "streams: ", "masked paths: "], |pid| {
        for path in ["proc/interrupts", "etc/passwd"] {
            let root = format!("/proc/{pid}/root");
            let stat = rustix::fs::stat(format!("{root}/{path}")).unwrap();
            assert_eq!(stat.st_rdev, rustix::fs::makedev(1, 3), "{path} is masked by something else");
        }
    });
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "secret");
    println!("# null device: {made} made");
}

/// CVE-2025-52565: the console is bound by descriptor, and lands inside.
fn the_console_is_exchanged() {
    let dev = tempdir();
    let outside = tempdir();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "secret").unwrap();
    std::fs::write(dev.path().join("console"), "").unwrap();
    symlink("/proc/sys/kernel/core_pattern", dev.path().join("link")).unwrap();
    symlink(format!("../../../../../../..{}", victim.display()), dev.path().join("out")).unwrap();
    let mut fixture = Fixture::shell("sleep 100").with(|spec| {
        let pts = spec.mounts.iter().find(|mount| mount.destination == "/dev/pts").unwrap().clone();
        shared_dev(spec, dev.path());
        spec.mounts.push(pts);
    });
    fixture.stdio = Stdio::Terminal(ConsoleSize { height: 24, width: 80 });
    let _racer = Racer::new(dev.path(), &["console", "link", "out"]);
    let made = race(&fixture, &["mounts: ", "streams: "], |pid| {
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        assert!(!mounts.contains(outside.path().to_str().unwrap()), "{mounts}");
        let covers = mounts.lines().any(|line| line.contains(" /proc/sys/kernel/core_pattern "));
        assert!(!covers, "the kernel's file is covered: {mounts}");
    });
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "secret");
    println!("# console: {made} made");
}

/// CVE-2021-30465, CVE-2024-45310: mountpoints are made and mounted on while a directory turns into a link.
fn destinations_are_exchanged() {
    let (shared, outside, source) = (tempdir(), tempdir(), tempdir());
    std::fs::create_dir_all(shared.path().join("dir/in")).unwrap();
    symlink(outside.path(), shared.path().join("link")).unwrap();
    symlink(format!("../../../../../../..{}", outside.path().display()), shared.path().join("climb"))
        .unwrap();
    symlink("/proc", shared.path().join("proc")).unwrap();
    let tmpfs = |destination: &str, options: &[&str]| Mount {
        destination: destination.into(),
        kind: Some("tmpfs".into()),
        options: options.iter().map(ToString::to_string).collect(),
        ..Mount::default()
    };
    let fixture = Fixture::shell("true").with(|spec| {
        spec.mounts.push(volume("/shared", shared.path()));
        spec.mounts.push(volume("/shared/dir/in", source.path()));
        spec.mounts.push(volume("/shared/dir/new/deep", source.path()));
        spec.mounts.push(tmpfs("/shared/dir/sys", &["tmpcopyup"]));
        spec.linux_mut().masked_paths.push("/shared/dir/in".into());
        spec.linux_mut().readonly_paths.push("/shared/dir/new".into());
    });
    let _racer = Racer::new(shared.path(), &["dir", "link", "climb", "proc"]);
    let own = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let made = race(&fixture, &["mounts: ", "masked paths: ", "read-only paths: "], |pid| {
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        let covered = mounts.lines().any(|line| line.contains(" /proc/sys ") && line.contains(" - tmpfs "));
        assert!(!covered, "{mounts}");
        assert!(!own().contains(outside.path().to_str().unwrap()));
    });
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0, "nothing was made outside");
    println!("# destinations: {made} made");
}

/// CVE-2024-21626 by a race: what is entered is inside, or nothing is.
fn the_working_directory_is_exchanged() {
    let shared = tempdir();
    std::fs::create_dir(shared.path().join("dir")).unwrap();
    symlink("/proc/self/fd/3", shared.path().join("link")).unwrap();
    symlink("/proc/self/root/proc/1/root", shared.path().join("root")).unwrap();
    let fixture = Fixture::shell("sleep 100").with(|spec| {
        spec.mounts.push(volume("/shared", shared.path()));
        process(spec).cwd = "/shared/dir".into();
    });
    let _racer = Racer::new(shared.path(), &["dir", "link", "root"]);
    let made = race(&fixture, &["working directory: "], |pid| {
        let path = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
        let (here, root) =
            (rustix::fs::stat("/").unwrap(), rustix::fs::stat(format!("/proc/{pid}/cwd/..")).unwrap());
        assert!(
            path.to_str().unwrap().starts_with('/') && here.st_ino != root.st_ino
                || here.st_dev != root.st_dev
        );
    });
    assert!(made > 0, "not once was it what it should be");
}

/// CVE-2025-52881, CVE-2019-19921: no write of ours goes through a `/proc` that the container can have made.
fn a_proc_of_the_containers_own_making() {
    let fake = tempdir();
    std::fs::create_dir_all(fake.path().join("self/attr")).unwrap();
    std::fs::create_dir_all(fake.path().join("sys/kernel")).unwrap();
    std::fs::create_dir_all(fake.path().join("sys/net/ipv4")).unwrap();
    let files = ["self/oom_score_adj", "self/attr/exec", "sys/kernel/sem", "sys/net/ipv4/ip_forward"];
    files.iter().for_each(|file| std::fs::write(fake.path().join(file), "fake").unwrap());
    let fixture = Fixture::shell("cat /proc/sys/net/ipv4/ip_forward; sleep 100").with(|spec| {
        spec.mounts.retain(|mount| mount.destination != "/proc");
        spec.mounts.push(volume("/proc", fake.path()));
        process(spec).oom_score_adj = Some(123);
        let linux = spec.linux_mut();
        linux.sysctl.insert("net.ipv4.ip_forward".into(), "1".into());
        linux.sysctl.insert("kernel.sem".into(), "1 2 3 4".into());
        linux.masked_paths.clear();
        linux.readonly_paths.clear();
    });
    let (mut container, handles) = fixture.start();
    read_until(fd(&handles.stdout), "fake");
    let real = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", container.pid())).unwrap();
    assert_eq!(real("oom_score_adj"), "123\n");
    // And by exec, whose writes are its own.
    let mut program = process(&mut fixture.spec.clone()).clone();
    program.args = ["/bin/sleep", "100"].map(ToOwned::to_owned).to_vec();
    program.oom_score_adj = Some(321);
    let (child, _) = container.exec(&program, "", Stdio::Null).unwrap();
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", child.pid)).unwrap();
    assert_eq!(score, "321\n");
    container.delete().unwrap();
    for file in files {
        assert_eq!(std::fs::read_to_string(fake.path().join(file)).unwrap(), "fake", "{file}");
    }
}

/// CVE-2022-0492, CVE-2023-25809, CVE-2022-0811.
fn cgroups_and_their_release_agents() {
    let script = "for f in $(find /sys/fs/cgroup -name release_agent -o -name cgroup.procs -o -name devices.allow 2>/dev/null | head -50); do
            (echo /evil > $f) 2>/dev/null && echo wrote $f
        done
        mkdir /tmp/c; mount -t cgroup -o rdma x /tmp/c 2>/dev/null && echo mounted
        mount -t cgroup2 x /tmp/c 2>/dev/null && echo mounted
        unshare -UrmC mount -t cgroup -o rdma x /tmp/c 2>/dev/null && echo mounted
        mkdir /sys/fs/cgroup/x 2>/dev/null && echo made; echo done";
    for limited in [false, true] {
        let fixture = Fixture::shell(script).with(|spec| {
            if limited {
                let resources = spec.linux_mut().resources.as_mut().unwrap();
                resources.pids = Some(proa_oci::runtime::Pids { limit: 100 });
            }
        });
        assert_eq!(fixture.run().stdout, "done\n");
    }
    for (name, value) in [
        ("kernel.core_pattern", "|/evil"),
        ("kernel.shm_rmid_forced+kernel.core_pattern", "1"),
        ("kernel/../kernel/core_pattern", "|/evil"),
        ("net.ipv4.ip_forward/../../../kernel/core_pattern", "|/evil"),
    ] {
        let fixture = Fixture::shell("true").with(|spec| {
            spec.linux_mut().sysctl.insert(name.into(), value.into());
        });
        assert!(fixture.fails().to_string().starts_with("sysctl: "), "{name}");
    }
    let fixture = Fixture::shell("true").with(|spec| {
        let linux = spec.linux_mut();
        linux.namespaces.retain(|namespace| namespace.kind != NamespaceKind::Network);
        linux.sysctl.insert("net.ipv4.ip_forward".into(), "1".into());
    });
    assert!(fixture.fails().to_string().contains("shares this namespace"));
}

/// CVE-2022-24769, CVE-2022-29162.
fn no_inheritable_capabilities() {
    let script = "grep -E 'CapInh|CapAmb' /proc/self/status; echo up; sleep 100";
    let none = "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n";
    let fixture = Fixture::shell(script).user("web");
    let (mut container, handles) = fixture.start();
    assert!(read_until(fd(&handles.stdout), "up\n").starts_with(none));
    let mut program = process(&mut fixture.spec.clone()).clone();
    program.args =
        ["/bin/grep", "-E", "CapInh|CapAmb|CapEff", "/proc/self/status"].map(ToOwned::to_owned).to_vec();
    let (child, handles) = container.exec(&program, "web", Stdio::Pipes { stdin: false }).unwrap();
    let output = read_all(handles.stdout.unwrap());
    wait_readable(child.pidfd.as_fd());
    child.try_wait().unwrap();
    assert_eq!(output.matches("0000000000000000").count(), 3, "{output}");
    container.delete().unwrap();
}

/// CVE-2016-9962: not by a root of the container, nor in a user namespace by one with `CAP_SYS_PTRACE`. (With that
/// capability over the host's user namespace a container may trace whatever it sees.)
fn a_joining_process_cannot_be_traced() {
    let plain = Fixture::program(&["/bin/trace"]).with(|spec| spec.linux_mut().seccomp = None);
    let mapped = Fixture::program(&["/bin/trace"])
        .capabilities(&["CAP_SYS_PTRACE"])
        .with(|spec| spec.linux_mut().seccomp = None)
        .with(crate::userns::map_ids);
    for fixture in [plain, mapped] {
        compile(&fixture, "trace", &[]);
        if !fixture.spec.linux.as_ref().unwrap().uid_mappings.is_empty() {
            crate::userns::own(&fixture);
        }
        let (mut container, handles) = fixture.start();
        read_until(fd(&handles.stdout), "up\n");
        let mut program = process(&mut fixture.spec.clone()).clone();
        program.args = vec!["/bin/true".into()];
        let begin = Instant::now();
        while begin.elapsed() < TIME {
            let (child, _) = container.exec(&program, "", Stdio::Null).unwrap();
            wait_readable(child.pidfd.as_fd());
            crate::support::poll_until("reaping", || child.try_wait().is_ok_and(|code| code.is_some()));
        }
        container.delete().unwrap();
        let output = read_all(handles.stdout.unwrap());
        assert!(!output.lines().any(|line| line.contains("/it-") || line.contains("proa")), "{output}");
    }
}

/// CVE-2021-43784: values of any length are an error or are taken, never cut or wrapped.
fn values_beyond_reason() {
    let long = "x".repeat(1 << 20);
    type Change<'a> = Box<dyn Fn(&mut Spec) + 'a>;
    let cases: [(&str, Change); 8] = [
        ("hostname", Box::new(|spec| spec.hostname = Some(long.clone()))),
        ("argument", Box::new(|spec| process(spec).args.push(long.clone()))),
        ("environment", Box::new(|spec| process(spec).env.push(format!("A={long}")))),
        ("cwd", Box::new(|spec| process(spec).cwd = format!("/{long}"))),
        ("destination", Box::new(|spec| spec.mounts.push(volume(&format!("/{long}"), Path::new("/tmp"))))),
        ("option", Box::new(|spec| spec.mounts[1].options.push(format!("mpol={long}")))),
        (
            "sysctl",
            Box::new(|spec| drop(spec.linux_mut().sysctl.insert("net.ipv4.ip_forward".into(), long.clone()))),
        ),
        ("groups", Box::new(|spec| process(spec).user.additional_gids = (0..200_000).collect())),
    ];
    for (name, change) in &cases {
        let error = Fixture::shell("true").with(change).fails().to_string();
        assert!(!error.is_empty(), "{name}");
    }
    let map = |from: u32| proa_oci::runtime::IdMapping {
        container_id: from * 2,
        host_id: 100_000 + from * 2,
        size: 1,
    };
    let fixture = Fixture::shell("true").with(|spec| {
        let linux = spec.linux_mut();
        let kind = NamespaceKind::User;
        linux.namespaces.push(proa_oci::runtime::Namespace { kind, path: None });
        linux.uid_mappings = (0..5000).map(map).collect();
        linux.gid_mappings = linux.uid_mappings.clone();
    });
    assert!(fixture.fails().to_string().contains("uid_map"));
    assert!(std::fs::metadata("/tmp").unwrap().permissions().mode() & 0o1000 != 0);
}
