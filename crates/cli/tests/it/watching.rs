//! Events under load, figures for monitoring systems, and pruning.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use crate::harness::Proa;

/// Longest that a listener waits.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_follower_gets_every_event_once() {
    const EACH: usize = 50;
    const AT_ONCE: usize = 4;
    let proa = Proa::with_busybox();
    let mut follower =
        proa.command(&["events", "--filter", "type=container", "--format", "{{.Action}} {{.ID}}"]);
    let mut follower = follower.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    // It follows from the moment on at which it waits for changes.
    let waits = || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", follower.id())).unwrap().flatten();
        let mut targets = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        let state = std::fs::read_to_string(format!("/proc/{}/stat", follower.id())).unwrap();
        targets.any(|to| to.to_string_lossy().contains("inotify")) && state.contains(") S ")
    };
    proa.wait_for("the follower", waits);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                for _ in 0..EACH {
                    proa.ok(&["run", "--rm", "--log-driver", "none", "busybox", "true"]);
                }
            });
        }
    });
    let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut destroyed = 0;
    while destroyed < EACH * AT_ONCE {
        let line = lines.next().expect("the follower ended").unwrap();
        let (action, id) = line.split_once(' ').unwrap();
        destroyed += usize::from(action == "destroy");
        seen.entry(id.to_owned()).or_default().push(action.to_owned());
    }
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert_eq!(seen.len(), EACH * AT_ONCE);
    for (id, actions) in &seen {
        assert_eq!(actions, &["create", "attach", "start", "die", "destroy"], "{id}");
    }
}

/// The status line, the headers and the body that a request gets.
fn exchange(mut stream: impl Read + Write, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[test]
fn scrapers_are_answered() {
    let proa = Proa::with_busybox();
    proa.ok(&["run", "-d", "--name", "scraped", "busybox", "sleep", "1000"]);
    let mut server = proa.command(&["metrics", "serve", "--listen", "127.0.0.1:0"]);
    let mut server = server.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(server.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
    let address = said.trim().rsplit_once("http://").unwrap().1.trim_end_matches("/metrics").to_owned();
    let connect = || {
        let stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    };
    // One that says nothing holds up nobody.
    let _silent = connect();
    let (head, body) = exchange(connect(), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(body.contains("proa_instance_up{id=\"") && body.contains("name=\"scraped\""), "{body}");
    let open = "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n";
    let (head, body) = exchange(connect(), open);
    assert!(head.contains("application/openmetrics-text") && body.ends_with("# EOF\n"), "{head}");
    let (head, body) = exchange(connect(), "HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200") && body.is_empty());
    assert!(exchange(connect(), "GET /x HTTP/1.1\r\n\r\n").0.starts_with("HTTP/1.1 404"));
    assert!(exchange(connect(), "PUT /metrics HTTP/1.1\r\n\r\n").0.starts_with("HTTP/1.1 405"));
    assert!(exchange(connect(), "nonsense\r\n\r\n").0.starts_with("HTTP/1.1 400"));
    server.kill().unwrap();
    server.wait().unwrap();
    // The same by a socket that only its owner may use; one that was left is taken over.
    let path = proa.root().join("metrics.sock");
    for _ in 0..2 {
        let listen = format!("unix:{}", path.display());
        let mut server = proa.command(&["metrics", "serve", "--listen", &listen]);
        let mut server = server.stderr(Stdio::piped()).spawn().unwrap();
        BufReader::new(server.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let (head, _) = exchange(UnixStream::connect(&path).unwrap(), "GET /metrics HTTP/1.1\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200"));
        server.kill().unwrap();
        server.wait().unwrap();
    }
    proa.ok(&["rm", "-f", "scraped"]);
}

#[test]
fn a_collector_is_sent_them() {
    let proa = Proa::with_busybox();
    proa.ok(&["run", "-d", "--name", "sent", "busybox", "sleep", "1000"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let collector = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            reader.read_line(&mut head).unwrap();
        }
        let length = head
            .lines()
            .find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        let mut body = vec![0; length.unwrap()];
        reader.read_exact(&mut body).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap();
        (head, String::from_utf8(body).unwrap())
    });
    proa.ok(&["metrics", "push", "--otlp", &address]);
    let (head, body) = collector.join().unwrap();
    assert!(head.starts_with("POST /v1/metrics HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains("content-type: application/json"), "{head}");
    assert!(body.starts_with(r#"{"resourceMetrics":["#) && body.contains("proa_instance_up"), "{body}");
    let failed = proa.run(&["metrics", "push", "--otlp", "http://127.0.0.1:1"]);
    assert!(failed.code == 1 && failed.stderr.contains("127.0.0.1:1"), "{failed:?}");
    proa.ok(&["rm", "-f", "sent"]);
}

#[test]
fn pruning_takes_what_fits_its_conditions() {
    let proa = Proa::with_busybox();
    proa.ok(&["create", "--name", "kept", "--label", "keep=yes", "busybox"]);
    let gone = proa.ok(&["create", "--name", "gone", "busybox"]);
    proa.ok(&["run", "-d", "--name", "lives", "busybox", "sleep", "1000"]);
    let unasked = proa.run(&["container", "prune"]);
    assert!(unasked.code == 125 && unasked.stderr.contains("--force"), "{unasked:?}");
    assert_eq!(proa.ok(&["container", "prune", "-f", "--filter", "until=1h"]), "Total reclaimed space: 0B");
    let pruned = proa.ok(&["container", "prune", "-f", "--filter", "label!=keep"]);
    assert!(
        pruned.starts_with(&format!("Deleted Containers:\n{gone}\n\nTotal reclaimed space: ")),
        "{pruned}"
    );
    assert_eq!(proa.ok(&["ps", "-a", "--format", "{{.Names}}"]), "lives\nkept");
    // An image in use stays, whatever the budget.
    assert_eq!(proa.ok(&["image", "prune", "-f", "--budget", "1k"]), "Total reclaimed space: 0B");
    let usage = proa.ok(&["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}"]);
    assert!(usage.starts_with("Images 1 1\nInstances 2 1"), "{usage}");
    let verbose = proa.ok(&["system", "df", "-v"]);
    assert!(
        verbose.contains("UNIQUE SIZE") && verbose.contains("lives") && verbose.contains("kept"),
        "{verbose}"
    );
    proa.ok(&["rm", "-f", "lives"]);
    let all = proa.ok(&["system", "prune", "-a", "-f"]);
    assert!(all.contains("Deleted Images:\nUntagged: busybox:latest\n"), "{all}");
    assert!(all.lines().last().unwrap().starts_with("Total reclaimed space: "), "{all}");
    assert_eq!(proa.ok(&["ps", "-aq"]) + &proa.ok(&["images", "-q"]), "");
    for line in
        [&["system", "prune", "-f", "--filter", "colour=red"][..], &["image", "prune", "-f", "--budget", "x"]]
    {
        let refused = proa.run(line);
        assert!(refused.code != 0 && refused.stderr.lines().count() <= 2, "{refused:?}");
    }
}

#[test]
fn an_overview_is_printed() {
    let proa = Proa::with_busybox();
    proa.ok(&["run", "-d", "--name", "busy", "busybox", "sh", "-c", "while :; do :; done"]);
    proa.ok(&["run", "-d", "--name", "idle", "busybox", "sleep", "1000"]);
    let top = proa.ok(&["system", "top", "--no-stream"]);
    let names: Vec<&str> = top.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["NAME", "busy", "idle"], "{top}");
    let refused = proa.run(&["system", "top", "--sort", "colour"]);
    assert_eq!(refused.code, 125);
    proa.ok(&["rm", "-f", "busy", "idle"]);
}
