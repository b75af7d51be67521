//! The loopback interface of a network namespace that the container has made for itself.

use super::{Job, Place};
use crate::{Error, Result};

pub(super) fn run(job: &Job) -> Result<()> {
    let Place::New { plan, .. } = &job.place else { return Ok(()) };
    if !plan.namespaces.new_network() {
        return Ok(());
    }
    proa_sys::net::loopback_up().map_err(|error| Error::call("lo", error))
}
