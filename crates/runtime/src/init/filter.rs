//! The system call filter, as late as can be: without `no_new_privs` installing it needs `CAP_SYS_ADMIN`, so it
//! comes before the last capabilities go; with it, after them. Either way only what starts the program follows.

use super::Init;
use crate::{Error, Result};

pub(super) fn before_capabilities(init: &mut Init) -> Result<()> {
    if init.job.process.spec.no_new_privileges { Ok(()) } else { install(init) }
}

pub(super) fn after_capabilities(init: &mut Init) -> Result<()> {
    if init.job.process.spec.no_new_privileges { install(init) } else { Ok(()) }
}

fn install(init: &Init) -> Result<()> {
    if init.filter.is_empty() {
        return Ok(());
    }
    proa_sys::process::install_filter(&init.filter, 0)
        .map_err(|error| Error::call("install the filter", error))
}
