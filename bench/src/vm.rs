//! Cold start of a virtual machine: the whole command, beside bare QEMU with the same kernel.
//!
//! Bare QEMU gets the machine, accelerator, memory and kernel command line that ours has (read from a running
//! VMM), no disks, and an initramfs whose only file switches the machine off at once.

use std::fs;

use anyhow::{Context, Result};

use crate::measure::{Contender, interleave, output, print};
use crate::setup::Setup;

/// Options of our VMM that the bare one shares.
const SHARED: [&str; 8] = ["-M", "-machine", "-accel", "-cpu", "-m", "-smp", "-append", "-kernel"];

/// Runs the comparison.
pub fn bench(setup: &Setup, rounds: usize) -> Result<()> {
    let root = setup.text("proa");
    let run = [&setup.proa, "--root", &root, "run", "--rm", "--network", "none"];
    let bare = bare_command(setup)?;
    let mut contenders = vec![
        Contender::new("proa vm", &[&run[..], &["--isolation", "vm", "busybox", "true"]].concat()),
        Contender { name: "bare QEMU".into(), argv: bare, times: vec![] },
        Contender::new("proa container", &[&run[..], &["busybox", "true"]].concat()),
    ];
    interleave(&mut contenders, rounds)?;
    print("run --rm --isolation vm busybox true, cold", &contenders);
    Ok(())
}

fn bare_command(setup: &Setup) -> Result<Vec<String>> {
    let flags = [
        "run",
        "-d",
        "--name",
        "probe",
        "--isolation",
        "vm",
        "--network",
        "none",
        "busybox",
        "sleep",
        "1000",
    ];
    setup.proa(&flags)?;
    let pid = setup.proa(&["inspect", "--format", "{{.State.Pid}}", "probe"])?;
    let line =
        fs::read_to_string(format!("/proc/{pid}/cmdline")).context("cannot read the VMM's command line")?;
    // A kernel given by descriptor is reachable through the VMM as long as it lives, so it is copied first.
    let words: Vec<&str> = line.trim_end_matches('\0').split('\0').collect();
    let mut argv = vec!["qemu-system-x86_64".to_owned()];
    for pair in words.windows(2).filter(|pair| SHARED.contains(&pair[0])) {
        let mut value = pair[1].to_owned();
        if pair[0] == "-kernel" {
            value = setup.text("kernel");
            fs::copy(format!("/proc/{pid}/root{}", resolve(&pid, pair[1])), &value)
                .context("cannot copy the kernel")?;
        }
        argv.extend([pair[0].to_owned(), value]);
    }
    setup.proa(&["rm", "-f", "probe"])?;
    let image = setup.text("bare.cpio");
    let pack = format!("cd {} && echo init | busybox cpio -o -H newc > {image}", setup.text(""));
    output(&["sh", "-c", &pack])?;
    let rest = ["-initrd", &image, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"];
    argv.extend(rest.map(String::from));
    Ok(argv)
}

/// Where a path of the VMM's command line leads, seen from its own root.
fn resolve(pid: &str, path: &str) -> String {
    let own = path.strip_prefix("/proc/self/");
    own.map_or_else(|| path.to_owned(), |rest| format!("/proc/{pid}/{rest}"))
}
