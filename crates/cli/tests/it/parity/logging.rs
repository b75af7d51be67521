//! Log drivers, with real listeners.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use super::{Bed, at_both_levels};

at_both_levels!(
    short_files,
    attributes,
    unreadable,
    syslog_datagrams,
    syslog_stream,
    a_dead_server,
    dropping
);

/// Longest that a listener waits.
const LIMIT: Duration = Duration::from_secs(60);

fn short_files(bed: &Bed) {
    // More than the files keep would be lost by design; this is less.
    let options =
        ["--log-driver", "local", "--log-opt", "max-size=64k", "--log-opt", "max-file=50", "--label", "a=b"];
    bed.detach("short", &options, &["sh", "-c", "seq 1 20000; echo bad >&2; printf end; exec sleep 1000"]);
    let follower = bed.proa.spawn(&["logs", "-f", "short"]);
    bed.proa.wait_for("all lines", || bed.ok(&["logs", "short"]).ends_with("20000"));
    let directory = bed.ok(&["inspect", "--format", "{{.LogPath}}", "short"]);
    bed.proa.wait_for("a compressed file", || std::path::Path::new(&format!("{directory}.1.gz")).exists());
    bed.ok(&["kill", "short"]);
    let followed = follower.finish();
    let all = bed.proa(&["logs", "short"]);
    assert_eq!((all.stdout.len(), &*all.stderr), (followed.stdout.len(), "bad\n"), "{followed:?}");
    assert!(all.stdout == followed.stdout);
    let (numbers, end) = all.stdout.rsplit_once('\n').unwrap();
    assert!(numbers.lines().map(|line| line.parse::<u32>().unwrap()).eq(1..=20_000));
    assert_eq!(end, "end");
    assert_eq!(bed.proa(&["logs", "--tail", "3", "short"]).stdout, "20000\nend");
    assert!(bed.ok(&["logs", "-t", "--tail", "1", "short"]).ends_with("Z end"));
}

fn attributes(bed: &Bed) {
    let options = ["--label", "tier=one", "-e", "WHERE=far away", "--log-opt", "labels=tier,none"];
    let more = ["--log-opt", "env=WHERE", "--log-opt", "tag={{.Name}}/{{.ImageName}}"];
    bed.detach("told", &[&options[..], &more].concat(), &["echo", "hello"]);
    bed.ok(&["wait", "told"]);
    assert_eq!(bed.ok(&["logs", "told"]), "hello");
    let details = "WHERE=far+away,tag=told%2Fbusybox,tier=one hello";
    assert_eq!(bed.ok(&["logs", "--details", "told"]), details);
    let stamped = bed.ok(&["logs", "-t", "--details", "told"]);
    assert!(stamped.ends_with(&format!("Z {details}")), "{stamped}");
    let config = bed.ok(&["inspect", "--format", "{{json .HostConfig.LogConfig}}", "told"]);
    assert!(
        config.contains(r#""Type":"json-file""#) && config.contains(r#""labels":"tier,none""#),
        "{config}"
    );
}

fn unreadable(bed: &Bed) {
    bed.detach("silent", &["--log-driver", "none"], &["echo", "hello"]);
    bed.ok(&["wait", "silent"]);
    let refused = bed.proa(&["logs", "silent"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""));
    assert!(refused.stderr.contains("configured logging driver does not support reading"), "{refused:?}");
    assert_eq!(bed.ok(&["inspect", "--format", "{{.LogPath}}", "silent"]), "");
    assert_eq!(bed.run_ok(&["--log-driver", "none"], &["echo", "to the client"]), "to the client");
    for options in [&["--log-driver", "fluentd"][..], &["--log-opt", "colour=red"]] {
        let refused = bed.run(options, &["true"]);
        assert!(refused.code == 125 && refused.stderr.lines().count() <= 2, "{refused:?}");
    }
    let nobody = ["--log-driver", "syslog", "--log-opt", "syslog-address=unix:///no/such/socket"];
    let refused = bed.run(&nobody, &["true"]);
    assert!(refused.code == 125 && refused.stderr.contains("/no/such/socket"), "{refused:?}");
    // What the host's file says holds where nobody says otherwise.
    let directory = bed.directory();
    let file = directory.path().join("config.toml");
    std::fs::write(&file, "[log]\ndriver = 'local'\n[log.options]\nmax-file = '2'\n").unwrap();
    bed.proa.give(directory.path());
    let name = ["create", "--isolation", bed.level, "--name", "default", "busybox"];
    bed.ok(&[&["--config", file.to_str().unwrap()][..], &name].concat());
    let format = "{{.HostConfig.LogConfig.Type}} {{index .HostConfig.LogConfig.Config \"max-file\"}}";
    assert_eq!(bed.ok(&["inspect", "--format", format, "default"]), "local 2");
}

fn syslog_datagrams(bed: &Bed) {
    let directory = bed.directory();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = directory.path().join("log");
    let listener = UnixDatagram::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    listener.set_read_timeout(Some(LIMIT)).unwrap();
    let address = format!("syslog-address=unixgram://{}", path.display());
    let options = ["--log-driver", "syslog", "--log-opt", &address, "--log-opt", "tag={{.Name}}"];
    let more = ["--log-opt", "syslog-facility=local0", "--name", "sender"];
    bed.run_ok(&[&options[..], &more].concat(), &["sh", "-c", "echo one; sleep 0.2; echo two >&2"]);
    let mut bytes = [0; 4096];
    let mut next = || {
        let count = listener.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    };
    let (one, two) = (next(), next());
    assert!(one.starts_with("<134>") && one.contains(" sender[") && one.ends_with("]: one\n"), "{one}");
    assert!(two.starts_with("<131>") && two.ends_with("]: two\n"), "{two}");
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(LIMIT)).unwrap();
    let address = format!("syslog-address=udp://{}", server.local_addr().unwrap());
    let options =
        ["--log-driver", "syslog", "--log-opt", &address, "--log-opt", "syslog-format=rfc5424micro"];
    bed.run_ok(&options, &["echo", "three"]);
    let count = server.recv(&mut bytes).unwrap();
    let three = String::from_utf8_lossy(&bytes[..count]).into_owned();
    let words: Vec<&str> = three.split(' ').collect();
    assert!(words[0] == "<30>1" && words[1].ends_with('Z') && words[3].len() == 12, "{three}");
    assert_eq!((words[6], words[7]), ("-", "three\n"));
}

fn syslog_stream(bed: &Bed) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("syslog-address=tcp://{}", listener.local_addr().unwrap());
    let reader = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        BufReader::new(stream).lines().map(|line| line.unwrap()).collect::<Vec<_>>()
    });
    let options = ["--log-driver", "syslog", "--log-opt", &address, "--log-opt", "syslog-format=rfc3164"];
    bed.run_ok(&options, &["seq", "1", "20000"]);
    let lines = reader.join().unwrap();
    let numbers = lines.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<u32>().unwrap());
    assert!(numbers.eq(1..=20_000), "{} lines", lines.len());
}

/// A server that takes connections and nothing more.
fn dead_server() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("syslog-address=tcp://{}", listener.local_addr().unwrap());
    (listener, address)
}

fn a_dead_server(bed: &Bed) {
    let (_listener, address) = dead_server();
    let options = ["--log-driver", "syslog", "--log-opt", &address];
    // It writes until it must wait, and says how far it came.
    let script = "n=0; while :; do n=$((n + 1)); echo $n > /tmp/count; head -c 60000 /bin/busybox | od; done";
    bed.detach("stuck", &options, &["sh", "-c", script]);
    let count = || bed.proa(&["exec", "stuck", "cat", "/tmp/count"]).stdout;
    let mut last = (count(), Instant::now());
    bed.proa.wait_for("it to stand still", || {
        let now = count();
        if now != last.0 {
            last = (now, Instant::now());
        }
        !last.0.is_empty() && last.1.elapsed() > Duration::from_secs(3)
    });
    let before = Instant::now();
    bed.ok(&["stop", "-t", "1", "stuck"]);
    assert!(before.elapsed() < Duration::from_secs(20), "{:?}", before.elapsed());
    let format = ["--format", "{{.Action}} {{.Actor.Attributes.messages}}"];
    let filter = ["--filter", "event=log_lost"];
    let told = bed.ok(&[&["events", "--since", "1", "--until", "0s"][..], &filter, &format].concat());
    let lost = told.strip_prefix("log_lost ").and_then(|count| count.parse::<u64>().ok());
    assert!(lost.is_some_and(|lost| lost > 100), "{told}");
    bed.ok(&["rm", "stuck"]);
}

fn dropping(bed: &Bed) {
    let (listener, address) = dead_server();
    let options = ["--log-driver", "syslog", "--log-opt", &address, "--log-opt", "mode=non-blocking"];
    let more = ["--log-opt", "max-buffer-size=64k"];
    // More than all buffers on the way hold.
    let script = "head -c 12000000 /dev/zero | tr '\\0' x | fold -w 1000; echo; echo written > /tmp/done; \
                  while ! [ -e /tmp/go ]; do sleep 0.1; done; echo last";
    bed.detach("fast", &[&options[..], &more].concat(), &["sh", "-c", script]);
    bed.proa.wait_for("all to be written", || bed.proa(&["exec", "fast", "cat", "/tmp/done"]).code == 0);
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    bed.ok(&["exec", "fast", "touch", "/tmp/go"]);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    bed.ok(&["wait", "fast"]);
    let dropped: u64 = text
        .lines()
        .filter_map(|line| line.split("]: proa: ").nth(1)?.split(' ').next()?.parse::<u64>().ok())
        .sum();
    let got = text.lines().filter(|line| line.ends_with('x')).count() as u64;
    assert!(dropped > 0 && got + dropped == 12_000, "{got} and {dropped}");
    assert!(text.ends_with("]: last\n"), "{}", text.lines().last().unwrap_or_default());
}
