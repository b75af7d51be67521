//! Cold start of a virtual machine: the whole command, beside bare QEMU with the same kernel.

use anyhow::Result;

use crate::measure::{Contender, interleave, print};
use crate::setup::Setup;

/// Runs the comparison.
pub fn bench(setup: &Setup, rounds: usize) -> Result<()> {
    let root = setup.text("proa");
    let run = [&setup.proa, "--root", &root, "run", "--rm", "--network", "none"];
    let mut contenders = vec![
        Contender::new("proa vm", &[&run[..], &["--isolation", "vm", "busybox", "true"]].concat()),
        Contender::new("proa container", &[&run[..], &["busybox", "true"]].concat()),
    ];
    interleave(&mut contenders, rounds)?;
    print("run --rm --isolation vm busybox true, cold", &contenders);
    Ok(())
}
