//! What an instance has of the host beside its processes: places in networks, volumes, and copies of itself.

use proa_protocol::frame::Frame;
use proa_protocol::message::{ErrorKind, Request, Response};

use super::{Phase, Server};
use crate::network::Remains;

impl Server {
    /// A place in a network more, or less.
    pub(super) fn change_network(&mut self, channel: u32, frame: &Frame) {
        let answer = match Request::parse(&frame.payload) {
            Ok(request) => match self.backend.change_network(channel, request) {
                Ok(Some(response)) => response,
                Ok(None) => return,
                Err(error) => error.response(),
            },
            Err(error) => Response::error(ErrorKind::InvalidInput, error.to_string()),
        };
        self.answer(channel, &answer);
    }

    /// Notes where a VMM is bounded, for whoever looks at the instance.
    pub(super) fn note_place(&mut self) {
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        if let Some(place) = self.backend.take_place() {
            self.state.vmm_cgroup = place;
            // What cannot be written now is written with the next change.
            let _ = self.record.write_state(&self.state);
        }
    }

    /// Another size of a guest.
    pub(super) fn update_guest(&mut self, channel: u32, frame: &Frame) {
        let asked = match Request::parse(&frame.payload) {
            Ok(request) => self.backend.update_guest(channel, request),
            Err(error) => return self.refuse(channel, ErrorKind::InvalidInput, error.to_string()),
        };
        if let Err(error) = asked {
            self.answer(channel, &error.response());
        }
    }

    /// A copy of it as it runs.
    pub(super) fn snapshot(&mut self, channel: u32, frame: &Frame) {
        let asked = match Request::parse(&frame.payload) {
            Ok(Request::Snapshot { directory }) => self.backend.snapshot(channel, directory),
            Ok(_) => return,
            Err(error) => return self.refuse(channel, ErrorKind::InvalidInput, error.to_string()),
        };
        if let Err(error) = asked {
            self.answer(channel, &error.response());
        }
    }

    /// Whoever hears of the end may remove the volumes. Those with a file system of their own can be unmounted when the
    /// instance's mounts have gone.
    pub(super) fn leave_volumes(&mut self, remains: Option<&mut Remains>) {
        if let Some(remains) = remains.filter(|_| self.volumes.has_mounts()) {
            remains.unmount();
        }
        self.volumes.detach();
    }
}
