//! `--systemd-cgroup`, with a bus and a systemd of the test's own: it takes D-Bus calls apart by itself, and does with
//! cgroups what systemd does. And once with a real bus, on which nobody is systemd.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};

use proa_oci::runtime::{Cpu, Memory, Pids};

use crate::support::{Bundle, stdout, wait};

/// What systemd was asked for: the method, and all that its body holds.
type Asked = (String, Vec<Value>);

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
}

impl Value {
    fn text(&self) -> &str {
        let Self::Text(text) = self else { panic!("{self:?}") };
        text
    }

    fn list(&self) -> &[Value] {
        let Self::List(list) = self else { panic!("{self:?}") };
        list
    }

    /// Of an array of properties.
    fn property(&self, name: &str) -> Option<&Value> {
        self.list().iter().map(Self::list).find(|pair| pair[0].text() == name).map(|pair| &pair[1])
    }
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// Reads values by their signature.
struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Decoder<'_> {
    fn integer(&mut self, size: usize) -> u64 {
        self.at = self.at.next_multiple_of(size);
        let bytes = &self.bytes[self.at..self.at + size];
        self.at += size;
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn string(&mut self, length_size: usize) -> String {
        let length = self.integer(length_size) as usize;
        let text = String::from_utf8(self.bytes[self.at..self.at + length].to_vec()).unwrap();
        assert_eq!(self.bytes[self.at + length], 0, "a text ends");
        self.at += length + 1;
        text
    }

    /// One value, and what of the signature is left.
    fn value<'s>(&mut self, signature: &'s str) -> (Value, &'s str) {
        let rest = &signature[1..];
        let value = match &signature[..1] {
            "y" => Value::Number(self.integer(1)),
            "b" | "u" | "i" => Value::Number(self.integer(4)),
            "t" => Value::Number(self.integer(8)),
            "s" | "o" => Value::Text(self.string(4)),
            "g" => Value::Text(self.string(1)),
            "v" => {
                let inner = self.string(1);
                let (value, rest) = self.value(&inner);
                assert_eq!(rest, "");
                value
            }
            "(" => {
                self.at = self.at.next_multiple_of(8);
                let (mut list, mut rest) = (Vec::new(), rest);
                while !rest.starts_with(')') {
                    let (value, left) = self.value(rest);
                    list.push(value);
                    rest = left;
                }
                return (Value::List(list), &rest[1..]);
            }
            "a" => {
                let length = self.integer(4) as usize;
                let alignment = match &rest[..1] {
                    "(" | "t" => 8,
                    "y" => 1,
                    _ => 4,
                };
                self.at = self.at.next_multiple_of(alignment);
                let end = self.at + length;
                let mut list = Vec::new();
                while self.at < end {
                    list.push(self.value(rest).0);
                }
                assert_eq!(self.at, end, "an array has the length that it says");
                return (Value::List(list), &rest[element(rest)..]);
            }
            other => panic!("{other}"),
        };
        (value, rest)
    }
}

/// Length of the first complete type.
fn element(signature: &str) -> usize {
    match signature.as_bytes()[0] {
        b'a' => 1 + element(&signature[1..]),
        b'(' => {
            let mut at = 1;
            while signature.as_bytes()[at] != b')' {
                at += element(&signature[at..]);
            }
            at + 1
        }
        _ => 1,
    }
}

/// A message of the server's.
fn message(kind: u8, fields: &[(u8, &str, &str)], reply_to: u32, signature: &str, texts: &[&str]) -> Vec<u8> {
    let align = |bytes: &mut Vec<u8>, to: usize| bytes.resize(bytes.len().next_multiple_of(to), 0);
    let string = |bytes: &mut Vec<u8>, text: &str| {
        align(bytes, 4);
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.push(0);
    };
    let mut body = Vec::new();
    for (code, text) in signature.chars().zip(texts) {
        match code {
            'u' => {
                align(&mut body, 4);
                body.extend(text.parse::<u32>().unwrap().to_le_bytes());
            }
            _ => string(&mut body, text),
        }
    }
    let mut header = Vec::new();
    header.extend([5, 1, b'u', 0]);
    header.extend(reply_to.to_le_bytes());
    for (code, kind, text) in fields {
        align(&mut header, 8);
        header.extend([*code, 1, kind.as_bytes()[0], 0]);
        string(&mut header, text);
    }
    if !signature.is_empty() {
        align(&mut header, 8);
        header.extend([8, 1, b'g', 0, signature.len() as u8]);
        header.extend(signature.as_bytes());
        header.push(0);
    }
    let mut bytes = vec![b'l', kind, 1, 1];
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(9_u32.to_le_bytes());
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend(header);
    align(&mut bytes, 8);
    bytes.extend(body);
    bytes
}

/// A bus, on which systemd is.
struct Server {
    address: String,
    asked: Receiver<Asked>,
}

/// How the server answers a `StartTransientUnit`.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Works,
    /// The name is taken by a unit that has failed.
    HasLeftover,
    /// The job is cancelled.
    Cancels,
}

fn serve(bundle: &Bundle, mood: Mood) -> Server {
    let socket = bundle.path("bus");
    let listener = UnixListener::bind(&socket).unwrap();
    let (sender, asked) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let sender = sender.clone();
            std::thread::spawn(move || client(stream.unwrap(), &sender, mood));
        }
    });
    Server { address: format!("unix:path={}", socket.display()), asked }
}

fn client(stream: UnixStream, sender: &Sender<Asked>, mut mood: Mood) {
    let mut input = BufReader::new(stream.try_clone().unwrap());
    let mut output = stream;
    let mut byte = [0];
    input.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [0]);
    for (wanted, answer) in
        [("AUTH EXTERNAL\r\n", "DATA\r\n"), ("DATA\r\n", "OK 0123\r\n"), ("BEGIN\r\n", "")]
    {
        let mut line = String::new();
        input.read_line(&mut line).unwrap();
        assert_eq!(line, wanted);
        output.write_all(answer.as_bytes()).unwrap();
    }
    while let Some((serial, member, body)) = receive(&mut input) {
        let reply = |signature, texts: &[&str]| message(2, &[], serial, signature, texts);
        let answer = match member.as_str() {
            "Hello" => reply("s", &[":1.7"]),
            "StartTransientUnit" if mood == Mood::HasLeftover => {
                mood = Mood::Works;
                message(3, &[(4, "s", "org.freedesktop.systemd1.UnitExists")], serial, "s", &["taken"])
            }
            "StartTransientUnit" => {
                let result = if mood == Mood::Cancels { "canceled" } else { "done" };
                if mood == Mood::Works {
                    start_unit(&body);
                }
                // Somebody else's job, and ours before the answer: the order is not systemd's to choose.
                output.write_all(&removed("/job/6", &body, result)).unwrap();
                output.write_all(&removed("/job/7", &body, result)).unwrap();
                reply("o", &["/job/7"])
            }
            "StopUnit" => {
                output.write_all(&removed("/job/8", &body, "done")).unwrap();
                reply("o", &["/job/8"])
            }
            _ => reply("", &[]),
        };
        sender.send((member, body)).unwrap();
        output.write_all(&answer).unwrap();
    }
}

/// The signal that tells of the end of a job, of the unit that a call named.
fn removed(job: &str, body: &[Value], result: &str) -> Vec<u8> {
    let fields = [
        (1, "o", "/org/freedesktop/systemd1"),
        (2, "s", "org.freedesktop.systemd1.Manager"),
        (3, "s", "JobRemoved"),
    ];
    message(4, &fields, 0, "uoss", &["7", job, body[0].text(), result])
}

fn receive(input: &mut impl Read) -> Option<(u32, String, Vec<Value>)> {
    let mut head = [0; 16];
    input.read_exact(&mut head).ok()?;
    let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
    let (body, serial, fields) = (number(4) as usize, number(8), number(12) as usize);
    let begin = (16 + fields).next_multiple_of(8);
    let mut bytes = head.to_vec();
    bytes.resize(begin + body, 0);
    input.read_exact(&mut bytes[16..]).unwrap();
    let mut decoder = Decoder { bytes: &bytes[..16 + fields], at: 12 };
    let (fields, _) = decoder.value("a(yv)");
    let field = |code: u64| {
        let found = fields.list().iter().map(Value::list).find(|pair| pair[0] == Value::Number(code));
        found.map(|pair| pair[1].text().to_owned()).unwrap_or_default()
    };
    let (member, signature) = (field(3), field(8));
    let mut decoder = Decoder { bytes: &bytes[begin..], at: 0 };
    let (mut values, mut rest) = (Vec::new(), signature.as_str());
    while !rest.is_empty() {
        let (value, left) = decoder.value(rest);
        values.push(value);
        rest = left;
    }
    assert_eq!(decoder.at, body, "{member}: nothing stands behind the body");
    Some((serial, member, values))
}

/// The hierarchies in which systemd makes units: its own, or the only one.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    ["systemd", "unified"].iter().map(|name| root.join(name)).filter(|path| path.exists()).collect()
}

fn start_unit(body: &[Value]) {
    let slice = body[2].property("Slice").unwrap().text();
    for hierarchy in hierarchies() {
        let dir = hierarchy.join(slice).join(body[0].text());
        fs::create_dir_all(&dir).unwrap();
        for pid in body[2].property("PIDs").unwrap().list() {
            let Value::Number(pid) = pid else { panic!() };
            fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
        }
    }
}

/// What is in the scope, and the units' directories are gone when all is over.
fn scope(bundle: &Bundle) -> Vec<PathBuf> {
    let unit = format!("test-{}.scope", bundle.id);
    hierarchies().into_iter().map(|hierarchy| hierarchy.join("proatest.slice").join(&unit)).collect()
}

fn in_slice(mut bundle: Bundle) -> Bundle {
    bundle.spec.linux_mut().cgroups_path = Some(format!("proatest.slice:test:{}", bundle.id));
    bundle
}

fn run(bundle: &Bundle, address: &str, args: &[&str]) -> Output {
    let mut command = bundle.command(&["--systemd-cgroup"]);
    command.env("DBUS_SYSTEM_BUS_ADDRESS", address).args(args).output().unwrap()
}

fn create(bundle: &Bundle, address: &str) -> Output {
    bundle.write();
    let errors = fs::File::create(bundle.path("errors")).unwrap();
    let mut command = bundle.command(&["--systemd-cgroup", "create", "--bundle"]);
    command.arg(bundle.path("")).arg(&bundle.id).env("DBUS_SYSTEM_BUS_ADDRESS", address);
    let status = command.stdout(Stdio::null()).stderr(errors).status().unwrap();
    Output { status, stdout: Vec::new(), stderr: fs::read(bundle.path("errors")).unwrap() }
}

/// All that was asked for so far.
fn asked(server: &Server, method: &str) -> Vec<Vec<Value>> {
    server.asked.try_iter().filter(|(member, _)| member == method).map(|(_, body)| body).collect()
}

#[test]
fn a_container_runs_in_a_scope_with_its_limits() {
    let bundle = in_slice(Bundle::program(&["/bin/sleep", "1000"])).with(|spec| {
        let resources = spec.linux_mut().resources.get_or_insert_default();
        resources.memory = Some(Memory { limit: Some(64 << 20), ..Memory::default() });
        resources.cpu = Some(Cpu { quota: Some(50_000), period: Some(100_000), ..Cpu::default() });
        resources.pids = Some(Pids { limit: 33 });
        spec.annotations.insert("org.systemd.property.TimeoutStopUSec".into(), "uint64 5000000".into());
    });
    let server = serve(&bundle, Mood::Works);
    let created = create(&bundle, &server.address);
    assert!(created.status.success(), "{created:?}");
    let start = asked(&server, "StartTransientUnit").remove(0);
    assert_eq!(start[..2], [text(&format!("test-{}.scope", bundle.id)), text("replace")]);
    let memory = if hierarchies().len() == 1 { "MemoryMax" } else { "MemoryLimit" };
    for (name, value) in [
        ("Slice", text("proatest.slice")),
        ("Delegate", Value::Number(1)),
        ("DefaultDependencies", Value::Number(0)),
        ("PIDs", Value::List(vec![Value::Number(bundle.pid().into())])),
        (memory, Value::Number(64 << 20)),
        ("CPUQuotaPerSecUSec", Value::Number(500_000)),
        ("TasksMax", Value::Number(33)),
        ("TimeoutStopUSec", Value::Number(5_000_000)),
        ("DevicePolicy", text("strict")),
    ] {
        assert_eq!(start[2].property(name), Some(&value), "{name}");
    }
    assert_eq!(start[3], Value::List(Vec::new()));
    // It is a container like any other: without the option too, since it is written down.
    let pid = bundle.pid().to_string();
    for dir in scope(&bundle) {
        assert_eq!(fs::read_to_string(dir.join("cgroup.procs")).unwrap().trim(), pid, "{}", dir.display());
    }
    bundle.ok(&["start", &bundle.id]);
    let seen = bundle.ok(&["exec", &bundle.id, "cat", "/proc/self/cgroup"]);
    assert!(seen.lines().any(|line| line.contains(":pids:") || line.starts_with("0::")), "{seen}");
    let event: serde_json::Value =
        serde_json::from_str(&bundle.ok(&["events", "--stats", &bundle.id])).unwrap();
    assert_eq!(event["data"]["pids"]["limit"], 33);
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.status(), "paused");
    bundle.ok(&["resume", &bundle.id]);
    // A new limit is written, and systemd is told.
    let updated = run(&bundle, &server.address, &["update", "--pids-limit", "44", &bundle.id]);
    assert!(updated.status.success(), "{updated:?}");
    let set = asked(&server, "SetUnitProperties").remove(0);
    assert_eq!(set[..2], [start[0].clone(), Value::Number(1)]);
    assert_eq!(set[2].property("TasksMax"), Some(&Value::Number(44)));
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait_status("stopped");
    bundle.ok(&["delete", &bundle.id]);
    gone(&bundle);
}

/// The scope is gone from every hierarchy; the slice is this test's, and its parent's to remove.
fn gone(bundle: &Bundle) {
    bundle.assert_gone();
    for dir in
        fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path()).chain(hierarchies())
    {
        let unit = dir.join("proatest.slice").join(format!("test-{}.scope", bundle.id));
        wait("the scope goes", || !unit.exists());
        // Another test may have one in it.
        let _ = fs::remove_dir(dir.join("proatest.slice"));
    }
}

#[test]
fn run_waits_for_the_end_and_leaves_no_scope() {
    let bundle = in_slice(Bundle::program(&["/bin/cat", "/proc/self/cgroup"]));
    let server = serve(&bundle, Mood::HasLeftover);
    bundle.write();
    let path = bundle.path("");
    let output = run(&bundle, &server.address, &["run", "--bundle", path.to_str().unwrap(), &bundle.id]);
    assert!(output.status.success() && !stdout(&output).is_empty(), "{output:?}");
    let all: Vec<String> = server.asked.try_iter().map(|(member, _)| member).collect();
    let calls: Vec<&str> = all.iter().map(String::as_str).filter(|name| *name != "Hello").collect();
    let listen = ["AddMatch", "Subscribe"];
    let start = ["StartTransientUnit", "ResetFailedUnit", "StartTransientUnit"];
    assert_eq!(calls, [&listen[..], &start, &listen, &["StopUnit"]].concat());
    gone(&bundle);
}

#[test]
fn what_systemd_does_not_do_is_an_error_and_nothing_is_left() {
    let bundle = in_slice(Bundle::program(&["/bin/true"]));
    let server = serve(&bundle, Mood::Cancels);
    let created = create(&bundle, &server.address);
    let error = String::from_utf8_lossy(&created.stderr).into_owned();
    assert!(
        !created.status.success() && error.contains(".scope: systemd did not start it: canceled"),
        "{error}"
    );
    gone(&bundle);
    let created = create(&bundle, "unix:path=/no/such/bus");
    let error = String::from_utf8_lossy(&created.stderr).into_owned();
    assert!(!created.status.success(), "{created:?}");
    for part in ["--systemd-cgroup", "/no/such/bus", "--cgroup-manager cgroupfs"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    gone(&bundle);
    let plain = bundle.with(|spec| spec.linux_mut().cgroups_path = Some("/plain/path".into()));
    let created = create(&plain, &server.address);
    let error = String::from_utf8_lossy(&created.stderr).into_owned();
    assert!(error.contains("/plain/path") && error.contains("slice:prefix:name"), "{error}");
    plain.assert_gone();
}

/// A bus as systems have it lets us in, and says that there is no systemd.
#[test]
fn a_real_bus_without_systemd_says_so() {
    let bundle = in_slice(Bundle::program(&["/bin/true"]));
    let address = format!("unix:path={}", bundle.path("real").display());
    let config = bundle.path("bus.conf");
    let text = format!(
        "<busconfig><listen>{address}</listen><auth>EXTERNAL</auth><policy context=\"default\"><allow user=\"*\"/>\
         <allow own=\"*\"/><allow send_type=\"method_call\"/><allow receive_type=\"method_return\"/>\
         <allow receive_type=\"error\"/><allow receive_type=\"signal\"/></policy></busconfig>"
    );
    fs::write(&config, text).unwrap();
    let mut daemon = Command::new("dbus-daemon")
        .args(["--nofork", "--nosyslog", "--config-file"])
        .arg(&config)
        .spawn()
        .expect("this test needs Debian's dbus-daemon");
    wait("the bus", || bundle.path("real").exists());
    let created = create(&bundle, &address);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let error = String::from_utf8_lossy(&created.stderr).into_owned();
    assert!(
        !created.status.success() && error.contains("org.freedesktop.DBus.Error.ServiceUnknown"),
        "{error}"
    );
    gone(&bundle);
}
