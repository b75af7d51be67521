//! Recipes for contributors: `cargo xtask <recipe>`.
//!
//! | recipe | what it does |
//! | --- | --- |
//! | `dist` | builds the five binaries, as users get them, into `target/dist` |
//! | `tidy` | checks what lints cannot: lengths, dependency arrows, banned calls |
//! | `check` | all that CI checks before the tests: fmt, clippy, tidy |
//! | `guest-suite` | runs the container half of the tests again in a VM: cgroup v2, AppArmor, SELinux |
//! | `parity` | writes what the tests that ran have found into the table of COMPATIBILITY.md; `--check` compares |
//! | `ci` | `check`, then `dist`, then every test, on the host and in guests: what to run before a push |
#![allow(clippy::print_stdout, reason = "a command line tool's output")]

mod arrows;
mod cargo;
mod dist;
mod guest;
mod parity;
mod tidy;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["dist"] => dist::run(dist::Profile::Release),
        ["dist", "--dev"] => dist::run(dist::Profile::Dev),
        ["tidy"] => tidy::run(),
        ["check"] => check(),
        ["guest-suite", wishes @ ..] => guest::run(wishes),
        ["parity"] => parity::run(false),
        ["parity", "--check"] => parity::run(true),
        ["ci"] => ci(),
        _ => bail!("usage: cargo xtask dist [--dev] | tidy | check | guest-suite | parity [--check] | ci"),
    }
}

fn check() -> Result<()> {
    cargo::run(&["fmt", "--all", "--check"])?;
    tidy::run()?;
    cargo::run(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])
}

fn ci() -> Result<()> {
    check()?;
    dist::run(dist::Profile::Release)?;
    parity::forget()?;
    let host = cargo::run(&["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]);
    // Whatever failed is told first.
    let host = host.and_then(|()| parity::run(true));
    // Whatever the host's tests found, the guests' may tell more of it.
    let guests = guest::run(&["proa-runtime", "checkpoint::", "ports_of_sctp"]);
    host.and(guests)
}
