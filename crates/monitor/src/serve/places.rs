//! What an instance has of the host beside its processes: places in networks, volumes, and copies of itself.

use proa_protocol::frame::Frame;
use proa_protocol::message::{ErrorKind, Request, Response};

use super::Server;
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
