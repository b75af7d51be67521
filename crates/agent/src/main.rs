//! PID 1 of a guest: mounts the root and applies the runtime spec.
//!
//! ```text
//!   kernel ─▶ boot: /proc, modules, devices, a root that can be pivoted ─▶ port opened
//!          ─▶ prepare, rehearse: what a template and its clones do ahead of need    ─▶ Ok
//!          ─▶ configure: entropy, clock, layers, writable disk, shares    ─▶ Ok
//!             or, going on from a snapshot, adopt: entropy, clock, networks, names  ─▶ Ok
//!          ─▶ serve: frames ⇄ supervisor ─▶ Shutdown ─▶ unmount, sync, power off
//! ```
//!
//! The agent speaks `protocol` over a virtio-serial port named `proa`. Channel 0 is its own (`Configure`,
//! `Shutdown`); every other channel belongs to the [`proa_supervisor::Supervisor`], the same that serves a
//! container on the host. It is single-threaded, and ends only by switching the machine off.

mod adopt;
mod boot;
mod configure;
mod error;
mod expand;
mod rehearse;
mod serve;

use rustix::system::{RebootCommand, reboot};

use crate::error::Error;

/// Exit code where this is not the first process of a guest.
const NOT_OURS: i32 = 125;

fn main() {
    let name = std::env::args_os().next().unwrap_or_default();
    if name == proa_runtime::INIT_NAME {
        proa_runtime::init_main();
    }
    if name == rehearse::PROGRAM {
        return;
    }
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        say(
            "proa-agent is the first process of a guest made by `proa run --isolation vm`; it does nothing else",
        );
        std::process::exit(NOT_OURS);
    }
    if let Err(error) = run() {
        say(&format!("proa-agent: {error}"));
    }
    boot::unmount();
    // With `reboot=t` and QEMU's `-no-reboot` a restart ends the machine without needing ACPI.
    let _ = reboot(RebootCommand::Restart);
    let _ = reboot(RebootCommand::PowerOff);
    // Only the first process of a container comes here, whose image named whoever runs it as its program.
    std::process::exit(NOT_OURS);
}

fn run() -> Result<(), Error> {
    let late = boot::prepare()?;
    let port = boot::open_port()?;
    serve::run(port, late)
}

/// Writes a line to the guest's console, which the monitor keeps for failures.
#[allow(clippy::print_stderr, reason = "the console is all that is left when the port cannot be opened")]
fn say(line: &str) {
    eprintln!("{line}");
}
