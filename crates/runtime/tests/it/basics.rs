//! Each step's effect, seen from inside.

use proa_oci::runtime::{Mount, NamespaceKind};

use crate::support::{Fixture, process, tempdir};

crate::tests![
    output_and_exit_code,
    namespaces_are_new,
    the_default_mounts_are_there,
    devices_work_and_nodes_made_inside_do_not,
    masked_and_readonly_paths,
    names_and_sysctls,
    binds_of_files_and_directories,
    volumes_are_nodev_and_as_asked,
    tmpfs_takes_the_mode_of_what_it_covers,
    a_readonly_root,
    a_directory_as_root,
    an_overlay_of_many_layers,
    spare_devices,
    what_cannot_be_done_is_refused,
    cgroup_is_what_the_table_says,
];

fn lines(script: &str) -> Vec<String> {
    let outcome = Fixture::shell(script).run();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    outcome.stdout.lines().map(ToOwned::to_owned).collect()
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        kind: Some(kind.into()),
        source: Some(source.into()),
        options: options.iter().map(ToString::to_string).collect(),
        ..Mount::default()
    }
}

fn output_and_exit_code() {
    let outcome = Fixture::shell("echo out; echo err >&2; exit 7").run();
    assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (7, "out\n", "err\n"));
    assert_eq!(Fixture::shell("sh -c 'kill -9 $$'; exit $?").run().code, 137);
}

fn namespaces_are_new() {
    let inside =
        lines("for n in mnt net uts pid ipc cgroup; do readlink /proc/self/ns/$n; done; echo $$; ip -o link");
    for (name, inside) in ["mnt", "net", "uts", "pid", "ipc", "cgroup"].iter().zip(&inside) {
        let outside = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(outside.to_str().unwrap(), inside, "{name}");
    }
    assert_eq!(inside[6], "1");
    assert_eq!(inside.len(), 8, "loopback alone: {inside:?}");
}

fn the_default_mounts_are_there() {
    let mounts = lines("cut -d' ' -f5,6 /proc/self/mountinfo; cut -d' ' -f2 /proc/self/mounts >/dev/null");
    let has = |path: &str, options: &[&str]| {
        let line = mounts.iter().find(|line| line.split(' ').next() == Some(path));
        let line = line.unwrap_or_else(|| panic!("no {path} in {mounts:#?}"));
        let given: Vec<&str> = line.split(' ').nth(1).unwrap().split(',').collect();
        assert!(options.iter().all(|option| given.contains(option)), "{line}");
    };
    has("/", &["rw", "nodev"]);
    has("/proc", &["rw", "nosuid", "nodev", "noexec"]);
    has("/dev", &["nosuid", "nodev"]);
    has("/dev/pts", &["nosuid", "noexec"]);
    has("/sys", &["ro", "nosuid", "nodev", "noexec"]);
    has("/dev/mqueue", &["nosuid", "nodev", "noexec"]);
    has("/dev/shm", &["nosuid", "nodev", "noexec"]);
    let own = ["/proc", "/dev", "/sys"];
    let is_own = |line: &&String| line.starts_with("/ ") || own.iter().any(|path| line.starts_with(path));
    assert!(mounts.iter().all(|line| is_own(&line)), "the host's mounts are gone: {mounts:#?}");
}

fn devices_work_and_nodes_made_inside_do_not() {
    let out = lines(
        "ls /dev | tr '\\n' ' '; echo
         echo x > /dev/null && head -c 3 /dev/zero | wc -c && head -c 2 /dev/urandom | wc -c
         echo x > /dev/full || echo full
         for n in ptmx fd stdin; do readlink /dev/$n; done
         chmod 600 /dev/null && stat -c %a /dev/null
         mknod /tmp/null c 1 3 && mknod /dev/other c 1 3 && mknod /dev/shm/other c 1 3 && echo made
         for n in /tmp/null /dev/other /dev/shm/other; do (echo x > $n) 2>/dev/null || echo denied; done",
    );
    assert_eq!(
        out[0].trim(),
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
    assert_eq!(
        out[1..],
        [
            "3",
            "2",
            "full",
            "pts/ptmx",
            "/proc/self/fd",
            "/proc/self/fd/0",
            "600",
            "made",
            "denied",
            "denied",
            "denied"
        ]
    );
    let host = std::fs::metadata("/dev/null").unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&host.permissions()) & 0o777,
        0o666,
        "the host's node is its own"
    );
}

fn masked_and_readonly_paths() {
    let out = lines(
        "cat /proc/kcore | wc -c; ls /sys/firmware | wc -l; cat /proc/keys | wc -l
         (echo 1 > /proc/sys/kernel/panic) 2>/dev/null || echo ro
         (echo h > /proc/sysrq-trigger) 2>/dev/null || echo ro
         (echo 1 > /sys/kernel/uevent_helper) 2>/dev/null || echo ro
         touch /sys/firmware/x 2>/dev/null || echo empty",
    );
    assert_eq!(out, ["0", "0", "0", "ro", "ro", "ro", "empty"]);
}

fn names_and_sysctls() {
    let outcome = Fixture::shell(
        "hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax",
    )
    .with(|spec| {
        spec.domainname = Some("testdomain".into());
        let linux = spec.linux_mut();
        linux.sysctl.insert("net.ipv4.ip_forward".into(), "1".into());
        linux.sysctl.insert("kernel.msgmax".into(), "4321".into());
    })
    .run();
    assert_eq!(outcome.stdout, "testhost\ntestdomain\n1\n4321\n");
    let error = Fixture::shell("true")
        .with(|spec| {
            spec.linux_mut().sysctl.insert("kernel.core_pattern".into(), "|/bin/sh".into());
        })
        .fails();
    assert!(error.to_string().starts_with("sysctl: "), "{error}");
}

fn binds_of_files_and_directories() {
    let source = tempdir();
    std::fs::write(source.path().join("file"), "from the host\n").unwrap();
    let path = source.path().to_str().unwrap().to_owned();
    let fixture = Fixture::shell(
        "cat /data/file /etc/hosts /made/up/file; echo x > /data/new; (echo x > /ro/new) 2>/dev/null || echo denied; ls /link/",
    )
    .with(|spec| {
        spec.mounts.push(mount("/data", "bind", &path, &["rbind"]));
        spec.mounts.push(mount("/ro", "bind", &path, &["bind", "ro"]));
        spec.mounts.push(mount("/etc/hosts", "bind", &format!("{path}/file"), &["bind"]));
        spec.mounts.push(mount("/made/up/file", "bind", &format!("{path}/file"), &["bind"]));
        spec.mounts.push(mount("/link", "bind", &path, &["bind"]));
    });
    std::os::unix::fs::symlink("/tmp/behind", fixture.lower().join("link")).unwrap();
    let error = fixture.fails();
    assert!(error.to_string().contains("leads nowhere"), "{error}");
    std::fs::create_dir(fixture.lower().join("tmp/behind")).unwrap();
    let outcome = fixture.run();
    assert_eq!(outcome.stdout, format!("{}denied\nfile\nnew\n", "from the host\n".repeat(3)), "{outcome:?}");
    assert!(source.path().join("new").exists());
    assert!(!fixture.upper().join("data/new").exists());
}

fn volumes_are_nodev_and_as_asked() {
    let source = tempdir();
    std::fs::copy("/bin/busybox", source.path().join("busybox")).unwrap();
    let path = source.path().to_str().unwrap().to_owned();
    let fixture = Fixture::shell("mknod /data/null c 1 3; (echo x > /data/null) 2>/dev/null || echo nodev; /data/busybox echo runs; /noexec/busybox true 2>/dev/null || echo noexec")
        .with(|spec| {
            spec.mounts.push(mount("/data", "bind", &path, &["rbind"]));
            spec.mounts.push(mount("/noexec", "bind", &path, &["bind", "noexec", "nosuid"]));
        });
    assert_eq!(fixture.run().stdout, "nodev\nruns\nnoexec\n");
}

fn tmpfs_takes_the_mode_of_what_it_covers() {
    let fixture =
        Fixture::shell("stat -c %a /tmp /new; touch /tmp/x && mount | grep -c ' /tmp '").with(|spec| {
            spec.mounts.push(mount("/tmp", "tmpfs", "tmpfs", &["nosuid", "noexec", "size=64k"]));
            spec.mounts.push(mount("/new", "tmpfs", "tmpfs", &["mode=0750"]));
        });
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(fixture.lower().join("tmp"), mode).unwrap();
    assert_eq!(fixture.run().stdout, "1777\n750\n1\n");
    let error = Fixture::shell("true")
        .with(|spec| spec.mounts.push(mount("/x", "tmpfs", "tmpfs", &["bogus=1"])))
        .fails();
    assert!(error.to_string().contains("mounts: /x: option bogus"), "{error}");
}

fn a_readonly_root() {
    let fixture = Fixture::shell("touch /x 2>/dev/null || echo ro; touch /dev/shm/x && echo shm")
        .with(|spec| spec.root.as_mut().unwrap().readonly = true);
    assert_eq!(fixture.run().stdout, "ro\nshm\n");
}

fn a_directory_as_root() {
    use proa_runtime::{CgroupPolicy, Container, Create, Rootfs};
    let fixture = Fixture::shell("touch /made; echo ok");
    let (mut container, handles) = Container::create(Create {
        id: &fixture.id,
        spec: &fixture.spec,
        rootfs: Rootfs::Directory(fixture.lower()),
        user: "0",
        stdio: fixture.stdio,
        init: false,
        cgroup: CgroupPolicy::Disabled,
        interfaces: None,
        bundle: "/".as_ref(),
        nodev: true,
        taken: &[],
        shares_memory: false,
    })
    .unwrap();
    container.start().unwrap();
    assert_eq!(crate::support::finish(container, handles).stdout, "ok\n");
    assert!(fixture.lower().join("made").exists());
}

fn an_overlay_of_many_layers() {
    use proa_runtime::{CgroupPolicy, Container, Create, Owners, Rootfs};
    let fixture = Fixture::shell("cat /layer; ls / | grep -c only");
    let mut lowers = vec![fixture.lower()];
    for number in 0..60 {
        let layer = fixture.dir.path().join(format!("layer-with-a-long-name-{number}"));
        std::fs::create_dir(&layer).unwrap();
        std::fs::write(layer.join("layer"), format!("{number}\n")).unwrap();
        std::fs::write(layer.join(format!("only{number}")), "").unwrap();
        lowers.push(layer);
    }
    let (mut container, handles) = Container::create(Create {
        id: &fixture.id,
        spec: &fixture.spec,
        rootfs: Rootfs::Overlay {
            lowers,
            upper: fixture.upper(),
            work: fixture.dir.path().join("work"),
            owners: Owners::default(),
        },
        user: "",
        stdio: fixture.stdio,
        init: false,
        cgroup: CgroupPolicy::Auto,
        interfaces: None,
        bundle: "/".as_ref(),
        nodev: true,
        taken: &[],
        shares_memory: false,
    })
    .unwrap();
    container.start().unwrap();
    assert_eq!(crate::support::finish(container, handles).stdout, "59\n60\n");
}

fn spare_devices() {
    use proa_oci::runtime::Device;
    let device = |path: &str| Device {
        kind: "c".into(),
        path: path.into(),
        major: 1,
        minor: 5,
        file_mode: Some(0o640),
        uid: Some(7),
        gid: Some(8),
    };
    let outcome = Fixture::shell(
        "head -c 1 /dev/extra | wc -c; stat -c '%a %u %g' /dev/extra; head -c 2 /srv/deep/zero | wc -c",
    )
    .with(|spec| spec.linux_mut().devices.extend([device("/dev/extra"), device("/srv/deep/zero")]))
    .run();
    assert_eq!(outcome.stdout, "1\n640 7 8\n2\n", "{outcome:?}");
}

fn what_cannot_be_done_is_refused() {
    let refused =
        |change: fn(&mut proa_oci::runtime::Spec)| Fixture::shell("true").with(change).fails().to_string();
    assert!(refused(|spec| spec.linux_mut().intel_rdt = Some(Default::default())).contains("intelRdt"));
    assert!(
        refused(|spec| spec.mounts.push(mount("/proc/sys", "bind", "/tmp", &[])))
            .contains("/proc cannot be covered")
    );
    assert!(
        refused(|spec| spec.mounts.push(mount("/x", "bind", "/nonexistent-source", &[])))
            .contains("/nonexistent-source")
    );
    assert!(refused(|spec| process(spec).cwd = "/bin/sh".into()).starts_with("working directory: /bin/sh"));
    let unknown = Fixture::shell("true")
        .with(|spec| process(spec).capabilities.as_mut().unwrap().bounding.push("CAP_FLY".into()));
    assert_eq!(unknown.run().warnings, ["ignoring unknown or unavailable capabilities: [CAP_FLY]"]);
    assert!(
        refused(|spec| {
            spec.linux_mut().namespaces.retain(|namespace| namespace.kind != NamespaceKind::Uts);
        })
        .contains("host name")
    );
    let mut fixture = Fixture::shell("true");
    fixture.id = "../../escape".into();
    assert!(fixture.fails().to_string().contains("cgroupsPath"));
}

fn cgroup_is_what_the_table_says() {
    // Nothing is limited: on v1 there is nothing to see.
    let unlimited = lines("ls /sys/fs/cgroup | wc -l");
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert_eq!(unlimited[0] == "0", !v2);
    let limited = Fixture::shell("ls /sys/fs/cgroup; cat /sys/fs/cgroup/pids/pids.max; (echo 5 > /sys/fs/cgroup/pids/pids.max) 2>/dev/null || echo ro; cut -d: -f3 /proc/self/cgroup | sort -u")
        .with(|spec| spec.linux_mut().resources.as_mut().unwrap().pids = Some(proa_oci::runtime::Pids { limit: 77 }))
        .run();
    if !v2 {
        assert!(limited.stdout.contains("\n77\nro\n"), "{limited:?}");
        // The namespace hides where the cgroup lies.
        assert!(!limited.stdout.contains("proa"), "{limited:?}");
    }
}
