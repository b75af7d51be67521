//! Limits of the cgroup, in force from the first instruction.

use proa_oci::runtime::{Cpu, Memory, Pids, Resources};
use proa_runtime::CgroupPolicy;

use crate::support::{Fixture, fd, finish, process, read_until};

crate::tests![
    pids_are_limited,
    memory_is_limited_and_its_end_is_known,
    cpu_is_limited,
    limits_hold_for_exec,
    limits_change_while_it_runs,
    the_end_of_memory_is_told,
    device_rules_hold,
    limits_without_cgroups_are_refused
];

fn resources(fixture: Fixture, change: impl FnOnce(&mut Resources)) -> Fixture {
    fixture.with(|spec| change(spec.linux_mut().resources.as_mut().unwrap()))
}

fn pids_are_limited() {
    let fixture = Fixture::shell("for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; echo all");
    let outcome = resources(fixture, |resources| resources.pids = Some(Pids { limit: 4 })).run();
    assert!(outcome.stderr.contains("can't fork"), "{outcome:?}");
}

fn memory_is_limited_and_its_end_is_known() {
    let limit = Memory { limit: Some(16 << 20), swap: Some(16 << 20), ..Memory::default() };
    let fixture = Fixture::program(&["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]);
    let fixture = resources(fixture, |resources| resources.memory = Some(limit));
    let (container, handles) = fixture.start();
    drop(handles.stdin);
    crate::support::wait_readable(container.pidfd());
    assert_eq!(container.try_wait().unwrap(), Some(137));
    assert!(container.oom_killed());
    assert_eq!(container.stats().unwrap().memory_limit, Some(16 << 20));
    container.delete().unwrap();
    let (container, handles) = Fixture::shell("exit 0").start();
    assert!(!container.oom_killed());
    finish(container, handles);
}

fn cpu_is_limited() {
    let cpu = Cpu {
        quota: Some(20_000),
        period: Some(100_000),
        shares: Some(512),
        cpus: Some("0".into()),
        ..Cpu::default()
    };
    let v1 = std::path::Path::new("/sys/fs/cgroup/cpu").exists();
    let (script, expected) = if v1 {
        (
            "cat /sys/fs/cgroup/cpu*/cpu.cfs_quota_us /sys/fs/cgroup/cpu*/cpu.shares | sort -u; nproc",
            "20000\n512\n1\n",
        )
    } else {
        ("cd /sys/fs/cgroup; cat cpu.max cpu.weight cpuset.cpus.effective; nproc", "20000 100000\n59\n0\n1\n")
    };
    let outcome = resources(Fixture::shell(script), |resources| resources.cpu = Some(cpu)).run();
    assert_eq!(outcome.stdout, expected, "{outcome:?}");
}

fn limits_hold_for_exec() {
    let fixture = Fixture::shell("echo up; sleep 100; true");
    let fixture = resources(fixture, |resources| resources.pids = Some(Pids { limit: 3 }));
    let (mut container, handles) = fixture.start();
    read_until(fd(&handles.stdout), "up\n");
    let mut spec = fixture.spec.clone();
    process(&mut spec).args =
        ["sh", "-c", "for i in 1 2 3 4; do sleep 9 & done; echo all"].map(Into::into).to_vec();
    let (child, out) = container
        .exec(spec.process.as_ref().unwrap(), "", proa_runtime::Stdio::Pipes { stdin: false })
        .unwrap();
    read_until(fd(&out.stderr), "can't fork");
    drop(child);
    container.delete().unwrap();
}

fn limits_change_while_it_runs() {
    const MIB: i64 = 1 << 20;
    let memory = |limit: i64, swap: i64| Resources {
        memory: Some(Memory { limit: Some(limit), swap: Some(swap), ..Memory::default() }),
        ..Resources::default()
    };
    // Nothing is limited: on cgroup v1 it has not joined its cgroup yet.
    let fixture = Fixture::shell("echo up; sleep 100; true");
    let (mut container, handles) = fixture.start();
    read_until(fd(&handles.stdout), "up\n");
    let first = Resources {
        pids: Some(Pids { limit: 3 }),
        cpu: Some(Cpu { cpus: Some("0".into()), shares: Some(512), ..Cpu::default() }),
        ..memory(64 * MIB, 128 * MIB)
    };
    container.update(&first).unwrap();
    let limits = |container: &proa_runtime::Container| {
        let stats = container.stats().unwrap();
        (stats.memory_limit, stats.pids_limit, stats.pids)
    };
    // The shell may not have started the other yet.
    crate::support::poll_until("two processes", || limits(&container).2 == Some(2));
    assert_eq!(limits(&container), (Some(64 << 20), Some(3), Some(2)));
    // Up and down, memory and swap together, whatever stands in the way of the one or the other.
    for (limit, swap) in [(32, 40), (256, 512), (16, 16), (16, -1), (64, 128)] {
        container.update(&memory(limit * MIB, if swap < 0 { -1 } else { swap * MIB })).unwrap();
        assert_eq!(limits(&container).0, Some((limit * MIB) as u64));
    }
    // What is not named stays; what is 0 is not named.
    container.update(&Resources { pids: Some(Pids { limit: 0 }), ..Resources::default() }).unwrap();
    assert_eq!(limits(&container).1, Some(3));
    container.update(&Resources { pids: Some(Pids { limit: -1 }), ..Resources::default() }).unwrap();
    assert_eq!(limits(&container).1, None);
    let quota = |quota, period| Resources {
        cpu: Some(Cpu { quota, period, ..Cpu::default() }),
        ..Resources::default()
    };
    for (quota_us, period) in
        [(Some(50_000), Some(100_000)), (Some(2_000), Some(2_000)), (None, Some(200_000)), (Some(-1), None)]
    {
        container.update(&quota(quota_us, period)).unwrap();
    }
    let mut spec = fixture.spec.clone();
    process(&mut spec).args = ["nproc"].map(Into::into).to_vec();
    let stdio = proa_runtime::Stdio::Pipes { stdin: false };
    let (_child, out) = container.exec(spec.process.as_ref().unwrap(), "", stdio).unwrap();
    read_until(fd(&out.stdout), "1\n");
    container.delete().unwrap();
}

fn the_end_of_memory_is_told() {
    let limit = Memory { limit: Some(24 << 20), swap: Some(24 << 20), ..Memory::default() };
    let script = "read go; dd if=/dev/zero of=/dev/null bs=64M count=1; echo over; sleep 100";
    let fixture = resources(Fixture::shell(script), |resources| resources.memory = Some(limit));
    let (container, handles) = fixture.start();
    let mut watch = container.watch_oom().expect("memory is limited");
    assert!(!watch.has_fired());
    rustix::io::write(fd(&handles.stdin), b"go\n").unwrap();
    read_until(fd(&handles.stdout), "over\n");
    let (ready, flags) = watch.wants();
    let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(ready, flags)];
    assert_eq!(rustix::event::poll(&mut fds, Some(&limit)).unwrap(), 1);
    assert!(watch.has_fired());
    assert!(!watch.has_fired());
    assert!(container.oom_killed());
    container.delete().unwrap();
    let (container, handles) = Fixture::shell("exit 0").start();
    assert!(container.watch_oom().is_none());
    finish(container, handles);
}

fn device_rules_hold() {
    // With CAP_SYS_ADMIN `nodev` can be taken away; the rules cannot.
    let script = "mount -o remount,dev / && mknod /kmsg c 1 11 && mknod /null c 1 3 && echo x > /null && echo null; (head -c 1 /kmsg) 2>/dev/null || echo denied";
    let outcome = Fixture::shell(script).capabilities(&["CAP_SYS_ADMIN"]).run();
    assert_eq!(outcome.stdout, "null\ndenied\n", "{outcome:?}");
}

fn limits_without_cgroups_are_refused() {
    let fixture = resources(Fixture::shell("true"), |resources| resources.pids = Some(Pids { limit: 3 }));
    let create = proa_runtime::Create {
        id: &fixture.id,
        spec: &fixture.spec,
        rootfs: proa_runtime::Rootfs::Directory(fixture.lower()),
        user: "",
        stdio: fixture.stdio,
        init: false,
        cgroup: CgroupPolicy::Disabled,
        interfaces: None,
        bundle: "/".as_ref(),
        nodev: true,
        taken: &[],
        shares_memory: false,
    };
    let error = proa_runtime::Container::create(create).unwrap_err();
    assert!(error.to_string().contains("limits need cgroups"), "{error}");
}
