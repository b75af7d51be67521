//! Builds the binaries as users get them.
//!
//! `proa-agent` runs as PID 1 of a guest that has no libraries, `proa-monitor` runs once for each instance,
//! `proa-runtime` for each command and `proa-resolver` for each root, so these are static: nothing to load, nothing to relocate. `proa` looks names up through the
//! system's resolver and stays dynamic. Giving `--target` keeps the static flags away from build scripts and
//! procedural macros, which the gnu target cannot build statically.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cargo;

/// Static programs: their packages and names.
const FIXED: [(&str, &str); 4] = [
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
    let build = ["build", "--locked", "--profile", profile.name()];
    cargo::run(&[&build[..], &["-p", "proa-cli"]].concat())?;
    cargo::run_command(
        cargo::command(
            &[&build[..], &FIXED.map(|(package, _)| ["-p", package]).concat(), &["--target", &target]]
                .concat(),
        )
        .env("RUSTFLAGS", "-C target-feature=+crt-static"),
    )?;
    let out = cargo::root().join("target");
    let dynamic = out.join(profile.directory());
    let fixed = out.join(&target).join(profile.directory());
    let dist = out.join("dist");
    fs::create_dir_all(&dist).with_context(|| format!("cannot make {}", dist.display()))?;
    install(&dynamic.join("proa"), &dist.join("proa"))?;
    for (_, name) in FIXED {
        install(&fixed.join(name), &dist.join(name))?;
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
