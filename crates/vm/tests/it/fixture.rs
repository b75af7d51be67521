//! A guest for tests: a busybox image as layers, the agent, and a client that speaks frames.

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use proa_oci::runtime::{Capabilities, Mount, Namespace, NamespaceKind, Process, Root, Spec};
use proa_protocol::frame::{Decoder, Frame, Kind};
use proa_protocol::message::{ExitStatus, GuestConfig, LaunchConfig, Request, Response};
use proa_vm::{Share, Vm, VmError, VmExit, VmSpec, plan_shares};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Many times what an emulated boot takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(90);

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .and_then(Path::parent)
        .expect("crates/vm is two levels down")
}

/// Kernels are fetched once and kept for all tests.
pub fn store() -> PathBuf {
    let cache = std::env::var_os("PROA_TEST_CACHE").map(PathBuf::from);
    cache.unwrap_or_else(|| workspace().join("target/test-cache")).join("vm")
}

/// One of the programs under test.
pub fn program(name: &str) -> PathBuf {
    let built = std::env::var_os("PROA_TEST_BIN").map(PathBuf::from);
    let path = built.unwrap_or_else(|| workspace().join("target/dist")).join(name);
    assert!(path.exists(), "{} is missing; build it: cargo xtask dist", path.display());
    path
}

/// A directory with what one guest needs; it goes away with its owner.
pub struct Setup {
    pub scratch: tempfile::TempDir,
    pub spec: VmSpec,
    pub config: Spec,
}

impl Setup {
    /// A guest with busybox in its only layer that runs `script` with `sh -c`.
    pub fn new(script: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let run_dir = scratch.path().join("run");
        fs::create_dir(&run_dir).unwrap();
        let layer = scratch.path().join("busybox.erofs");
        make_layer(&layer, |root| {
            for directory in ["bin", "proc", "dev", "sys", "tmp", "etc"] {
                fs::create_dir(root.join(directory)).unwrap();
            }
            fs::copy("/bin/busybox", root.join("bin/busybox"))
                .expect("busybox-static is needed for this test");
            std::os::unix::fs::symlink("busybox", root.join("bin/sh")).unwrap();
        });
        let spec = VmSpec {
            id: format!("test{}", std::process::id()),
            agent: program("proa-agent"),
            store: store(),
            rw_disk: scratch.path().join("rw.img"),
            run_dir,
            layers: vec![layer],
            memory: 256 << 20,
            ..VmSpec::default()
        };
        Self { scratch, spec, config: runtime_spec(script) }
    }

    /// Adds a layer above the others.
    pub fn add_layer(&mut self, fill: impl FnOnce(&Path)) {
        let path = self.scratch.path().join(format!("layer{}.erofs", self.spec.layers.len()));
        make_layer(&path, fill);
        self.spec.layers.push(path);
    }

    /// Shows a path of the host at `target` in the instance.
    pub fn bind(&mut self, source: &Path, target: &str, options: &[&str]) {
        self.config.mounts.push(Mount {
            destination: target.to_owned(),
            kind: Some("bind".to_owned()),
            source: Some(source.to_string_lossy().into_owned()),
            options: options.iter().map(|option| option.to_string()).collect(),
            ..Mount::default()
        });
    }

    /// Runs another script from now on.
    pub fn script(&mut self, script: &str) {
        let process = self.config.process.as_mut().unwrap();
        *process.args.last_mut().unwrap() = script.to_owned();
    }

    /// Runs scripts by busybox itself, for a root that has no `/bin/sh`.
    pub fn call_busybox(&mut self) {
        let process = self.config.process.as_mut().unwrap();
        process.args[0] = "/bin/busybox".to_owned();
        process.args.insert(1, "sh".to_owned());
    }

    /// Gives the program these capabilities.
    pub fn grant(&mut self, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        self.config.process.as_mut().unwrap().capabilities = Some(Capabilities {
            bounding: names.clone(),
            effective: names.clone(),
            permitted: names,
            ..Capabilities::default()
        });
    }

    pub fn boot(&mut self) -> Guest {
        let (guest, answer) = self.try_boot();
        assert_eq!(answer, Response::Ok, "{answer:?}");
        guest
    }

    /// Boots a guest whose agent refuses its configuration; why.
    pub fn boot_refused(&mut self) -> String {
        match self.try_boot().1 {
            Response::Error { message, .. } => message,
            other => panic!("{other:?}"),
        }
    }

    fn try_boot(&mut self) -> (Guest, Response) {
        let mut config = self.config.clone();
        self.spec.shares = plan_shares(&mut config).unwrap();
        let mut guest = Guest::start(&self.spec).unwrap_or_else(|error| panic!("{error}"));
        let answer = guest.configure(config, self.spec.layers.len(), &self.spec.shares);
        (guest, answer)
    }
}

/// Packs what `fill` puts into a directory.
pub fn make_layer(path: &Path, fill: impl FnOnce(&Path)) {
    let tree = tempfile::tempdir().unwrap();
    fill(tree.path());
    let mut tool = Command::new("mkfs.erofs");
    let output = tool.arg("--quiet").arg(path).arg(tree.path()).output();
    let output = output.expect("mkfs.erofs of erofs-utils is needed for this test");
    assert!(output.status.success(), "{output:?}");
}

fn runtime_spec(script: &str) -> Spec {
    let mount = |destination: &str, kind: &str| Mount {
        destination: destination.to_owned(),
        kind: Some(kind.to_owned()),
        source: Some(kind.to_owned()),
        ..Mount::default()
    };
    let kinds = [NamespaceKind::Pid, NamespaceKind::Mount, NamespaceKind::Ipc, NamespaceKind::Uts];
    let mut spec = Spec {
        oci_version: "1.2.0".to_owned(),
        process: Some(Process {
            args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["PATH=/bin".to_owned()],
            cwd: "/".to_owned(),
            ..Process::default()
        }),
        root: Some(Root { path: "rootfs".to_owned(), readonly: false }),
        hostname: Some("guest".to_owned()),
        mounts: vec![mount("/proc", "proc"), mount("/dev", "tmpfs"), mount("/sys", "sysfs")],
        ..Spec::default()
    };
    spec.linux_mut().namespaces = kinds.map(|kind| Namespace { kind, path: None }).to_vec();
    spec
}

/// A virtual machine and the conversation with its agent.
pub struct Guest {
    pub vm: Vm,
    decoder: Decoder,
    frames: VecDeque<Frame>,
}

impl Guest {
    pub fn start(spec: &VmSpec) -> Result<Self, VmError> {
        Self::start_with(spec, &mut |_| {})
    }

    /// The same; lines for the user go to `notice`.
    pub fn start_with(spec: &VmSpec, notice: &mut dyn FnMut(String)) -> Result<Self, VmError> {
        let vm = Vm::start(spec, notice)?;
        Ok(Self { vm, decoder: Decoder::new(), frames: VecDeque::new() })
    }

    pub fn configure(&mut self, spec: Spec, layers: usize, shares: &[Share]) -> Response {
        let config = GuestConfig {
            id: "test".to_owned(),
            spec,
            launch: LaunchConfig { stdin: true, ..LaunchConfig::default() },
            layers,
            shares: shares.iter().map(|share| share.tag.clone()).collect(),
            interfaces: Vec::new(),
            entropy: vec![7; 64],
            time_ns: 1_700_000_000_000_000_000,
        };
        self.send(&Request::Configure(Box::new(config)).frame(0));
        self.response(0)
    }

    /// Starts the program of the spec, its output attached.
    pub fn begin(&mut self) {
        self.send(&Request::Attach { stdin: false, stdout: true, stderr: true }.frame(1));
        assert_eq!(self.response(1), Response::Ok);
        self.send(&Request::Start.frame(2));
        let answer = self.response(2);
        assert!(matches!(answer, Response::Started { .. }), "{answer:?}");
    }

    /// Runs the program of the spec to its end; what it wrote and how it ended.
    pub fn run(&mut self) -> (String, ExitStatus) {
        self.begin();
        self.follow(None)
    }

    /// Runs the program until it has written a line; what it wrote.
    pub fn run_until(&mut self, line: &str) -> String {
        self.begin();
        self.follow(Some(line)).0
    }

    /// Collects what the running program writes, to a line or to its end.
    pub fn follow(&mut self, until: Option<&str>) -> (String, ExitStatus) {
        let mut output = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&output);
            if until.is_some_and(|until| text.lines().any(|line| line == until) && text.ends_with('\n')) {
                return (text.into_owned(), ExitStatus::default());
            }
            let frame = self.next(1);
            match frame.kind {
                Kind::Stdout | Kind::Stderr => {
                    self.send(&Frame::credit(1, frame.payload.len() as u32));
                    output.extend_from_slice(&frame.payload);
                }
                Kind::Response => match Response::parse(&frame.payload).unwrap() {
                    Response::Exited(status) => {
                        return (String::from_utf8_lossy(&output).into_owned(), status);
                    }
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            }
        }
    }

    /// Ends the guest as the monitor does.
    pub fn shut_down(mut self) {
        self.send(&Request::Shutdown.frame(0));
        assert_eq!(self.response(0), Response::Ok);
        self.await_end();
        assert_eq!(self.vm.try_wait().unwrap(), Some(VmExit::Code(0)));
    }

    /// Waits until the VMM has ended.
    pub fn await_end(&mut self) {
        let limit = Timespec::try_from(LIMIT).unwrap();
        let pidfd = self.vm.pidfd().try_clone_to_owned().unwrap();
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "the VMM did not end: {}", self.vm.console());
    }

    pub fn send(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match self.vm.stream().write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.wait(PollFlags::OUT),
                Err(error) => panic!("{error}: {}", self.vm.console()),
            }
        }
    }

    /// The next response on a channel.
    pub fn response(&mut self, channel: u32) -> Response {
        let frame = self.next(channel);
        assert_eq!(frame.kind, Kind::Response, "{frame:?}");
        Response::parse(&frame.payload).unwrap()
    }

    /// Runs the program until it or the whole machine has ended; what it wrote, and its exit code, if it has one.
    pub fn run_to_any_end(&mut self) -> (String, Option<i32>) {
        self.begin();
        let (mut output, mut code) = (Vec::new(), None);
        // A guest that has hurt itself may hang, which harms nobody else.
        while let Some(frame) = self.try_next_or(1, |guest| guest.vm.kill()) {
            match frame.kind {
                Kind::Stdout | Kind::Stderr => {
                    self.send(&Frame::credit(1, frame.payload.len() as u32));
                    output.extend_from_slice(&frame.payload);
                }
                _ => {
                    if let Ok(Response::Exited(status)) = Response::parse(&frame.payload) {
                        code = Some(status.code);
                    }
                    break;
                }
            }
        }
        (String::from_utf8_lossy(&output).into_owned(), code)
    }

    fn next(&mut self, channel: u32) -> Frame {
        self.try_next(channel).unwrap_or_else(|| {
            let exit = self.vm.wait().unwrap();
            panic!("{}", self.vm.died(exit))
        })
    }

    /// The same, or nothing when the VMM has ended.
    fn try_next(&mut self, channel: u32) -> Option<Frame> {
        self.try_next_or(channel, |guest| panic!("{}", guest.vm.silent()))
    }

    /// The same; what is done where nothing comes.
    fn try_next_or(&mut self, channel: u32, late: impl Fn(&mut Self)) -> Option<Frame> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let wanted =
                self.frames.iter().position(|frame| frame.channel == channel && frame.kind != Kind::Credit);
            if let Some(frame) = wanted.and_then(|at| self.frames.remove(at)) {
                return Some(frame);
            }
            if self.vm.try_wait().unwrap().is_some() {
                return None;
            }
            if Instant::now() >= deadline {
                late(self);
            }
            self.wait(PollFlags::IN);
            self.read();
        }
    }

    fn read(&mut self) {
        let mut bytes = [0; 65536];
        match self.vm.stream().read(&mut bytes) {
            Ok(count) => self.decoder.push(&bytes[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            // The VMM is gone, which `next` finds out.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => self.await_end(),
            Err(error) => panic!("{error}"),
        }
        while let Some(frame) = self.decoder.next_frame().unwrap() {
            self.frames.push_back(frame);
        }
    }

    fn wait(&self, flags: PollFlags) {
        let moment = Timespec { tv_sec: 1, tv_nsec: 0 };
        let stream = self.vm.stream().as_fd();
        let pidfd = self.vm.pidfd();
        let mut fds = [PollFd::new(&stream, flags), PollFd::new(&pidfd, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&moment));
    }
}

/// Waits until none of these processes exists.
pub fn await_gone(pids: &[u32]) {
    let deadline = Instant::now() + LIMIT;
    for pid in pids {
        while is_alive(*pid) {
            assert!(Instant::now() < deadline, "process {pid} is still there");
            std::thread::yield_now();
        }
    }
}

/// One that has ended and that its new parent has not reaped yet counts as gone.
fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()) != Some("Z")
}
