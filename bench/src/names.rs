//! Questions for a name of the network, asked by a container of the resolver: how many are answered at most, and how soon
//! those are that come at a steady rate. The same in an ordinary user's network, where the resolver's sockets are small.

use anyhow::{Context, Result};

use crate::measure::median;
use crate::rootless::User;
use crate::setup::Setup;

/// Questions of one run: half of what the resolver lets one asker have at once. Of many more it would drop what comes faster
/// than 50,000 a second, for the others' sake, and that would be measured.
const QUESTIONS: &str = "5000";
/// Those of one at a steady rate, and how many a second: the bar.
const PACED: &str = "50000";
const RATE: &str = "10000";

/// Asks `rounds` times and prints medians.
pub fn bench(setup: &Setup, rounds: usize) -> Result<()> {
    setup.compile_bench("ask")?;
    ask(setup, "root", rounds, &|arguments| setup.proa(arguments))?;
    let Some(user) = User::find(setup) else { return Ok(()) };
    user.import(setup)?;
    let told = ask(setup, "an ordinary user", rounds, &|arguments| user.run_proa(arguments));
    let stopped = user.run_proa(&["system", "stop"]);
    told.and(stopped.map(drop))
}

fn ask(setup: &Setup, who: &str, rounds: usize, proa: &dyn Fn(&[&str]) -> Result<String>) -> Result<()> {
    proa(&["run", "-d", "--name", "asked", "busybox", "sleep", "10000"])?;
    let gateway = proa(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge"])?;
    let volume = format!("{}:/ask:ro", setup.text("ask"));
    let run = |how: &[&str]| -> Result<Vec<f64>> {
        let command = ["run", "--rm", "-v", &volume, "busybox", "/ask", &gateway, "asked"];
        let told = proa(&[&command[..], how].concat())?;
        told.split(' ').map(|figure| figure.parse().context("no figure")).collect()
    };
    let figures = |how: &[&str]| -> Result<Vec<Vec<f64>>> { (0..rounds).map(|_| run(how)).collect() };
    let (flood, paced) = (figures(&[QUESTIONS])?, figures(&[PACED, RATE])?);
    proa(&["rm", "-f", "asked"])?;
    println!("\nnames, by {who}, {rounds} rounds");
    println!(
        "  as many as it can: {:.0} answers a second; {:.0} of {rounds} x {QUESTIONS} without an answer",
        middle(&flood, 0),
        sum(&flood, 1)
    );
    println!(
        "  {RATE} a second: {:.0} of {rounds} x {PACED} without an answer ({:.0} for want of room at who asks); p50 {:.0} us, p99 {:.0} us, slowest {:.0} us",
        sum(&paced, 1),
        sum(&paced, 5),
        middle(&paced, 2),
        middle(&paced, 3),
        middle(&paced, 4)
    );
    Ok(())
}

fn sum(rounds: &[Vec<f64>], figure: usize) -> f64 {
    rounds.iter().filter_map(|round| round.get(figure)).sum()
}

fn middle(rounds: &[Vec<f64>], figure: usize) -> f64 {
    median(&rounds.iter().filter_map(|round| round.get(figure).copied()).collect::<Vec<_>>())
}
