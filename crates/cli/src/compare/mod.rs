//! `proa compare`: what each isolation level costs and gives, measured on this machine.
//!
//! Everything is measured from outside, with the very commands a user types, so that nothing is left out:
//!
//! | figure | how it is taken |
//! | --- | --- |
//! | start time | wall time of whole `proa run --rm IMAGE COMMAND` commands, after two that warm up and have templates made, which are waited for; none of a machine that stands by |
//! | memory | `smaps_rollup` of the monitor and all its descendants while the image's `sleep` idles |
//! | system calls | the filters in force on the process, evaluated for every system call number |
//! | processes visible | entries of `/proc` inside |
//!
//! Memory is split three ways: *private* is what ends with the instance, *shared* its fair share of pages that
//! others map too, and *overhead* all of it that is not the program's own.

mod filter;
mod html;
mod memory;
mod text;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;

pub use html::page;
pub use memory::Memory;
pub use text::table;

/// What to compare.
pub struct Options {
    /// The image.
    pub image: String,
    /// Command whose start is timed.
    pub command: Vec<String>,
    /// Timed runs a level; `None` for 20 containers and 5 virtual machines.
    pub runs: Option<usize>,
}

/// How to call ourselves: the executable and the global flags the user gave.
pub struct Runner {
    /// `proa`.
    pub program: PathBuf,
    /// `--root …` and the like.
    pub globals: Vec<String>,
}

/// All that was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The image, as named.
    pub image: String,
    /// The command timed.
    pub command: Vec<String>,
    /// Bytes of the image's layers on disk; both levels use the same files.
    pub image_bytes: u64,
    /// The host's kernel release.
    pub host_kernel: String,
    /// Processes on the host.
    pub host_processes: usize,
    /// System calls this architecture has.
    pub syscalls: usize,
    /// One entry a level.
    pub levels: Vec<Level>,
}

/// What one level measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Level {
    /// `container` or `vm`.
    pub level: &'static str,
    /// What is virtualized, by what.
    pub virtualization: String,
    /// `uname -r` inside.
    pub kernel: String,
    /// Start times.
    pub start: Start,
    /// Memory of an idle instance; absent where the image has no `sleep`.
    pub memory: Option<Memory>,
    /// System calls of the host's kernel that the process holding the instance may make: a container's program
    /// itself, or the VMM, which a guest's program reaches only by breaking out of the guest.
    pub host_syscalls: Option<usize>,
    /// Processes visible inside; absent where the image has no shell.
    pub processes_visible: Option<usize>,
}

/// Wall times of whole commands, in milliseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Start {
    /// Each run.
    pub samples_ms: Vec<f64>,
    /// Median.
    pub p50_ms: f64,
    /// 99th percentile, by nearest rank.
    pub p99_ms: f64,
}

const LEVELS: [&str; 2] = ["container", "vm"];

/// Measures both levels; `say` is told what is going on, and `settle` waits for what a run has begun in the background.
///
/// # Errors
/// The image is missing or the command fails at a level; the message is that of the command.
pub fn measure(runner: &Runner, options: &Options, say: &dyn Fn(&str), settle: &dyn Fn()) -> Result<Report> {
    let size = runner.output(&["image", "inspect", "--format", "{{.Size}}", &options.image])?;
    let mut levels = Vec::new();
    for level in LEVELS {
        say(&format!("measuring {level}"));
        levels.push(measure_level(runner, options, level, settle).with_context(|| format!("level {level}"))?);
    }
    Ok(Report {
        image: options.image.clone(),
        command: options.command.clone(),
        image_bytes: size.parse().with_context(|| format!("image size {size:?}"))?,
        host_kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        host_processes: memory::process_count()?,
        syscalls: filter::known_syscalls().count(),
        levels,
    })
}

fn measure_level(
    runner: &Runner,
    options: &Options,
    level: &'static str,
    settle: &dyn Fn(),
) -> Result<Level> {
    let kernel = runner.run_at(level, &options.image, &["uname", "-r"]);
    let start = measure_start(runner, options, level, settle)?;
    let idle = Idle::start(runner, options, level).ok();
    let holder = idle.as_ref().and_then(|idle| idle.holder().ok());
    Ok(Level {
        level,
        virtualization: virtualization(level, holder),
        kernel: kernel.unwrap_or_else(|_| "?".into()),
        start,
        memory: idle.as_ref().map(Idle::memory).transpose()?,
        host_syscalls: holder.and_then(filter::reachable_syscalls),
        processes_visible: idle.as_ref().and_then(Idle::processes_visible),
    })
}

fn measure_start(runner: &Runner, options: &Options, level: &str, settle: &dyn Fn()) -> Result<Start> {
    let runs = options.runs.unwrap_or(if level == "vm" { 5 } else { 20 }).max(1);
    let command: Vec<&str> = options.command.iter().map(String::as_str).collect();
    let mut samples_ms = Vec::with_capacity(runs);
    // The first may have to fetch a kernel or to mount layers, and has a template made; the second has that of its kind.
    for _ in 0..2 {
        runner.run_at(level, &options.image, &command)?;
        settle();
    }
    for _ in 0..runs {
        let start = Instant::now();
        runner.run_at(level, &options.image, &command)?;
        samples_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let mut sorted = samples_ms.clone();
    sorted.sort_by(f64::total_cmp);
    let rank = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1];
    Ok(Start { p50_ms: rank(50), p99_ms: rank(99), samples_ms })
}

fn virtualization(level: &str, holder: Option<u32>) -> String {
    if level == "container" {
        return "operating system: namespaces and cgroups".into();
    }
    let line = holder.and_then(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).ok()).unwrap_or_default();
    let emulated = !String::from_utf8_lossy(&line).contains("kvm");
    let how = if emulated { "QEMU, software emulation" } else { "QEMU with KVM" };
    format!("hardware: {how}")
}

/// An idle instance, removed when dropped.
struct Idle<'a> {
    runner: &'a Runner,
    id: String,
}

impl<'a> Idle<'a> {
    fn start(runner: &'a Runner, options: &Options, level: &str) -> Result<Self> {
        let run = ["run", "-d", "--no-standby", "--network", "none", "--isolation", level];
        let id =
            runner.output(&[&run[..], &["--entrypoint", "sleep", &options.image, "1000000"]].concat())?;
        Ok(Self { runner, id })
    }

    /// The process on the host that holds the instance: the program itself, or the VMM.
    fn holder(&self) -> Result<u32> {
        let pid = self.runner.output(&["inspect", "--format", "{{.State.Pid}}", &self.id])?;
        pid.parse().with_context(|| format!("process id {pid:?}"))
    }

    fn memory(&self) -> Result<Memory> {
        let status = self.runner.output(&["exec", &self.id, "cat", "/proc/1/status"]).unwrap_or_default();
        memory::of_instance(self.holder()?, memory::resident(&status))
    }

    fn processes_visible(&self) -> Option<usize> {
        // The shell and its `ls` see themselves; they are not part of the instance.
        let count =
            self.runner.output(&["exec", &self.id, "sh", "-c", "set -- /proc/[0-9]*; echo $#"]).ok()?;
        count.parse::<usize>().ok().map(|count| count.saturating_sub(1))
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        // A measurement that ends early must leave no instance; a failure here shows in `ps`.
        drop(self.runner.output(&["rm", "-f", &self.id]));
    }
}

impl Runner {
    fn run_at(&self, level: &str, image: &str, command: &[&str]) -> Result<String> {
        // What one run leaves for the next would be a part of neither.
        let run = ["run", "--rm", "--no-standby", "--network", "none", "--isolation", level, image];
        self.output(&[&run[..], command].concat())
    }

    fn output(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.program)
            .args(&self.globals)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!("`proa {}` failed: {}", arguments.join(" "), complaint.trim_start_matches("proa: ").trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}
