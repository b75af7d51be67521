//! `delete`: removes what is left of a container, or with `--force` also what still runs.

use proa_oci::runtime::Spec;
use proa_oci::state::State;
use proa_runtime::Container;
use proa_runtime::hooks::{self, HookKind};

use crate::args::{Opt, Parsed, flag};
use crate::error::{Failure, Result};
use crate::global::Global;
use crate::store::{Entry, Saved, Status};

/// Its options.
pub const OPTIONS: &[Opt] = &[flag("force").or('f')];

/// Runs it.
///
/// # Errors
/// The container still runs, or something of it cannot be removed.
pub fn run(global: &Global, parsed: &Parsed) -> Result<u8> {
    let force = parsed.is("force");
    let entry = match global.store.open(parsed.id()?) {
        Ok(entry) => entry,
        Err(_) if force => return Ok(0),
        Err(failure) => return Err(failure),
    };
    if force {
        end_first(&entry)?;
    }
    let lock = entry.lock()?;
    let saved = entry.saved()?;
    let status = entry.status(saved.as_ref(), Some(&lock))?;
    if !force && !matches!(status, Status::Stopped | Status::Created) {
        let text = format!("container '{}' is {}: stop it, or use --force", entry.id, status.name());
        return Err(Failure::new(text));
    }
    let (container, spec) = entry.container(saved.as_ref())?;
    remove(global, &entry, container, &spec, saved.as_ref())?;
    Ok(0)
}

/// Whoever holds the lock may be waiting for this process: a create, for its hooks.
fn end_first(entry: &Entry) -> Result<()> {
    let (container, _) = entry.container(entry.saved()?.as_ref())?;
    if let Some(container) = container {
        // It may have ended.
        let _ = container.signal(9, true);
    }
    Ok(())
}

/// Removes everything of a container that is locked.
///
/// # Errors
/// Something cannot be removed; it can be tried again.
pub fn remove(
    global: &Global,
    entry: &Entry,
    container: Option<Container>,
    spec: &Spec,
    saved: Option<&Saved>,
) -> Result<()> {
    if let Some(container) = container {
        container.kill_all()?;
    }
    // Whoever is about to put processes into the cgroup sees that they have ended, and goes.
    let _cgroup = entry.lock_cgroup()?;
    proa_runtime::remove_leftovers(&entry.id, spec, Saved::cgroup_of(saved))?;
    saved.map_or(Ok(()), Saved::unmount)?;
    entry.remove()?;
    if let (Some(own), Some(saved)) = (&spec.hooks, saved) {
        let state = State {
            oci_version: saved.oci_version.clone(),
            id: entry.id.clone(),
            bundle: saved.bundle.display().to_string(),
            annotations: saved.annotations.clone(),
            ..State::default()
        };
        // The container is gone: there is nothing that a failure could undo.
        let warning = hooks::run(HookKind::Poststop, own, &state).err();
        global.warn(warning.map(|error| error.to_string()).as_slice());
    }
    Ok(())
}
