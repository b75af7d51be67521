//! Bundles, the program, and proof that nothing is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use proa_oci::defaults::{default_capabilities, default_seccomp, default_spec};
use proa_oci::runtime::{Process, Spec};
use serde_json::Value;

/// The program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_proa-runtime");
/// Longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A bundle, and a place for the state of containers.
pub struct Bundle {
    dir: tempfile::TempDir,
    pub spec: Spec,
    pub id: String,
}

impl Bundle {
    /// Runs a shell script.
    pub fn shell(script: &str) -> Self {
        Self::program(&["/bin/sh", "-c", script])
    }

    pub fn program(args: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("proa-oci-").tempdir().unwrap();
        fill(&dir.path().join("rootfs"));
        let mut spec = default_spec();
        spec.process.as_mut().unwrap().args = args.iter().map(ToString::to_string).collect();
        spec.linux_mut().seccomp = Some(default_seccomp(&default_capabilities()));
        spec.annotations.insert("test".into(), "yes".into());
        let id = format!("test-{}", dir.path().file_name().unwrap().to_str().unwrap());
        Self { dir, spec, id }
    }

    pub fn with(mut self, change: impl FnOnce(&mut Spec)) -> Self {
        change(&mut self.spec);
        self
    }

    pub fn with_process(self, change: impl FnOnce(&mut Process)) -> Self {
        self.with(|spec| change(spec.process.as_mut().unwrap()))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The state directory of the container.
    pub fn state_dir(&self) -> PathBuf {
        self.path("state").join(&self.id)
    }

    /// Writes `config.json` anew.
    pub fn write(&self) {
        fs::write(self.path("config.json"), serde_json::to_vec(&self.spec).unwrap()).unwrap();
    }

    /// The program with its state directory, and what follows.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--root").arg(self.path("state")).args(args).stdin(Stdio::null());
        command
    }

    pub fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// A command that leaves a process behind, whose streams must not be pipes that we read to their end.
    pub fn detached(&self, args: &[&str]) {
        let errors = fs::File::create(self.path("errors")).unwrap();
        let status = self.command(args).stdout(Stdio::null()).stderr(errors).status().unwrap();
        assert!(status.success(), "{args:?}: {}", fs::read_to_string(self.path("errors")).unwrap());
    }

    /// What it prints, of a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let log = || fs::read_to_string(self.path("images/dump.log")).unwrap_or_default();
        assert!(output.status.success(), "{args:?}: {output:?}\n{}", log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// The error of a command that must fail.
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(!output.status.success(), "{args:?}: {output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "one line: {text}");
        text
    }

    /// Creates the container. Its output goes into a file, as an engine's would into a pipe of the engine.
    pub fn create(&self, options: &[&str]) {
        self.write();
        let out = fs::File::create(self.path("out")).unwrap();
        let mut command = self.command(&["create", "--bundle"]);
        command.arg(self.dir.path()).args(options).arg(&self.id);
        // Not into a pipe, whose end would come with that of the container.
        let errors = fs::File::create(self.path("errors")).unwrap();
        let status = command.stdout(out).stderr(errors).status().unwrap();
        assert!(status.success(), "create: {}", fs::read_to_string(self.path("errors")).unwrap());
    }

    /// Creates and starts.
    pub fn start(&self) {
        self.create(&[]);
        self.ok(&["start", &self.id]);
    }

    /// What a created container has printed so far.
    pub fn out(&self) -> String {
        fs::read_to_string(self.path("out")).unwrap()
    }

    /// Runs in the foreground.
    pub fn run(&self, options: &[&str]) -> Output {
        self.write();
        let mut command = self.command(&["run", "--bundle"]);
        command.arg(self.dir.path()).args(options).arg(&self.id).output().unwrap()
    }

    pub fn state(&self) -> Value {
        serde_json::from_str(&self.ok(&["state", &self.id])).unwrap()
    }

    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    pub fn pid(&self) -> u32 {
        self.state()["pid"].as_u64().unwrap() as u32
    }

    pub fn wait_status(&self, wanted: &str) {
        wait(&format!("status {wanted}"), || self.status() == wanted);
    }

    /// Nothing of the container is left.
    pub fn assert_gone(&self) {
        assert!(!self.state_dir().exists(), "its state is left");
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let left = hierarchy.path().join("proa").join(&self.id);
            assert!(!left.exists(), "{} is left", left.display());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "a mount is left");
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let output = self.output(&["delete", "--force", &self.id]);
        if !std::thread::panicking() {
            assert!(output.status.success(), "{output:?}");
            self.assert_gone();
        }
    }
}

/// Polls until something holds.
pub fn wait(what: &str, holds: impl FnMut() -> bool) {
    wait_within(LIMIT, what, holds);
}

/// For what takes long where it is emulated.
pub fn wait_within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Busybox with some of its names, and what an image has.
pub fn fill(root: &Path) {
    for dir in ["bin", "etc", "tmp", "root", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let busybox = Path::new("/bin/busybox");
    assert!(busybox.exists(), "install busybox-static: these tests run it in containers");
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for name in [
        "sh", "cat", "ls", "id", "echo", "true", "false", "env", "sleep", "tty", "stty", "kill", "ps", "pwd",
        "test", "touch", "readlink", "head", "grep", "trap", "hostname", "wc", "mv",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
}
