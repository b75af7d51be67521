//! What the tests of store, registries and archives share: images made here, Debian's registry, and a registry
//! of our own that misbehaves on demand.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proa_image::{Event, Image, Progress, PullOptions, RegistryOptions, Result, Store};
use proa_oci::image::{Descriptor, Index, Manifest, Platform, media_type};
use proa_oci::reference::{Algorithm, Digest, Reference};
use sha2::Digest as _;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_hash(Algorithm::Sha256, &sha2::Sha256::digest(bytes)).unwrap()
}

/// An image as documents and blobs.
#[derive(Clone)]
pub struct TestImage {
    pub blobs: HashMap<Digest, Vec<u8>>,
    pub manifest: Vec<u8>,
    pub config: Digest,
    pub layers: Vec<Digest>,
}

#[derive(Clone, Copy)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// A tar with one directory and some files that `seed` tells apart.
pub fn tarball(seed: u64, files: usize, size: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for number in 0..files {
        let content: Vec<u8> = (0..size)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 60) as u8 + b'a'
            })
            .collect();
        let mut header = tar::Header::new_ustar();
        header.set_size(size as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("data/{seed}/file{number}"), content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

pub fn pack(bytes: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain => bytes.to_vec(),
        Packing::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Packing::Zstd => zstd::encode_all(bytes, 1).unwrap(),
    }
}

impl TestImage {
    /// An image of these layers.
    pub fn new(layers: &[(Vec<u8>, Packing)]) -> Self {
        let diff_ids: Vec<Digest> = layers.iter().map(|(tar, _)| sha256(tar)).collect();
        Self::with_diff_ids(layers, &diff_ids)
    }

    /// An image whose config says what it likes of its layers.
    pub fn with_diff_ids(layers: &[(Vec<u8>, Packing)], diff_ids: &[Digest]) -> Self {
        let host = Platform::host();
        let config = serde_json::json!({
            "architecture": host.architecture, "os": host.os, "created": "2024-01-02T03:04:05Z",
            "config": {"Cmd": ["sh"], "Env": ["A=b"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": "test"}],
        });
        let config = serde_json::to_vec(&config).unwrap();
        let mut blobs = HashMap::new();
        let mut descriptors = Vec::new();
        for (tar, packing) in layers {
            let (bytes, kind) = (pack(tar, *packing), kind_of(*packing));
            descriptors.push(Descriptor::new(kind, sha256(&bytes), bytes.len() as u64));
            blobs.insert(sha256(&bytes), bytes);
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            config: Descriptor::new(media_type::OCI_CONFIG, sha256(&config), config.len() as u64),
            layers: descriptors.clone(),
            annotations: Default::default(),
        };
        let id = sha256(&config);
        blobs.insert(id.clone(), config);
        let layers = descriptors.into_iter().map(|layer| layer.digest).collect();
        Self { blobs, manifest: serde_json::to_vec(&manifest).unwrap(), config: id, layers }
    }

    /// A small image that `seed` tells apart.
    pub fn small(seed: u64) -> Self {
        Self::new(&[(tarball(seed, 3, 2000), Packing::Gzip), (tarball(seed + 1000, 2, 300), Packing::Gzip)])
    }

    pub fn digest(&self) -> Digest {
        sha256(&self.manifest)
    }

    /// The image as an OCI archive, under a name.
    pub fn archive(&self, name: &str) -> Vec<u8> {
        let mut descriptor =
            Descriptor::new(media_type::OCI_MANIFEST, self.digest(), self.manifest.len() as u64);
        let key = "org.opencontainers.image.ref.name".to_owned();
        descriptor.annotations.insert(key, name.to_owned());
        let index = Index {
            schema_version: 2,
            media_type: None,
            manifests: vec![descriptor],
            annotations: Default::default(),
        };
        let mut members = vec![
            ("index.json".to_owned(), serde_json::to_vec(&index).unwrap()),
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            (format!("blobs/sha256/{}", self.digest().hex()), self.manifest.clone()),
        ];
        members
            .extend(self.blobs.iter().map(|(d, bytes)| (format!("blobs/sha256/{}", d.hex()), bytes.clone())));
        archive_of(&members)
    }
}

fn kind_of(packing: Packing) -> &'static str {
    match packing {
        Packing::Plain => media_type::OCI_LAYER,
        Packing::Gzip => media_type::OCI_LAYER_GZIP,
        Packing::Zstd => media_type::OCI_LAYER_ZSTD,
    }
}

/// A tar of these files.
pub fn archive_of(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A store in a directory of its own.
pub struct TestStore {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl TestStore {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        Self { dir, store }
    }

    pub fn load(&self, image: &TestImage, name: &str) -> Image {
        let archive = image.archive(name);
        let mut loaded =
            proa_image::archive::load(&self.store, archive.as_slice(), &PullOptions::default(), &()).unwrap();
        loaded.remove(0).image
    }

    /// Every file below the store but the database's, relative to it.
    pub fn files(&self) -> Vec<PathBuf> {
        let root = self.dir.path().join("image");
        let mut found = Vec::new();
        let mut todo = vec![root.clone()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    todo.push(entry.path());
                } else {
                    found.push(entry.path().strip_prefix(&root).unwrap().to_owned());
                }
            }
        }
        found.retain(|path| {
            !path.to_string_lossy().starts_with("store.db") && path != Path::new("oci-layout")
        });
        found.sort();
        found
    }

    /// Nothing is wrong and nothing lies about.
    pub fn assert_sound(&self) {
        assert_eq!(self.store.check(false, true, &()).unwrap(), []);
        let litter: Vec<_> = self
            .files()
            .into_iter()
            .filter(|path| path.starts_with("tmp") || path.starts_with("locks"))
            .collect();
        assert_eq!(litter, Vec::<PathBuf>::new());
        assert_eq!(fs::read_dir(self.dir.path().join("image/tmp")).unwrap().count(), 0);
    }

    /// No image, and nothing of one.
    pub fn assert_empty(&self) {
        assert!(self.store.list().unwrap().is_empty());
        self.store.collect(&()).unwrap();
        assert_eq!(self.files(), Vec::<PathBuf>::new());
        assert_eq!(fs::read_dir(self.dir.path().join("image/tmp")).unwrap().count(), 0);
    }

    pub fn pull(&self, reference: &str, options: &PullOptions) -> Result<Image> {
        proa_image::pull(&self.store, &Reference::parse(reference).unwrap(), options, &())
    }
}

/// Options that see nothing of this machine's configuration.
pub fn options() -> PullOptions {
    PullOptions { registry: registry_options(), ..PullOptions::default() }
}

pub fn registry_options() -> RegistryOptions {
    RegistryOptions { cert_dirs: Vec::new(), ..RegistryOptions::default() }
}

/// Remembers what it was told.
#[derive(Default)]
pub struct Recorder(Mutex<Vec<String>>);

impl Progress for Recorder {
    fn event(&self, event: Event<'_>) {
        let name = format!("{event:?}");
        let name = name.split([' ', '(']).next().unwrap().to_owned();
        self.0.lock().unwrap().push(name);
    }
}

impl Recorder {
    pub fn count(&self, name: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|event| *event == name).count()
    }
}

/// Runs a program that must be there and succeed.
pub fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed by this test: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    output
}

/// Waits until `probe` gives something.
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Debian's `docker-registry`, killed when dropped.
pub struct DebianRegistry {
    child: Child,
    pub port: u16,
    pub dir: tempfile::TempDir,
}

impl DebianRegistry {
    /// Without encryption or password.
    pub fn plain() -> Self {
        Self::start(|_| String::new())
    }

    /// `extra` gets the registry's directory and gives more lines of its configuration.
    pub fn start(extra: impl Fn(&Path) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let more = extra(dir.path());
        let (path, log) = (dir.path().join("config.yml"), dir.path().join("log"));
        loop {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let config = format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http:\n  addr: 127.0.0.1:{port}\n{more}",
                dir.path().join("data").display()
            );
            fs::write(&path, config).unwrap();
            let mut command = Command::new("docker-registry");
            command.arg("serve").arg(&path).stdin(Stdio::null()).stdout(Stdio::null());
            let child = command.stderr(fs::File::create(&log).unwrap()).spawn();
            let mut child = child.expect("docker-registry (Debian package) is needed");
            let up = wait_for("the registry", || match child.try_wait().unwrap() {
                Some(_) => Some(false),
                None => TcpStream::connect(("127.0.0.1", port)).ok().map(|_| true),
            });
            if up {
                return Self { child, port, dir };
            }
            // Another process took the port in between, or the configuration is wrong.
            let said = fs::read_to_string(&log).unwrap();
            assert!(said.contains("address already in use"), "docker-registry: {said}");
        }
    }

    /// `localhost:PORT/NAME`.
    pub fn name(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.port)
    }
}

impl Drop for DebianRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request as our own server sees it.
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
}

/// An answer to be written.
pub struct Reply {
    pub status: &'static str,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Send only so many bytes of the body, then cut the connection.
    pub cut: Option<usize>,
    /// Claim this length.
    pub length: Option<usize>,
    /// Keep the connection and say no more, until the client leaves.
    pub silent: bool,
}

impl Reply {
    pub fn new(status: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None, length: None, silent: false }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::new("200 OK", body)
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn cut(mut self, at: usize) -> Self {
        self.cut = Some(at);
        self
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A small HTTP server; stops when dropped.
pub struct Server {
    pub port: u16,
    stop: Arc<AtomicBool>,
    pub log: Arc<Mutex<Vec<String>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, log) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let handler: Arc<Handler> = Arc::new(handler);
        let thread = std::thread::spawn({
            let (stop, log) = (stop.clone(), log.clone());
            move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (Ok(stream), handler, log) = (stream, handler.clone(), log.clone()) else { continue };
                    std::thread::spawn(move || serve(stream, &*handler, &log));
                }
            }
        });
        Self { port, stop, log, thread: Some(thread) }
    }

    pub fn name(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.port)
    }

    /// How many requests held this text.
    pub fn requests(&self, part: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(part)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn serve(stream: TcpStream, handler: &Handler, log: &Mutex<Vec<String>>) {
    let mut first = [0];
    // A TLS greeting is refused at once, as every registry does that speaks plain HTTP.
    if !matches!(stream.peek(&mut first), Ok(1)) || first[0] == 0x16 {
        return;
    }
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(request) = read_request(&mut reader) {
        let range = request.headers.get("range").map_or("", String::as_str);
        log.lock().unwrap().push(format!("{} {} {range}", request.method, request.path));
        let reply = handler(&request);
        let silent = reply.silent;
        let goes_on = write_reply(&stream, reply, request.method == "HEAD");
        if silent {
            let _ = reader.read(&mut [0]);
        }
        if !goes_on {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    reader.take(length).read_to_end(&mut Vec::new()).ok()?;
    Some(Request { method, path, headers })
}

/// Whether the connection goes on.
fn write_reply(mut stream: &TcpStream, reply: Reply, head_only: bool) -> bool {
    let length = reply.length.unwrap_or(reply.body.len());
    let mut text = format!("HTTP/1.1 {}\r\nContent-Length: {length}\r\n", reply.status);
    for (name, value) in &reply.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    let body = if head_only { &[][..] } else { &reply.body[..reply.cut.unwrap_or(reply.body.len())] };
    let sent = stream.write_all(text.as_bytes()).and_then(|()| stream.write_all(body));
    sent.is_ok() && reply.cut.is_none() && reply.length.is_none()
}

/// Answers as a registry that has this image under any name.
pub fn serve_image(image: &TestImage, request: &Request) -> Reply {
    let Some(rest) = request.path.strip_prefix("/v2/").and_then(|rest| rest.split_once('/')) else {
        return Reply::ok("{}");
    };
    match rest.1.split_once('/') {
        Some(("manifests", _)) => {
            Reply::ok(image.manifest.clone()).header("Content-Type", media_type::OCI_MANIFEST)
        }
        Some(("blobs", digest)) => {
            match digest.parse().ok().and_then(|digest: Digest| image.blobs.get(&digest)) {
                Some(bytes) => ranged(bytes, request),
                None => Reply::new("404 Not Found", "{}"),
            }
        }
        _ => Reply::new("404 Not Found", "{}"),
    }
}

/// The bytes, or those from where the request asks on.
pub fn ranged(bytes: &[u8], request: &Request) -> Reply {
    let start = request
        .headers
        .get("range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match start {
        Some(start) if start < bytes.len() => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Reply::new("206 Partial Content", bytes[start..].to_vec()).header("Content-Range", range)
        }
        _ => Reply::ok(bytes.to_vec()),
    }
}
