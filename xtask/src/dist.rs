//! Builds the binaries as users get them.
//!
//! `proa-agent` runs as PID 1 of a guest that has no libraries, `proa-monitor` once for each instance, `proa-resolver` once
//! for each root, `proa` and `proa-runtime` once for each command, so all are static: nothing is loaded, which takes half
//! of a short command's time. (Names of registries are looked up by the system all the same: `proa_image::registry`.)
//! Giving `--target` keeps the static flags away from build scripts and procedural macros, which the gnu target cannot
//! build statically.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cargo;

/// All programs: their packages and names, the command line first.
const PROGRAMS: [(&str, &str); 5] = [
    ("proa-cli", "proa"),
    ("proa-monitor", "proa-monitor"),
    ("proa-agent", "proa-agent"),
    ("proa-oci-runtime", "proa-runtime"),
    ("proa-resolver", "proa-resolver"),
];

/// How much the compiler optimizes.
#[derive(Clone, Copy)]
pub enum Profile {
    /// For use and for measurements.
    Release,
    /// For the edit-and-run loop.
    Dev,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "dev",
        }
    }

    fn directory(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "debug",
        }
    }
}

/// Builds all of them into `target/dist`.
pub fn run(profile: Profile) -> Result<()> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let build = ["build", "--locked", "--profile", profile.name(), "--target", &target];
    // In two goes, so that what faces a guest has none of the features that the command line asks of libraries.
    let (first, rest) = PROGRAMS.split_at(1);
    for programs in [first, rest] {
        let packages: Vec<&str> = programs.iter().flat_map(|(package, _)| ["-p", package]).collect();
        let mut command = cargo::command(&[&build[..], &packages].concat());
        cargo::run_command(command.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    }
    let out = cargo::root().join("target");
    let built = out.join(&target).join(profile.directory());
    let dist = out.join("dist");
    fs::create_dir_all(&dist).with_context(|| format!("cannot make {}", dist.display()))?;
    for (_, name) in PROGRAMS {
        install(&built.join(name), &dist.join(name))?;
    }
    Ok(())
}

/// Replaces by rename, so that a running binary keeps its own file.
fn install(from: &Path, to: &Path) -> Result<()> {
    let fresh = to.with_extension("new");
    fs::copy(from, &fresh)
        .and_then(|_| fs::rename(&fresh, to))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
