//! What connections join: a process that is to be run beside the first, or the first.

use proa_protocol::frame::Frame;
use proa_protocol::message::ErrorKind;

use super::Server;
use crate::client::Joined;
use crate::peek;

impl Server {
    pub(super) fn exec(&mut self, channel: u32, frame: Frame, request: &peek::Request) {
        if self.clients.get(&channel).is_some_and(|client| client.joined == Joined::Nothing) {
            self.events.exec(channel, &request.process.args);
        }
        if request.attach || request.stdin {
            self.join(channel, frame, Joined::Exec);
        } else {
            self.backend.send(frame);
        }
    }

    pub(super) fn join(&mut self, channel: u32, frame: Frame, joined: Joined) {
        let Some(client) = self.clients.get_mut(&channel) else { return };
        if client.joined != Joined::Nothing {
            return self.refuse(
                channel,
                ErrorKind::InvalidInput,
                "this connection has joined something already",
            );
        }
        client.joined = joined;
        self.backend.send(frame);
    }
}
