//! `exec INSTANCE true` in an instance that idles.

use anyhow::Result;

use crate::measure::{Contender, detach, interleave, output, print, run};
use crate::setup::{Docker, Setup, installed};

/// Runs the comparison.
pub fn bench(setup: &Setup, rounds: usize) -> Result<()> {
    setup.proa(&["run", "-d", "--name", "idle", "--network", "none", "busybox", "sleep", "100000"])?;
    let result = compare(setup, rounds);
    setup.proa(&["rm", "-f", "idle"])?;
    result
}

fn compare(setup: &Setup, rounds: usize) -> Result<()> {
    let root = setup.text("proa");
    let pid = setup.proa(&["inspect", "--format", "{{.State.Pid}}", "idle"])?;
    let mut contenders = vec![
        Contender::new("proa", &[&setup.proa, "--root", &root, "exec", "idle", "true"]),
        Contender::new("nsenter -a (limit)", &["nsenter", "-a", "-t", &pid, "/bin/true"]),
    ];
    let bundle = setup.bundle(&["sleep", "100000"])?.to_string_lossy().into_owned();
    let runtimes: Vec<&str> = ["crun", "runc"].into_iter().filter(|name| installed(name)).collect();
    for runtime in &runtimes {
        let state = setup.text(&format!("{runtime}-state"));
        let name = format!("idle-{runtime}");
        if let Err(error) = detach(&[runtime, "--root", &state, "run", "-d", "-b", &bundle, &name]) {
            eprintln!("bench: {runtime} is left out: {error:#}");
            continue;
        }
        contenders.push(Contender::new(runtime, &[runtime, "--root", &state, "exec", &name, "true"]));
    }
    let docker = Docker::with_image(setup)?;
    if let Some(docker) = &docker {
        run(&docker.argv(&[
            "run",
            "-d",
            "--name",
            "idle",
            "--network",
            "none",
            "busybox",
            "sleep",
            "100000",
        ]))?;
        let argv = docker.argv(&["exec", "idle", "true"]);
        contenders.push(Contender::of("docker", argv));
    }
    let result = interleave(&mut contenders, rounds);
    for runtime in &runtimes {
        let state = setup.text(&format!("{runtime}-state"));
        // One that never started is not there to be deleted.
        drop(output(&[runtime, "--root", &state, "delete", "-f", &format!("idle-{runtime}")]));
    }
    if let Some(docker) = &docker {
        run(&docker.argv(&["rm", "-f", "idle"]))?;
    }
    result?;
    print("exec true in an idle instance", &contenders);
    Ok(())
}
