//! The client's side of streams: signals, broken pipes, slow readers, detaching. The level makes no difference to
//! it, so a container is enough.

use std::io::Read;
use std::process::{Command, Stdio};

use crate::harness::Proa;

fn detached(proa: &Proa, name: &str, command: &[&str]) {
    let output = proa.run(&[&["run", "-d", "--name", name, "busybox"], command].concat());
    assert_eq!(output.code, 0, "{output:?}");
}

fn send(pid: u32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

#[test]
fn signals_are_passed_on() {
    let proa = Proa::with_busybox();
    let script = "trap 'echo got USR1' USR1; trap 'echo got TERM; exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let running = proa.spawn(&["run", "--rm", "--name", "trapper", "busybox", "sh", "-c", script]);
    proa.wait_for("ready", || proa.run(&["logs", "trapper"]).stdout.contains("ready"));
    send(running.pid(), rustix::process::Signal::USR1);
    proa.wait_for("USR1", || proa.run(&["logs", "trapper"]).stdout.contains("USR1"));
    send(running.pid(), rustix::process::Signal::TERM);
    let output = running.finish();
    assert_eq!(output.code, 9, "{output:?}");
    assert_eq!(output.stdout, "ready\ngot USR1\ngot TERM\n");
    assert_eq!(proa.run(&["ps", "-aq"]).stdout, "");
}

#[test]
fn insisting_leaves_what_does_not_listen() {
    let proa = Proa::with_busybox();
    // PID 1 without a handler is deaf to SIGINT.
    let running = proa.spawn(&["run", "--name", "deaf", "busybox", "sleep", "1000"]);
    let status = || proa.run(&["inspect", "--format", "{{.State.Status}}", "deaf"]).stdout;
    proa.wait_for("running", || status() == "running\n");
    let mut ended = false;
    let pid = running.pid();
    proa.wait_for("the client to leave", || {
        if !ended {
            let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
            ended = rustix::process::kill_process(pid, rustix::process::Signal::INT).is_err();
            // A zombie still takes signals.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat", pid = pid.as_raw_nonzero()))
                .unwrap_or_default();
            ended |= stat.contains(") Z ");
        }
        ended
    });
    let output = running.finish();
    assert_eq!(output.code, 130, "{output:?}");
    assert_eq!(status(), "running\n");
    assert_eq!(proa.run(&["rm", "-f", "deaf"]).code, 0);
}

#[test]
fn a_broken_pipe_ends_the_client_alone() {
    let proa = Proa::with_busybox();
    let mut command =
        proa.command(&["run", "--name", "talker", "busybox", "sh", "-c", "while echo more; do :; done"]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut pipe = child.stdout.take().unwrap();
    pipe.read_exact(&mut [0; 5]).unwrap();
    drop(pipe);
    assert_eq!(child.wait().unwrap().code(), Some(141));
    assert_eq!(proa.run(&["inspect", "--format", "{{.State.Status}}", "talker"]).stdout, "running\n");
    assert_eq!(proa.run(&["rm", "-f", "talker"]).code, 0);
}

#[test]
fn a_reader_that_stands_still_does_not_keep_signals() {
    let proa = Proa::with_busybox();
    let script = "trap 'exit 4' TERM; while :; do echo a line that fills pipes; done";
    let mut command = proa.command(&["run", "--rm", "--name", "full", "busybox", "sh", "-c", script]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    proa.wait_for("running", || {
        proa.run(&["inspect", "--format", "{{.State.Status}}", "full"]).stdout == "running\n"
    });
    // Nobody reads, so the pipe and the windows are full soon, and the program stands.
    let pipe = child.stdout.take().unwrap();
    proa.wait_for("the log to stand still", || {
        let size = || std::fs::metadata(log(&proa, "full")).map_or(0, |metadata| metadata.len());
        let before = size();
        std::thread::sleep(std::time::Duration::from_millis(300));
        before > 0 && size() == before
    });
    send(child.id(), rustix::process::Signal::TERM);
    // The program cannot end before its `echo` does: somebody has to read.
    let reader = std::thread::spawn(move || {
        let mut pipe = pipe;
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    });
    assert_eq!(child.wait().unwrap().code(), Some(4));
    let text = String::from_utf8(reader.join().unwrap()).unwrap();
    assert!(text.lines().all(|line| line == "a line that fills pipes"), "lines are whole");
}

fn log(proa: &Proa, name: &str) -> String {
    proa.run(&["inspect", "--format", "{{.LogPath}}", name]).stdout.trim().to_owned()
}

#[test]
fn input_reaches_its_end_and_output_is_whole() {
    let proa = Proa::with_busybox();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|number| (number * 7 % 256) as u8).collect();
    let mut command = proa.command(&["run", "--rm", "-i", "busybox", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &sent).unwrap());
    let mut received = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(received == bytes, "{} bytes of {}", received.len(), bytes.len());
    // A program that ends before its input does is no error.
    let output = proa.run_with_input(&["run", "--rm", "-i", "busybox", "true"], &bytes);
    assert_eq!((output.code, output.stdout.as_str()), (0, ""), "{output:?}");
}

#[test]
fn tar_streams() {
    let proa = Proa::with_busybox();
    detached(&proa, "box", &["sleep", "1000"]);
    let script = format!(
        "set -e; proa='{} --root {}'; $proa exec box mkdir /in; \
         tar -C /etc -cf - hostname | $proa cp - box:/in; $proa cp box:/in - | tar -xOf - in/hostname | cmp - /etc/hostname",
        proa.binary().display(),
        proa.root().display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    let output = proa.run_command(command, b"");
    assert_eq!(output.code, 0, "{output:?}");
    let refused = proa.run_with_input(&["cp", "-", "box:/no/such/directory"], b"");
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("/no/such/directory"), "{refused:?}");
    let nonsense = proa.run_with_input(&["cp", "-", "box:/in"], &[7; 5000]);
    assert_eq!(nonsense.code, 1, "{nonsense:?}");
    assert_eq!(proa.run(&["rm", "-f", "box"]).code, 0);
}

#[test]
fn a_terminal_needs_a_terminal() {
    let proa = Proa::with_busybox();
    let output = proa.run(&["run", "--rm", "-it", "busybox", "true"]);
    assert_eq!(output.code, 125, "{output:?}");
    assert!(output.stderr.contains("terminal"), "{output:?}");
    // Without -i the output is a terminal's, and that is all.
    let output = proa.run(&["run", "--rm", "-t", "busybox", "tty"]);
    assert_eq!((output.code, output.stdout.as_str()), (0, "/dev/pts/0\r\n"), "{output:?}");
}

#[test]
fn logs_of_an_instance_that_goes_on() {
    let proa = Proa::with_busybox();
    let script = "for i in 1 2 3 4 5 6 7 8 9; do echo line $i; sleep 0.05; done";
    let flags = ["run", "-d", "--name", "slow", "--log-opt", "max-size=4k", "busybox", "sh", "-c", script];
    assert_eq!(proa.run(&flags).code, 0);
    let followed = proa.spawn(&["logs", "-f", "slow"]).finish();
    assert_eq!(followed.code, 0, "{followed:?}");
    assert_eq!(followed.stdout.lines().count(), 9, "{followed:?}");
    // A rotation in between loses nothing of the files that are kept.
    let script = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done";
    let flags = [
        "run",
        "-d",
        "--name",
        "many",
        "--log-opt",
        "max-size=4k",
        "--log-opt",
        "max-file=100",
        "busybox",
        "sh",
        "-c",
        script,
    ];
    assert_eq!(proa.run(&flags).code, 0);
    let followed = proa.spawn(&["logs", "-f", "many"]).finish();
    let expected: String = (0..200).map(|number| format!("line {number}\n")).collect();
    assert_eq!(followed.stdout, expected);
    assert!(std::fs::metadata(log(&proa, "many") + ".1").is_ok(), "the log was rotated");
    assert_eq!(proa.run(&["rm", "slow", "many"]).code, 0);
}

#[test]
fn a_start_can_be_called_off() {
    let proa = Proa::with_busybox();
    // A guest takes seconds to start: time enough to think again.
    let running =
        proa.spawn(&["run", "--rm", "--isolation", "vm", "--no-template", "busybox", "sleep", "1000"]);
    proa.wait_for("the monitor", || !proa.monitors().is_empty());
    send(running.pid(), rustix::process::Signal::INT);
    let output = running.finish();
    assert_eq!(output.code, 130, "{output:?}");
    assert_eq!(proa.run(&["ps", "-aq"]).stdout, "");
}
