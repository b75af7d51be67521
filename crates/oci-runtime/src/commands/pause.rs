//! `pause` and `resume`.

use crate::args::Parsed;
use crate::error::{Failure, Result};
use crate::global::Global;
use crate::store::Status;

/// `pause`.
///
/// # Errors
/// The container does not run, or there is no freezer.
pub fn pause(global: &Global, parsed: &Parsed) -> Result<u8> {
    freeze(global, parsed, true)
}

/// `resume`.
///
/// # Errors
/// The container is not paused.
pub fn resume(global: &Global, parsed: &Parsed) -> Result<u8> {
    freeze(global, parsed, false)
}

fn freeze(global: &Global, parsed: &Parsed, frozen: bool) -> Result<u8> {
    let entry = global.store.open(parsed.id()?)?;
    let lock = entry.lock()?;
    // Whoever puts processes into the cgroup is to have done so.
    let _cgroup = entry.lock_cgroup()?;
    let saved = entry.saved()?;
    let status = entry.status(saved.as_ref(), Some(&lock))?;
    let (container, _) = entry.container(saved.as_ref())?;
    match (status, container, frozen) {
        (Status::Created | Status::Running, Some(mut container), true) => container.pause()?,
        (Status::Paused, Some(mut container), false) => container.resume()?,
        (status, ..) => {
            let wanted = if frozen { "running" } else { "paused" };
            let text = format!("container '{}' is {}, not {wanted}", entry.id, status.name());
            return Err(Failure::new(text));
        }
    }
    Ok(0)
}
