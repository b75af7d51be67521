//! Machines: instances that boot whole disks of their own (`proa_protocol::machine` describes their files).
//!
//! ```text
//!   request ─▶ checked ─▶ id, name, addresses claimed ─▶ disks imported or made ─▶ variables, seed ─▶ instance.json
//!                                                         (a process in a jail)
//! ```
//!
//! From then on a machine is an instance as others are: what it is, its record says; what it does, its monitor does. A
//! crash on the way leaves a row without a configuration, which can be removed like any instance.

mod create;
mod image;
mod iso;
mod screenshot;
mod seed;
mod snapshot;

pub use create::{DiskSource, MachineRequest};
pub use seed::Seed;
pub use snapshot::Snapshot;

use crate::engine::Instance;
use crate::error::{Error, Result};

/// Refuses what is no machine.
fn check_machine(instance: &Instance) -> Result<()> {
    if instance.record.host_config.machine.is_some() {
        return Ok(());
    }
    Err(Error::invalid_with_hint(
        format!("instance {} is no machine", instance.record.name),
        "`proa machine ls` lists those that are",
    ))
}
