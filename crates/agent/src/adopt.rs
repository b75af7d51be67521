//! Makes of a guest that goes on from a snapshot what it is now: before its instance goes on, it has random numbers of
//! its own, the time, and its places in networks.

use proa_protocol::message::GuestConfig;
use proa_protocol::network::Interface;
use proa_supervisor::Supervisor;

use crate::configure::{plug, seed, set_clock, unplug};
use crate::error::Error;

/// Does all of it; `interfaces` are those it had, and become those it has.
pub fn adopt(
    supervisor: &mut Supervisor,
    config: GuestConfig,
    is_fork: bool,
    interfaces: &mut Vec<Interface>,
) -> Result<(), Error> {
    seed(&config.entropy)?;
    set_clock(config.time_ns)?;
    if interfaces.len() != config.interfaces.len() {
        return Err(Error::Configuration(format!(
            "{} networks, where there were {}",
            config.interfaces.len(),
            interfaces.len()
        )));
    }
    for (device, (old, new)) in interfaces.iter().zip(&config.interfaces).enumerate() {
        // On its way out and in again it loses all that it was.
        if old != new {
            unplug(device, &old.name)?;
            plug(device, new)?;
        }
    }
    *interfaces = config.interfaces;
    let hostname = config.spec.hostname.as_deref().filter(|_| is_fork);
    Ok(supervisor.adopt(hostname, config.launch, is_fork)?)
}
