//! `run --rm busybox true` in the default network, from the command's start to its end, against peers' bridges and our own
//! `--network none`; and with a port published.

use anyhow::Result;

use crate::measure::{Contender, interleave, print};
use crate::setup::{Docker, PODMAN_LIMITS, Setup, installed};

/// Runs the comparison.
pub fn bench(setup: &Setup, rounds: usize) -> Result<()> {
    let root = setup.text("proa");
    let proa = |name: &str, flags: &[&str]| {
        let run = [&setup.proa, "--root", &root, "run", "--rm"];
        Contender::new(name, &[&run[..], flags, &["busybox", "true"]].concat())
    };
    let mut contenders = vec![
        proa("proa", &[]),
        proa("proa, none", &["--network", "none"]),
        proa("proa, published", &["-p", "80"]),
    ];
    if installed("podman") {
        let run = [&["run", "--rm"], &PODMAN_LIMITS[..], &["busybox", "true"]].concat();
        let argv = [setup.podman_with_image()?, run.into_iter().map(String::from).collect()].concat();
        contenders.push(Contender::of("podman", argv));
    }
    let docker = Docker::with_bridge(setup)?;
    if let Some(docker) = &docker {
        for (name, flags) in [("docker", &[][..]), ("docker, published", &["-p", "80"])] {
            let argv = docker.argv(&[&["run", "--rm"], flags, &["busybox", "true"]].concat());
            contenders.push(Contender::of(name, argv));
        }
    }
    interleave(&mut contenders, rounds)?;
    print("run --rm busybox true, in the default network", &contenders);
    Ok(())
}
