//! `create`: makes the container; its first process waits for `start`.

use crate::args::Parsed;
use crate::error::Result;
use crate::global::Global;
use crate::launch::{Wish, join_late};

/// Runs it.
///
/// # Errors
/// The container cannot be made; nothing is left.
pub fn run(global: &Global, parsed: &Parsed) -> Result<u8> {
    let mut launched = Wish::new(parsed, true, false)?.launch(global)?;
    let pidfd = launched.container.duplicate_pidfd()?;
    let released = launched.container.release().map_err(Into::into);
    let joined = released.and_then(|()| join_late(&launched.entry, &mut launched.container, pidfd));
    if let Err(failure) = joined {
        launched.abandon();
        return Err(failure);
    }
    Ok(0)
}
