//! Timing whole commands in turn, and the figures that come of it.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// One command among those that are compared.
pub struct Contender {
    /// Name in the table.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Wall times of its runs.
    pub times: Vec<Duration>,
    /// What is waited for after each run, so that none of it is another's time.
    pub settle: Option<Settle>,
}

/// Waits until a host is as it was.
pub type Settle = Box<dyn Fn() -> Result<()>>;

impl Contender {
    /// A contender with these words, that has not run yet.
    pub fn of(name: &str, argv: Vec<String>) -> Self {
        Self { name: name.to_owned(), argv, times: Vec::new(), settle: None }
    }

    /// A contender that has not run yet.
    pub fn new(name: &str, argv: &[&str]) -> Self {
        Self::of(name, argv.iter().map(ToString::to_string).collect())
    }

    fn settle(&self) -> Result<()> {
        self.settle.as_ref().map_or(Ok(()), |settle| settle())
    }

    /// Median wall time.
    pub fn median(&self) -> Duration {
        percentile(&self.times, 50)
    }
}

/// The nearest-rank percentile; zero for no samples.
pub fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(rank).copied().unwrap_or_default()
}

/// The middle one of some figures; zero for none.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Runs each contender once a round, each round beginning with another one, so that a machine whose speed
/// drifts treats all alike. A first run warms up and does not count; a peer that fails it does not work on this
/// host and is left out, with its own words. Ours, the first, must not fail.
pub fn interleave(contenders: &mut Vec<Contender>, rounds: usize) -> Result<()> {
    let ours = contenders.first().map(|contender| contender.name.clone());
    for index in (0..contenders.len()).rev() {
        let contender = &contenders[index];
        match run(&contender.argv) {
            Ok(()) => contender.settle()?,
            Err(error) if Some(&contender.name) == ours.as_ref() => return Err(error),
            Err(error) => {
                eprintln!("bench: {} is left out: {error:#}", contender.name);
                contenders.remove(index);
            }
        }
    }
    let count = contenders.len();
    for round in 0..rounds {
        for turn in 0..count {
            let contender = &mut contenders[(turn + round) % count];
            let time = time(&contender.argv)?;
            contender.times.push(time);
            contender.settle()?;
        }
    }
    Ok(())
}

/// Wall time of one successful run.
pub fn time(argv: &[String]) -> Result<Duration> {
    let start = Instant::now();
    run(argv)?;
    Ok(start.elapsed())
}

/// Runs a command to its end with no input and no output.
pub fn run(argv: &[String]) -> Result<()> {
    let (program, arguments) = argv.split_first().context("an empty command")?;
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", argv.join(" "), output.status, complaint.trim());
    }
    Ok(())
}

/// Runs a command that leaves a process behind, which would keep a pipe of ours open.
pub fn detach(argv: &[&str]) -> Result<()> {
    let status = Command::new(argv[0])
        .args(&argv[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", argv[0]))?;
    if !status.success() {
        bail!("{} failed ({status})", argv.join(" "));
    }
    Ok(())
}

/// Standard output of a command that must succeed.
pub fn output(argv: &[&str]) -> Result<String> {
    let output = Command::new(argv[0])
        .args(&argv[1..])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", argv[0]))?;
    if !output.status.success() {
        bail!("{} failed: {}", argv.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Prints medians and the ratio of the first contender to each other.
pub fn print(title: &str, contenders: &[Contender]) {
    let Some(ours) = contenders.first() else { return };
    println!("\n{title} ({} rounds, whole command)", ours.times.len());
    println!("{:<24} {:>10} {:>10} {:>10} {:>14}", "", "min", "median", "p90", "ours / it");
    for contender in contenders {
        let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
        let ratio = ours.median().as_secs_f64() / contender.median().as_secs_f64();
        println!(
            "{:<24} {:>10} {:>10} {:>10} {:>14.3}",
            contender.name,
            ms(percentile(&contender.times, 0)),
            ms(contender.median()),
            ms(percentile(&contender.times, 90)),
            ratio
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let times: Vec<Duration> = (1..=10).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 0), Duration::from_millis(1));
        assert_eq!(percentile(&times, 50), Duration::from_millis(5));
        assert_eq!(percentile(&times, 90), Duration::from_millis(9));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}
