//! podman, docker and containerd, as Debian has them, with our program as their runtime: each in directories of
//! its own, with no network, and gone afterwards.

mod containerd;
mod docker;
mod podman;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::support::{PROGRAM, fill, stdout, wait};

/// A script that says that it runs, and ends with 5 when it is told to.
const SERVICE: &str = "echo log line; trap 'exit 5' TERM; while :; do sleep 0.1; done";

/// An engine's command line.
struct Engine {
    dir: tempfile::TempDir,
    /// Program and the options that lead it to its directories.
    line: Vec<String>,
    environment: Vec<(&'static str, PathBuf)>,
}

impl Engine {
    fn new(program: &str) -> Self {
        assert!(
            Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success()),
            "install {program}: scripts/test does"
        );
        let dir = tempfile::Builder::new().prefix("proa-oci-engine-").tempdir().unwrap();
        Self { dir, line: vec![program.to_owned()], environment: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Options of the engine, given before every command.
    fn options(&mut self, options: &[&str]) {
        self.line.extend(options.iter().map(ToString::to_string));
    }

    fn output(&self, args: &[&str]) -> Output {
        let mut command = Command::new(&self.line[0]);
        // An ordinary user may not be able to enter ours.
        command.current_dir("/");
        command.args(&self.line[1..]).args(args).stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        stdout(&output)
    }

    fn code(&self, args: &[&str]) -> Option<i32> {
        self.output(args).status.code()
    }

    /// Makes it the test user's: its directories, and a copy of our program, which may be in a place that others
    /// cannot enter. Returns the words before every command of the user's; variables lead to directories of its own.
    fn give_to_user(&mut self, directories: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let line = passwd.lines().find(|line| line.starts_with("proa-test:"));
        let fields: Vec<&str> = line.expect("run scripts/test-users").split(':').collect();
        fs::copy(PROGRAM, self.path("proa-runtime")).unwrap();
        for name in directories {
            fs::create_dir(self.path(name)).unwrap();
            fs::set_permissions(self.path(name), PermissionsExt::from_mode(0o700)).unwrap();
        }
        let owner = format!("{}:{}", fields[2], fields[3]);
        assert!(Command::new("chown").args(["-R", &owner]).arg(self.path("")).status().unwrap().success());
        let mut words = vec!["setpriv".to_owned()];
        words.extend([format!("--reuid={}", fields[2]), format!("--regid={}", fields[3])]);
        words
            .extend(["--clear-groups", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"].map(str::to_owned));
        words.extend(variables.iter().map(|(name, path)| format!("{name}={}", self.path(path).display())));
        words
    }

    /// A tar of busybox.
    fn image_tar(&self) -> PathBuf {
        let (root, tar) = (self.path("image"), self.path("image.tar"));
        fill(&root);
        let status = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status().unwrap();
        assert!(status.success());
        fs::remove_dir_all(root).unwrap();
        tar
    }
}

/// A daemon, ended with what it started.
struct Daemon(Child);

impl Daemon {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = fs::File::create(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

/// What docker and podman have in common. `limits` says whether the engine can set them.
fn drive(engine: &Engine, network: &[&str], limits: bool) {
    let run = |options: &[&str], words: &[&str]| {
        let args = [&["run"], network, options, &["busybox"], words].concat();
        engine.output(&args)
    };
    assert_eq!(stdout(&run(&["--rm"], &["/bin/echo", "hi"])), "hi\n");
    assert_eq!(run(&["--rm"], &["/bin/sh", "-c", "exit 9"]).status.code(), Some(9));
    assert_eq!(run(&["--rm"], &["no-such-program"]).status.code(), Some(127));
    let terminal = stdout(&run(&["--rm", "-t"], &["/bin/tty"]));
    assert_eq!(terminal.trim_end(), "/dev/pts/0");
    let memory: &[&str] = if limits { &["--memory", "64m"] } else { &[] };
    let limited = run(&[memory, &["--rm", "--user", "5:6"]].concat(), &["/bin/sh", "-c", "id -u; id -g"]);
    assert_eq!(stdout(&limited), "5\n6\n");

    assert!(run(&["-d", "--name", "service"], &["/bin/sh", "-c", SERVICE]).status.success());
    wait("the log", || engine.ok(&["logs", "service"]).contains("log line"));
    assert_eq!(engine.ok(&["exec", "service", "/bin/echo", "inside"]), "inside\n");
    assert_eq!(engine.code(&["exec", "service", "/bin/sh", "-c", "exit 3"]), Some(3));
    let missing = engine.output(&["exec", "service", "no-such-program"]);
    // 127 by podman; 126 by docker, whatever the runtime.
    assert!(matches!(missing.status.code(), Some(126 | 127)), "{missing:?}");
    let said = [missing.stdout, missing.stderr].concat();
    assert!(String::from_utf8_lossy(&said).contains("executable file not found in $PATH"));
    assert_eq!(engine.ok(&["exec", "-t", "service", "/bin/tty"]).trim_end(), "/dev/pts/0");
    assert!(engine.ok(&["top", "service"]).contains("sh"));
    if limits {
        engine.ok(&["pause", "service"]);
        engine.ok(&["unpause", "service"]);
    }
    engine.ok(&["stop", "-t", "20", "service"]);
    assert_eq!(engine.ok(&["inspect", "--format", "{{.State.ExitCode}}", "service"]), "5\n");
    engine.ok(&["start", "service"]);
    engine.ok(&["kill", "service"]);
    wait("its end", || engine.ok(&["inspect", "--format", "{{.State.Running}}", "service"]) == "false\n");
    assert_eq!(engine.ok(&["inspect", "--format", "{{.State.ExitCode}}", "service"]), "137\n");
    engine.ok(&["rm", "service"]);
}
