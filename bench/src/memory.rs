//! Memory of what stands beside an idle instance: the monitor, and the peers' like.

use std::fs;

use anyhow::{Context, Result};

use crate::measure::run;
use crate::setup::{Docker, PODMAN_LIMITS, Setup, installed};

/// Bytes of a set of processes.
#[derive(Default)]
pub struct Memory {
    /// That nobody else has.
    pub private: u64,
    /// With a share of what others have too.
    pub proportional: u64,
    /// How many they are.
    pub processes: u64,
}

/// Starts `count` idle instances of each contender in turn and prints what one costs.
pub fn bench(setup: &Setup, count: usize) -> Result<()> {
    println!("\nhelper processes of an idle instance ({count} instances)");
    println!("{:<12} {:>12} {:>12} {:>12}", "", "private", "PSS", "processes");
    let root = setup.text("proa");
    let proa = [&setup.proa, "--root", &root].map(String::from);
    measure("proa", count, &proa, &[], "proa-monitor", setup.path("proa").to_str())?;
    if installed("podman") {
        let podman = setup.podman_with_image()?;
        if let Err(error) = measure("podman", count, &podman, &PODMAN_LIMITS, "conmon", None) {
            eprintln!("bench: podman is left out: {error:#}");
        }
    }
    if let Some(docker) = Docker::with_image(setup)? {
        measure("docker", count, &docker.argv(&[]), &[], "containerd-shim", None)?;
    }
    Ok(())
}

fn measure(
    name: &str,
    count: usize,
    tool: &[String],
    options: &[&str],
    helper: &str,
    mark: Option<&str>,
) -> Result<()> {
    let call = |arguments: &[&str]| {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        run(&[tool, &arguments].concat())
    };
    for number in 0..count {
        let instance = format!("memory-{number}");
        let run = ["run", "-d", "--name", &instance, "--network", "none"];
        call(&[&run[..], options, &["busybox", "sleep", "100000"]].concat())?;
    }
    let memory = helpers(helper, mark)?;
    for number in 0..count {
        call(&["rm", "-f", &format!("memory-{number}")])?;
    }
    let each = |bytes: u64| format!("{:.0} kB", bytes as f64 / 1024.0 / count as f64);
    println!(
        "{name:<12} {:>12} {:>12} {:>12}",
        each(memory.private),
        each(memory.proportional),
        memory.processes
    );
    Ok(())
}

/// Adds up the processes whose name begins with `helper` and whose command line holds `mark`.
pub fn helpers(helper: &str, mark: Option<&str>) -> Result<Memory> {
    let mut memory = Memory::default();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let command = fs::read(path.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        let program = command.split('\0').next().and_then(|program| program.rsplit('/').next()).unwrap_or("");
        if !program.starts_with(helper) || mark.is_some_and(|mark| !command.contains(mark)) {
            continue;
        }
        let rollup = fs::read_to_string(path.join("smaps_rollup"))
            .with_context(|| format!("cannot read {}/smaps_rollup", path.display()))?;
        memory.private += private(&rollup);
        memory.proportional += field(&rollup, "Pss:");
        memory.processes += 1;
    }
    Ok(memory)
}

/// Bytes that nobody else has, of a mapping or of all.
pub fn private(mapping: &str) -> u64 {
    field(mapping, "Private_Dirty:") + field(mapping, "Private_Clean:")
}

/// A figure in the description of a mapping, bytes.
pub fn field(rollup: &str, name: &str) -> u64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}
