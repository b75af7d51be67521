//! The tests that need another kernel: the container half of our suites, run again in a virtual machine.
//!
//! Many hosts lack what others have: all controllers on cgroup v2, AppArmor, SELinux, every capability for root,
//! an ordinary user with a cgroup of his own. The distribution's kernel has all of it, so a guest with that
//! kernel runs the same test programs once more. The guest is one of ours (`proa_vm`), with a script as its
//! init; it works with and without hardware virtualization.
//!
//! ```text
//!   cargo test --no-run ─▶ test programs ──┐   --list ─▶ selection ─▶ plan
//!   dist binaries, tools, libraries ───────┴─▶ EROFS image ◀────────────┘
//!                                                  │
//!   kernel + modules + init.sh ─▶ guest ─▶ overlay of image and disk ─▶ suite.sh ─▶ two tests at a time
//!                                                                          │
//!   summary, exit code ◀── results, a line each; output of what failed ◀── serial port
//! ```
//!
//! The image holds what the tests run and nothing else ([`image`]): emulated, each file that a guest reads from
//! its host costs more than all the image's bytes. Each test is a process of its own with a time limit, as under
//! nextest. What is run, and what is not with the reason, stands in [`selection`].
//!
//! A guest that panics, hangs or ends early is a failure, with the tests that ran at that moment and its
//! console's last lines. The guest is our child and dies with us; all that is made lies in `target/guest`.

mod image;
mod programs;
mod report;
mod selection;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, bail, ensure};
use proa_vm::{Extras, Vm, VmSpec};

use crate::cargo;
use report::Report;
use selection::{Lsm, Planned};

/// Nothing was heard of the guest for this long: it hangs. Longer than any test may take.
const SILENCE: Duration = Duration::from_secs(240);
/// What all tests of one guest may take.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// Both of a small host's CPUs.
const CPUS: u32 = 2;
const MEMORY: u64 = 2 << 30;
const DISK: u64 = 16 << 30;
/// What the tests use of a kernel beside what every guest of ours has.
const MODULES: &[&str] = &[
    "loop",
    "veth",
    "bridge",
    "macvlan",
    "tun",
    "fuse",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_meta_bridge",
    "nft_ct",
    "nft_fib_inet",
    "nf_conntrack_netlink",
    "nf_conntrack_bridge",
    "nft_compat",
    "sctp",
    "xt_mark",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "unix_diag",
    "netlink_diag",
    "af_packet_diag",
    "bfq",
    "virtio_rng",
];

const INIT: &str = include_str!("init.sh");
const SUITE: &str = include_str!("suite.sh");

/// What the user asked for.
#[derive(Debug, Default)]
struct Wishes {
    /// Only in this guest; otherwise in each.
    lsm: Option<Lsm>,
    /// Parts of names of tests; none for all.
    filters: Vec<String>,
}

/// `cargo xtask guest-suite [--lsm apparmor|selinux] [FILTER...]`.
pub fn run(arguments: &[&str]) -> Result<()> {
    let wishes = parse(arguments)?;
    let programs = programs::build()?;
    let planned = selection::plan(&programs, &wishes.filters)?;
    let lsms = wishes.lsm.map_or_else(|| Lsm::ALL.to_vec(), |lsm| vec![lsm]);
    let mut failed = 0;
    let mut ran = 0;
    for lsm in lsms {
        let chosen: Vec<&Planned> = planned.iter().filter(|test| test.runs_under(lsm)).collect();
        if chosen.is_empty() {
            continue;
        }
        let report = run_guest(lsm, &programs, &chosen)?;
        report.print_summary(lsm.name());
        ran += report.planned();
        failed += report.failed();
    }
    ensure!(ran > 0, "no test has such a name");
    ensure!(failed == 0, "{failed} of {ran} tests in guests failed");
    Ok(())
}

fn parse(arguments: &[&str]) -> Result<Wishes> {
    let mut wishes = Wishes::default();
    let mut rest = arguments.iter();
    while let Some(&argument) = rest.next() {
        match argument {
            "--lsm" => {
                let name = rest.next().context("--lsm needs a name: apparmor or selinux")?;
                wishes.lsm = Some(Lsm::from_name(name)?);
            }
            flag if flag.starts_with('-') => {
                bail!(
                    "unknown flag {flag}; usage: cargo xtask guest-suite [--lsm apparmor|selinux] [FILTER...]"
                )
            }
            filter => wishes.filters.push(filter.to_owned()),
        }
    }
    Ok(wishes)
}

/// A directory of ours that is emptied before and after.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let all = cargo::root().join("target/guest");
        // What one that was killed has left.
        for entry in fs::read_dir(&all).into_iter().flatten().flatten() {
            if !Path::new("/proc").join(entry.file_name()).exists() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let path = all.join(std::process::id().to_string());
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed lies under target/ and harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run_guest(lsm: Lsm, programs: &programs::Programs, tests: &[&Planned]) -> Result<Report> {
    let started = Instant::now();
    let scratch = Scratch::new()?;
    let image = image::make(&scratch.0, lsm, programs, tests)?;
    let init = scratch.0.join("init");
    fs::write(&init, INIT).with_context(|| format!("cannot write {}", init.display()))?;
    let run_dir = scratch.0.join("run");
    fs::create_dir_all(&run_dir).with_context(|| format!("cannot make {}", run_dir.display()))?;
    let spec = VmSpec {
        id: format!("guest-suite-{}", std::process::id()),
        agent: init,
        store: cargo::root().join("target/test-cache/vm"),
        run_dir,
        memory: MEMORY,
        cpus: CPUS,
        layers: vec![image],
        rw_disk: scratch.0.join("rw.img"),
        rw_size: DISK,
        extras: Extras {
            files: vec![("/bin/busybox".into(), "busybox".into())],
            modules: MODULES.iter().map(ToString::to_string).collect(),
            words: lsm.words().iter().map(ToString::to_string).collect(),
        },
        ..VmSpec::default()
    };
    println!("    Starting {} tests in a guest with {} ({CPUS} CPUs)", tests.len(), lsm.name());
    let mut vm = Vm::start(&spec, &mut |line| println!("     {line}")).map_err(explain)?;
    let mut report = Report::new(tests);
    if let Err(error) = follow(&mut vm, &mut report, started) {
        vm.kill();
        report.give_up(&format!("{error:#}"));
    }
    Ok(report)
}

/// Reads what the guest tells until it says that it is done.
fn follow(vm: &mut Vm, report: &mut Report, started: Instant) -> Result<()> {
    let stream = vm.stream().try_clone()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let mut lines = Lines { stream, pending: Vec::new() };
    loop {
        match lines.next() {
            Ok(Some(line)) => report.line(&line),
            Ok(None) => bail!("the guest ended in the midst of the tests\n{}", last_words(vm)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bail!("nothing was heard of the guest for {} s\n{}", SILENCE.as_secs(), last_words(vm))
            }
            Err(error) => return Err(error).context("cannot read what the guest says"),
        }
        if report.is_done() {
            return Ok(());
        }
        ensure!(started.elapsed() < LIMIT, "the tests took more than {} s", LIMIT.as_secs());
    }
}

fn last_words(vm: &mut Vm) -> String {
    let console = vm.console();
    let text = if console.is_empty() { "it said nothing" } else { &console };
    text.lines().map(|line| format!("    console: {line}\n")).collect()
}

fn explain(error: proa_vm::VmError) -> anyhow::Error {
    anyhow::Error::new(error).context("cannot start the guest that the tests need")
}

/// Lines of a stream; what cannot be decoded is replaced.
struct Lines {
    stream: std::os::unix::net::UnixStream,
    pending: Vec<u8>,
}

impl Lines {
    fn next(&mut self) -> io::Result<Option<String>> {
        use std::io::Read;
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            let mut bytes = [0; 8192];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(count) => self.pending.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Runs a tool and gives what it wrote.
fn output_of(command: &mut std::process::Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The path that has no links in its directories.
fn real_parent(path: &Path) -> Result<PathBuf> {
    let parent = path.parent().context("the root directory is no file")?;
    let real = fs::canonicalize(parent).with_context(|| format!("no directory {}", parent.display()))?;
    Ok(real.join(path.file_name().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_read_or_refused() {
        let wishes = parse(&["limits", "--lsm", "selinux", "pids"]).unwrap();
        assert_eq!((wishes.lsm, wishes.filters), (Some(Lsm::Selinux), vec!["limits".into(), "pids".into()]));
        assert!(parse(&["--lsm"]).is_err());
        assert!(parse(&["--lsm", "smack"]).unwrap_err().to_string().contains("smack"));
        assert!(parse(&["--fast"]).unwrap_err().to_string().contains("--fast"));
    }
}
