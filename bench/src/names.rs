//! How many questions for a name of the network the resolver answers, asked by a container.

use anyhow::{Context, Result};

use crate::measure::percentile;
use crate::setup::Setup;

/// Questions of one run.
const QUESTIONS: &str = "20000";

/// Asks `rounds` times and prints the median.
pub fn bench(setup: &Setup, rounds: usize) -> Result<()> {
    setup.compile_bench("ask")?;
    setup.proa(&["run", "-d", "--name", "asked", "busybox", "sleep", "10000"])?;
    let gateway =
        setup.proa(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge"])?;
    let volume = format!("{}:/ask:ro", setup.text("ask"));
    let mut each = Vec::new();
    let mut lost = 0;
    for _ in 0..rounds {
        let run = ["run", "--rm", "-v", &volume, "busybox", "/ask", &gateway, "asked", QUESTIONS];
        let told = setup.proa(&run)?;
        let (rate, missing) = told.split_once(' ').context("no figures")?;
        let rate: f64 = rate.parse()?;
        each.push(std::time::Duration::from_secs_f64(1.0 / rate.max(1.0)));
        lost += missing.parse::<u64>()?;
    }
    setup.proa(&["rm", "-f", "asked"])?;
    let rate = 1.0 / percentile(&each, 50).as_secs_f64();
    println!(
        "\nnames: {rate:.0} questions a second (bar 10000), {lost} of {rounds} x {QUESTIONS} without an answer"
    );
    Ok(())
}
