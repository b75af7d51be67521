//! Scheduler, I/O priority, memory policy and execution domain.

use super::{Init, Place};
use crate::{Error, Result};

pub(super) fn run(init: &mut Init) -> Result<()> {
    let process = init.job.process;
    if let Some(scheduler) = process.scheduler {
        proa_sys::process::set_scheduler(scheduler).map_err(|error| Error::call("scheduler", error))?;
    }
    if let Some((class, level)) = process.io_priority {
        proa_sys::process::set_io_priority(class, level)
            .map_err(|error| Error::call("I/O priority", error))?;
    }
    let common = match &init.job.place {
        Place::New { plan, .. } => &plan.common,
        Place::Existing { common, .. } => common,
    };
    if let Some((mode, nodes)) = &common.memory_policy {
        proa_sys::process::set_memory_policy(*mode, nodes)
            .map_err(|error| Error::call("memory policy", error))?;
    }
    let Some(domain) = common.personality else { return Ok(()) };
    proa_sys::process::set_personality(domain).map_err(|error| Error::call("personality", error))
}
