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
    let Place::New { plan, .. } = &init.job.place else { return Ok(()) };
    if let Some((mode, nodes)) = &plan.memory_policy {
        proa_sys::process::set_memory_policy(*mode, nodes)
            .map_err(|error| Error::call("memory policy", error))?;
    }
    let Some(personality) = &plan.linux.personality else { return Ok(()) };
    let domain = match personality.domain.as_str() {
        "LINUX" => 0,
        "LINUX32" => 8,
        domain => return Err(Error::invalid(format!("personality '{domain}' is not known"))),
    };
    proa_sys::process::set_personality(domain).map_err(|error| Error::call("personality", error))
}
