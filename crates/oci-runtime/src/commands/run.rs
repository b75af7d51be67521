//! `run`: `create` and `start` in one, and without `--detach` the wait for the end and `delete`.

use std::os::fd::AsFd;

use crate::args::{Opt, Parsed, flag};
use crate::commands::delete;
use crate::error::Result;
use crate::foreground::Foreground;
use crate::global::Global;
use crate::launch::{Launched, Wish, join_late};

/// Its own options, beside those of [`crate::launch`].
pub const OPTIONS: &[Opt] = &[flag("detach").or('d'), flag("keep")];

/// Runs it.
///
/// # Errors
/// The container cannot be made, or its program not be run; nothing is left.
pub fn run(global: &Global, parsed: &Parsed) -> Result<u8> {
    let detach = parsed.is("detach");
    let foreground = if detach { None } else { Some(Foreground::new()?) };
    let mut launched = Wish::new(parsed, false, !detach)?.launch(global)?;
    if let Err(error) = launched.container.start() {
        launched.abandon();
        return Err(error.into());
    }
    match foreground {
        None => {
            let pidfd = launched.container.duplicate_pidfd()?;
            join_late(&launched.entry, &mut launched.container, pidfd)?;
            Ok(0)
        }
        Some(foreground) => wait(global, launched, &foreground, parsed.is("keep")),
    }
}

fn wait(global: &Global, launched: Launched, foreground: &Foreground, keep: bool) -> Result<u8> {
    let Launched { entry, lock, mut container, mut handles, spec, saved } = launched;
    // Others work on the container while it runs.
    drop(lock);
    let terminal = handles.terminal.take();
    let pidfd = container.duplicate_pidfd()?;
    let waited = {
        let container = std::cell::RefCell::new(&mut container);
        let settled = || {
            if let Ok(pidfd) = pidfd.try_clone() {
                // The container runs; that it is not accounted for is no reason to end it.
                let _ = join_late(&entry, &mut container.borrow_mut(), pidfd);
            }
        };
        foreground.wait(pidfd.as_fd(), terminal.as_ref(), Some(settled), |signal| {
            // It may just have ended.
            let _ = container.borrow().signal(signal, false);
        })
    };
    let code = container.try_wait()?.unwrap_or(0);
    if !keep {
        let _lock = entry.lock()?;
        delete::remove(global, &entry, Some(container), &spec, Some(&saved))?;
    }
    waited.map(|()| code as u8)
}
