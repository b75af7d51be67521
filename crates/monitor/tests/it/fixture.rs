//! An instance on disk, its monitor, and what must be gone afterwards.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use proa_oci::defaults::default_spec;
use proa_oci::runtime::Process;
use proa_protocol::instance::{InstanceConfig, InstanceState, Layer, Status, instance_dir};
use proa_protocol::log::LogConfig;
use tempfile::TempDir;

use crate::client::Client;

/// Longest that anything here may take, in an emulated guest too.
pub const LIMIT: Duration = Duration::from_secs(90);

const BUSYBOX: &str = "/bin/busybox";

/// One instance in directories of its own.
pub struct Fixture {
    base: TempDir,
    /// Written to `instance.json` by [`Fixture::spawn`].
    pub config: InstanceConfig,
    monitors: Vec<Child>,
}

impl Fixture {
    /// An instance that runs `args`.
    pub fn new(args: &[&str]) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        let base = TempDir::new().unwrap();
        let layer = busybox_layer(&base.path().join("layer"));
        let mut spec = default_spec();
        let process = spec.process.get_or_insert_with(Process::default);
        process.args = args.iter().map(|&arg| arg.to_owned()).collect();
        process.env = vec!["PATH=/bin".into()];
        process.cwd = "/".into();
        let config = InstanceConfig {
            id: unique_id(),
            spec,
            layers: vec![Layer { diff_id: format!("sha256:{}", "0".repeat(64)), path: layer }],
            log: LogConfig::default(),
            ..InstanceConfig::default()
        };
        fs::create_dir_all(instance_dir(&base.path().join("root"), &config.id)).unwrap();
        Self { base, config, monitors: Vec::new() }
    }

    /// An instance whose shell runs `script`.
    pub fn shell(script: &str) -> Self {
        Self::new(&["/bin/sh", "-c", script])
    }

    /// The instance's first process.
    pub fn process(&mut self) -> &mut Process {
        self.config.spec.process.as_mut().unwrap()
    }

    /// `--root`.
    pub fn root(&self) -> PathBuf {
        self.base.path().join("root")
    }

    /// `--run`.
    pub fn run_root(&self) -> PathBuf {
        self.base.path().join("run")
    }

    /// `<root>/instances/<id>`.
    pub fn dir(&self) -> PathBuf {
        instance_dir(&self.root(), &self.config.id)
    }

    /// `<run>/instances/<id>`.
    pub fn run_dir(&self) -> PathBuf {
        instance_dir(&self.run_root(), &self.config.id)
    }

    /// Starts a monitor and returns its first client.
    pub fn spawn(&mut self) -> Client {
        self.spawn_with(&[])
    }

    /// Starts a monitor with further arguments.
    pub fn spawn_with(&mut self, arguments: &[&str]) -> Client {
        fs::write(self.dir().join("instance.json"), serde_json::to_vec(&self.config).unwrap()).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = self.command();
        command.arg("--client").args(arguments).stdout(OwnedFd::from(theirs));
        self.monitors.push(command.spawn().unwrap());
        Client::new(ours)
    }

    /// Has what a dead monitor left repaired.
    pub fn repair(&self) {
        let output = self.command().arg("--repair").stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn command(&self) -> Command {
        // Whoever types `proa` may have any umask; no instance shall notice.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "umask 077; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_proa-monitor")]);
        command.arg("--root").arg(self.root()).arg("--run").arg(self.run_root());
        command.args(["--id", &self.config.id]).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Connects a further client.
    pub fn connect(&self) -> Client {
        // By a short path: the address of a socket may have but 107 bytes.
        let directory = fs::File::open(self.run_dir()).unwrap();
        let address = format!("/proc/self/fd/{}/monitor.sock", directory.as_raw_fd());
        Client::new(UnixStream::connect(address).unwrap())
    }

    /// The monitor that was started last.
    pub fn monitor(&mut self) -> &mut Child {
        self.monitors.last_mut().unwrap()
    }

    /// Waits until the monitor that was started last has ended.
    pub fn wait_monitor(&mut self) {
        let monitor = self.monitors.last_mut().unwrap();
        until("the monitor has ended", || monitor.try_wait().unwrap().is_some());
    }

    /// `state.json`.
    pub fn state(&self) -> InstanceState {
        serde_json::from_slice(&fs::read(self.dir().join("state.json")).unwrap()).unwrap()
    }

    /// The texts in the log, oldest first.
    pub fn log(&self) -> Vec<(String, String)> {
        let mut files: Vec<PathBuf> =
            (1..10).rev().map(|n| self.dir().join(format!("log.json.{n}"))).collect();
        files.push(self.dir().join("log.json"));
        let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
        let lines: Vec<String> =
            texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        let text = |value: &serde_json::Value, key: &str| value[key].as_str().unwrap().to_owned();
        lines
            .iter()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|value| (text(&value, "stream"), text(&value, "log")))
            .collect()
    }

    /// Whether the instance's first process still runs.
    pub fn pid(&self) -> u32 {
        let state = self.state();
        assert_eq!(state.status, Status::Running);
        state.pid
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for monitor in &mut self.monitors {
            let _ = monitor.kill();
            let _ = monitor.wait();
        }
        if !std::thread::panicking() {
            self.repair();
            until("nothing of the instance is left", || left_behind(&self.config.id).is_empty());
        }
    }
}

/// Cgroups, mounts and processes that still bear an instance's id.
fn left_behind(id: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut left: Vec<String> = mounts.lines().filter(|line| line.contains(id)).map(str::to_owned).collect();
    collect_cgroups(Path::new("/sys/fs/cgroup"), id, 5, &mut left);
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(id) {
            left.push(entry.path().display().to_string());
        }
    }
    left
}

fn collect_cgroups(directory: &Path, id: &str, depth: u32, left: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if entry.file_name().to_string_lossy().contains(id) {
            left.push(entry.path().display().to_string());
        }
        if depth > 0 {
            collect_cgroups(&entry.path(), id, depth - 1, left);
        }
    }
}

/// Polls until `done`, within [`LIMIT`].
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "gave up waiting until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn unique_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{:032x}{:08x}{:024x}", 0xfeed, std::process::id(), number)
}

fn busybox_layer(directory: &Path) -> PathBuf {
    for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
        fs::create_dir_all(directory.join(name)).unwrap();
    }
    fs::copy(BUSYBOX, directory.join("bin/busybox")).expect("these tests need Debian's busybox-static");
    let output = Command::new(BUSYBOX).arg("--list").output().unwrap();
    for applet in String::from_utf8(output.stdout).unwrap().lines().filter(|&applet| applet != "busybox") {
        symlink("busybox", directory.join("bin").join(applet)).unwrap();
    }
    fs::write(directory.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")
        .unwrap();
    fs::write(directory.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
    directory.to_owned()
}
