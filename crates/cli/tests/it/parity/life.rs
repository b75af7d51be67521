//! The life of an instance: detached runs, logs, exec, stop, kill, wait, rename, listing.

use super::{Bed, at_both_levels};

at_both_levels!(
    web_server,
    exec,
    logs,
    stop,
    kill,
    wait,
    names_and_listing,
    attach,
    top,
    conflicts,
    remove_on_exit;
    pause
);

fn web_server(bed: &Bed) {
    bed.detach("web", &[], &["httpd", "-f", "-p", "8080", "-h", "/var/www"]);
    let get = "until wget -q -O - http://127.0.0.1:8080/index.html 2>/dev/null; do :; done";
    assert!(bed.ok(&["exec", "web", "sh", "-c", get]).contains("two levels"));
    assert!(bed.ok(&["exec", "web", "ps"]).contains("httpd"));
    bed.ok(&["stop", "-t", "1", "web"]);
    assert_eq!(bed.ok(&["inspect", "--format", "{{.State.Status}}", "web"]), "exited");
    bed.ok(&["rm", "web"]);
    assert_eq!(bed.ok(&["ps", "-aq"]), "");
}

fn exec(bed: &Bed) {
    bed.detach("host", &["-e", "BASE=1"], &["sleep", "1000"]);
    let inner = |flags: &[&str], command: &[&str]| bed.proa(&[&["exec"], flags, &["host"], command].concat());
    assert_eq!(inner(&["-e", "MORE=2"], &["sh", "-c", "echo $BASE$MORE"]).stdout, "12\n");
    assert_eq!(inner(&["-w", "/etc"], &["pwd"]).stdout, "/etc\n");
    assert_eq!(inner(&["-u", "nobody"], &["id", "-u"]).stdout, "65534\n");
    assert_eq!(inner(&[], &["sh", "-c", "exit 9"]).code, 9);
    assert_eq!(inner(&[], &["no-such-program"]).code, 127);
    assert_eq!(inner(&[], &["/etc"]).code, 126);
    let input = bed.proa.run_with_input(&["exec", "-i", "host", "cat"], b"through exec\n");
    assert_eq!(input.stdout, "through exec\n");
    assert_eq!(inner(&["-d"], &["sh", "-c", "echo later > /root/later"]).code, 0);
    assert_eq!(inner(&[], &["sh", "-c", "until cat /root/later 2>/dev/null; do :; done"]).stdout, "later\n");
    assert_eq!(inner(&[], &["grep", "Seccomp:", "/proc/self/status"]).stdout, "Seccomp:\t2\n");
    bed.ok(&["rm", "-f", "host"]);
    let gone = bed.proa(&["exec", "host", "true"]);
    assert_eq!(gone.code, 1);
    assert!(gone.stderr.contains("host"), "{gone:?}");
}

fn logs(bed: &Bed) {
    bed.detach(
        "talker",
        &[],
        &["sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done; echo oops >&2; exec sleep 1000"],
    );
    bed.proa.wait_for("all lines", || bed.ok(&["logs", "talker"]).lines().count() == 5);
    let all = bed.proa(&["logs", "talker"]);
    assert_eq!(all.stdout, "line 1\nline 2\nline 3\nline 4\nline 5\n");
    assert_eq!(all.stderr, "oops\n");
    let tail = bed.proa(&["logs", "--tail", "2", "talker"]);
    assert_eq!((tail.stdout + &tail.stderr).lines().count(), 2);
    let stamped = bed.ok(&["logs", "-t", "talker"]);
    let first = stamped.lines().next().unwrap();
    assert!(first.ends_with("Z line 1") && first.contains('T'), "{first}");
    assert_eq!(bed.ok(&["logs", "--since", "1h", "talker"]).lines().count(), 5);
    assert_eq!(bed.ok(&["logs", "--until", "2001-01-01T00:00:00Z", "talker"]), "");
    let follower = bed.proa.spawn(&["logs", "-f", "talker"]);
    bed.ok(&["stop", "-t", "0", "talker"]);
    let followed = follower.finish();
    assert_eq!(followed.stdout, all.stdout);
    assert_eq!(bed.ok(&["logs", "talker"]).lines().count(), 5);
    bed.ok(&["rm", "talker"]);
}

fn stop(bed: &Bed) {
    let trap = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    bed.detach("polite", &[], &["sh", "-c", trap]);
    bed.proa.wait_for("ready", || bed.ok(&["logs", "polite"]).contains("ready"));
    bed.ok(&["stop", "polite"]);
    assert_eq!(bed.ok(&["inspect", "--format", "{{.State.ExitCode}}", "polite"]), "3");
    assert!(bed.ok(&["logs", "polite"]).ends_with("bye"));
    bed.ok(&["rm", "polite"]);
    // PID 1 ignores SIGTERM unless it handles it, so the time runs out and SIGKILL follows.
    bed.detach("stubborn", &[], &["sleep", "1000"]);
    bed.ok(&["stop", "-t", "1", "stubborn"]);
    assert_eq!(bed.ok(&["inspect", "--format", "{{.State.ExitCode}}", "stubborn"]), "137");
    bed.ok(&["rm", "stubborn"]);
}

fn kill(bed: &Bed) {
    bed.detach("victim", &["--init"], &["sleep", "1000"]);
    let refused = bed.proa(&["kill", "-s", "NOSUCH", "victim"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("NOSUCH"), "{refused:?}");
    bed.ok(&["kill", "-s", "TERM", "victim"]);
    assert_eq!(bed.ok(&["wait", "victim"]), "143");
    bed.ok(&["rm", "victim"]);
}

fn wait(bed: &Bed) {
    bed.detach("short", &[], &["sh", "-c", "sleep 0.2; exit 5"]);
    assert_eq!(bed.ok(&["wait", "short"]), "5");
    // A second wait answers at once.
    assert_eq!(bed.ok(&["wait", "short"]), "5");
    bed.ok(&["rm", "short"]);
}

fn names_and_listing(bed: &Bed) {
    let id = bed.detach("before", &["--label", "tier=one"], &["sleep", "1000"]);
    bed.ok(&["rename", "before", "after"]);
    assert_eq!(bed.ok(&["ps", "--format", "{{.Names}} {{.Image}}"]), "after busybox");
    assert_eq!(bed.ok(&["ps", "-q", "--no-trunc", "--filter", "label=tier=one"]), id);
    assert_eq!(bed.ok(&["ps", "-q", "--filter", "label=tier=two"]), "");
    assert_eq!(bed.ok(&["inspect", "--format", "{{.IsolationLevel}}", &id[..12]]), bed.level);
    let used = bed.proa(&["run", "-d", "--name", "after", "--isolation", bed.level, "busybox", "true"]);
    assert_eq!(used.code, 125, "{used:?}");
    assert!(used.stderr.contains("after"), "{used:?}");
    let running = bed.proa(&["rm", "after"]);
    assert_eq!(running.code, 1, "{running:?}");
    bed.ok(&["rm", "-f", "after"]);
}

fn attach(bed: &Bed) {
    bed.detach("echoer", &["-i"], &["sh", "-c", "while read line; do echo got $line; done; exit 4"]);
    let output = bed.proa.run_with_input(&["attach", "echoer"], b"one\ntwo\n");
    assert_eq!(output.stdout, "got one\ngot two\n");
    assert_eq!(output.code, 4);
    bed.ok(&["rm", "echoer"]);
}

fn top(bed: &Bed) {
    bed.detach("tree", &[], &["sh", "-c", "sleep 998 & exec sleep 999"]);
    // Programs that have just begun are not asleep yet.
    let is_asleep = |line: &str| line.contains(" S") && line.ends_with("sleep");
    let asleep = || {
        let seen = bed.ok(&["top", "tree", "-eo", "pid,stat,comm"]);
        seen.lines().filter(|line| is_asleep(line.trim_end())).count() == 2
    };
    bed.proa.wait_for("both processes", asleep);
    let seen = bed.ok(&["top", "tree"]);
    assert!(seen.lines().next().unwrap().contains("PID"), "{seen}");
    assert!(seen.contains("sleep 999") && seen.contains("sleep 998"), "{seen}");
    let chosen = bed.ok(&["top", "tree", "-eo", "pid,ppid,user,stat,comm,args"]);
    let words: Vec<Vec<&str>> = chosen.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["PID", "PPID", "USER", "STAT", "COMMAND", "COMMAND"]);
    let of = |age: &str| words.iter().find(|line| line.last() == Some(&age)).unwrap();
    assert_eq!(of("998")[1], of("999")[0], "{chosen}");
    assert_eq!(of("999")[2..], ["root", "Ss", "sleep", "sleep", "999"]);
    let sizes = bed.ok(&["top", "tree", "aux"]);
    let size: u64 = sizes.lines().last().unwrap().split_whitespace().nth(4).unwrap().parse().unwrap();
    assert!(sizes.starts_with("USER") && size > 0, "{sizes}");
    let refused = bed.proa(&["top", "tree", "-Z"]);
    assert!(refused.code == 1 && refused.stderr.contains("-Z"), "{refused:?}");
    bed.ok(&["rm", "-f", "tree"]);
}

fn conflicts(bed: &Bed) {
    for arguments in [
        &["start", "nobody-home"][..],
        &["stop", "nobody-home"],
        &["logs", "nobody-home"],
        &["rm", "nobody-home"],
    ] {
        let output = bed.proa(arguments);
        assert_eq!(output.code, 1, "{arguments:?}: {output:?}");
        assert!(output.stderr.contains("nobody-home"), "{output:?}");
        assert!(output.stderr.lines().count() <= 2, "{output:?}");
    }
}

fn remove_on_exit(bed: &Bed) {
    bed.detach("passing", &["--rm"], &["sh", "-c", "exit 0"]);
    bed.proa.wait_for("removal", || bed.ok(&["ps", "-aq"]).is_empty());
}

fn pause(bed: &Bed) {
    bed.detach("counter", &["-m", "64m"], &["sh", "-c", "while :; do echo tick; sleep 0.05; done"]);
    bed.proa.wait_for("a tick", || bed.ok(&["logs", "counter"]).contains("tick"));
    bed.ok(&["pause", "counter"]);
    assert_eq!(bed.ok(&["inspect", "--format", "{{.State.Status}}", "counter"]), "paused");
    bed.ok(&["unpause", "counter"]);
    let before = bed.ok(&["logs", "counter"]).lines().count();
    bed.proa.wait_for("more ticks", || bed.ok(&["logs", "counter"]).lines().count() > before);
    bed.ok(&["rm", "-f", "counter"]);
}
