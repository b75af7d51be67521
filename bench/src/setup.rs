//! One place on disk with everything the contenders need, and the peers that are installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::measure::{output, run};

/// Podman's own defaults raise limits, which root may not do everywhere.
pub const PODMAN_LIMITS: [&str; 4] = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"];

/// Directories and programs shared by all benchmarks; removed at the end.
pub struct Setup {
    work: TempDir,
    /// `proa` as built by `cargo xtask dist`.
    pub proa: String,
}

impl Setup {
    /// Builds the limit program and a busybox root, and imports it into a store of its own.
    pub fn new() -> Result<Self> {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
        let proa = top.join("target/dist/proa");
        if !proa.exists() {
            bail!("{} is missing: run `cargo xtask dist` first", proa.display());
        }
        let work = tempfile::Builder::new().prefix("proa-bench-").tempdir_in("/var/tmp")?;
        let setup = Self { work, proa: text(&proa) };
        for directory in ["rootfs/bin", "rootfs/etc", "upper", "overlay-work", "merged"] {
            fs::create_dir_all(setup.path(directory))?;
        }
        setup.compile(&top.join("bench/limit.c"), "limit")?;
        setup.compile(&top.join("bench/init.c"), "init")?;
        setup.make_rootfs()?;
        // What goes on ahead of need is measured where it is meant to be.
        fs::write(setup.path("config.toml"), "[vm]\nstandby = 0\n")?;
        setup.proa(&["import", &setup.text("rootfs.tar"), "busybox"])?;
        Ok(setup)
    }

    /// A path in the working directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> String {
        text(&self.path(name))
    }

    /// Runs our command line on the benchmark's own store.
    pub fn proa(&self, arguments: &[&str]) -> Result<String> {
        let root = self.text("proa");
        let config = self.text("config.toml");
        output(&[&[self.proa.as_str(), "--root", &root, "--config", &config], arguments].concat())
    }

    /// `proa-runtime`, which stands beside `proa`.
    pub fn proa_runtime(&self) -> String {
        format!("{}-runtime", self.proa)
    }

    /// Builds a program of the benchmarks', under its name in the working directory.
    pub fn compile_bench(&self, name: &str) -> Result<()> {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
        self.compile(&top.join(format!("bench/{name}.c")), name)
    }

    fn compile(&self, source: &Path, name: &str) -> Result<()> {
        let out = self.text(name);
        run(&["cc", "-O2", "-static", "-o", &out, &text(source)].map(String::from))
    }

    fn make_rootfs(&self) -> Result<()> {
        let busybox =
            output(&["sh", "-c", "command -v busybox"]).context("busybox-static is not installed")?;
        fs::copy(busybox, self.path("rootfs/bin/busybox"))?;
        // Images of distributions have these, and the limit program's upper directory keeps what it once made.
        for directory in ["dev", "proc", "sys", "tmp"] {
            fs::create_dir(self.path("rootfs").join(directory))?;
        }
        for applet in ["sh", "true", "sleep", "cat", "ps"] {
            fs::hard_link(self.path("rootfs/bin/busybox"), self.path("rootfs/bin").join(applet))?;
        }
        fs::write(self.path("rootfs/etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        output(&["tar", "-C", &self.text("rootfs"), "-cf", &self.text("rootfs.tar"), "."]).map(drop)
    }

    /// An OCI bundle with the very spec that `proa run` would apply.
    pub fn bundle(&self, command: &[&str]) -> Result<PathBuf> {
        let create = ["create", "--name", "bundle", "--network", "none", "busybox"];
        let id = self.proa(&[&create[..], command].concat())?;
        let config = fs::read(self.path("proa/instances").join(&id).join("instance.json"))?;
        let mut spec = serde_json::from_slice::<serde_json::Value>(&config)?["spec"].take();
        // Older runtimes refuse a version they do not know, whatever the document holds.
        spec["ociVersion"] = "1.0.2".into();
        spec["root"] = serde_json::json!({ "path": self.text("rootfs") });
        let bundle = self.path("bundle");
        fs::create_dir_all(&bundle)?;
        fs::write(bundle.join("config.json"), spec.to_string())?;
        self.proa(&["rm", "bundle"])?;
        Ok(bundle)
    }

    /// `podman` with a store of its own that holds the image.
    pub fn podman_with_image(&self) -> Result<Vec<String>> {
        let podman = self.podman();
        run(&[&podman[..], &["import".into(), "-q".into(), self.text("rootfs.tar"), "busybox".into()]]
            .concat())?;
        Ok(podman)
    }

    /// `podman` with a store of its own.
    fn podman(&self) -> Vec<String> {
        let (root, runroot) = (self.text("podman"), self.text("podman-run"));
        ["podman", "--root", &root, "--runroot", &runroot, "--cgroup-manager", "cgroupfs"]
            .map(String::from)
            .to_vec()
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        if let Err(error) = self.proa(&["system", "stop"]) {
            eprintln!("bench: cannot stop what was started: {error:#}");
        }
    }
}

/// Whether a program is installed.
pub fn installed(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A Docker daemon of our own, ended when dropped.
pub struct Docker {
    child: Child,
    socket: String,
}

impl Docker {
    /// Starts one below `directory`, with no network set-up; `None` where docker is not installed.
    pub fn start(directory: &Path) -> Result<Option<Self>> {
        Self::start_with(directory, &["--bridge=none", "--iptables=false", "--ip6tables=false"])
    }

    fn start_with(directory: &Path, network: &[&str]) -> Result<Option<Self>> {
        if !installed("dockerd") || !installed("docker") {
            return Ok(None);
        }
        fs::create_dir_all(directory)?;
        let at = |name: &str| text(&directory.join(name));
        let socket = format!("unix://{}", at("docker.sock"));
        let child = Command::new("dockerd")
            .args([
                "--data-root",
                &at("data"),
                "--exec-root",
                &at("exec"),
                "--pidfile",
                &at("pid"),
                "-H",
                &socket,
            ])
            .args(network)
            .arg("--insecure-registry=127.0.0.0/8")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start dockerd")?;
        let docker = Self { child, socket };
        let deadline = Instant::now() + Duration::from_secs(60);
        while output(&["docker", "-H", &docker.socket, "version"]).is_err() {
            if Instant::now() > deadline {
                bail!("dockerd does not answer");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(Some(docker))
    }

    /// Starts one that has the image `busybox`.
    pub fn with_image(setup: &Setup) -> Result<Option<Self>> {
        Self::import(setup, Self::start(&setup.path("docker"))?)
    }

    /// The same with Docker's own bridge.
    pub fn with_bridge(setup: &Setup) -> Result<Option<Self>> {
        Self::import(setup, Self::start_with(&setup.path("docker"), &[])?)
    }

    fn import(setup: &Setup, docker: Option<Self>) -> Result<Option<Self>> {
        if let Some(docker) = &docker {
            run(&docker.argv(&["import", &setup.text("rootfs.tar"), "busybox"]))?;
        }
        Ok(docker)
    }

    /// The client's command line.
    pub fn argv(&self, arguments: &[&str]) -> Vec<String> {
        [&["docker", "-H", &self.socket], arguments].concat().into_iter().map(String::from).collect()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // SIGTERM lets dockerd end its containerd and its mounts.
        let _ = run(&["kill", "-TERM", &self.child.id().to_string()].map(String::from));
        let _ = self.child.wait();
    }
}
