//! Many idle instances: how fast they start, what each costs, and how long listing them takes.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::measure::{percentile, run, time};
use crate::memory;
use crate::setup::{PODMAN_LIMITS, Setup, installed};

/// Listings timed with all instances there.
const LISTINGS: usize = 20;

/// Starts `count` idle instances with each contender and prints what that is like.
pub fn bench(setup: &Setup, count: usize) -> Result<()> {
    println!("\n{count} idle instances");
    println!("{:<12} {:>12} {:>14} {:>14} {:>12}", "", "start rate", "private each", "PSS each", "ps");
    let root = setup.text("proa");
    let proa = [&setup.proa, "--root", &root].map(String::from);
    measure("proa", count, &proa, &[], "proa-monitor", setup.path("proa").to_str())?;
    if installed("podman") {
        let measured = setup
            .podman_with_image()
            .and_then(|podman| measure("podman", count, &podman, &PODMAN_LIMITS, "conmon", None));
        if let Err(error) = measured {
            eprintln!("bench: podman is left out: {error:#}");
        }
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
    let argv = |arguments: &[&str]| {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        [tool, &arguments].concat()
    };
    let names: Vec<String> = (0..count).map(|number| format!("idle-{number}")).collect();
    let begun = Instant::now();
    let started = names.iter().try_for_each(|instance| {
        let run_it = ["run", "-d", "--name", instance, "--network", "none"];
        run(&argv(&[&run_it[..], options, &["busybox", "sleep", "100000"]].concat()))
    });
    let took = begun.elapsed();
    let measured = started.and_then(|()| {
        let memory = memory::helpers(helper, mark)?;
        let listings = (0..LISTINGS).map(|_| time(&argv(&["ps"]))).collect::<Result<Vec<Duration>>>()?;
        Ok((memory, percentile(&listings, 50)))
    });
    // Removed whatever happened; one that never started is not there to be removed.
    for instance in &names {
        drop(run(&argv(&["rm", "-f", instance])));
    }
    let (memory, listing) = measured?;
    let each = |bytes: u64| format!("{:.0} kB", bytes as f64 / 1024.0 / count as f64);
    println!(
        "{name:<12} {:>10.1}/s {:>14} {:>14} {:>9.1} ms",
        count as f64 / took.as_secs_f64(),
        each(memory.private),
        each(memory.proportional),
        listing.as_secs_f64() * 1e3
    );
    Ok(())
}
