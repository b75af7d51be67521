//! The process: exit codes, streams, environment, directory, entrypoint.

use std::io::Write;

use super::{Bed, at_both_levels};

at_both_levels!(exit_codes, streams, standard_input, environment, working_directory, entrypoint, init);

fn exit_codes(bed: &Bed) {
    assert_eq!(bed.run(&[], &["sh", "-c", "exit 7"]).code, 7);
    assert_eq!(bed.run(&["--init"], &["sh", "-c", "kill -9 $$"]).code, 137);
    let missing = bed.run(&[], &["no-such-program"]);
    assert_eq!(missing.code, 127, "{missing:?}");
    assert!(missing.stderr.contains("no-such-program"), "{missing:?}");
    let directory = bed.run(&[], &["/etc"]);
    assert_eq!(directory.code, 126, "{directory:?}");
    for output in [missing, directory] {
        assert!(output.stderr.lines().count() <= 3, "{output:?}");
    }
    assert_eq!(bed.ok(&["ps", "-aq"]), "");
}

fn streams(bed: &Bed) {
    let output = bed.run(&[], &["sh", "-c", "echo to stdout; echo to stderr >&2"]);
    assert_eq!(output.stdout, "to stdout\n");
    assert!(output.stderr.ends_with("to stderr\n"), "{output:?}");
    let many = bed.run_ok(&[], &["sh", "-c", "seq 1 100000"]);
    assert_eq!(many.lines().count(), 100_000);
    assert_eq!(many.lines().last(), Some("100000"));
}

fn standard_input(bed: &Bed) {
    let run = ["run", "--rm", "-i", "--isolation", bed.level, "busybox"];
    let text: Vec<u8> = (0..1_000_000u32).map(|number| (number % 251) as u8).collect();
    let output = bed.proa.run_with_input(&[&run[..], &["md5sum"]].concat(), &text);
    let host = bed.proa.shell_with_input("md5sum", &text);
    assert_eq!(output.stdout, host);
    // Without -i there is nothing to read.
    assert_eq!(bed.run_ok(&[], &["wc", "-c"]), "0");
}

fn environment(bed: &Bed) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"# a comment\nFROM_FILE=in file\n").unwrap();
    bed.proa.give(file.path());
    let path = file.path().to_str().unwrap();
    let flags = ["-e", "GIVEN=a value", "--env-file", path, "--hostname", "box"];
    let seen = bed.run_ok(&flags, &["env"]);
    let lines: Vec<&str> = seen.lines().collect();
    for expected in ["GIVEN=a value", "FROM_FILE=in file", "HOSTNAME=box", "HOME=/root", "PATH=/bin"] {
        assert!(lines.contains(&expected), "{expected} in {seen}");
    }
    assert!(!lines.iter().any(|line| line.starts_with("TERM=")), "{seen}");
}

fn working_directory(bed: &Bed) {
    assert_eq!(bed.run_ok(&[], &["pwd"]), "/");
    assert_eq!(bed.run_ok(&["-w", "/made/for/it"], &["pwd"]), "/made/for/it");
    let relative = bed.run(&["-w", "not/absolute"], &["pwd"]);
    assert_eq!(relative.code, 125, "{relative:?}");
}

fn entrypoint(bed: &Bed) {
    assert_eq!(bed.run_ok(&["--entrypoint", "echo"], &["one", "two"]), "one two");
    // The image's CMD does not follow an entrypoint given on the command line.
    assert_eq!(bed.run_ok(&["--entrypoint", "echo"], &[]), "");
}

fn init(bed: &Bed) {
    let first = bed.run_ok(&[], &["cat", "/proc/1/comm"]);
    assert_eq!(first, "cat");
    let seen = bed.run_ok(&["--init"], &["sh", "-c", "cat /proc/1/comm; echo $$"]);
    let (name, pid) = seen.split_once('\n').unwrap();
    assert!(name.contains("init"), "{seen}");
    assert_ne!(pid, "1");
    // An orphan is reaped by that init, so no zombie stays.
    let orphan =
        "(sleep 0.1 & ) ; until ! pidof sleep >/dev/null; do :; done; ps | grep -c '[Zz]ombie\\|\\[sleep\\]'";
    assert_eq!(bed.run(&["--init"], &["sh", "-c", orphan]).stdout, "0\n");
}
