//! A mount namespace for the whole run, and a network namespace where networks are measured: peers change the host's
//! firewall.
//!
//! On a host with cgroup v1 and a second, version 2 hierarchy beside it, some peers refuse to work where that one
//! holds a controller. All contenders then run where it is not mounted, ours included: conditions stay the same
//! for all, and the host stays as it is.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

const UNIFIED: &str = "/sys/fs/cgroup/unified";
const CONTROLLERS: &str = "/sys/fs/cgroup/unified/cgroup.controllers";
const SCRIPT: &str = "umount /sys/fs/cgroup/unified && exec \"$0\" \"$@\"";

/// The network namespace that the program came from, where it is in one of its own: inherited by all that it starts.
pub const OUTSIDE: &str = "/proc/self/fd/9";
const ENTER: &str = "exec 9</proc/self/ns/net && exec unshare --net sh -c \
                     'ip link set lo up && exec \"$0\" \"$@\"' \"$0\" \"$@\"";

/// Says that the program is in its own network namespace.
const NETWORKED: &str = "PROA_BENCH_NETWORKED";

/// Starts this program again in a network namespace with a loopback interface alone, unless it is there. Does not return
/// then.
pub fn own_network() -> Result<()> {
    if std::env::var_os(NETWORKED).is_some() {
        return Ok(());
    }
    let own = std::env::current_exe()?;
    let error = Command::new("sh")
        .args(["-c", ENTER])
        .arg(own)
        .args(std::env::args_os().skip(1))
        .env(NETWORKED, "1")
        .exec();
    Err(error).context("cannot run unshare")
}

/// Starts this program again without the second hierarchy, if there is one. Does not return then.
pub fn hide_unified_cgroups() -> Result<()> {
    if !Path::new(CONTROLLERS).exists() {
        return Ok(());
    }
    eprintln!("bench: {UNIFIED} is out of sight for all contenders, since some refuse a host that has both");
    let own = std::env::current_exe()?;
    let error = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT])
        .arg(own)
        .args(std::env::args_os().skip(1))
        .exec();
    Err(error).context("cannot run unshare")
}
