//! Proa, its peers and the physical limit, timed in one interleaved run on one machine.
//!
//! ```text
//! cargo xtask dist && cargo run --release -p proa-bench -- [run|lifecycle|rootless|exec|memory|idle|pull|vm|snapshot|network|names|starts|all] [rounds]
//! ```
//!
//! Only ratios taken in one run mean anything: machines differ, and one machine differs from hour to hour.
//! Peers that are not installed are left out and named. Needs root.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool's output")]

mod exec;
mod idle;
mod isolate;
mod lifecycle;
mod measure;
mod memory;
mod names;
mod network;
mod pull;
mod rootless;
mod run;
mod setup;
mod snapshot;
mod starts;
mod throughput;
mod vm;

use anyhow::{Result, bail};
use setup::Setup;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let what = arguments.first().map_or("all", String::as_str);
    isolate::hide_unified_cgroups()?;
    if ["network", "names", "starts"].contains(&what) {
        isolate::own_network()?;
    }
    let rounds: Option<usize> = arguments.get(1).map(|text| text.parse()).transpose()?;
    let setup = Setup::new()?;
    for peer in ["crun", "runc", "podman", "dockerd"] {
        if !setup::installed(peer) {
            eprintln!("bench: {peer} is not installed and is left out");
        }
    }
    match what {
        "run" => run::bench(&setup, rounds.unwrap_or(20)),
        "lifecycle" => lifecycle::bench(&setup, rounds.unwrap_or(20)),
        "rootless" => rootless::bench(&setup, rounds.unwrap_or(20)),
        "exec" => exec::bench(&setup, rounds.unwrap_or(20)),
        "memory" => memory::bench(&setup, rounds.unwrap_or(20)),
        "idle" => idle::bench(&setup, rounds.unwrap_or(300)),
        "pull" => pull::bench(&setup, rounds.unwrap_or(3)),
        "network" => {
            network::bench(&setup, rounds.unwrap_or(20))?;
            throughput::bench(&setup, rounds.unwrap_or(5).min(5))?;
            names::bench(&setup, rounds.unwrap_or(5).min(5))
        }
        "names" => names::bench(&setup, rounds.unwrap_or(5)),
        "starts" => starts::bench(&setup, rounds.unwrap_or(100)),
        "vm" => vm::bench(&setup, rounds.unwrap_or(5)),
        "snapshot" => snapshot::bench(&setup, rounds.unwrap_or(5)),
        "all" => {
            run::bench(&setup, rounds.unwrap_or(20))?;
            lifecycle::bench(&setup, rounds.unwrap_or(20))?;
            rootless::bench(&setup, rounds.unwrap_or(20))?;
            exec::bench(&setup, rounds.unwrap_or(20))?;
            memory::bench(&setup, rounds.unwrap_or(20))?;
            pull::bench(&setup, rounds.unwrap_or(3))?;
            vm::bench(&setup, rounds.unwrap_or(5))?;
            snapshot::bench(&setup, rounds.unwrap_or(5))
        }
        _ => {
            bail!(
                "usage: proa-bench [run|lifecycle|rootless|exec|memory|idle|pull|vm|snapshot|network|names|starts|all] [rounds]"
            )
        }
    }
}
