//! `create`, `start` and `delete` of a bundle that runs `true`, by the runtimes alone: what an engine that keeps
//! containers by an OCI runtime waits for.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::measure::{Contender, detach, output, print};
use crate::setup::{Setup, installed};

/// The name of every container here; each runtime has a state directory of its own.
const ID: &str = "bench-life";
/// Longest that `true` may take to end.
const END: Duration = Duration::from_secs(10);

/// A runtime and what its commands took.
struct Runtime {
    program: String,
    state: String,
    pid_file: PathBuf,
    steps: [Contender; 3],
    whole: Contender,
}

impl Runtime {
    fn new(setup: &Setup, name: &str, program: &str, bundle: &str) -> Self {
        let state = setup.text(&format!("{name}-life"));
        let pid_file = setup.path(&format!("{name}.pid"));
        let file = pid_file.to_string_lossy();
        let step = |arguments: &[&str]| {
            Contender::new(name, &[&[program, "--root", &state], arguments, &[ID]].concat())
        };
        let steps =
            [step(&["create", "-b", bundle, "--pid-file", &file]), step(&["start"]), step(&["delete"])];
        Self { program: program.to_owned(), steps, whole: Contender::new(name, &[]), state, pid_file }
    }

    /// One container's life; the time in which it ends by itself does not count.
    fn live(&mut self, counts: bool) -> Result<()> {
        let mut whole = Duration::ZERO;
        for (index, step) in self.steps.iter_mut().enumerate() {
            if index == 2 {
                wait_end(&self.pid_file)?;
            }
            let begun = Instant::now();
            detach(&step.argv.iter().map(String::as_str).collect::<Vec<_>>())?;
            let took = begun.elapsed();
            whole += took;
            if counts {
                step.times.push(took);
            }
        }
        if counts {
            self.whole.times.push(whole);
        }
        Ok(())
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // After a failure half way; else there is nothing to delete.
        drop(output(&[&self.program, "--root", &self.state, "delete", "-f", ID]));
    }
}

/// Runs the comparison.
pub fn bench(setup: &Setup, rounds: usize) -> Result<()> {
    let bundle = setup.bundle(&["true"])?.to_string_lossy().into_owned();
    let mut runtimes = vec![Runtime::new(setup, "proa-runtime", &setup.proa_runtime(), &bundle)];
    runtimes[0].live(false)?;
    for name in ["crun", "runc"].into_iter().filter(|name| installed(name)) {
        let mut peer = Runtime::new(setup, name, name, &bundle);
        match peer.live(false) {
            Ok(()) => runtimes.push(peer),
            Err(error) => eprintln!("bench: {name} is left out: {error:#}"),
        }
    }
    let count = runtimes.len();
    for round in 0..rounds {
        for turn in 0..count {
            runtimes[(turn + round) % count].live(true)?;
        }
    }
    let take = |contender: &mut Contender| std::mem::replace(contender, Contender::new("", &[]));
    for (index, title) in ["create", "start", "delete"].into_iter().enumerate() {
        let of_step: Vec<_> = runtimes.iter_mut().map(|runtime| take(&mut runtime.steps[index])).collect();
        print(title, &of_step);
    }
    let whole: Vec<_> = runtimes.iter_mut().map(|runtime| take(&mut runtime.whole)).collect();
    print("create + start + delete", &whole);
    Ok(())
}

/// Waits until the process of a pid file has ended; whoever inherited it may leave a zombie for a moment.
fn wait_end(pid_file: &std::path::Path) -> Result<()> {
    let pid = fs::read_to_string(pid_file).with_context(|| format!("no {}", pid_file.display()))?;
    let stat = format!("/proc/{}/stat", pid.trim());
    let deadline = Instant::now() + END;
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        if Instant::now() > deadline {
            bail!("process {} of the container does not end", pid.trim());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
