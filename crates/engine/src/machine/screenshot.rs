//! What is on a machine's screen.

use proa_protocol::frame::{Frame, Kind};
use proa_protocol::message::Request;

use super::check_machine;
use crate::engine::{Engine, Instance};
use crate::error::{Error, Result};

/// Most bytes of a picture.
const LARGEST: usize = 8 * 1024 * 1024;

impl Engine {
    /// A PNG of the screen.
    ///
    /// # Errors
    /// It is no machine, or does not run.
    pub fn screenshot(&self, instance: &Instance) -> Result<Vec<u8>> {
        check_machine(instance)?;
        let mut channel = self.connect(instance)?;
        channel.send(&[Request::Screenshot])?;
        let mut picture = Vec::new();
        loop {
            let frame = channel.next_frame()?;
            let frame = frame.ok_or_else(|| Error::MonitorGone(channel.instance().to_owned()))?;
            if frame.kind != Kind::Data {
                // An error ends it here; the answer itself comes after the last of the data.
                channel.read_response(&frame)?;
            } else if frame.payload.is_empty() {
                channel.response()?;
                return Ok(picture);
            } else {
                channel.send_frame(&Frame::credit(0, frame.payload.len() as u32))?;
                picture.extend(frame.payload);
            }
            if picture.len() > LARGEST {
                let what = "a picture that does not end".to_owned();
                return Err(Error::Protocol { instance: instance.record.name.clone(), what });
            }
        }
    }
}
