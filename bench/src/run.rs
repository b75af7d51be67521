//! `run --rm --network none busybox true`, from the command's start to its end.

use anyhow::Result;

use crate::measure::{Contender, interleave, print};
use crate::setup::{Docker, PODMAN_LIMITS, Setup, installed};

/// Runs the comparison.
pub fn bench(setup: &Setup, rounds: usize) -> Result<()> {
    let root = setup.text("proa");
    let mut contenders = vec![Contender::new(
        "proa",
        &[&setup.proa, "--root", &root, "run", "--rm", "--network", "none", "busybox", "true"],
    )];
    let directories = ["rootfs", "upper", "overlay-work", "merged"].map(|name| setup.text(name));
    let limit = setup.text("limit");
    let [lower, upper, work, merged] = &directories;
    contenders.push(Contender::new("limit", &[&limit, lower, upper, work, merged, "/bin/true"]));
    contenders.push(Contender::new("fork and exec", &[&setup.text("rootfs/bin/true")]));
    let bundle = setup.bundle(&["true"])?.to_string_lossy().into_owned();
    let (own, state) = (setup.proa_runtime(), setup.text("proa-runtime-state"));
    contenders.push(Contender::new("proa-runtime", &[&own, "--root", &state, "run", "-b", &bundle, "bench"]));
    for runtime in ["crun", "runc"].into_iter().filter(|name| installed(name)) {
        let state = setup.text(&format!("{runtime}-state"));
        contenders.push(Contender::new(runtime, &[runtime, "--root", &state, "run", "-b", &bundle, "bench"]));
    }
    if installed("crun") {
        let without = ["crun", "--cgroup-manager", "disabled", "--root", &setup.text("crun-state")];
        let run = ["run", "-b", &bundle, "bench"];
        contenders.push(Contender::new("crun, no cgroup", &[&without[..], &run].concat()));
    }
    if installed("podman") {
        let podman = setup.podman_with_image()?;
        let command =
            [&["run", "--rm", "--network", "none"], &PODMAN_LIMITS[..], &["busybox", "true"]].concat();
        let command: Vec<String> = command.into_iter().map(String::from).collect();
        contenders.push(Contender::of("podman", [&podman[..], &command].concat()));
    }
    let docker = Docker::with_image(setup)?;
    if let Some(docker) = &docker {
        let argv = docker.argv(&["run", "--rm", "--network", "none", "busybox", "true"]);
        contenders.push(Contender::of("docker", argv));
    }
    interleave(&mut contenders, rounds)?;
    print("run --rm --network none busybox true", &contenders);
    Ok(())
}
