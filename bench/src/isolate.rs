//! A mount namespace for the whole run.
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
