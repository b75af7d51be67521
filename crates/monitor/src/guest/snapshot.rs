//! Raw copies of a guest that runs, and a guest that goes on from such.
//!
//! ```text
//!   Snapshot ─▶ agent: Freeze ─ Ok ─▶ the machine stands still, is copied, goes on ─▶ agent: Thaw ─▶ answered
//!                                └ Error, silence ─▶ agent: Thaw ─▶ refused
//! ```
//!
//! What clients send meanwhile is kept, and sent when the guest goes on: in the copy they are gone.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use proa_protocol::message::{ErrorKind, Request, Response};
use proa_protocol::snapshot::{RESUME_FILE, Resume};

use super::{AGENT, Guest, Phase};
use crate::error::{Error, IoAt};
use crate::record::Record;

/// How long the agent may take to stop the instance: it waits for what its processes are doing in the kernel.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(15);

/// A guest that is being frozen.
pub struct Freezing {
    /// Who asked.
    channel: u32,
    directory: PathBuf,
    until: Instant,
    /// What is sent when it goes on.
    pub(super) held: Vec<u8>,
}

/// What the start goes on from, if anything; it does so once, whatever comes of it.
pub fn take_resume(record: &Record) -> Result<Option<Resume>, Error> {
    let path = record.dir.join(RESUME_FILE);
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.at(&path)?,
    };
    std::fs::remove_file(&path).at(&path)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::BadJson { path, error })
}

impl Guest {
    /// Copies it into a directory. The answer comes on the channel.
    ///
    /// # Errors
    /// It does not serve, or something else is being done with it.
    pub fn snapshot(&mut self, channel: u32, directory: PathBuf) -> Result<(), Error> {
        if !matches!(self.phase, Phase::Serving) {
            return Err(Error::NotRunning);
        }
        if self.freezing.is_some() || self.resizing.is_some() || self.devices.deadline().is_some() {
            return Err(Error::Changing);
        }
        if self.vm.is_resized() {
            return Err(Error::OtherSize);
        }
        if !self.devices.are_as_at_start() {
            return Err(Error::OtherNetworks);
        }
        self.send(&Request::Freeze.frame(AGENT));
        let until = Instant::now() + FREEZE_TIMEOUT;
        self.freezing = Some(Box::new(Freezing { channel, directory, until, held: Vec::new() }));
        Ok(())
    }

    /// When the agent is given up that was to freeze the instance.
    pub(super) fn freeze_deadline(&self) -> Option<Instant> {
        self.freezing.as_ref().map(|freezing| freezing.until)
    }

    /// The agent has said whether the instance stands still; or nothing.
    pub(super) fn agent_has_frozen(&mut self, answer: Option<Response>) {
        let Some(freezing) = self.freezing.take() else { return };
        let Freezing { channel, directory, held, .. } = *freezing;
        let refused = matches!(answer, Some(Response::Error { .. }));
        let response = match answer {
            Some(Response::Ok) => match self.vm.capture(&self.disk, &directory) {
                Ok(()) => Response::Ok,
                Err(error) => Error::from(error).response(),
            },
            Some(refusal) => refusal,
            None => {
                let seconds = FREEZE_TIMEOUT.as_secs();
                let message = format!("the guest has not stopped its processes within {seconds} s");
                Response::error(ErrorKind::Internal, message)
            }
        };
        if !refused {
            self.send(&Request::Thaw.frame(AGENT));
        }
        self.outgoing.extend(held);
        self.write();
        self.incoming.push_back(response.frame(channel));
    }

    /// Gives up what has taken too long.
    pub(super) fn tick_freeze(&mut self) {
        if self.freeze_deadline().is_some_and(|until| Instant::now() >= until) {
            self.devices.expect_late_answer();
            self.agent_has_frozen(None);
        }
    }
}
