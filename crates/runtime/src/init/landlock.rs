//! Landlock as a third layer: a container that shares its host's network cannot connect to abstract unix sockets
//! of the host (CVE-2020-15257), whom no mount hides. Not of the specification, so an annotation asks for it.
//!
//! It is the one rule that is sound for any program. A rule on files would forbid every mount and cannot leave
//! `/proc/sys` out of a root that is allowed; a rule on signals would part the container from its `exec`s, each of
//! which has a domain of its own, and pid namespaces keep signals in already. What a domain brings along: a process
//! of `exec` cannot trace the container's, nor read its `environ`.
//!
//! Above the filter, which may deny these calls, and while the process may do it without `no_new_privs`.

use super::Init;
use crate::{Error, Result};

pub(super) fn run(init: &mut Init) -> Result<()> {
    if init.job.scoped {
        // A kernel that cannot do it leaves the container as it was before there was Landlock.
        proa_sys::landlock::scope_abstract_sockets().map_err(|error| Error::call("landlock", error))?;
    }
    Ok(())
}
