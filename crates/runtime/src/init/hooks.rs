//! Hooks that run on the way of the first process: those of the runtime, for which it waits, and those inside.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use proa_oci::state::State;
use rustix::mount::{MoveMountFlags, move_mount};

use super::{Init, Place, capabilities, program};
use crate::container::Rootfs;
use crate::hooks::{self, Around, HookKind};
use crate::{Error, Result};

/// `prestart` and `createRuntime`, by the parent, which moves interfaces before; then `createContainer`.
pub(super) fn before_pivot(init: &mut Init) -> Result<()> {
    let plan = init.plan()?;
    if let Some(channel) = init.hooks_channel.take() {
        channel.wait_for_hooks()?;
    }
    let Some(own) = plan.hooks else { return Ok(()) };
    hooks::run(HookKind::CreateContainer, own, &state(&plan.state))
}

/// `startContainer`: with the rights of the program that follows, but for its filter, by which nobody could fork.
pub(super) fn before_program(init: &mut Init) -> Result<()> {
    let Place::New { plan, .. } = &init.job.place else { return Ok(()) };
    let Some(own) = plan.hooks else { return Ok(()) };
    let around = Around { prepare: &|| capabilities::apply(init), env: program::environment(init).collect() };
    hooks::run_with(HookKind::StartContainer, own, &state(&plan.state), &around)
}

/// As it is seen from inside.
fn state(state: &State) -> State {
    State { pid: rustix::process::getpid().as_raw_pid() as u32, ..state.clone() }
}

/// Where the root must be attached before `pivot_root`: hooks look for it at its own path, and among the host's mounts
/// it has no other.
pub(super) fn root_place<'a>(init: &Init<'a>) -> &'a Path {
    match &init.job.place {
        Place::New { plan, rootfs: Rootfs::Directory(path), .. }
            if plan.hooks.is_some() || !plan.namespaces.has_mount() =>
        {
            path
        }
        _ => Path::new("/"),
    }
}

/// Attaches the root at a place of the host's tree.
pub(crate) fn attach_root(root: &OwnedFd, place: &Path) -> Result<()> {
    move_mount(root.as_fd(), c"", rustix::fs::CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| Error::at(place, errno).context("attach the root"))
}
