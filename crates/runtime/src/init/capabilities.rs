//! The program's capabilities. A user other than root has none but ambient ones: a file with capabilities, or
//! set-user-id, may still give it what the bounding set allows.

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set, set_capabilities,
    set_no_new_privs,
};

use super::Init;
use crate::{Error, Result};

pub(super) fn run(init: &mut Init) -> Result<()> {
    apply(init)
}

/// For the calling process, which may be a hook's.
pub(super) fn apply(init: &Init) -> Result<()> {
    let wanted = init.job.process.capabilities;
    if init.job.process.spec.no_new_privileges {
        set_no_new_privs(true).map_err(|errno| Error::call("no_new_privs", errno))?;
    }
    let held = capabilities(None).map_err(|errno| Error::call("capget", errno))?.permitted;
    let (effective, permitted) = match init.identity.uid {
        0 => (wanted.effective, wanted.permitted),
        _ => (wanted.ambient, wanted.ambient),
    };
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(effective) & held,
        permitted: CapabilitySet::from_bits_retain(permitted) & held,
        inheritable: CapabilitySet::from_bits_retain(wanted.inheritable) & held,
    };
    set_capabilities(None, sets).map_err(|errno| Error::call("capset", errno))?;
    let ambient = wanted.ambient & held.bits();
    for number in (0..64).filter(|number| ambient & 1 << number != 0) {
        configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << number), true)
            .map_err(|errno| Error::call("ambient capabilities", errno))?;
    }
    Ok(())
}
