//! Snapshots of a virtual machine that has changed 40 MB of its memory: what they take on disk, and how long it takes
//! until what goes on from one answers, beside a start from a template.

use anyhow::Result;

use crate::measure::{Contender, interleave, print};
use crate::setup::Setup;
use crate::vm::make_templates;

/// Bytes that the guest changes.
const CHANGED: u64 = 40_000_000;

/// Runs the comparison.
pub fn bench(setup: &Setup, rounds: usize) -> Result<()> {
    make_templates(setup)?;
    let run = ["run", "-d", "--isolation", "vm", "--network", "none", "--name"];
    setup.proa(&[&run[..], &["origin", "busybox", "sleep", "100000"]].concat())?;
    let change = format!("head -c {CHANGED} /dev/urandom > /dev/shm/data");
    setup.proa(&["exec", "origin", "sh", "-c", &change])?;
    setup.proa(&["snapshot", "create", "origin", "base"])?;
    let size = setup.proa(&["snapshot", "ls", "--format", "{{.Size}}", "origin"])?;
    // Its starts are those from a template: nothing stands by.
    let config = setup.text("config.toml");
    let proa = format!("{} --root {} --config {config}", setup.proa, setup.text("proa"));
    let script = |text: &str| text.replace("proa ", &format!("{proa} "));
    let contender = |name: &str, text: &str| Contender::new(name, &["sh", "-ec", &script(text)]);
    let start = "proa run -d --isolation vm --network none --name new busybox sleep 1000; proa exec new true; proa rm -f new";
    let mut contenders = vec![
        contender("restore, exec", "proa snapshot restore origin base; proa exec origin true"),
        contender(
            "fork, exec, rm",
            "proa snapshot fork --name new origin base; proa exec new true; proa rm -f new",
        ),
        contender("start from a template, exec, rm", start),
        contender("create, rm", "proa snapshot create origin more; proa snapshot rm origin more"),
    ];
    let done = interleave(&mut contenders, rounds);
    setup.proa(&["rm", "-f", "origin"])?;
    done?;
    print("a virtual machine of 512 MB that has changed 40 MB", &contenders);
    println!("\nsnapshot on disk: {size} (bar: 1.3 x {} MB)", CHANGED / 1_000_000);
    Ok(())
}
