//! A session and a session keyring of its own: no controlling terminal and no keys of whoever started us.

use std::ffi::CString;

use super::{Job, Place};
use crate::{Error, Result};

pub(super) fn run(job: &Job) -> Result<()> {
    rustix::process::setsid().map_err(|errno| Error::call("setsid", errno))?;
    // What the steps make has the modes they ask for; the program's own mask is set with its user.
    rustix::process::umask(rustix::fs::Mode::empty());
    let Place::New { plan, .. } = &job.place else { return Ok(()) };
    if job.detach.is_some_and(|detach| detach.no_new_keyring) {
        return Ok(());
    }
    let Ok(name) = CString::new(format!("_ses.{}", plan.id)) else { return Ok(()) };
    match proa_sys::process::join_session_keyring(&name) {
        Ok(()) => Ok(()),
        // A kernel without keyrings, or a filter around us: there is nothing to leak then.
        Err(error) if matches!(error.raw_os_error(), Some(38 | 1)) => Ok(()),
        Err(error) => Err(Error::call("session keyring", error)),
    }
}
