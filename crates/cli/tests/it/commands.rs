//! What needs no running instance: listings, inspection, records, names, help, and what crashes leave of them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::{Output, Proa};

fn ok(proa: &Proa, arguments: &[&str]) -> String {
    let output = proa.run(arguments);
    assert_eq!(output.code, 0, "proa {arguments:?}: {output:?}");
    output.stdout.trim_end_matches('\n').to_owned()
}

fn create(proa: &Proa, name: &str, flags: &[&str]) -> String {
    ok(proa, &[&["create", "--name", name], flags, &["busybox", "sh", "-c", "exit 0"]].concat())
}

fn instance_dir(proa: &Proa, id: &str) -> PathBuf {
    proa.root().join("instances").join(id)
}

#[test]
fn listings() {
    let proa = Proa::with_busybox();
    assert_eq!(ok(&proa, &["ps"]), "CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES");
    let first = create(&proa, "first", &["--label", "tier=one", "-v", "/tmp:/data"]);
    let second = create(&proa, "second", &["--isolation", "vm", "--label", "tier=two"]);
    assert_eq!(ok(&proa, &["ps", "-q"]), "");
    let table = ok(&proa, &["ps", "-a"]);
    let row = table.lines().nth(2).unwrap();
    assert!(
        row.starts_with(&first[..12]) && row.ends_with("first") && row.contains("\"sh -c exit 0\""),
        "{row}"
    );
    assert!(row.contains("Created") && row.contains(" ago"), "{row}");
    assert_eq!(ok(&proa, &["ps", "-aq", "--no-trunc"]), format!("{second}\n{first}"));
    assert_eq!(ok(&proa, &["container", "ls", "-l", "-q"]), second[..12]);
    assert_eq!(ok(&proa, &["ps", "-n", "1", "--format", "{{.Names}}"]), "second");
    let filtered = |filter: &str| ok(&proa, &["ps", "-a", "--filter", filter, "--format", "{{.Names}}"]);
    for (filter, names) in [
        ("label=tier=one", "first"),
        ("name=sec", "second"),
        ("isolation=vm", "second"),
        ("status=created", "second\nfirst"),
        ("status=running", ""),
        ("since=first", "second"),
        ("before=second", "first"),
        ("ancestor=busybox", "second\nfirst"),
        ("ancestor=nothing", ""),
        ("volume=/data", "first"),
        (&format!("id={}", &first[..6]), "first"),
    ] {
        assert_eq!(filtered(filter), names, "{filter}");
    }
    assert_eq!(
        ok(&proa, &["ps", "-a", "--format", "table {{.Names}}\\t{{.Isolation}}"]),
        "NAMES     ISOLATION\nsecond    vm\nfirst     container"
    );
    let json: serde_json::Value =
        serde_json::from_str(ok(&proa, &["ps", "-l", "--format", "json"]).as_str()).unwrap();
    assert_eq!((json["Names"].as_str(), json["State"].as_str()), (Some("second"), Some("created")));
    assert_eq!(proa.run(&["ps", "--filter", "colour=red"]).code, 1);
    assert_eq!(proa.run(&["ps", "--format", "{{.NoSuch}}", "-a"]).code, 1);
    ok(&proa, &["rm", "first", "second"]);
}

#[test]
fn inspection_has_dockers_shape() {
    let proa = Proa::with_busybox();
    let flags = [
        "-e",
        "A=1",
        "-m",
        "64m",
        "--cap-add",
        "NET_ADMIN",
        "-v",
        "/tmp:/data:ro",
        "--tmpfs",
        "/t",
        "-h",
        "box",
    ];
    let id = create(&proa, "seen", &flags);
    let document: serde_json::Value = serde_json::from_str(&ok(&proa, &["inspect", "seen"])).unwrap();
    let document = &document[0];
    for path in [
        "/Id",
        "/Created",
        "/Path",
        "/Args",
        "/State/Status",
        "/State/Running",
        "/State/ExitCode",
        "/State/StartedAt",
        "/Image",
        "/LogPath",
        "/Name",
        "/HostConfig/Memory",
        "/HostConfig/NetworkMode",
        "/HostConfig/RestartPolicy/Name",
        "/HostConfig/LogConfig/Type",
        "/GraphDriver/Name",
        "/Mounts",
        "/Config/Hostname",
        "/Config/Env",
        "/Config/Cmd",
        "/Config/Labels",
        "/NetworkSettings/Networks",
        "/IsolationLevel",
        "/HostConfig/MaskedPaths/0",
    ] {
        assert!(document.pointer(path).is_some(), "no {path} in {document}");
    }
    assert_eq!(document["Id"], id.as_str());
    let format = |template: &str| ok(&proa, &["inspect", "--format", template, &id[..10]]);
    assert_eq!(format("{{.Name}} {{.State.Status}} {{.IsolationLevel}}"), "/seen created container");
    assert_eq!(format("{{.HostConfig.Memory}} {{.HostConfig.NetworkMode}}"), format!("{} bridge", 64 << 20));
    assert_eq!(format("{{range .Mounts}}{{.Source}}>{{.Destination}} {{.RW}}{{end}}"), "/tmp>/data false");
    assert_eq!(format("{{index .Config.Env 0}} {{json .Config.Cmd}}"), "A=1 [\"sh\",\"-c\",\"exit 0\"]");
    assert_eq!(format("{{.State.StartedAt}}"), "0001-01-01T00:00:00Z");
    let image =
        ok(&proa, &["inspect", "--type", "image", "--format", "{{index .RepoTags 0}} {{.Os}}", "busybox"]);
    assert_eq!(image, "busybox:latest linux");
    let missing = proa.run(&["inspect", "nothing-here", "seen"]);
    assert_eq!((missing.code, missing.stdout.contains(&id)), (1, true), "{missing:?}");
    assert_eq!(proa.run(&["inspect", "--type", "image", "seen"]).code, 1);
    assert_eq!(proa.run(&["inspect", "--format", "{{.Nothing}}", "seen"]).code, 1);
    ok(&proa, &["rm", "seen"]);
}

#[test]
fn a_refused_create_leaves_nothing() {
    let proa = Proa::with_busybox();
    let cidfile = proa.root().join("cid");
    let path = cidfile.to_str().unwrap();
    for flags in [
        &["--cap-add", "FLYING"][..],
        &["--name", "x"],
        &["--mount", "type=bind,source=/no/such,target=/x"],
        &["-w", "relative"],
        &["-p", "80:x"],
        &["--network", "nowhere"],
        &["--security-opt", "apparmor=mine"],
        &["--device", "/no/such/device"],
        &["--hostname", "two words"],
    ] {
        let output = proa.run(&[&["create", "--cidfile", path], flags, &["busybox"]].concat());
        // As in Docker, what the command line itself refuses is 125.
        assert!([1, 125].contains(&output.code), "{flags:?}: {output:?}");
        assert!((1..=2).contains(&output.stderr.lines().count()), "{flags:?}: {output:?}");
        assert!(!cidfile.exists(), "{flags:?}");
    }
    assert_eq!(ok(&proa, &["ps", "-aq"]), "");
    let instances = fs::read_dir(proa.root().join("instances")).map_or(0, Iterator::count);
    assert_eq!(instances, 0);
    let id = create(&proa, "kept", &["--cidfile", path]);
    assert_eq!(fs::read_to_string(&cidfile).unwrap(), id);
    let again = proa.run(&["create", "--cidfile", path, "busybox"]);
    assert_eq!(again.code, 1, "{again:?}");
    assert_eq!(fs::read_to_string(&cidfile).unwrap(), id);
    ok(&proa, &["rm", "kept"]);
}

#[test]
fn names() {
    let proa = Proa::with_busybox();
    let id = create(&proa, "one", &[]);
    create(&proa, "two", &[]);
    let taken = proa.run(&["rename", "one", "two"]);
    assert_eq!(taken.code, 1);
    assert!(taken.stderr.contains("two") && taken.stderr.contains("hint:"), "{taken:?}");
    ok(&proa, &["rename", &id, "three"]);
    ok(&proa, &["rename", "/three", "/one"]);
    assert_eq!(proa.run(&["rename", "one", "no spaces"]).code, 1);
    assert_eq!(proa.run(&["rename", "one", "one"]).code, 1);
    // One that is missing does not keep the others.
    let removed = proa.run(&["rm", "one", "nobody", "two"]);
    assert_eq!((removed.code, removed.stdout.as_str()), (1, "one\ntwo\n"), "{removed:?}");
    let forced = proa.run(&["rm", "-f", "nobody"]);
    assert_eq!(forced.code, 0, "{forced:?}");
}

#[test]
fn many_at_once() {
    let proa = Proa::with_busybox();
    let all: Vec<_> = (0..20).map(|_| proa.spawn(&["create", "busybox", "true"])).collect();
    let outputs: Vec<Output> = all.into_iter().map(crate::harness::Running::finish).collect();
    assert!(outputs.iter().all(|output| output.code == 0), "{outputs:?}");
    let ids = ok(&proa, &["ps", "-aq", "--no-trunc"]);
    assert_eq!(ids.lines().count(), 20);
    let victim = ids.lines().next().unwrap();
    let all: Vec<_> = (0..6).map(|_| proa.spawn(&["rm", victim])).collect();
    let outputs: Vec<Output> = all.into_iter().map(crate::harness::Running::finish).collect();
    assert!(outputs.iter().any(|output| output.code == 0), "{outputs:?}");
    assert!(
        outputs.iter().all(|output| output.code == 0 || output.stderr.contains("no such instance")),
        "{outputs:?}"
    );
    let rest: Vec<&str> = ids.lines().skip(1).collect();
    ok(&proa, &[&["rm"], &rest[..]].concat());
    assert_eq!(ok(&proa, &["ps", "-aq"]), "");
}

#[test]
fn half_made_and_half_removed() {
    let proa = Proa::with_busybox();
    let id = create(&proa, "half", &[]);
    fs::remove_dir_all(instance_dir(&proa, &id)).unwrap();
    let litter = instance_dir(&proa, &"ab".repeat(32));
    fs::create_dir_all(litter.join("upper/deep")).unwrap();
    assert_eq!(ok(&proa, &["ps", "-a", "--format", "{{.Names}}"]), "half");
    ok(&proa, &["inspect", "half"]);
    let start = proa.run(&["start", "half"]);
    assert_eq!(start.code, 1);
    assert!(start.stderr.contains("never completed") && start.stderr.contains("rm"), "{start:?}");
    let check = proa.run(&["system", "check"]);
    assert_eq!((check.code, check.stdout.lines().count()), (1, 2), "{check:?}");
    assert!(litter.exists(), "a check without --repair changes nothing");
    let repair = proa.run(&["system", "check", "--repair"]);
    assert_eq!(repair.code, 0, "{repair:?}");
    assert!(!litter.exists());
    assert_eq!(ok(&proa, &["system", "check"]), "");
    assert_eq!(ok(&proa, &["ps", "-aq"]), "");
    // The name is free again.
    create(&proa, "half", &[]);
    ok(&proa, &["rm", "half"]);
}

#[test]
fn a_state_without_a_monitor_is_repaired() {
    let proa = Proa::with_busybox();
    let id = create(&proa, "ghost", &[]);
    let running = r#"{"status":"running","pid":999999,"monitor_pid":999998,"started_ns":5}"#;
    fs::write(instance_dir(&proa, &id).join("state.json"), running).unwrap();
    assert_eq!(
        ok(&proa, &["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "ghost"]),
        "exited 137"
    );
    assert_eq!(ok(&proa, &["wait", "ghost"]), "137");
    fs::write(instance_dir(&proa, &id).join("state.json"), running).unwrap();
    let check = proa.run(&["system", "check"]);
    assert_eq!(check.code, 1, "{check:?}");
    assert_eq!(proa.run(&["system", "check", "--repair"]).code, 0);
    ok(&proa, &["rm", "ghost"]);
}

#[test]
fn what_was_to_go_goes() {
    let proa = Proa::with_busybox();
    let id = create(&proa, "passing", &["--rm"]);
    // Made and not started, it stays, as in Docker.
    assert_eq!(ok(&proa, &["ps", "-a", "--format", "{{.Names}}"]), "passing");
    let exited = r#"{"status":"exited","exit_code":3,"started_ns":5,"finished_ns":6}"#;
    fs::write(instance_dir(&proa, &id).join("state.json"), exited).unwrap();
    assert_eq!(proa.run(&["system", "check"]).code, 1);
    // The next command that meets it removes it: here, one that wants its name.
    let next = create(&proa, "passing", &[]);
    assert!(!instance_dir(&proa, &id).exists());
    assert_eq!(ok(&proa, &["ps", "-aq", "--no-trunc"]), next);
    ok(&proa, &["rm", "passing"]);
}

#[test]
fn roots_live_side_by_side() {
    let (one, two) = (Proa::with_busybox(), Proa::with_busybox());
    create(&one, "same", &[]);
    create(&two, "same", &[]);
    assert_ne!(
        ok(&one, &["info", "--format", "{{.RunRoot}}"]),
        ok(&two, &["info", "--format", "{{.RunRoot}}"])
    );
    ok(&one, &["rm", "same"]);
    assert_eq!(ok(&two, &["ps", "-a", "--format", "{{.Names}}"]), "same");
    ok(&two, &["rm", "same"]);
    // PROA_ROOT says the same as --root.
    let mut command = Command::new(one.binary());
    command.args(["info", "--format", "{{.Root}}"]).env("PROA_ROOT", one.root());
    assert_eq!(one.run_command(command, b"").stdout.trim(), one.root().to_str().unwrap());
}

#[test]
fn images_in_use_stay() {
    let proa = Proa::with_busybox();
    create(&proa, "user", &[]);
    let refused = proa.run(&["rmi", "busybox"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("user"), "{refused:?}");
    ok(&proa, &["tag", "busybox", "other:1"]);
    ok(&proa, &["rmi", "other:1"]);
    ok(&proa, &["rm", "user"]);
    ok(&proa, &["rmi", "busybox"]);
    assert_eq!(ok(&proa, &["images", "-q"]), "");
}

fn first_word_of_an_entry(line: &str) -> Option<&str> {
    line.strip_prefix("  ")?.split_whitespace().next()
}

#[test]
fn help_is_data() {
    let proa = Proa::new();
    let all = ok(&proa, &["--help"]);
    assert_eq!(ok(&proa, &[]), all);
    assert!(all.contains("network bridge"), "{all}");
    let commands: Vec<&str> =
        all.lines().take_while(|line| *line != "Options:").filter_map(first_word_of_an_entry).collect();
    let names = commands.iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_lowercase()));
    for name in names {
        let help = proa.run(&[name, "--help"]);
        assert_eq!((help.code, help.stderr.as_str()), (0, ""), "{name}: {help:?}");
        assert!(help.stdout.contains("Usage: proa"), "{name}: {help:?}");
    }
    assert!(ok(&proa, &["run", "--help"]).contains("127.0.0.1"));
    assert_eq!(ok(&proa, &["help", "ps"]), ok(&proa, &["ps", "--help"]));
    assert!(ok(&proa, &["--version"]).contains("Proa"));
    assert!(ok(&proa, &["version", "--format", "{{.Server.Version}}"]).contains('.'));
}

#[test]
fn usage_errors_have_dockers_codes() {
    let proa = Proa::new();
    for (arguments, code, words) in [
        (&["rum"][..], 1, "`proa run`"),
        (&["image", "lss"], 1, "did you mean `proa image ls`?"),
        (&["run"], 1, "IMAGE"),
        (&["rm"], 1, "INSTANCE"),
        (&["run", "--no-such-flag", "x"], 125, "--no-such-flag"),
        (&["ps", "--no-such-flag"], 125, "--no-such-flag"),
        (&["--no-such-flag", "ps"], 125, "--no-such-flag"),
        (&["run", "--pids-limit", "x", "busybox"], 125, "pids-limit"),
        (&["exec", "nobody", "true"], 1, "nobody"),
        (&["cp", "a", "b"], 1, "INSTANCE:PATH"),
        (&["logs", "--since", "yesterday", "x"], 1, "yesterday"),
    ] {
        let output = proa.run(arguments);
        assert_eq!(output.code, code, "{arguments:?}: {output:?}");
        assert!(
            output.stderr.starts_with("proa: ") && output.stderr.contains(words),
            "{arguments:?}: {output:?}"
        );
        assert!(output.stderr.lines().count() <= 2 && output.stdout.is_empty(), "{arguments:?}: {output:?}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let proa = Proa::with_busybox();
    let script = format!(
        "{} --root {} inspect --type image busybox | true",
        proa.binary().display(),
        proa.root().display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    let output = proa.run_command(command, b"");
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
}

#[test]
fn a_newer_root_is_left_alone() {
    let proa = Proa::with_busybox();
    create(&proa, "old", &[]);
    let database = proa.root().join("proa.db");
    let bump = |version: u8| {
        // `user_version` is the big-endian number at byte 60 of the file; the log is folded in first.
        let mut bytes = fs::read(&database).unwrap();
        bytes[63] = version;
        fs::write(&database, bytes).unwrap();
    };
    ok(&proa, &["system", "check", "--repair"]);
    let own = fs::read(&database).unwrap()[63];
    bump(99);
    let refused = proa.run(&["ps"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("version 99"), "{refused:?}");
    bump(own);
    ok(&proa, &["rm", "old"]);
}
