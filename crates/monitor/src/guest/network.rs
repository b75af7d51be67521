//! Networks of a guest that runs: which of its devices leads where, and the one change that is under way.
//!
//! ```text
//!   connect     tap made ─▶ wired to a spare device ─▶ agent: Plug ─ Ok ─▶ connected
//!                                                            └ Error, silence ─▶ unwired, tap gone: as before
//!   disconnect  agent: Unplug ─ Ok, Error, silence ─▶ unwired, tap gone: disconnected
//! ```
//!
//! What a guest answers decides on nothing but whether its device can be used again: the wire is the host's, and is cut
//! whatever the guest says. A device that the guest was started with has no other wire after its first.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use proa_protocol::message::{ErrorKind, Request, Response};
use proa_protocol::network::{Endpoint, Interface};
use proa_vm::SPARE_DEVICES;

use super::{AGENT, Guest, Phase};
use crate::error::Error;

/// How long the agent may take for its part, which is some milliseconds.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A network device of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Device {
    /// It leads to this network, and is this interface of the instance.
    Wired { network: String, interface: String },
    /// It leads nowhere, and can be wired.
    Spare,
    /// It leads nowhere, and never will.
    Lost,
}

/// What the agent was asked.
struct Change {
    channel: u32,
    device: usize,
    until: Instant,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Connect,
    Disconnect,
}

/// The devices of a guest, in their order on the bus.
pub struct Devices {
    devices: Vec<Device>,
    wired: usize,
    change: Option<Change>,
    /// Answers that did not come in time, and are nothing's when they come.
    late: usize,
}

impl Devices {
    /// Of a guest that is started with these places.
    pub fn new<'endpoint>(endpoints: impl Iterator<Item = &'endpoint Endpoint>) -> Self {
        let mut devices: Vec<Device> = endpoints.map(wired).collect();
        let wired = devices.len();
        devices.resize(wired + SPARE_DEVICES, Device::Spare);
        Self { devices, wired, change: None, late: 0 }
    }

    /// When the change that is under way is given up.
    pub fn deadline(&self) -> Option<Instant> {
        self.change.as_ref().map(|change| change.until)
    }

    /// Whether each leads where it led at the start.
    pub fn are_as_at_start(&self) -> bool {
        let is_wired = |device: &Device| matches!(device, Device::Wired { .. });
        let (wired, spare) = self.devices.split_at(self.wired);
        wired.iter().all(is_wired) && spare.iter().all(|device| *device == Device::Spare)
    }

    /// The agent was asked something, and the next that it says is too late an answer.
    pub fn expect_late_answer(&mut self) {
        self.late += 1;
    }

    fn of(&self, network: &str) -> Option<usize> {
        let leads_there =
            |device: &Device| matches!(device, Device::Wired { network: id, .. } if id == network);
        self.devices.iter().position(leads_there)
    }

    /// The agent has taken the device away from the instance, or has not.
    fn free(&mut self, device: usize, is_unplugged: bool) {
        let is_spare = is_unplugged && device >= self.wired;
        self.devices[device] = if is_spare { Device::Spare } else { Device::Lost };
    }
}

fn wired(endpoint: &Endpoint) -> Device {
    Device::Wired { network: endpoint.network.id.clone(), interface: endpoint.interface.name.clone() }
}

impl Guest {
    /// Gives it one more place in a network, or takes one away. The answer comes on the channel.
    ///
    /// # Errors
    /// It does not serve, has no device left, or the kernel or the VMM refuses.
    pub fn change_network(&mut self, channel: u32, request: Request) -> Result<(), Error> {
        if !matches!(self.phase, Phase::Serving) {
            return Err(Error::NotRunning);
        }
        if self.devices.change.is_some() || self.freezing.is_some() || self.resizing.is_some() {
            return Err(Error::Changing);
        }
        match request {
            Request::Connect(endpoint) => self.connect(channel, *endpoint),
            Request::Disconnect { network } => {
                self.disconnect(channel, &network);
                Ok(())
            }
            _ => Err(Error::NotRunning),
        }
    }

    fn connect(&mut self, channel: u32, endpoint: Endpoint) -> Result<(), Error> {
        let is_spare = |device: &Device| *device == Device::Spare;
        let device = self.devices.devices.iter().position(is_spare).ok_or(Error::NoDevice)?;
        let interface = endpoint.interface.clone();
        let (network, place) = (endpoint.network.id.clone(), wired(&endpoint));
        let tap = self.places.connect_tap(endpoint)?;
        if let Err(error) = self.vm.plug(device, tap.as_fd()) {
            // The first failure is the one to tell.
            let _ = self.vm.unplug(device);
            drop(tap);
            let _ = self.places.disconnect_tap(&network);
            return Err(error.into());
        }
        self.devices.devices[device] = place;
        self.ask_agent(channel, device, Kind::Connect, interface);
        Ok(())
    }

    fn disconnect(&mut self, channel: u32, network: &str) {
        match self.devices.of(network) {
            Some(device) => self.ask_agent(channel, device, Kind::Disconnect, Interface::default()),
            None => self.incoming.push_back(Response::Ok.frame(channel)),
        }
    }

    fn ask_agent(&mut self, channel: u32, device: usize, kind: Kind, interface: Interface) {
        let request = match (kind, &self.devices.devices[device]) {
            (Kind::Disconnect, Device::Wired { interface, .. }) => {
                Request::Unplug { device, interface: interface.clone() }
            }
            _ => Request::Plug { device, interface: Box::new(interface) },
        };
        self.devices.change = Some(Change { channel, device, until: Instant::now() + CHANGE_TIMEOUT, kind });
        self.send(&request.frame(AGENT));
    }

    /// The agent has said something that ends no boot.
    pub(super) fn agent_has_changed(&mut self, answer: Response) {
        if self.devices.late > 0 {
            self.devices.late -= 1;
        } else if self.freezing.is_some() {
            self.agent_has_frozen(Some(answer));
        } else if self.is_expanding() {
            self.agent_has_expanded(answer);
        } else {
            self.finish_change(Some(answer));
        }
    }

    /// Gives up what has taken too long.
    pub(super) fn tick_change(&mut self) {
        if self.devices.deadline().is_some_and(|until| Instant::now() >= until) {
            self.devices.expect_late_answer();
            self.finish_change(None);
        }
    }

    /// Does the host's part of a change, and tells its client.
    fn finish_change(&mut self, answer: Option<Response>) {
        let Some(Change { channel, device, kind, .. }) = self.devices.change.take() else { return };
        let is_done = answer == Some(Response::Ok);
        let outcome = match kind {
            Kind::Connect if is_done => Ok(()),
            // Where the agent could not plug it, it is spare; of one that is silent nothing is known.
            Kind::Connect => self.cut(device, answer.is_some()),
            Kind::Disconnect => self.cut(device, is_done),
        };
        let response = match (outcome, answer) {
            (Err(error), _) => error.response(),
            (Ok(()), Some(refused @ Response::Error { .. })) if kind == Kind::Connect => refused,
            (Ok(()), None) if kind == Kind::Connect => {
                let seconds = CHANGE_TIMEOUT.as_secs();
                let message = format!("the guest has not taken up the network within {seconds} s");
                Response::error(ErrorKind::Internal, message)
            }
            (Ok(()), _) => Response::Ok,
        };
        self.incoming.push_back(response.frame(channel));
    }

    /// Cuts a device off from its network.
    fn cut(&mut self, device: usize, is_unplugged: bool) -> Result<(), Error> {
        let Device::Wired { network, .. } = self.devices.devices[device].clone() else { return Ok(()) };
        self.devices.free(device, is_unplugged);
        let closed = self.vm.unplug(device);
        self.places.disconnect_tap(&network)?;
        Ok(closed?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_protocol::network::Network;

    fn place(id: &str, name: &str) -> Endpoint {
        Endpoint {
            network: Network { id: id.into(), ..Network::default() },
            interface: Interface { name: name.into(), ..Interface::default() },
            ..Endpoint::default()
        }
    }

    #[test]
    fn a_spare_device_is_used_again_unless_the_guest_keeps_it() {
        let mut devices = Devices::new([place("one", "eth0")].iter());
        assert_eq!((devices.of("one"), devices.of("two")), (Some(0), None));
        devices.devices[1] = wired(&place("two", "eth1"));
        devices.free(1, true);
        assert_eq!((devices.of("two"), &devices.devices[1]), (None, &Device::Spare));
        devices.free(2, false);
        // What it was started with has no hub.
        devices.free(0, true);
        assert_eq!(devices.devices, [Device::Lost, Device::Spare, Device::Lost]);
    }
}
