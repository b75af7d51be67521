//! Which isolation levels there are here, and what the other needs.

use std::path::Path;
use std::time::Duration;

use proa_sys::kvm::{self, Verdict};
use serde_json::{Value, json};

/// Where the hypervisor's program may be, as monitors look for it.
const HYPERVISORS: [&str; 3] =
    ["/usr/bin/qemu-system-x86_64", "/usr/local/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm"];
const DEVICE: &str = "/dev/kvm";
/// How long the probe of the device may take; on hardware it is a thousandth of that.
const LIMIT: Duration = Duration::from_millis(500);
/// A loop that takes longer is run by somebody who reads the instructions.
const HARDWARE: Duration = Duration::from_millis(50);

/// The levels by name, and the reasons why others are missing.
pub fn levels() -> (Vec<&'static str>, Value) {
    let mut there = vec!["container"];
    let mut missing = json!({});
    if HYPERVISORS.iter().any(|path| Path::new(path).exists()) {
        there.push("vm");
    } else {
        missing["vm"] = "there is no QEMU; install it: apt-get install qemu-system-x86".into();
    }
    (there, missing)
}

/// How virtual machines run here: `kvm`, or `emulation` with the reason.
pub fn acceleration() -> String {
    let why = match kvm::probe(Path::new(DEVICE), LIMIT) {
        Ok(Verdict::Ran(time)) if time < HARDWARE => return "kvm".into(),
        Ok(Verdict::Ran(_) | Verdict::Hung) => format!("{DEVICE} is too slow to be hardware"),
        Ok(Verdict::Failed(why)) => format!("{DEVICE}: {why}"),
        Err(error) => format!("{DEVICE}: {error}"),
    };
    format!("emulation ({why})")
}
