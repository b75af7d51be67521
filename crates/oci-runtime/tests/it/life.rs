//! create, start, state, kill, delete, run.

use std::fs;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::support::{Bundle, PROGRAM, stdout, wait};

#[test]
fn a_container_goes_through_its_states() {
    let bundle = Bundle::shell("echo started; trap 'exit 7' TERM; while :; do sleep 0.05; done");
    let pid_file = bundle.path("pid");
    bundle.create(&["--pid-file", pid_file.to_str().unwrap()]);
    let state = bundle.state();
    assert_eq!((state["status"].as_str(), state["id"].as_str()), (Some("created"), Some(bundle.id.as_str())));
    assert_eq!(state["annotations"]["test"], "yes");
    assert_eq!(state["bundle"].as_str(), bundle.path("").to_str().map(|path| path.trim_end_matches('/')));
    assert_eq!(fs::read_to_string(pid_file).unwrap(), state["pid"].to_string());
    assert_eq!(bundle.out(), "", "its program runs before its start");
    bundle.ok(&["start", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    wait("output", || bundle.out() == "started\n");
    assert!(bundle.fails(&["start", &bundle.id]).contains("running"));
    assert!(bundle.fails(&["delete", &bundle.id]).contains("--force"));
    bundle.ok(&["kill", &bundle.id, "TERM"]);
    bundle.wait_status("stopped");
    assert_eq!(bundle.state()["pid"], 0);
    assert!(bundle.fails(&["kill", &bundle.id, "KILL"]).contains("not running"));
    assert!(bundle.fails(&["start", &bundle.id]).contains("stopped"));
    bundle.ok(&["delete", &bundle.id]);
    bundle.assert_gone();
    assert!(bundle.fails(&["state", &bundle.id]).contains("does not exist"));
    assert!(bundle.fails(&["delete", &bundle.id]).contains("does not exist"));
    bundle.ok(&["delete", "--force", &bundle.id]);
}

#[test]
fn options_stand_before_and_after_the_id() {
    let bundle = Bundle::program(&["/bin/sleep", "1000"]);
    bundle.write();
    let path = bundle.path("");
    bundle.detached(&["create", &bundle.id, "--bundle", path.to_str().unwrap()]);
    assert_eq!(bundle.status(), "created");
    bundle.ok(&["start", &bundle.id]);
    bundle.ok(&["kill", &bundle.id, "--all", "9"]);
    bundle.wait_status("stopped");
    bundle.ok(&["delete", &bundle.id, "--force"]);
    assert!(bundle.fails(&["kill", "--what", &bundle.id]).contains("unknown option '--what'"));
}

#[test]
fn a_created_container_can_be_deleted_and_its_id_is_taken_until_then() {
    let bundle = Bundle::program(&["/bin/true"]);
    bundle.create(&[]);
    let pid = bundle.pid();
    let again = bundle.run(&[]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("exists already"), "{again:?}");
    assert_eq!(bundle.status(), "created", "a create that fails leaves another's container alone");
    bundle.ok(&["delete", &bundle.id]);
    bundle.assert_gone();
    assert!(!std::path::Path::new(&format!("/proc/{pid}/root/bin")).exists());
}

#[test]
fn a_container_without_a_process_can_be_created_and_not_started() {
    let bundle = Bundle::program(&["/bin/true"]).with(|spec| spec.process = None);
    bundle.create(&[]);
    assert_eq!(bundle.status(), "created");
    assert!(bundle.fails(&["start", &bundle.id]).contains("no process"));
    assert_eq!(bundle.status(), "created");
    bundle.ok(&["delete", &bundle.id]);
    bundle.assert_gone();
    let run = bundle.run(&[]);
    assert!(!run.status.success() && String::from_utf8_lossy(&run.stderr).contains("no process"), "{run:?}");
    bundle.assert_gone();
}

fn among_the_hosts_mounts(script: &str) -> Bundle {
    Bundle::shell(script).with(|spec| {
        spec.hostname = None;
        let linux = spec.linux_mut();
        linux.namespaces.clear();
        (linux.masked_paths, linux.readonly_paths) = Default::default();
    })
}

#[test]
fn a_container_may_have_the_hosts_namespaces() {
    let mounts = || {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let fields = |line: &str| {
            line.split(" - ")
                .next()
                .unwrap_or_default()
                .split(' ')
                .skip(4)
                .map(ToOwned::to_owned)
                .collect::<Vec<_>>()
        };
        text.lines().map(fields).filter(|fields| fields[0] == "/").collect::<Vec<_>>()
    };
    let before = mounts();
    let script =
        "echo in $(readlink /proc/self/ns/mnt) $(ls /); trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let bundle = among_the_hosts_mounts(script);
    bundle.start();
    assert_eq!(mounts(), before, "the host's root is as it was, propagation and all");
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    wait("output", || bundle.out().ends_with('\n'));
    let out = bundle.out();
    assert!(out.contains(own.to_str().unwrap()) && out.contains("bin") && !out.contains("boot"), "{out}");
    // What joins is in the same root.
    assert_eq!(bundle.ok(&["exec", &bundle.id, "ls", "/"]), "bin\ndev\netc\nproc\nroot\nsys\ntmp\n");
    let seen = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let rootfs = bundle.path("rootfs");
    let own = seen.lines().filter(|line| line.contains(rootfs.to_str().unwrap()));
    assert!(own.clone().count() > 3 && own.clone().all(|line| !line.contains("shared:")), "{seen}");
    bundle.ok(&["kill", &bundle.id, "TERM"]);
    bundle.wait_status("stopped");
    bundle.ok(&["delete", &bundle.id]);
    bundle.assert_gone();
    let left: Vec<_> = fs::read_dir(rootfs.join("proc")).unwrap().collect();
    assert!(left.is_empty(), "nothing is left below the mount: {left:?}");
    // Nor of one that fails on the way, or is run.
    let bundle = among_the_hosts_mounts("true").with(|spec| {
        spec.mounts.push(proa_oci::runtime::Mount {
            destination: "/x".into(),
            kind: Some("no-such-file-system".into()),
            ..Default::default()
        });
    });
    assert!(!bundle.run(&[]).status.success());
    bundle.assert_gone();
    let bundle = among_the_hosts_mounts("echo done");
    assert_eq!(stdout(&bundle.run(&[])), "done\n");
    bundle.assert_gone();
    let masked =
        among_the_hosts_mounts("true").with(|spec| spec.linux_mut().masked_paths.push("/proc/keys".into()));
    let run = masked.run(&[]);
    assert!(String::from_utf8_lossy(&run.stderr).contains("need a mount namespace"), "{run:?}");
    assert_eq!(mounts(), before);
}

#[test]
fn warnings_are_on_standard_error_or_in_the_log() {
    let bundle = Bundle::program(&["/bin/true"]).with(|spec| {
        let mounted = proa_oci::runtime::Mount {
            destination: "/tmp/host".into(),
            kind: Some("bind".into()),
            source: Some("/etc".into()),
            options: vec!["ro".into(), "mode=755".into()],
            ..Default::default()
        };
        spec.mounts.push(mounted);
    });
    let output = bundle.run(&[]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.contains("warning: mount /tmp/host: option 'mode'"), "{error}");
    let log = bundle.path("log");
    let output = bundle.run(&["--log", log.to_str().unwrap()]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(fs::read_to_string(log).unwrap().contains("option 'mode'"));
}

#[test]
fn descriptors_are_passed_on_as_far_as_there_are_any() {
    let bundle = Bundle::shell("ls /proc/self/fd | grep -c . ; cat <&5");
    bundle.write();
    let file = bundle.path("passed");
    fs::write(&file, "passed\n").unwrap();
    let script = "for n in {3..60}; do eval \"exec $n<&-\"; done; exec 5<\"$0\"; exec \"$@\"";
    let mut command = std::process::Command::new("/bin/bash");
    command.args(["-c", script]).arg(file).args([PROGRAM, "--root"]).arg(bundle.path("state"));
    command.args(["run", "--preserve-fds", "40", "--bundle"]).arg(bundle.path("")).arg(&bundle.id);
    let output = command.output().unwrap();
    // The shell's own listing has three streams, the one that was passed, and the directory.
    assert_eq!(stdout(&output), "5\npassed\n", "{output:?}");
}

#[test]
fn who_creates_or_starts_hears_why_the_program_cannot_run() {
    let bundle = Bundle::program(&["no-such-program"]);
    bundle.write();
    let error = bundle.fails(&["create", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
    assert!(
        error.contains("no-such-program") && error.contains("executable file not found in $PATH"),
        "{error}"
    );
    bundle.assert_gone();
    // One that is there and cannot be run is found out at its start.
    let bundle = Bundle::program(&["/etc/passwd"]);
    bundle.create(&[]);
    assert!(bundle.fails(&["start", &bundle.id]).contains("permission denied"));
    bundle.wait_status("stopped");
}

#[test]
fn a_create_that_fails_leaves_nothing() {
    let bundle = Bundle::program(&["/bin/true"]).with(|spec| spec.mounts[0].kind = Some("no-such-fs".into()));
    let log = bundle.path("log");
    let options = ["--log", log.to_str().unwrap(), "--log-format", "json"];
    let output = bundle.run(&options);
    assert_eq!(output.status.code(), Some(1));
    bundle.assert_gone();
    let line: serde_json::Value = serde_json::from_str(&fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("no-such-fs"));
    fs::remove_file(&log).unwrap();
    bundle.run(&["--log", log.to_str().unwrap()]);
    assert!(fs::read_to_string(&log).unwrap().contains("level=error msg=\""));
}

#[test]
fn run_is_the_programs_exit_code_and_its_streams_are_ours() {
    let bundle = Bundle::shell("echo out; echo err >&2; exit 42");
    let output = bundle.run(&[]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(42), "out\n"));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    bundle.assert_gone();
    let bundle = Bundle::shell("kill -9 $$; kill -11 1; sleep 1").with(|spec| {
        spec.linux_mut()
            .namespaces
            .retain(|namespace| namespace.kind != proa_oci::runtime::NamespaceKind::Pid);
    });
    assert_eq!(bundle.run(&[]).status.code(), Some(137));
}

#[test]
fn run_passes_signals_on() {
    let bundle = Bundle::shell("trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done");
    bundle.write();
    let mut command = bundle.command(&["run", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
    bundle.assert_gone();
}

#[test]
fn run_can_detach_or_keep() {
    let bundle = Bundle::program(&["/bin/sleep", "1000"]);
    bundle.write();
    bundle.detached(&["run", "--detach", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
    assert_eq!(bundle.status(), "running");
    bundle.ok(&["delete", "-f", &bundle.id]);
    let bundle = Bundle::program(&["/bin/true"]);
    assert!(bundle.run(&["--keep"]).status.success());
    assert_eq!(bundle.status(), "stopped");
}

#[test]
fn the_program_has_no_descriptor_but_what_was_asked_for() {
    let script = "ls /proc/self/fd | grep -v '^3$' | wc -l; [ -z \"$LISTEN_FDS\" ] || cat <&4";
    let bundle = Bundle::shell(script);
    // Held open by us without close-on-exec, as a careless engine would.
    let text = bundle.path("text");
    fs::write(&text, "passed\n").unwrap();
    let held: OwnedFd = fs::File::open(&text).unwrap().into();
    let leaked = rustix::io::dup(&held).unwrap();
    assert_eq!(stdout(&bundle.run(&[])), "3\n");
    drop(leaked);
    let bundle = Bundle::shell("cat <&3; echo $LISTEN_FDS $LISTEN_PID");
    bundle.write();
    let path = bundle.path("");
    let run = |environment: &str, options: &str, redirect: &str| {
        let line = format!(
            "{environment} exec {} --root {} run {options} --bundle {} {} {redirect}",
            crate::support::PROGRAM,
            bundle.path("state").display(),
            path.display(),
            bundle.id
        );
        let output = std::process::Command::new("sh").arg("-c").arg(line).output().unwrap();
        (stdout(&output), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let redirect = format!("3<{}", text.display());
    assert_eq!(run("", "--preserve-fds 1", &redirect).0, "passed\n\n");
    assert_eq!(run("export LISTEN_FDS=1;", "", &redirect).0, "passed\n1 1\n");
    // Those that are there; but a socket that was promised must be.
    assert_eq!(run("", "--preserve-fds 2", &redirect).0, "passed\n\n");
    assert!(run("export LISTEN_FDS=2;", "", &redirect).1.contains("descriptor 4 is not open"));
}

#[test]
fn a_terminal_is_sent_over_the_console_socket() {
    let bundle = Bundle::shell("tty; stty size; exit 0").with_process(|process| {
        process.terminal = true;
        process.console_size = Some(proa_oci::runtime::ConsoleSize { height: 25, width: 81 });
    });
    let socket = bundle.path("console");
    let listener = UnixListener::bind(&socket).unwrap();
    bundle.write();
    assert!(
        bundle
            .fails(&["create", "-b", bundle.path("").to_str().unwrap(), &bundle.id])
            .contains("--console-socket")
    );
    bundle.create(&["--console-socket", socket.to_str().unwrap()]);
    let (stream, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    let message =
        recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    assert_eq!(&name[..message.bytes], b"/dev/ptmx");
    let master = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    bundle.ok(&["start", &bundle.id]);
    let mut text = Vec::new();
    // EIO at the end.
    let _ = fs::File::from(master.unwrap()).read_to_end(&mut text);
    assert_eq!(String::from_utf8_lossy(&text), "/dev/pts/0\r\n25 81\r\n");
}

#[test]
fn run_serves_a_terminal_itself() {
    let bundle =
        Bundle::shell("tty; read line; echo got $line").with_process(|process| process.terminal = true);
    bundle.write();
    let mut command = bundle.command(&["run", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
    let mut child =
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"hello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = stdout(&output);
    assert!(text.contains("/dev/pts/0\r\n") && text.contains("got hello\r\n"), "{text:?}");
}

#[test]
fn wrong_requests_are_refused_in_one_line() {
    let bundle = Bundle::program(&["/bin/true"]).with(|spec| spec.oci_version = "2.0.0".into());
    let output = bundle.run(&[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("ociVersion '2.0.0'"));
    assert!(bundle.fails(&["state", "../x"]).contains("cannot be a container id"));
    assert!(bundle.fails(&["what"]).contains("unknown command"));
    assert!(bundle.fails(&["kill", "x", "SIGWHAT"]).contains("does not exist"));
}

#[test]
fn a_container_without_limits_joins_its_cgroup_a_moment_later() {
    let bundle = Bundle::program(&["/bin/sleep", "1000"]);
    bundle.start();
    let file = format!("/proc/{}/cgroup", bundle.pid());
    wait("the cgroup is joined", || {
        fs::read_to_string(&file).unwrap().contains(&format!("/proa/{}", bundle.id))
    });
    bundle.detached(&["exec", "--detach", &bundle.id, "/bin/sleep", "1001"]);
    wait("both are in the cgroup", || {
        let text = bundle.ok(&["ps", "--format", "json", &bundle.id]);
        let pids: Vec<u32> = serde_json::from_str(&text).unwrap();
        let inside = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&bundle.id))
        };
        pids.len() == 2 && pids.iter().all(inside)
    });
}

#[test]
fn a_named_cgroup_is_joined_before_create_returns() {
    let bundle = Bundle::program(&["/bin/sleep", "1000"]);
    let name = format!("/proa/{}", bundle.id);
    let bundle = bundle.with(|spec| spec.linux_mut().cgroups_path = Some(name.clone()));
    bundle.create(&[]);
    let text = fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid())).unwrap();
    assert!(text.contains(&name), "{text}");
}

/// CVE-2019-5736: the entrypoint is whoever runs it, and the program in it writes to that.
#[test]
fn our_executable_cannot_be_written() {
    let before = fs::read(crate::support::PROGRAM).unwrap();
    let bundle = Bundle::shell("for i in 1 2 3; do cat /dev/null > /proc/1/exe; done; echo end");
    assert_eq!(stdout(&bundle.run(&[])), "end\n");
    let bundle = Bundle::program(&["/entry"]);
    fs::write(bundle.path("rootfs/entry"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(bundle.path("rootfs/entry"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    assert!(!bundle.run(&[]).status.success());
    let bundle = Bundle::shell(
        "while :; do for pid in /proc/[0-9]*; do cat /dev/null > $pid/exe; done; done 2>/dev/null",
    );
    bundle.start();
    for _ in 0..20 {
        bundle.output(&["exec", &bundle.id, "/bin/true"]);
    }
    assert!(fs::read(crate::support::PROGRAM).unwrap() == before, "our executable was written");
}

#[test]
fn hooks_run_at_each_point_of_the_life() {
    use proa_oci::runtime::{Hook, Hooks};
    let bundle = Bundle::program(&["/bin/sleep", "1000"]);
    let out = bundle.path("hooks").display().to_string();
    let hook = |name: &str| {
        let script = format!("printf '%s ' {name} >> {out}; cat >> {out}; echo >> {out}");
        vec![Hook { path: "/bin/sh".into(), args: vec!["sh".into(), "-c".into(), script], ..Hook::default() }]
    };
    let hooks = Hooks {
        prestart: hook("prestart"),
        create_runtime: hook("createRuntime"),
        poststart: hook("poststart"),
        poststop: hook("poststop"),
        ..Hooks::default()
    };
    let bundle = bundle.with(|spec| spec.hooks = Some(hooks));
    let seen = || {
        let text = fs::read_to_string(bundle.path("hooks")).unwrap();
        let name = |line: &str| line.split_once(' ').map(|(name, _)| name.to_owned());
        (text.lines().filter_map(name).collect::<Vec<_>>().join(" "), text)
    };
    bundle.create(&[]);
    assert_eq!(seen().0, "prestart createRuntime");
    bundle.ok(&["start", &bundle.id]);
    assert_eq!(seen().0, "prestart createRuntime poststart");
    bundle.ok(&["delete", "--force", &bundle.id]);
    let (names, text) = seen();
    assert_eq!(names, "prestart createRuntime poststart poststop");
    let states: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line.split_once(' ').unwrap().1).unwrap()).collect();
    let statuses: Vec<_> = states.iter().map(|state| state["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["created", "creating", "running", "stopped"]);
    let bundle_path = bundle.path("").display().to_string();
    for state in &states {
        assert_eq!(state["id"].as_str(), Some(bundle.id.as_str()));
        assert_eq!(state["bundle"].as_str(), Some(bundle_path.trim_end_matches('/')));
        assert_eq!(state["annotations"]["test"], "yes");
    }
}

#[test]
fn a_hook_that_fails_ends_the_container() {
    use proa_oci::runtime::{Hook, Hooks};
    let failing = || vec![Hook { path: "/bin/false".into(), ..Hook::default() }];
    let bundle = Bundle::program(&["/bin/sleep", "1000"])
        .with(|spec| spec.hooks = Some(Hooks { create_runtime: failing(), ..Hooks::default() }));
    let output = bundle.run(&[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("createRuntime hook /bin/false"), "{output:?}");
    bundle.assert_gone();
    let bundle = Bundle::program(&["/bin/sleep", "1000"])
        .with(|spec| spec.hooks = Some(Hooks { poststart: failing(), ..Hooks::default() }));
    bundle.create(&[]);
    assert!(bundle.fails(&["start", &bundle.id]).contains("poststart hook /bin/false"));
    bundle.wait_status("stopped");
}
