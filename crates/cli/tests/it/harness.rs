//! The real binaries on a state root of their own, with nothing left when a test ends.
//!
//! A [`Proa`] owns a temporary root. When it is dropped it stops everything below that root and then checks
//! that no process, mount, cgroup or loop device of it is left; a test that leaks fails.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::termios::Winsize;
use tempfile::TempDir;

/// Longest that anything here waits.
const LIMIT: Duration = Duration::from_secs(120);

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; 128 + n after a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// The workspace's root directory.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// An ordinary user of the host, made by `scripts/test-users`.
#[derive(Debug, Clone)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl User {
    /// The user of this name.
    pub fn named(name: &str) -> Self {
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let fields =
            passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|line| line[0] == name);
        let fields = fields.unwrap_or_else(|| panic!("there is no user {name}: run scripts/test-users"));
        Self { uid: fields[2].parse().unwrap(), gid: fields[3].parse().unwrap() }
    }

    /// Where its commands run, if its cgroup has been handed over to it and this was made there for them.
    fn cgroup(&self) -> PathBuf {
        let uid = self.uid;
        format!("/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/tests").into()
    }

    /// Gives it a path and all below.
    pub fn own(&self, path: &Path) {
        let owner = format!("{}:{}", self.uid, self.gid);
        assert!(Command::new("chown").args(["-RhP", &owner]).arg(path).status().unwrap().success());
    }
}

/// One of the programs beside this file, built without libraries, under its name in a directory of its own.
pub fn program(name: &str) -> TempDir {
    build(&workspace().join(format!("crates/cli/tests/it/programs/{name}.c")))
}

/// The same of a source that is elsewhere.
pub fn build(source: &Path) -> TempDir {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let binary = directory.path().join(source.file_stem().unwrap());
    let build = ["-static", "-O1", "-o"];
    let status = Command::new("gcc").args(build).arg(&binary).arg(source).status();
    assert!(status.expect("these tests need gcc").success());
    directory
}

/// `proa` on a root of its own.
pub struct Proa {
    root: TempDir,
    binary: PathBuf,
    /// Who runs it, where that is not root.
    user: Option<User>,
    /// The file of the network namespace that its commands run in, where that is not the host's.
    home: Option<String>,
    /// How many of root's virtual machines may stand by: few tests want what goes on behind their backs, unless
    /// `PROA_TEST_STANDBY` asks for that.
    standby: u32,
}

impl Proa {
    /// An empty root.
    pub fn new() -> Self {
        let directory =
            std::env::var_os("PROA_TEST_BIN").map_or_else(|| workspace().join("target/dist"), PathBuf::from);
        let binary = directory.join("proa");
        assert!(binary.exists(), "{} is missing: run `cargo xtask dist`", binary.display());
        assert!(
            rustix::process::geteuid().is_root(),
            "tests that start instances need root: run them with sudo"
        );
        let root = tempfile::Builder::new().prefix("proa-test-").tempdir_in("/var/tmp").unwrap();
        // Kernels are large and the same for all tests; their store is safe to share.
        let cache = workspace().join("target/test-cache/vm");
        fs::create_dir_all(&cache).unwrap();
        std::os::unix::fs::symlink(cache, root.path().join("vm")).unwrap();
        let standby = std::env::var("PROA_TEST_STANDBY").map_or(0, |most| most.parse().unwrap());
        Self { root, binary, user: None, home: None, standby }
    }

    /// An empty root that belongs to an ordinary user, who runs all commands. Its home, its sockets and a copy of
    /// the programs are there as well: the workspace may be in a place that others cannot enter.
    pub fn of_user(name: &str) -> Self {
        let mut proa = Self::new();
        let user = User::named(name);
        fs::remove_file(proa.root.path().join("vm")).unwrap();
        for directory in ["home", "run", "bin"] {
            fs::create_dir(proa.root.path().join(directory)).unwrap();
        }
        let from = proa.binary.parent().unwrap().to_owned();
        for program in ["proa", "proa-monitor", "proa-resolver", "proa-agent"] {
            let to = proa.root.path().join("bin").join(program);
            // A second name would change the agent's identity for other tests, and what is made of it.
            fs::copy(from.join(program), &to).unwrap();
        }
        proa.binary = proa.root.path().join("bin/proa");
        for directory in ["", "home", "run"] {
            let path = proa.root.path().join(directory);
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
            std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid)).unwrap();
        }
        proa.user = Some(user);
        proa
    }

    /// Has an ordinary user's commands run in a network namespace.
    pub fn live_in(&mut self, namespace: &str) {
        self.home = Some(namespace.to_owned());
    }

    /// Lets so many virtual machines stand by.
    pub fn stand_by(&mut self, most: u32) {
        self.standby = most;
    }

    /// A root with the image `busybox`, made from the host's static busybox.
    pub fn with_busybox() -> Self {
        Self::new().import_busybox()
    }

    /// Puts the image `busybox` into it.
    pub fn import_busybox(self) -> Self {
        let import = ["import", "--change", "CMD [\"sh\"]", "--change", "ENV PATH=/bin", "-", "busybox"];
        let tar = fs::read(busybox_tar()).unwrap();
        let import = self.run_with_input(&import, &tar);
        assert_eq!(import.code, 0, "{import:?}");
        self
    }

    /// Has another program in the place of the agent.
    pub fn with_agent(mut self, agent: &Path) -> Self {
        let programs = self.root.path().join("bin");
        fs::create_dir(&programs).unwrap();
        let from = self.binary.parent().unwrap().to_owned();
        for program in ["proa", "proa-monitor", "proa-resolver"] {
            fs::copy(from.join(program), programs.join(program)).unwrap();
        }
        fs::copy(agent, programs.join("proa-agent")).unwrap();
        self.binary = programs.join("proa");
        // Guests of that agent have first files of their own, of which the store that is shared keeps few.
        let store = self.root.path().join("vm");
        let kernels = fs::canonicalize(&store).unwrap().join("kernels");
        fs::remove_file(&store).unwrap();
        fs::create_dir(&store).unwrap();
        std::os::unix::fs::symlink(kernels, store.join("kernels")).unwrap();
        self
    }

    /// Who runs it; `None` for root.
    pub fn user(&self) -> Option<&User> {
        self.user.as_ref()
    }

    /// Whether an ordinary user runs it who has a cgroup of its own.
    pub fn has_cgroup(&self) -> bool {
        self.user.as_ref().is_some_and(|user| user.cgroup().is_dir())
    }

    /// Whether whoever runs it has ids beside its own.
    pub fn has_ids(&self) -> bool {
        let granted = || fs::read_to_string("/etc/subuid").is_ok_and(|text| text.contains("proa-test:"));
        self.user.is_none() || granted()
    }

    /// Lets whoever runs it have a path and all below.
    pub fn give(&self, path: &Path) {
        self.user.iter().for_each(|user| user.own(path));
    }

    /// The state root.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The `proa` under test.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// A tar of a busybox root.
    pub fn busybox_tar() -> &'static str {
        busybox_tar()
    }

    /// Runs a prepared command to its end with the given input.
    pub fn run_command(&self, command: Command, input: &[u8]) -> Output {
        Running::start(command, Some(input.to_vec())).finish()
    }

    /// A command ready to start.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.plain_command();
        command.arg("--root").arg(self.root.path()).args(arguments);
        command
    }

    /// The program without any argument, run by whom it is to be run by.
    pub fn plain_command(&self) -> Command {
        let Some(user) = &self.user else {
            let mut command = Command::new(&self.binary);
            command.env_remove("PROA_ROOT").env("TERM", "xterm").env("PROA_CONFIG", self.config());
            return command;
        };
        // Everything in arguments, since some tests wrap the command.
        let mut command = Command::new("sh");
        let join = "[ ! -d \"$0\" ] || echo $$ > \"$0/cgroup.procs\"; exec \"$@\"";
        command.args(["-c", join]).arg(user.cgroup());
        if let Some(home) = &self.home {
            command.arg("nsenter").arg(format!("--net={home}"));
        }
        command.arg("setpriv");
        command.args([format!("--reuid={}", user.uid), format!("--regid={}", user.gid)]);
        command.args(["--clear-groups", "env", "-u", "PROA_ROOT", "TERM=xterm"]);
        for (name, directory) in [("HOME", "home"), ("XDG_RUNTIME_DIR", "run")] {
            command.arg(format!("{name}={}", self.root.path().join(directory).display()));
        }
        command.arg(&self.binary).current_dir("/");
        command
    }

    /// Root's configuration file.
    fn config(&self) -> PathBuf {
        let path = self.root.path().join("config.toml");
        fs::write(&path, format!("[vm]\nstandby = {}\n", self.standby)).unwrap();
        path
    }

    /// Runs a command to its end with no input.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.spawn(arguments).finish()
    }

    /// Runs a command to its end with the given input.
    pub fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Output {
        Running::start(self.command(arguments), Some(input.to_vec())).finish()
    }

    /// Starts a command whose output is collected while it runs.
    pub fn spawn(&self, arguments: &[&str]) -> Running {
        Running::start(self.command(arguments), None)
    }

    /// Standard output of a host shell command.
    pub fn shell_with_input(&self, script: &str, input: &[u8]) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Running::start(command, Some(input.to_vec())).finish().stdout
    }

    /// Runs a command that must succeed; its standard output without its end.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.code, 0, "{arguments:?}: {output:?}");
        output.stdout.trim_end().to_owned()
    }

    /// Polls until `done` holds.
    pub fn wait_for(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !done() {
            assert!(Instant::now() < deadline, "waited too long for {what}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Process ids of this root's monitors.
    pub fn monitors(&self) -> Vec<u32> {
        let root = self.root.path().to_str().unwrap().to_owned();
        processes()
            .into_iter()
            .filter(|(_, line)| line.contains("proa-monitor") && line.contains(&root))
            .map(|(pid, _)| pid)
            .collect()
    }

    /// Process ids of all that names this root or its runtime directory on its command line.
    pub fn processes_of(&self, run: &str) -> Vec<u32> {
        let root = self.root.path().to_str().unwrap();
        let of_ours = |line: &str| line.contains(root) || line.contains(run);
        processes().into_iter().filter(|(_, line)| of_ours(line)).map(|(pid, _)| pid).collect()
    }

    /// Fails if anything of this root is left: processes, mounts, cgroups, loop devices.
    pub fn assert_nothing_left(&self) {
        let run = self.run(&["info", "--format", "{{.RunRoot}}"]).stdout;
        // The last command: another would start what keeps an ordinary user's namespace again.
        let ids = self.run(&["ps", "-aq", "--no-trunc"]).stdout;
        let networks = self.run(&["network", "ls", "-q"]).stdout;
        let stop = self.run(&["system", "stop"]);
        assert_eq!(stop.code, 0, "{stop:?}");
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let mut left = self.leftovers(run.trim(), &ids);
            left.extend(network_leftovers(run.trim(), &ids, &networks));
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:#?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn leftovers(&self, run: &str, ids: &str) -> Vec<String> {
        let root = self.root.path().to_str().unwrap();
        let marks = [root, run];
        let marked = |text: &str| marks.iter().any(|mark| !mark.is_empty() && text.contains(mark));
        let mut left = Vec::new();
        left.extend(
            processes()
                .into_iter()
                .map(|(pid, line)| format!("process {pid}: {line}"))
                .filter(|line| marked(line)),
        );
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|line| marked(line)).map(|line| format!("mount {line}")));
        for entry in fs::read_dir("/sys/block").unwrap().flatten() {
            let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
            if marked(&backing) {
                left.push(format!("loop device of {backing}"));
            }
        }
        // A user's goes with the last of its processes.
        if self.user.is_none() && Path::new(run).is_dir() {
            let inside = Command::new("find").arg(run).output().map(|output| output.stdout);
            left.push(format!("directory {}", String::from_utf8_lossy(&inside.unwrap_or_default())));
        }
        ids.lines().for_each(|id| left.extend(cgroups_of(id)));
        left
    }
}

impl Drop for Proa {
    fn drop(&mut self) {
        if thread::panicking() {
            // The first failure is the one to report; still leave nothing.
            self.run(&["system", "stop"]);
        } else {
            self.assert_nothing_left();
        }
    }
}

/// Interfaces and tables of the firewall that belong to these instances and networks, or to this runtime directory.
fn network_leftovers(run: &str, ids: &str, networks: &str) -> Vec<String> {
    let mut names: Vec<String> = networks.lines().map(|id| format!("pr-{id}")).collect();
    names.extend(ids.lines().flat_map(|id| (0..4).map(move |number| format!("p{}{number}", &id[..12]))));
    names.retain(|name| Path::new("/sys/class/net").join(name).exists());
    let mut left: Vec<String> = names.iter().map(|name| format!("interface {name}")).collect();
    let table = Path::new(run).file_name().unwrap_or_default().to_string_lossy().replace('-', "_");
    let tables = Command::new("nft").args(["list", "tables"]).output();
    let tables =
        tables.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    left.extend(tables.lines().filter(|line| line.ends_with(&format!(" {table}"))).map(ToOwned::to_owned));
    left
}

/// Cgroups anywhere whose name holds this id.
fn cgroups_of(id: &str) -> Vec<String> {
    let find = Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d", "-name", &format!("*{id}*")])
        .output()
        .unwrap();
    String::from_utf8_lossy(&find.stdout).lines().map(|line| format!("cgroup {line}")).collect()
}

fn processes() -> Vec<(u32, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let own = std::process::id();
    pids.filter(|pid| *pid != own)
        .filter_map(|pid| Some((pid, fs::read(format!("/proc/{pid}/cmdline")).ok()?)))
        .map(|(pid, line)| (pid, String::from_utf8_lossy(&line).replace('\0', " ")))
        .collect()
}

/// A tar of a root with busybox and its applets, made once.
fn busybox_tar() -> &'static str {
    static TAR: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    TAR.get_or_init(|| {
        let path = workspace().join("target/test-cache/busybox.tar");
        if !path.exists() {
            make_busybox_tar(&path);
        }
        path.to_str().unwrap().to_owned()
    })
}

fn make_busybox_tar(path: &Path) {
    let tree = tempfile::tempdir().unwrap();
    let script = r#"
        set -e
        busybox=$(command -v busybox)
        mkdir -p bin etc root tmp var/www
        chmod 1777 tmp
        cp "$busybox" bin/busybox
        for applet in $(bin/busybox --list); do [ "$applet" = busybox ] || ln bin/busybox "bin/$applet"; done
        printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' > etc/passwd
        printf 'root:x:0:\nnogroup:x:65534:\n' > etc/group
        printf '<h1>one image, two levels</h1>\n' > var/www/index.html
        tar --numeric-owner --owner=0 --group=0 -cf "$0" ."#;
    let fresh = path.with_extension(format!("{}", std::process::id()));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let made = Command::new("sh").args(["-c", script]).arg(&fresh).current_dir(tree.path()).status().unwrap();
    assert!(made.success(), "busybox-static is needed: apt-get install busybox-static");
    fs::rename(fresh, path).unwrap();
}

/// A command that runs, its output being collected.
pub struct Running {
    child: Child,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
    stdin: Option<JoinHandle<()>>,
}

impl Running {
    fn start(mut command: Command, input: Option<Vec<u8>>) -> Self {
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdin = input.zip(child.stdin.take()).map(|(input, mut pipe)| {
            // A command that stops reading early is its own business.
            thread::spawn(move || drop(pipe.write_all(&input)))
        });
        let stdout = collect(child.stdout.take().unwrap());
        let stderr = collect(child.stderr.take().unwrap());
        Self { child, stdout, stderr, stdin }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end; kills it and fails after a limit.
    pub fn finish(mut self) -> Output {
        let deadline = Instant::now() + LIMIT;
        let mut pause = Duration::from_micros(200);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.child.kill().unwrap();
                let stderr = self.stderr.join().unwrap();
                panic!("a command did not end within {LIMIT:?}: {}", String::from_utf8_lossy(&stderr));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        };
        if let Some(stdin) = self.stdin {
            stdin.join().unwrap();
        }
        let text =
            |handle: JoinHandle<Vec<u8>>| String::from_utf8_lossy(&handle.join().unwrap()).into_owned();
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        let code = status.code().unwrap_or_else(|| 128 + signal.unwrap_or(0));
        Output { code, stdout: text(self.stdout), stderr: text(self.stderr) }
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// A command on a pseudo-terminal, as a person at a keyboard has it.
pub struct Terminal {
    child: Child,
    master: OwnedFd,
    seen: String,
}

impl Terminal {
    /// Starts `proa ARGUMENTS` on a terminal of this size.
    pub fn start(proa: &Proa, arguments: &[&str], rows: u16, columns: u16) -> Self {
        let flags = rustix::pty::OpenptFlags::RDWR
            | rustix::pty::OpenptFlags::NOCTTY
            | rustix::pty::OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let slave = fs::OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        rustix::termios::tcsetwinsize(&master, size(rows, columns)).unwrap();
        let mut command = Command::new("setsid");
        let wrapped = proa.command(arguments);
        command.arg("--ctty").arg("--wait").arg(wrapped.get_program()).args(wrapped.get_args());
        command.env_remove("PROA_ROOT").env("TERM", "xterm");
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        command.process_group(0);
        let child = command.spawn().unwrap();
        Self { child, master, seen: String::new() }
    }

    /// Types.
    pub fn send(&mut self, text: &str) {
        let mut bytes = text.as_bytes();
        while !bytes.is_empty() {
            let written = rustix::io::write(&self.master, bytes).unwrap();
            bytes = &bytes[written..];
        }
    }

    /// Waits until the screen has shown `text` since the last thing expected.
    pub fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            assert!(Instant::now() < deadline, "no {text:?} in {:?}", self.seen);
            assert!(self.read(), "the command ended before {text:?}: {:?}", self.seen);
        }
    }

    /// Reads what is there within a moment; false at the end.
    fn read(&mut self) -> bool {
        let mut fds = [rustix::event::PollFd::new(&self.master, rustix::event::PollFlags::IN)];
        let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        if rustix::event::poll(&mut fds, Some(&moment)).unwrap() == 0 {
            return true;
        }
        let mut bytes = [0; 4096];
        match rustix::io::read(&self.master, &mut bytes) {
            Ok(0) | Err(rustix::io::Errno::IO) => false,
            Ok(count) => {
                self.seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
                true
            }
            Err(error) => panic!("cannot read the terminal: {error}"),
        }
    }

    /// Gives the terminal another size.
    pub fn resize(&self, rows: u16, columns: u16) {
        rustix::termios::tcsetwinsize(&self.master, size(rows, columns)).unwrap();
    }

    /// Waits for the command's end; its exit code.
    pub fn wait(mut self) -> i32 {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.read();
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            if Instant::now() > deadline {
                self.child.kill().unwrap();
                panic!("the command on the terminal did not end: {:?}", self.seen);
            }
        }
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Debian's docker-registry on a free port of this machine.
pub struct Registry {
    child: Child,
    address: String,
    storage: TempDir,
    login: Option<(String, String)>,
}

impl Registry {
    /// Starts one that speaks plain HTTP, and waits until it listens.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// Starts one with a certificate of its own CA that wants this user and password.
    pub fn start_with_tls(user: &str, password: &str) -> Self {
        Self::start_with(Some((user.to_owned(), password.to_owned())))
    }

    fn start_with(login: Option<(String, String)>) -> Self {
        let storage = tempfile::tempdir_in("/var/tmp").unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let directory = storage.path().display();
        let mut text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {directory}/data\n"
        );
        text.push_str(&format!("http:\n  addr: {address}\n"));
        if let Some((user, password)) = &login {
            make_certificates(storage.path(), user, password);
            text.push_str(&format!(
                "  tls:\n    certificate: {directory}/server.crt\n    key: {directory}/server.key\n"
            ));
            text.push_str(&format!("auth:\n  htpasswd:\n    realm: test\n    path: {directory}/htpasswd\n"));
        }
        let config = storage.path().join("config.yml");
        fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is needed: apt-get install docker-registry");
        let registry = Self { child, address, storage, login };
        let deadline = Instant::now() + LIMIT;
        while std::net::TcpStream::connect(&registry.address).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where it keeps what it has.
    pub fn storage(&self) -> &Path {
        self.storage.path()
    }

    /// Copies a local image into the registry with skopeo; its reference there.
    pub fn push(&self, proa: &Proa, image: &str, name: &str) -> String {
        let archive = self.storage.path().join("push.tar");
        let save = proa.run(&["save", "-o", archive.to_str().unwrap(), image]);
        assert_eq!(save.code, 0, "{save:?}");
        let reference = format!("{}/{name}", self.address);
        let mut copy = Command::new("skopeo");
        copy.args(["copy", "-q", "--dest-tls-verify=false"]);
        if let Some((user, password)) = &self.login {
            copy.args(["--dest-creds", &format!("{user}:{password}")]);
        }
        copy.arg(format!("docker-archive:{}", archive.display())).arg(format!("docker://{reference}"));
        let output = copy.output().expect("skopeo is needed: apt-get install skopeo");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::remove_file(archive).unwrap();
        reference
    }

    /// Writes a configuration that trusts this registry's CA for `address`; its path.
    pub fn write_client_config(&self, directory: &Path, address: &str) -> String {
        let path = directory.join("proa.toml");
        let authority = self.storage.path().join("ca.crt");
        let text = format!("[registries.\"{address}\"]\nca = \"{}\"\n", authority.display());
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn make_certificates(directory: &Path, user: &str, password: &str) {
    let script = r#"
        set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test-ca \
            -addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.crt
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout server.key -out server.csr
        printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n' > extensions
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out server.crt
        htpasswd -Bbn "$1" "$2" > htpasswd"#;
    let output = Command::new("sh")
        .args(["-c", script, "sh", user, password])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
