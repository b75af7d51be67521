//! `start`: lets the first process run its program.

use proa_runtime::Container;

use crate::args::Parsed;
use crate::error::{Failure, Result};
use crate::global::Global;
use crate::launch::no_process;
use crate::store::Status;

/// Runs it.
///
/// # Errors
/// The container is not `created`, or its program cannot be run.
pub fn run(global: &Global, parsed: &Parsed) -> Result<u8> {
    let entry = global.store.open(parsed.id()?)?;
    let lock = entry.lock()?;
    let saved = entry.saved()?;
    match entry.status(saved.as_ref(), Some(&lock))? {
        Status::Created => {}
        other => {
            let text =
                format!("container '{}' is {}: only a created one can be started", entry.id, other.name());
            return Err(Failure::new(text));
        }
    }
    // Opened before: a program may end at once.
    let (container, spec) = entry.container(saved.as_ref())?;
    if spec.process.is_none() {
        return Err(no_process());
    }
    proa_runtime::gate::start(entry.dir())?;
    let hooked = container.as_ref().map_or(Ok(()), Container::run_poststart_hooks);
    if let (Err(error), Some(container)) = (hooked, container) {
        container.kill_all()?;
        return Err(error.into());
    }
    Ok(0)
}
