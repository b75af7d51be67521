//! The process: who it is, what it may, how it is found, its streams.

use std::io::Write;

use proa_oci::runtime::{ConsoleSize, CpuAffinity, IoPriority, MemoryPolicy, Personality, Rlimit, Scheduler};
use proa_protocol::message::ErrorKind;
use proa_runtime::Stdio;
use rustix::termios::{Winsize, tcsetwinsize};

use crate::support::{Fixture, Outcome, compile, fd, finish, process, read_until, wait_readable};

crate::tests![
    users_by_name_and_number,
    capabilities_are_dockers,
    capabilities_of_other_users,
    no_new_privileges_holds,
    programs_are_found_as_docker_finds_them,
    programs_that_cannot_be_run,
    environment_and_directory,
    limits_and_priorities,
    scheduling_of_all_kinds,
    parameters_with_either_separator,
    standard_input,
    null_streams,
    a_terminal,
    users_can_open_their_streams,
    an_init_reaps_and_forwards,
    signals_are_as_new,
];

const SHOW_CAPABILITIES: &str = "grep Cap /proc/self/status | tr -d '\\t' | tr '\\n' ' '";

fn run(fixture: &Fixture) -> Outcome {
    let outcome = fixture.run();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    outcome
}

fn users_by_name_and_number() {
    let id = |user: &str| run(&Fixture::shell("id; echo $HOME").user(user)).stdout;
    assert_eq!(id("web"), "uid=33(web) gid=33(web) groups=10(wheel),33(web)\n/var/www\n");
    assert_eq!(id("33"), id("web"));
    assert_eq!(id("0"), "uid=0(root) gid=0(root) groups=0(root),10(wheel)\n/root\n");
    assert_eq!(id("1234:55"), "uid=1234 gid=55 groups=55\n/\n");
    // The spec's own numbers, and nothing that was not asked for.
    assert_eq!(id(""), "uid=0(root) gid=0(root)\n/root\n");
    let error = Fixture::shell("id").user("nobody").fails();
    assert!(error.to_string().contains("'nobody'"), "{error}");
    assert!(Fixture::shell("id").user("2147483648").fails().to_string().contains("2147483648"));
    let fixture = Fixture::shell("id -u; umask; grep Groups /proc/self/status").with(|spec| {
        let user = &mut process(spec).user;
        (user.uid, user.gid, user.umask) = (7, 8, Some(0o077));
        user.additional_gids = vec![9, 10];
    });
    assert_eq!(run(&fixture).stdout, "7\n0077\nGroups:\t9 10 \n");
}

fn capabilities_are_dockers() {
    let out = run(&Fixture::shell(SHOW_CAPABILITIES)).stdout;
    let all = "00000000a80425fb";
    assert_eq!(
        out.trim(),
        format!("CapInh:0000000000000000 CapPrm:{all} CapEff:{all} CapBnd:{all} CapAmb:0000000000000000")
    );
}

fn capabilities_of_other_users() {
    let out = run(&Fixture::shell(SHOW_CAPABILITIES).user("web")).stdout;
    let (none, all) = ("0000000000000000", "00000000a80425fb");
    assert_eq!(out.trim(), format!("CapInh:{none} CapPrm:{none} CapEff:{none} CapBnd:{all} CapAmb:{none}"));
    let ambient = Fixture::shell(SHOW_CAPABILITIES).user("web").with(|spec| {
        let sets = process(spec).capabilities.as_mut().unwrap();
        sets.inheritable = vec!["CAP_NET_BIND_SERVICE".into()];
        sets.ambient = sets.inheritable.clone();
    });
    let net = "0000000000000400";
    assert_eq!(
        run(&ambient).stdout.trim(),
        format!("CapInh:{net} CapPrm:{net} CapEff:{net} CapBnd:{all} CapAmb:{net}")
    );
    // What only root may read stays so: the right to override went before the program was looked for.
    let error = Fixture::program(&["/bin/private"]).file("/bin/private", "#!/bin/sh\n").user("web");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(error.lower().join("bin/private"), mode).unwrap();
    assert_eq!(error.fails().kind(), ErrorKind::CommandNotExecutable);
}

fn no_new_privileges_holds() {
    for no_new_privileges in [false, true] {
        let fixture =
            Fixture::shell("grep -E 'NoNewPrivs|Seccomp:' /proc/self/status | tr -d '\\t\\n'; id -u")
                .user("web")
                .with(|spec| process(spec).no_new_privileges = no_new_privileges);
        let expected = format!("NoNewPrivs:{}Seccomp:233\n", i32::from(no_new_privileges));
        assert_eq!(run(&fixture).stdout, expected);
    }
}

fn programs_are_found_as_docker_finds_them() {
    let code = |args: &[&str]| run(&Fixture::program(args)).code;
    assert_eq!(code(&["true"]), 0);
    assert_eq!(code(&["/bin/true"]), 0);
    let relative = Fixture::program(&["./true"]).with(|spec| process(spec).cwd = "/bin".into());
    assert_eq!(run(&relative).code, 0);
    let script = Fixture::program(&["/script", "a b"]).file("/script", "#!/bin/sh\necho \"$0 $1\"\n");
    std::fs::set_permissions(
        script.lower().join("script"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    assert_eq!(run(&script).stdout, "/script a b\n");
}

fn programs_that_cannot_be_run() {
    let fails = |args: &[&str]| {
        let error = Fixture::program(args)
            .file("/data", "no program")
            .file("/bin/plain", "no program")
            .file("/opt/script", "#!/none\n")
            .with(|spec| process(spec).env = vec!["PATH=/none:/bin:/opt".into()]);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(error.lower().join("opt/script"), mode).unwrap();
        let error = error.fails();
        (error.kind(), error.to_string())
    };
    let (kind, message) = fails(&["nothing"]);
    assert_eq!(
        (kind, message.as_str()),
        (ErrorKind::CommandNotFound, "start: exec: \"nothing\": executable file not found in $PATH")
    );
    assert_eq!(fails(&["/none"]).0, ErrorKind::CommandNotFound);
    assert_eq!(fails(&["/data/none"]).0, ErrorKind::CommandNotExecutable);
    assert_eq!(fails(&["plain"]).0, ErrorKind::CommandNotExecutable);
    let (kind, message) = fails(&["/etc"]);
    assert_eq!(kind, ErrorKind::CommandNotExecutable);
    assert!(message.ends_with("is a directory"), "{message}");
    let (kind, message) = fails(&["script"]);
    assert_eq!(kind, ErrorKind::CommandNotFound);
    assert!(message.contains("interpreter"), "{message}");
}

fn environment_and_directory() {
    let fixture = Fixture::program(&["/bin/env"])
        .with(|spec| process(spec).env = vec!["A=1 2".into(), "HOME=/x".into()]);
    assert_eq!(run(&fixture).stdout, "A=1 2\nHOME=/x\n");
    let fixture =
        Fixture::shell("pwd; stat -c '%U %a' .").with(|spec| process(spec).cwd = "/made/for/it".into());
    assert_eq!(run(&fixture).stdout, "/made/for/it\nroot 755\n");
}

/// The last CPU of this host, and its number.
fn last_cpu() -> String {
    let allowed = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = allowed.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    list.rsplit([',', '-']).next().unwrap().to_owned()
}

/// What the joined process has, and what every process of the container has.
fn scheduling_of_all_kinds() {
    let script = "cut -d' ' -f41 /proc/self/stat; uname -m; echo up; sleep 100";
    let fixture = Fixture::shell(script).with(|spec| {
        let linux = spec.linux_mut();
        linux.personality = Some(Personality { domain: "LINUX32".into(), flags: vec![] });
        linux.memory_policy = Some(MemoryPolicy {
            mode: "MPOL_BIND".into(),
            nodes: "0".into(),
            flags: vec!["MPOL_F_STATIC_NODES".into()],
        });
        process(spec).scheduler = Some(Scheduler { policy: "SCHED_IDLE".into(), ..Scheduler::default() });
    });
    let (mut container, handles) = fixture.start();
    let output = crate::support::read_until(crate::support::fd(&handles.stdout), "up\n");
    assert!(output.starts_with("5\n"), "{output}");
    assert!(!output.contains("x86_64"), "{output}");
    let maps = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/numa_maps")).unwrap();
    assert!(maps(container.pid()).contains(" bind=static:0 "), "{}", maps(container.pid()));
    let mut program = process(&mut fixture.spec.clone()).clone();
    program.args =
        ["/bin/sh", "-c", "uname -m; grep Cpus_allowed_list /proc/self/status; head -1 /proc/self/numa_maps"]
            .map(ToOwned::to_owned)
            .to_vec();
    program.capabilities.as_mut().unwrap().bounding.push("CAP_FLY".into());
    program.exec_cpu_affinity = Some(CpuAffinity { initial: Some("0".into()), after: Some(last_cpu()) });
    let (child, handles) = container.exec(&program, "", Stdio::Pipes { stdin: false }).unwrap();
    let output = crate::support::read_all(handles.stdout.unwrap());
    crate::support::wait_readable(std::os::fd::AsFd::as_fd(&child.pidfd));
    child.try_wait().unwrap();
    assert!(!output.contains("x86_64") && output.contains(&format!("list:\t{}\n", last_cpu())), "{output}");
    assert!(output.contains(" bind=static:0 "), "{output}");
    assert_eq!(child.warnings, ["ignoring unknown or unavailable capabilities: [CAP_FLY]"]);
    container.delete().unwrap();
}

fn parameters_with_either_separator() {
    let fixture = Fixture::shell(
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmni /proc/sys/kernel/domainname",
    )
    .with(|spec| {
        let linux = spec.linux_mut();
        for (name, value) in
            [("net/ipv4/ip_forward", "1"), ("kernel.msgmni", "77"), ("kernel/domainname", "example")]
        {
            linux.sysctl.insert(name.into(), value.into());
        }
    });
    assert_eq!(run(&fixture).stdout, "1\n77\nexample\n");
}

fn limits_and_priorities() {
    let fixture =
        Fixture::shell("ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; cut -d' ' -f19 /proc/self/stat")
            .with(|spec| {
                let process = process(spec);
                process.rlimits = vec![Rlimit { kind: "RLIMIT_NOFILE".into(), soft: 100, hard: 200 }];
                process.oom_score_adj = Some(555);
                process.scheduler =
                    Some(Scheduler { policy: "SCHED_BATCH".into(), nice: 5, ..Scheduler::default() });
                process.io_priority = Some(IoPriority { class: "IOPRIO_CLASS_IDLE".into(), priority: 0 });
            });
    assert_eq!(run(&fixture).stdout, "100\n200\n555\n5\n");
    // Root of this host may lack the right to raise it: then it goes on, and says so.
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let Some(hard) = hard else { return };
    let fixture = Fixture::shell("ulimit -Hn").with(|spec| {
        process(spec).rlimits = vec![Rlimit { kind: "RLIMIT_NOFILE".into(), soft: hard + 1, hard: hard + 1 }];
    });
    let outcome = run(&fixture);
    match outcome.warnings.as_slice() {
        [] => assert_eq!(outcome.stdout, format!("{}\n", hard + 1)),
        warnings => {
            assert!(warnings[0].contains("RLIMIT_NOFILE"), "{warnings:?}");
            assert_eq!(outcome.stdout, format!("{hard}\n"));
        }
    }
}

fn standard_input() {
    let fixture = Fixture::program(&["/bin/cat"]);
    let (container, mut handles) = fixture.start();
    std::fs::File::from(handles.stdin.take().unwrap()).write_all(b"through").unwrap();
    assert_eq!(finish(container, handles).stdout, "through");
}

fn null_streams() {
    let mut fixture =
        Fixture::shell("test -c /dev/stdin && cat && echo into the void && readlink /proc/self/fd/1 > /seen");
    fixture.stdio = Stdio::Null;
    assert_eq!(run(&fixture).stdout, "");
    assert_eq!(std::fs::read_to_string(fixture.upper().join("seen")).unwrap().trim(), "/seen");
    fixture = Fixture::program(&["/bin/cat"]);
    fixture.stdio = Stdio::Pipes { stdin: false };
    assert_eq!(run(&fixture).stdout, "");
}

fn a_terminal() {
    let mut fixture = Fixture::shell(
        "tty; stty size; trap 'exit 130' INT; stat -c '%t:%T %u' $(tty); echo hi > /dev/console; echo hi > /dev/tty; read line; stty size; echo \"got $line\"; while :; do sleep 0.01; done",
    );
    fixture.stdio = Stdio::Terminal(ConsoleSize { height: 31, width: 97 });
    let (container, handles) = fixture.start();
    let terminal = fd(&handles.terminal);
    let seen = read_until(terminal, "hi\r\nhi\r\n");
    assert_eq!(seen, "/dev/pts/0\r\n31 97\r\n88:0 0\r\nhi\r\nhi\r\n");
    tcsetwinsize(terminal, Winsize { ws_row: 5, ws_col: 6, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    rustix::io::write(terminal, b"line\n").unwrap();
    assert!(read_until(terminal, "got line").contains("5 6"));
    // Ctrl-C reaches the foreground.
    rustix::io::write(terminal, b"\x03").unwrap();
    wait_readable(container.pidfd());
    assert_eq!(container.try_wait().unwrap(), Some(130));
    container.delete().unwrap();
}

fn users_can_open_their_streams() {
    let fixture = Fixture::shell("echo again > /dev/stdout; echo error > /dev/stderr").user("web");
    assert_eq!(run(&fixture).stdout, "again\n");
    let mut fixture = Fixture::shell("echo again > /dev/stdout; echo also > $(tty)").user("web");
    fixture.stdio = Stdio::Terminal(ConsoleSize::default());
    let (container, handles) = fixture.start();
    read_until(fd(&handles.terminal), "again\r\nalso\r\n");
    wait_readable(container.pidfd());
    container.delete().unwrap();
}

fn an_init_reaps_and_forwards() {
    let script =
        "trap 'echo term; exit 3' TERM; (sleep 0 & exec sleep 0) ; echo pid $$; while :; do sleep 0.01; done";
    let mut fixture = Fixture::shell(script).with(|spec| {
        // The test is linked dynamically: its libraries are the host's.
        for dir in ["/lib", "/lib64", "/usr/lib"] {
            spec.mounts.push(proa_oci::runtime::Mount {
                destination: dir.into(),
                kind: Some("bind".into()),
                source: Some(std::fs::canonicalize(dir).unwrap().to_str().unwrap().into()),
                options: vec!["rbind".into(), "ro".into()],
                ..Default::default()
            });
        }
    });
    fixture.init = true;
    let (container, handles) = fixture.start();
    let seen = read_until(fd(&handles.stdout), "\n");
    assert_ne!(seen, "pid 1\n");
    container.signal(15, false).unwrap();
    let outcome = finish(container, handles);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (3, "term\n"));
    process(&mut fixture.spec).args = vec!["nothing".into()];
    assert_eq!(fixture.fails().kind(), ErrorKind::CommandNotFound);
    process(&mut fixture.spec).args = vec!["sh".into(), "-c".into(), "kill -7 $$".into()];
    assert_eq!(fixture.run().code, 128 + 7);
}

fn signals_are_as_new() {
    // As `nohup` would have left it for us.
    let fixture = Fixture::program(&["/bin/grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]);
    let out = proa_sys::sigwait::block_all().map(|()| run(&fixture).stdout).unwrap();
    assert_eq!(out, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    let fixture = Fixture::program(&["/bin/fds"]);
    compile(&fixture, "fds", &[]);
    assert_eq!(run(&fixture).stdout, "0\n1\n2\n");
}
