//! Building a root, running a container in a line, and proof that nothing leaks.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use proa_oci::defaults::{capability_sets, default_capabilities, default_seccomp, default_spec};
use proa_oci::runtime::{Process, Spec};
use proa_runtime::{CgroupPolicy, Container, Create, Error, Handles, Owners, Rootfs, Stdio};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;

/// Longest that anything here may take, in an emulated guest too.
const LIMIT_S: i64 = 90;

/// A directory with busybox, an overlay over it, and a spec.
pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub spec: Spec,
    pub user: String,
    pub stdio: Stdio,
    pub init: bool,
    pub nodev: bool,
    /// Processes of exec share memory at first; without a cgroup, so that this can be so on any host.
    pub shares_memory: bool,
    pub id: String,
}

/// What a container did.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub warnings: Vec<String>,
}

impl Fixture {
    /// Docker's default spec running a shell script.
    pub fn shell(script: &str) -> Self {
        Self::program(&["/bin/sh", "-c", script])
    }

    /// Docker's default spec running a program.
    pub fn program(args: &[&str]) -> Self {
        let dir = tempdir();
        fill(&dir.path().join("lower"));
        fs::create_dir(dir.path().join("upper")).unwrap();
        fs::create_dir(dir.path().join("work")).unwrap();
        let mut spec = default_spec();
        spec.process.as_mut().unwrap().args = args.iter().map(ToString::to_string).collect();
        spec.hostname = Some("testhost".into());
        spec.linux_mut().seccomp = Some(default_seccomp(&default_capabilities()));
        let id = format!("test-{}", dir.path().file_name().unwrap().to_str().unwrap());
        Self {
            dir,
            spec,
            user: String::new(),
            stdio: Stdio::Pipes { stdin: true },
            init: false,
            nodev: true,
            shares_memory: false,
            id,
        }
    }

    /// Changes the spec.
    pub fn with(mut self, change: impl FnOnce(&mut Spec)) -> Self {
        change(&mut self.spec);
        self
    }

    /// Sets Docker's `--user`.
    pub fn user(mut self, user: &str) -> Self {
        self.user = user.into();
        self
    }

    /// Adds capabilities.
    pub fn capabilities(self, names: &[&str]) -> Self {
        self.with(|spec| {
            let mut all = default_capabilities();
            all.extend(names.iter().map(ToString::to_string));
            spec.linux_mut().seccomp = Some(default_seccomp(&all));
            process(spec).capabilities = Some(capability_sets(all));
        })
    }

    /// Writes a file of the image.
    pub fn file(self, path: &str, text: &str) -> Self {
        let full = self.lower().join(path.trim_start_matches('/'));
        fs::create_dir_all(full.parent().unwrap()).unwrap();
        fs::write(full, text).unwrap();
        self
    }

    pub fn lower(&self) -> PathBuf {
        self.dir.path().join("lower")
    }

    pub fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    pub fn create(&self) -> Result<(Container, Handles), Error> {
        Container::create(self.config())
    }

    /// Creates and starts without a stop between them.
    pub fn create_and_run(&self) -> Result<(Container, Handles), Error> {
        Container::run(self.config())
    }

    pub fn config(&self) -> Create<'_> {
        let rootfs = Rootfs::Overlay {
            lowers: vec![self.lower()],
            upper: self.upper(),
            work: self.dir.path().join("work"),
            owners: Owners::default(),
        };
        Create {
            id: &self.id,
            spec: &self.spec,
            rootfs,
            user: &self.user,
            stdio: self.stdio,
            init: self.init,
            cgroup: if self.shares_memory { CgroupPolicy::Disabled } else { CgroupPolicy::Auto },
            interfaces: None,
            bundle: self.dir.path(),
            nodev: self.nodev,
            taken: &[],
            shares_memory: self.shares_memory,
        }
    }

    /// Creates and starts.
    pub fn start(&self) -> (Container, Handles) {
        let (mut container, handles) = self.create().unwrap();
        if let Err(error) = container.start() {
            container.delete().unwrap();
            panic!("{error}");
        }
        (container, handles)
    }

    /// Runs to the end.
    pub fn run(&self) -> Outcome {
        let (container, handles) = self.start();
        finish(container, handles)
    }

    /// The error of a create or start that must fail.
    pub fn fails(&self) -> Error {
        match self.create() {
            Err(error) => error,
            Ok((mut container, _handles)) => {
                let error = container.start().expect_err("the start must fail");
                container.delete().unwrap();
                error
            }
        }
    }
}

/// A directory whose name tells that it is ours.
pub fn tempdir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix(&format!("proa-runtime-{}-", std::process::id())).tempdir().unwrap()
}

/// The spec's process.
pub fn process(spec: &mut Spec) -> &mut Process {
    spec.process.as_mut().unwrap()
}

/// Waits for the end of a container and deletes it.
pub fn finish(container: Container, handles: Handles) -> Outcome {
    drop(handles.stdin);
    let stdout = handles.stdout.map_or_else(String::new, read_all);
    let stderr = handles.stderr.map_or_else(String::new, read_all);
    wait_readable(container.pidfd());
    let code = container.try_wait().unwrap().expect("it has ended");
    let warnings = container.warnings().to_vec();
    container.delete().unwrap();
    Outcome { code, stdout, stderr, warnings }
}

/// Reads to the end.
pub fn read_all(fd: OwnedFd) -> String {
    let mut bytes = Vec::new();
    fs::File::from(fd).read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads until a text has come.
pub fn read_until(fd: BorrowedFd, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        wait_readable(fd);
        let mut buffer = [0; 4096];
        match rustix::io::read(fd, &mut buffer) {
            Ok(length) if length > 0 => seen.push_str(&String::from_utf8_lossy(&buffer[..length])),
            other => panic!("{other:?} after {seen:?}, before {text:?}"),
        }
    }
    seen
}

/// Waits until something is so.
pub fn poll_until(what: &str, is_so: impl Fn() -> bool) {
    let begin = std::time::Instant::now();
    while !is_so() {
        assert!(begin.elapsed().as_secs() < LIMIT_S as u64, "{what} did not happen within {LIMIT_S} s");
        let pause = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        poll(&mut [], Some(&pause)).unwrap();
    }
}

pub fn wait_readable(fd: BorrowedFd) {
    let limit = Timespec { tv_sec: LIMIT_S, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap();
    assert!(ready > 0, "nothing happened for {LIMIT_S} s");
}

/// Busybox with all its names, and what an image has.
fn fill(root: &Path) {
    for dir in ["bin", "etc", "tmp", "root", "var/www"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let busybox = Path::new("/bin/busybox");
    assert!(busybox.exists(), "install busybox-static: these tests run it in containers");
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for name in [
        "sh", "cat", "ls", "id", "echo", "true", "false", "env", "sleep", "mount", "umount", "stat",
        "readlink", "touch", "mkdir", "mknod", "chmod", "dd", "grep", "head", "tty", "stty", "kill", "ps",
        "hostname", "pwd", "test", "seq", "tail", "wc", "unshare", "uniq", "chroot", "ln", "mv", "rm", "ip",
        "nproc", "cut", "tr", "sort", "yes", "ipcs", "find",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/var/www:/bin/sh\n")
        .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nwheel:x:10:root,web\nweb:x:33:\n").unwrap();
}

/// A C program, compiled statically into the image's `/bin`.
pub fn compile(fixture: &Fixture, name: &str, flags: &[&str]) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/programs").join(format!("{name}.c"));
    let status = std::process::Command::new("gcc")
        .args(["-static", "-O1", "-o"])
        .arg(fixture.lower().join("bin").join(name))
        .arg(source)
        .args(flags)
        .status()
        .expect("these tests need gcc");
    assert!(status.success());
}

/// What the kernel holds that a container could leave behind.
#[derive(Debug, PartialEq)]
struct Holdings {
    mounts: String,
    descriptors: usize,
    cgroups: Vec<PathBuf>,
    children: String,
}

impl Holdings {
    fn now() -> Self {
        let own = format!("test-proa-runtime-{}-", std::process::id());
        let mut cgroups = Vec::new();
        let root = PathBuf::from("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(&root).into_iter().flatten().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain([root]) {
            for group in fs::read_dir(hierarchy.join("proa")).into_iter().flatten().flatten() {
                if group.file_name().to_string_lossy().starts_with(&own) {
                    cgroups.push(group.path());
                }
            }
        }
        Self {
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap(),
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
            cgroups,
            children: fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap(),
        }
    }
}

/// Runs a test and compares what is held before and after.
pub fn without_leaks(test: &fn()) {
    let before = Holdings::now();
    test();
    let after = Holdings::now();
    assert_eq!(before.descriptors, after.descriptors, "descriptors leaked");
    assert_eq!(before.cgroups, after.cgroups, "cgroups leaked");
    assert_eq!(before.children, after.children, "processes leaked");
    // Other programs may mount meanwhile: only what is ours counts.
    let mark = format!("proa-runtime-{}-", std::process::id());
    let own = |text: &str| text.lines().filter(|line| line.contains(&mark)).count();
    assert_eq!(own(&before.mounts), own(&after.mounts), "mounts leaked");
}

/// Shorthand for descriptors.
pub fn fd(fd: &Option<OwnedFd>) -> BorrowedFd<'_> {
    fd.as_ref().unwrap().as_fd()
}
