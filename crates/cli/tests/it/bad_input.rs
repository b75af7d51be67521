//! What goes wrong is said in one or two lines with the right code, loses nothing and leaves nothing.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use crate::harness::{Output, Proa, Registry};

/// Asserts a failure with this code that names `what` and stays short, and that the image store is whole.
fn assert_refused(proa: &Proa, output: &Output, code: i32, what: &str) {
    assert_eq!(output.code, code, "{output:?}");
    assert!(output.stderr.contains(what), "no {what:?} in {output:?}");
    assert!((1..=3).contains(&output.stderr.lines().count()), "too much said: {output:?}");
    assert_eq!(output.stdout, "", "data and errors are kept apart: {output:?}");
    let check = proa.run(&["system", "check"]);
    assert_eq!(check.code, 0, "{check:?}");
}

#[test]
fn unknown_image() {
    let proa = Proa::new();
    let run = proa.run(&["run", "--pull", "never", "no/such:image", "true"]);
    assert_refused(&proa, &run, 125, "no/such:image");
    let malformed = proa.run(&["run", "UPPER/Case", "true"]);
    assert_refused(&proa, &malformed, 125, "UPPER/Case");
    let inspect = proa.run(&["image", "inspect", "nothing-here"]);
    assert_eq!(inspect.code, 1, "{inspect:?}");
    assert!(inspect.stderr.contains("nothing-here"), "{inspect:?}");
}

#[test]
fn unknown_in_registry() {
    let proa = Proa::new();
    let registry = Registry::start();
    let reference = format!("{}/no/such:tag", registry.address());
    let pull = proa.run(&["pull", &reference]);
    assert_refused(&proa, &pull, 1, "no/such");
    let nobody = proa.run(&["pull", "127.0.0.1:1/team/app:1"]);
    assert_refused(&proa, &nobody, 1, "127.0.0.1:1");
}

#[test]
fn wrong_digest_in_reference() {
    let proa = Proa::with_busybox();
    let registry = Registry::start();
    let reference = registry.push(&proa, "busybox", "team/app:1");
    let name = reference.trim_end_matches(":1");
    let digest = format!("{name}@sha256:{}", "0".repeat(64));
    let pull = proa.run(&["pull", &digest]);
    assert_refused(&proa, &pull, 1, "sha256:000");
}

/// How a registry lies about its largest blob.
#[derive(Clone, Copy)]
enum Lie {
    /// One byte is another.
    Flipped,
    /// The connection ends early, every time.
    Truncated,
    /// Bytes follow the end.
    Longer,
}

/// Stands before a registry and passes everything on, but for blobs, about which it lies.
struct LyingProxy {
    address: String,
}

impl LyingProxy {
    fn start(upstream: &str, lie: Lie) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let upstream: Arc<str> = upstream.into();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let upstream = Arc::clone(&upstream);
                thread::spawn(move || drop(relay(client, &upstream, lie)));
            }
        });
        Self { address }
    }
}

/// Serves one request and closes the connection.
fn relay(mut client: TcpStream, upstream: &str, lie: Lie) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte)? == 0 {
            return Ok(());
        }
        request.push(byte[0]);
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let lines = request.lines().filter(|line| !line.to_lowercase().starts_with("connection:"));
    let forwarded = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\r\n");
    let mut server = TcpStream::connect(upstream)?;
    write!(server, "{forwarded}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let is_layer = request.starts_with("GET") && request.contains("/blobs/") && answer.len() - body > 10_000;
    if is_layer {
        match lie {
            Lie::Flipped => answer[body + 5000] ^= 1,
            Lie::Truncated => answer.truncate(body + 5000),
            Lie::Longer => answer.extend_from_slice(b"more than was announced"),
        }
    }
    client.write_all(&answer)
}

fn pull_through(lie: Lie) -> (Proa, Output) {
    let registry = Registry::start();
    let pusher = Proa::with_busybox();
    registry.push(&pusher, "busybox", "team/app:1");
    let proxy = LyingProxy::start(registry.address(), lie);
    let proa = Proa::new();
    let output = proa.run(&["pull", "-q", &format!("{}/team/app:1", proxy.address)]);
    (proa, output)
}

#[test]
fn flipped_byte_in_layer() {
    let (proa, pull) = pull_through(Lie::Flipped);
    assert_refused(&proa, &pull, 1, "sha256:");
    assert_eq!(proa.run(&["images", "-q"]).stdout, "");
}

#[test]
fn truncated_layer() {
    let (proa, pull) = pull_through(Lie::Truncated);
    assert_refused(&proa, &pull, 1, "team/app");
    assert_eq!(proa.run(&["images", "-q"]).stdout, "");
}

#[test]
fn longer_layer() {
    let (proa, pull) = pull_through(Lie::Longer);
    // The announced length bounds what is read, so a tail is never seen; either way nothing wrong is stored.
    if pull.code == 0 {
        assert_eq!(proa.run(&["run", "--rm", pull.stdout.trim(), "true"]).code, 0);
    } else {
        assert_refused(&proa, &pull, 1, "sha256:");
    }
}

#[test]
fn registry_with_tls_and_password() {
    let proa = Proa::with_busybox();
    let registry = Registry::start_with_tls("captain", "s3cret");
    let reference = registry.push(&proa, "busybox", "team/app:1.2");
    let config = tempfile::tempdir().unwrap();
    let docker_config = config.path().to_str().unwrap();
    let call = |arguments: &[&str], input: &[u8]| {
        let mut command = proa.command(arguments);
        command.env("DOCKER_CONFIG", docker_config);
        proa.run_command(command, input)
    };
    let settings = registry.write_client_config(config.path(), registry.address());
    let pull = ["--config", &settings, "pull", "-q", &reference];
    let refused = call(&pull, b"");
    assert_refused(&proa, &refused, 1, "login");
    let login = ["--config", &settings, "login", "-u", "captain", "--password-stdin", registry.address()];
    let wrong = call(&login, b"guess\n");
    assert_eq!(wrong.code, 1, "{wrong:?}");
    let right = call(&login, b"s3cret\n");
    assert_eq!(right.code, 0, "{right:?}");
    proa.run(&["rmi", "busybox"]);
    let pulled = call(&pull, b"");
    assert_eq!(pulled.code, 0, "{pulled:?}");
    assert_eq!(proa.run(&["run", "--rm", &reference, "echo", "over TLS"]).stdout, "over TLS\n");
    // With another CA the server is not trusted, and that is said.
    let stranger = Registry::start_with_tls("captain", "s3cret");
    let settings = stranger.write_client_config(config.path(), registry.address());
    let untrusted = call(&["--config", &settings, "pull", "-q", &reference], b"");
    assert_eq!(untrusted.code, 1, "{untrusted:?}");
    assert!(untrusted.stderr.contains("certificate"), "{untrusted:?}");
}

#[test]
fn full_disk() {
    let directory = tempfile::tempdir().unwrap();
    let small = SmallDisk::mount(directory.path(), "3m");
    let tar = Proa::busybox_tar();
    let root = directory.path().to_str().unwrap();
    let proa = Proa::new();
    let mut command = Command::new(proa.binary());
    command.args(["--root", root, "import", tar, "busybox"]);
    let output = proa.run_command(command, b"");
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains("No space left") || output.stderr.contains("full"), "{output:?}");
    assert!(output.stderr.lines().count() <= 3, "{output:?}");
    let mut images = Command::new(proa.binary());
    images.args(["--root", root, "images", "-q"]);
    assert_eq!(proa.run_command(images, b"").stdout, "");
    // What the failed import wrote is gone again.
    let used: u64 =
        walk(directory.path()).iter().map(|path| fs::metadata(path).map_or(0, |meta| meta.len())).sum();
    assert!(used < 1_000_000, "{used} bytes are left");
    drop(small);
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            files.extend(walk(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}

/// A tmpfs of a few megabytes, unmounted when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &std::path::Path, size: &str) -> Self {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(at)
            .status();
        assert!(status.unwrap().success());
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

#[test]
fn missing_kernel() {
    let proa = Proa::with_busybox();
    let run =
        proa.run(&["run", "--rm", "--isolation", "vm", "--kernel", "/no/such/vmlinuz", "busybox", "true"]);
    assert_refused(&proa, &run, 125, "/no/such/vmlinuz");
    assert_eq!(proa.run(&["ps", "-aq"]).stdout, "");
    assert_eq!(proa.ok(&["system", "check"]), "");
}

#[test]
fn guest_larger_than_its_host() {
    let proa = Proa::with_busybox();
    let run = proa.run(&["run", "--rm", "--isolation", "vm", "-m", "1000g", "busybox", "true"]);
    assert_refused(&proa, &run, 125, "give it less with -m");
    assert_eq!(proa.run(&["ps", "-aq"]).stdout, "");
    assert_eq!(proa.ok(&["system", "check"]), "");
}

#[test]
fn unreadable_layer() {
    let proa = Proa::with_busybox();
    let image = proa.run(&["image", "inspect", "busybox"]);
    assert_eq!(image.code, 0);
    let layers = walk(&proa.root().join("image/layers"));
    let layer =
        layers.iter().find(|path| path.extension().is_some_and(|extension| extension == "erofs")).unwrap();
    let whole = fs::read(layer).unwrap();
    fs::write(layer, &whole[..512]).unwrap();
    for level in ["container", "vm"] {
        let run = proa.run(&["run", "--rm", "--isolation", level, "busybox", "true"]);
        assert_eq!(run.code, 125, "{level}: {run:?}");
        assert!(run.stderr.lines().count() <= 3, "{run:?}");
    }
    assert_ne!(proa.run(&["system", "check"]).code, 0, "the check must find the broken layer");
    fs::write(layer, whole).unwrap();
    assert_eq!(proa.run(&["run", "--rm", "busybox", "true"]).code, 0);
    assert_eq!(proa.run(&["ps", "-aq"]).stdout, "");
    // Nor has what did not start a place in a network.
    assert_eq!(proa.ok(&["system", "check"]), "");
}

#[test]
fn image_with_no_layers() {
    let proa = Proa::new();
    let tree = tempfile::tempdir().unwrap();
    let script = r#"
        set -e
        printf '{"architecture":"amd64","os":"linux","config":{"Cmd":["true"]},"rootfs":{"type":"layers","diff_ids":[]}}' > config.json
        printf '[{"Config":"config.json","RepoTags":["empty:1"],"Layers":[]}]' > manifest.json
        tar -cf empty.tar config.json manifest.json"#;
    assert!(Command::new("sh").args(["-c", script]).current_dir(tree.path()).status().unwrap().success());
    let archive = tree.path().join("empty.tar");
    let load = proa.run(&["load", "-i", archive.to_str().unwrap()]);
    if load.code != 0 {
        assert!(load.stderr.contains("layer"), "{load:?}");
        return;
    }
    for level in ["container", "vm"] {
        let run = proa.run(&["run", "--rm", "--isolation", level, "empty:1", "true"]);
        assert!([125, 127].contains(&run.code), "{level}: {run:?}");
        assert!(run.stderr.lines().count() <= 3, "{run:?}");
    }
    assert_eq!(proa.run(&["ps", "-aq"]).stdout, "");
}

#[test]
fn flags_that_mean_nothing_at_a_level() {
    let proa = Proa::with_busybox();
    let host = proa.run(&["run", "--rm", "--isolation", "vm", "--network", "host", "busybox", "true"]);
    assert_refused(&proa, &host, 125, "--network host");
    let kernel = proa.run(&["run", "--rm", "--kernel", "/boot/vmlinuz", "busybox", "true"]);
    assert_refused(&proa, &kernel, 125, "--kernel");
    let level = proa.run(&["run", "--rm", "--isolation", "hope", "busybox", "true"]);
    assert_refused(&proa, &level, 125, "hope");
}

#[test]
fn unknown_commands_and_flags() {
    let proa = Proa::new();
    for arguments in [&["rum", "busybox"][..], &["run", "--no-such-flag", "busybox"], &["ps", "--format"]] {
        let output = proa.run(arguments);
        assert!([1, 2, 125].contains(&output.code), "{output:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn one_winner_for_a_name() {
    let proa = Proa::with_busybox();
    let runs: Vec<_> =
        (0..12).map(|_| proa.spawn(&["create", "--name", "wanted", "busybox", "true"])).collect();
    let outputs: Vec<Output> = runs.into_iter().map(|run| run.finish()).collect();
    let (won, lost): (Vec<_>, Vec<_>) = outputs.iter().partition(|output| output.code == 0);
    assert_eq!(won.len(), 1, "{outputs:?}");
    for output in lost {
        assert_refused(&proa, output, 1, "wanted");
    }
    assert_eq!(proa.run(&["rm", "wanted"]).code, 0);
}
