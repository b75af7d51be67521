//! Hooks: where they run, with what, and what becomes of the container when they fail.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proa_oci::runtime::{Hook, Hooks};
use proa_oci::state::Status;

use crate::support::{Fixture, finish, process};

crate::tests![
    all_kinds_in_their_order_and_place,
    the_images_environment_reaches_no_hook,
    a_hook_inside_without_an_environment_has_the_programs,
    a_hook_that_fails_ends_the_container,
    a_hook_that_takes_too_long_is_killed,
    a_root_is_where_hooks_look_for_it,
];

fn hook(script: &str) -> Hook {
    let args = ["sh", "-c", script].map(ToOwned::to_owned).to_vec();
    Hook { path: "/bin/sh".into(), args, env: vec!["PATH=/bin:/usr/bin".into()], timeout: Some(20) }
}

fn all_kinds_in_their_order_and_place() {
    let fixture = Fixture::shell("cat /hook; echo program");
    let log = fixture.dir.path().join("log");
    let log = log.display();
    let outside =
        |name: &str| vec![hook(&format!("echo {name} $(readlink /proc/self/ns/mnt) $(cat) >> {log}"))];
    let inside = "echo startContainer $(readlink /proc/self/ns/mnt) $(cat) > /hook";
    let fixture = fixture.with(|spec| {
        spec.annotations.insert("org.example.key".into(), "value".into());
        spec.hooks = Some(Hooks {
            prestart: outside("prestart"),
            create_runtime: outside("createRuntime"),
            create_container: outside("createContainer"),
            start_container: vec![hook(inside)],
            poststart: outside("poststart"),
            poststop: outside("poststop"),
        });
    });
    let outcome = fixture.run();
    let text = std::fs::read_to_string(fixture.dir.path().join("log")).unwrap() + &outcome.stdout;
    let namespace = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    let namespace = namespace.to_str().unwrap();
    let lines: Vec<_> = text.lines().filter(|line| *line != "program").collect();
    let expected = [
        ("prestart", true, Status::Created),
        ("createRuntime", true, Status::Creating),
        ("createContainer", false, Status::Creating),
        ("poststart", true, Status::Running),
        ("poststop", true, Status::Stopped),
        ("startContainer", false, Status::Created),
    ];
    assert_eq!(lines.len(), expected.len(), "{text}");
    for (line, (name, outside, status)) in lines.iter().zip(expected) {
        let mut parts = line.splitn(3, ' ');
        assert_eq!(parts.next(), Some(name), "{text}");
        assert_eq!(parts.next() == Some(namespace), outside, "{line}");
        let state = parts.next().unwrap();
        assert!(state.contains(&format!(r#""id":"{}""#, fixture.id)), "{state}");
        assert!(state.contains(r#""org.example.key":"value""#), "{state}");
        assert!(
            state.contains(&format!(r#""status":"{}""#, format!("{status:?}").to_lowercase())),
            "{state}"
        );
        // The first process, as whoever reads it sees it.
        let has_pid = state.contains(r#""pid":"#);
        assert_eq!(has_pid, status != Status::Stopped, "{state}");
        assert_eq!(has_pid && state.contains(r#""pid":1,"#), !outside, "{state}");
    }
    assert!(outcome.stdout.ends_with("program\n"));
    // The word to run that is given before the hooks have run is not lost.
    let (container, handles) = fixture.create_and_run().unwrap();
    assert!(finish(container, handles).stdout.ends_with("program\n"));
}

/// CVE-2025-23266.
fn the_images_environment_reaches_no_hook() {
    let fixture = Fixture::shell("true");
    let log = fixture.dir.path().join("env");
    let script = |name: &str| {
        let mut hook = hook(&format!(
            "/usr/bin/env | grep -v ^_= | sort > {}.{name}; cut -d: -f1 /proc/self/status > /dev/null",
            log.display()
        ));
        hook.env = vec!["PATH=/usr/bin:/bin".into(), "B=of the hook".into()];
        vec![hook]
    };
    let fixture = fixture.with(|spec| {
        process(spec).env.extend(["LD_PRELOAD=/evil.so".into(), "B=of the image".into()]);
        spec.hooks = Some(Hooks {
            create_runtime: script("a"),
            create_container: script("b"),
            poststart: script("c"),
            ..Hooks::default()
        });
    });
    fixture.run();
    for name in ["a", "b", "c"] {
        let text = std::fs::read_to_string(format!("{}.{name}", log.display())).unwrap();
        let known: Vec<_> = text.lines().filter(|line| !line.starts_with("PWD=")).collect();
        assert_eq!(known, ["B=of the hook", "PATH=/usr/bin:/bin"], "{name}");
    }
}

fn a_hook_inside_without_an_environment_has_the_programs() {
    let run = |env: &[&str]| {
        let fixture = Fixture::shell("cat /tmp/env");
        let outside = fixture.dir.path().join("outside");
        let without = |script: String| Hook { env: Vec::new(), ..hook(&script) };
        let inside = Hook {
            env: env.iter().map(ToString::to_string).collect(),
            ..hook("echo own=$OWN of-program=$ONE > /tmp/env")
        };
        let fixture = fixture.with(|spec| {
            process(spec).env.push("ONE=two".into());
            spec.hooks = Some(Hooks {
                create_container: vec![without(format!("echo of-program=$ONE > {}", outside.display()))],
                start_container: vec![inside],
                ..Hooks::default()
            });
        });
        let stdout = fixture.run().stdout;
        assert_eq!(std::fs::read_to_string(outside).unwrap(), "of-program=\n");
        stdout
    };
    assert_eq!(run(&[]), "own= of-program=two\n");
    assert_eq!(run(&["OWN=yes"]), "own=yes of-program=\n");
}

fn a_hook_that_fails_ends_the_container() {
    let fail = || vec![hook("echo what is wrong >&2; exit 3")];
    let stopped = |fixture: &Fixture| fixture.dir.path().join("stopped");
    type Set = fn(&mut Hooks, Vec<Hook>);
    let kinds: [(&str, Set); 5] = [
        ("prestart", |hooks, list| hooks.prestart = list),
        ("createRuntime", |hooks, list| hooks.create_runtime = list),
        ("createContainer", |hooks, list| hooks.create_container = list),
        ("startContainer", |hooks, list| hooks.start_container = list),
        ("poststart", |hooks, list| hooks.poststart = list),
    ];
    for (name, set) in kinds {
        let fixture = Fixture::shell("sleep 100");
        let poststop = hook(&format!("touch {}", stopped(&fixture).display()));
        let fixture = fixture.with(|spec| {
            let mut hooks = Hooks { poststop: vec![poststop], ..Hooks::default() };
            set(&mut hooks, fail());
            spec.hooks = Some(hooks);
        });
        let error = fixture.fails().to_string();
        assert!(error.contains(&format!("{name} hook /bin/sh: exit code 3: what is wrong")), "{error}");
        assert!(stopped(&fixture).exists(), "{name}: poststop hooks run");
    }
    let fixture = Fixture::shell("true").with(|spec| {
        let hook = Hook { path: "/nonexistent".into(), ..Hook::default() };
        spec.hooks = Some(Hooks { create_runtime: vec![hook], ..Hooks::default() });
    });
    let error = fixture.fails().to_string();
    assert!(error.contains("no such file or directory"), "{error}");
}

fn a_hook_that_takes_too_long_is_killed() {
    let fixture = Fixture::shell("true").with(|spec| {
        let slow = Hook { timeout: Some(4), ..hook("sleep 1000 & echo $!; sleep 1000") };
        spec.hooks = Some(Hooks { create_runtime: vec![slow], ..Hooks::default() });
    });
    let begin = std::time::Instant::now();
    let error = fixture.fails().to_string();
    assert!(begin.elapsed().as_secs() < 60);
    assert!(error.contains("killed after 4 s: "), "{error}");
    let child = error.rsplit(' ').next().unwrap();
    crate::support::poll_until("the hook's own child ends", || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
}

fn a_root_is_where_hooks_look_for_it() {
    let fixture = Fixture::shell("cat /from-hook");
    let root = fixture.lower();
    let script = format!("test -d {0}/proc/self && echo seen > {0}/from-hook", root.display());
    let fixture = fixture.with(|spec| {
        spec.hooks = Some(Hooks { create_container: vec![hook(&script)], ..Hooks::default() });
    });
    let create = proa_runtime::Create {
        rootfs: proa_runtime::Rootfs::Directory(root.clone()),
        bundle: Path::new("/bundle"),
        ..fixture.config()
    };
    let (container, handles) = proa_runtime::Container::run(create).unwrap();
    assert_eq!(finish(container, handles).stdout, "seen\n");
    assert!(std::fs::metadata(root.join("from-hook")).unwrap().ino() > 0);
}
