//! User namespaces, and namespaces that are there already.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use proa_oci::runtime::{IdMapping, Namespace, NamespaceKind, Spec};
use proa_runtime::Stdio as Streams;

use crate::support::{Fixture, fd, poll_until, process, read_all, read_until, tempdir, wait_readable};

crate::tests![
    a_user_namespace_by_map,
    exec_joins_the_user_namespace,
    a_volume_in_a_user_namespace,
    limits_and_terminals_in_a_user_namespace,
    all_namespaces_by_path,
    a_network_by_path_with_a_new_user_namespace,
    a_time_namespace_in_a_user_namespace,
];

const OUTSIDE: u32 = 100_000;

fn mapping() -> Vec<IdMapping> {
    vec![IdMapping { container_id: 0, host_id: OUTSIDE, size: 65536 }]
}

pub fn map_ids(spec: &mut Spec) {
    let linux = spec.linux_mut();
    linux.namespaces.push(Namespace { kind: NamespaceKind::User, path: None });
    (linux.uid_mappings, linux.gid_mappings) = (mapping(), mapping());
}

/// The image's files belong to the root inside.
pub fn own(fixture: &Fixture) {
    let status =
        Command::new("chown").args(["-hR", "100000:100000"]).arg(fixture.dir.path()).status().unwrap();
    assert!(status.success());
}

fn mapped(script: &str) -> Fixture {
    let fixture = Fixture::shell(script).with(map_ids);
    own(&fixture);
    fixture
}

fn a_user_namespace_by_map() {
    let script = "tr -s ' ' < /proc/self/uid_map; id -u; echo x > /tmp/f; stat -c %u /tmp/f
        stat -c '%u %a' /dev/pts /dev/shm /dev/mqueue
        for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done
        head -c 3 /dev/zero | wc -c; echo y > /dev/null; ls /sys/class/net; hostname
        mknod /tmp/n c 1 3 2>/dev/null && echo made
        touch /proc/sys/kernel/x 2>/dev/null || echo ro; cat /proc/self/setgroups; echo z > /dev/stdout";
    let outcome = mapped(script).run();
    assert_eq!(
        outcome.stdout, " 0 100000 65536\n0\n0\n0 755\n0 1777\n0 1777\n3\nlo\ntesthost\nro\nallow\nz\n",
        "{outcome:?}"
    );
    assert_eq!(outcome.code, 0);
    // What it writes belongs to the mapped root outside.
    let fixture = mapped("echo x > /made; chown 33:33 /made; setpriv 2>/dev/null; id -G").user("web");
    let outcome = fixture.run();
    assert_eq!(outcome.stdout, "33 10\n", "{outcome:?}");
    let fixture = mapped("echo x > /made; chown 33:33 /made");
    fixture.run();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(fixture.upper().join("made")).unwrap().uid(), OUTSIDE + 33);
}

fn exec_joins_the_user_namespace() {
    let fixture = mapped("echo up; sleep 100").with(|spec| process(spec).oom_score_adj = Some(77));
    let (mut container, handles) = fixture.start();
    read_until(fd(&handles.stdout), "up\n");
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", container.pid())).unwrap();
    assert_eq!(score, "77\n");
    for (user, expected) in [("", "0 100000 0 0\n"), ("web", "33 100000 33 33\n")] {
        let mut program = process(&mut fixture.spec.clone()).clone();
        let script = "echo $(id -u) $(tr -s ' ' < /proc/self/uid_map | cut -d' ' -f3) $(stat -Lc %u /proc/self) > /dev/stdout; stat -c %u /dev/fd/1 | tail -1";
        program.args = ["/bin/sh", "-c", script].map(ToOwned::to_owned).to_vec();
        let (child, handles) = container.exec(&program, user, Streams::Pipes { stdin: false }).unwrap();
        let output = read_all(handles.stdout.unwrap());
        wait_readable(child.pidfd.as_fd());
        child.try_wait().unwrap();
        let fields: Vec<&str> = output.split_whitespace().collect();
        assert_eq!(fields[..3], expected.split_whitespace().collect::<Vec<_>>()[..3], "{output}");
    }
    container.delete().unwrap();
}

/// The parent takes the source: its directory is closed to the root inside. Recursively, with a mount below.
fn a_volume_in_a_user_namespace() {
    let closed = tempdir();
    let source = closed.path().join("in");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "volume\n").unwrap();
    std::os::unix::fs::chown(&source, Some(OUTSIDE), Some(OUTSIDE)).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(closed.path(), PermissionsExt::from_mode(0o700)).unwrap();
    for option in ["bind", "rbind"] {
        let fixture = mapped("cat /data/file; stat -c %u /data; touch /data/new 2>/dev/null || echo ro")
            .with(|spec| {
                let mut mount = crate::mounts::volume("/data", &source);
                mount.options = vec![option.into(), "ro".into()];
                spec.mounts.push(mount);
            });
        assert_eq!(fixture.run().stdout, "volume\n0\nro\n");
    }
}

fn limits_and_terminals_in_a_user_namespace() {
    let limit = |spec: &mut Spec| {
        let resources = spec.linux_mut().resources.as_mut().unwrap();
        resources.pids = Some(proa_oci::runtime::Pids { limit: 77 });
    };
    let file = "$(find /sys/fs/cgroup -name pids.max | head -1)";
    let script = format!("cat {file}; (echo 5 > {file}) 2>/dev/null || echo ro");
    assert_eq!(mapped(&script).with(limit).run().stdout, "77\nro\n");
    let mut fixture = mapped("tty; stat -c %u /dev/pts/0; echo x > /dev/console; stty size").user("web");
    fixture.stdio = Streams::Terminal(proa_oci::runtime::ConsoleSize { height: 7, width: 9 });
    let (container, handles) = fixture.start();
    let output = read_until(fd(&handles.terminal), "7 9");
    assert!(output.contains("/dev/pts/0\r\n33\r\n"), "{output}");
    container.delete().unwrap();
}

/// A process in namespaces of its own.
struct Holder(Child);

impl Holder {
    fn new(flags: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command.args(flags).args(["sleep", "1000"]).stdout(Stdio::null());
        let child = command.spawn().expect("util-linux");
        let comm = format!("/proc/{}/comm", child.id());
        poll_until("sleep", || std::fs::read_to_string(&comm).is_ok_and(|name| name.trim() == "sleep"));
        Self(child)
    }

    fn namespace(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.0.id())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

const KINDS: &[(NamespaceKind, &str)] = &[
    (NamespaceKind::User, "user"),
    (NamespaceKind::Network, "net"),
    (NamespaceKind::Uts, "uts"),
    (NamespaceKind::Ipc, "ipc"),
    (NamespaceKind::Cgroup, "cgroup"),
    (NamespaceKind::Mount, "mnt"),
];

fn link(path: &str) -> String {
    std::fs::read_link(path).unwrap().to_str().unwrap().to_owned()
}

fn all_namespaces_by_path() {
    let holder = Holder::new(&["-U", "--map-root-user", "-n", "-u", "-i", "-C", "-m"]);
    let script = "for n in user net uts ipc cgroup mnt; do readlink /proc/self/ns/$n; done; id -u; echo $$";
    let with = |kinds: &[(NamespaceKind, &str)]| {
        Fixture::shell(script).with(|spec| {
            spec.hostname = None;
            let linux = spec.linux_mut();
            for (kind, name) in kinds {
                linux.namespaces.retain(|namespace| namespace.kind != *kind);
                linux.namespaces.push(Namespace { kind: *kind, path: Some(holder.namespace(name)) });
            }
            // The map has one id.
            spec.mounts.iter_mut().for_each(|mount| mount.options.retain(|option| option != "gid=5"));
        })
    };
    let outcome = with(KINDS).run();
    let expected: Vec<String> = KINDS.iter().map(|(_, name)| link(&holder.namespace(name))).collect();
    let got: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(got[..6], expected, "{outcome:?}");
    // Root there, and the first of a process table of its own, which belongs to the joined user namespace.
    assert_eq!(got[6..], ["0", "1"]);
    // Without the user namespace, each alone.
    for (kind, name) in &KINDS[1..5] {
        let outcome = with(&[(*kind, name)]).run();
        assert!(outcome.stdout.contains(&link(&holder.namespace(name))), "{name}: {outcome:?}");
    }
}

fn a_network_by_path_with_a_new_user_namespace() {
    let holder = Holder::new(&["-n"]);
    let fixture = mapped("readlink /proc/self/ns/net; id -u").with(|spec| {
        let linux = spec.linux_mut();
        linux.namespaces.retain(|namespace| namespace.kind != NamespaceKind::Network);
        let path = Some(holder.namespace("net"));
        linux.namespaces.push(Namespace { kind: NamespaceKind::Network, path });
    });
    assert_eq!(fixture.run().stdout, format!("{}\n0\n", link(&holder.namespace("net"))));
    assert!(Path::new(&holder.namespace("net")).exists());
}

fn a_time_namespace_in_a_user_namespace() {
    let fixture = mapped("cut -d. -f1 /proc/uptime").with(|spec| {
        let linux = spec.linux_mut();
        linux.namespaces.push(Namespace { kind: NamespaceKind::Time, path: None });
        let offset = proa_oci::runtime::TimeOffset { secs: 10_000_000, nanosecs: 5 };
        linux.time_offsets.insert("boottime".into(), offset);
    });
    let uptime: u64 = fixture.run().stdout.trim().parse().unwrap();
    assert!(uptime >= 10_000_000, "{uptime}");
}
