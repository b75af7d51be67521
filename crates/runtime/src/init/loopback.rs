//! The loopback interface of a network namespace that the container has made for itself.

use proa_oci::runtime::NamespaceKind;

use super::{Job, Place};
use crate::plan::namespaces::flag;
use crate::{Error, Result};

pub(super) fn run(job: &Job) -> Result<()> {
    let Place::New { plan, .. } = &job.place else { return Ok(()) };
    if plan.namespaces.in_child & flag(NamespaceKind::Network) == 0 {
        return Ok(());
    }
    proa_sys::net::loopback_up().map_err(|error| Error::call("lo", error))
}
