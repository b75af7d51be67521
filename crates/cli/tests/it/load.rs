//! Many runs, one after another and at once: no exit code, log line or event is lost, and nothing stays.
//!
//! The long form (2,000 and 500) takes minutes: `cargo nextest run -p proa-cli --run-ignored only load`.

use crate::harness::{Output, Proa, Running};

/// Every second run is removed when it ends; of the others the log and the state stay to be looked at.
fn arguments(number: usize) -> Vec<String> {
    let script = format!("echo line {number}; echo error {number} >&2; exit {}", number % 100);
    let mut arguments = vec!["run".to_owned(), "--name".to_owned(), format!("load-{number}")];
    if number.is_multiple_of(2) {
        arguments.push("--rm".to_owned());
    }
    arguments.extend(["busybox", "sh", "-c", &script].map(str::to_owned));
    arguments
}

fn start(proa: &Proa, number: usize) -> Running {
    let arguments = arguments(number);
    proa.spawn(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn check(number: usize, output: &Output) {
    assert_eq!(output.code, (number % 100) as i32, "run {number}: {output:?}");
    assert_eq!(output.stdout, format!("line {number}\n"), "run {number}: {output:?}");
    assert_eq!(output.stderr, format!("error {number}\n"), "run {number}: {output:?}");
}

fn load(sequential: usize, concurrent: usize) {
    let proa = Proa::with_busybox();
    // What is said once is said here.
    proa.run(&["run", "--rm", "busybox", "true"]);
    for number in 0..sequential {
        check(number, &start(&proa, number).finish());
    }
    let all = sequential + concurrent;
    let running: Vec<Running> = (sequential..all).map(|number| start(&proa, number)).collect();
    for (number, running) in (sequential..).zip(running) {
        check(number, &running.finish());
    }
    let kept: Vec<String> =
        (0..all).filter(|number| number % 2 == 1).map(|number| format!("load-{number}")).collect();
    for (name, number) in kept.iter().zip((1..).step_by(2)) {
        let logs = proa.run(&["logs", name]);
        assert_eq!((logs.stdout, logs.stderr), (format!("line {number}\n"), format!("error {number}\n")));
    }
    let codes = proa.run(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]).stdout;
    for (name, number) in kept.iter().zip((1..).step_by(2)) {
        let status = format!("{name} Exited ({})", number % 100);
        assert!(codes.lines().any(|line| line.starts_with(&status)), "{status} in {codes}");
    }
    let died = proa.run(&[
        "events",
        "--since",
        "1",
        "--until",
        "0s",
        "--filter",
        "event=die",
        "--format",
        "{{.Actor.Attributes.name}} {{.Actor.Attributes.exitCode}}",
    ]);
    let mut told: Vec<&str> = died.stdout.lines().filter(|line| line.starts_with("load-")).collect();
    told.sort_unstable();
    let mut expected: Vec<String> =
        (0..all).map(|number| format!("load-{number} {}", number % 100)).collect();
    expected.sort_unstable();
    assert_eq!(told, expected);
    let remove: Vec<&str> = std::iter::once("rm").chain(kept.iter().map(String::as_str)).collect();
    assert_eq!(proa.run(&remove).code, 0);
    assert_eq!(proa.run(&["ps", "-aq"]).stdout, "");
    assert_eq!(proa.run(&["system", "check"]).code, 0);
    proa.assert_nothing_left();
}

#[test]
fn runs_lose_nothing() {
    load(100, 50);
}

#[test]
#[ignore = "takes minutes"]
fn two_thousand_and_five_hundred_runs_lose_nothing() {
    load(2000, 500);
}
