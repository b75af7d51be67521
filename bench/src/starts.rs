//! Many instances started at once in the default network: how many a second, against Podman.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::measure::{percentile, run};
use crate::setup::{PODMAN_LIMITS, Setup, installed};

/// Times that each contender does it.
const ROUNDS: usize = 3;

/// Who starts instances, and how long all of them took each time.
struct Contender {
    name: &'static str,
    tool: Vec<String>,
    options: &'static [&'static str],
    times: Vec<Duration>,
}

/// Starts `count` instances at once, and prints the rates.
pub fn bench(setup: &Setup, count: usize) -> Result<()> {
    let root = setup.text("proa");
    let tool = [&setup.proa, "--root", &root].map(String::from).to_vec();
    let mut contenders = vec![Contender { name: "proa", tool, options: &[], times: Vec::new() }];
    if installed("podman") {
        let tool = setup.podman_with_image()?;
        contenders.push(Contender { name: "podman", tool, options: &PODMAN_LIMITS, times: Vec::new() });
    }
    for contender in &mut contenders {
        // The network is made with the first of them.
        once(contender, 1).with_context(|| contender.name)?;
    }
    for _ in 0..ROUNDS {
        for contender in &mut contenders {
            let time = once(contender, count)?;
            contender.times.push(time);
        }
    }
    println!("\n{count} instances started at once in the default network (median of {ROUNDS})");
    let ours = percentile(&contenders[0].times, 50);
    for Contender { name, times, .. } in &contenders {
        let median = percentile(times, 50);
        let (rate, ratio) = (count as f64 / median.as_secs_f64(), median.as_secs_f64() / ours.as_secs_f64());
        println!(
            "{name:<12} {rate:>8.1}/s {:>10.2} s   ours is {ratio:.1} times as fast",
            median.as_secs_f64()
        );
    }
    Ok(())
}

/// Until the last of the commands has ended, which is when its instance runs.
fn once(contender: &Contender, count: usize) -> Result<Duration> {
    let names: Vec<String> = (0..count).map(|number| format!("start-{number}")).collect();
    let words = |arguments: &[&str]| -> Vec<String> {
        contender.tool.iter().cloned().chain(arguments.iter().map(ToString::to_string)).collect()
    };
    let begun = Instant::now();
    let start = |name: &String| {
        let run = [
            &["run", "-d", "--name", name.as_str()],
            contender.options,
            &["--stop-signal", "KILL", "busybox", "sleep", "10000"],
        ];
        let argv = words(&run.concat());
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().context("cannot start")
    };
    let children = names.iter().map(start).collect::<Result<Vec<_>>>()?;
    let mut failed = 0;
    for mut child in children {
        failed += usize::from(!child.wait()?.success());
    }
    let time = begun.elapsed();
    for name in &names {
        // One that never started is not there to be removed.
        drop(run(&words(&["rm", "-f", name])));
    }
    if failed > 0 {
        bail!("{failed} of {count} starts of {} failed", contender.name);
    }
    Ok(time)
}
