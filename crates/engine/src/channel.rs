//! A conversation with a monitor.

use std::io::{ErrorKind as IoKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proa_protocol::frame::{Decoder, Frame, Kind};
use proa_protocol::message::{ExitStatus, Request, Response};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Error, Result};

/// A connection to the monitor of one instance: one channel of the protocol.
#[derive(Debug)]
pub struct Channel {
    socket: UnixStream,
    decoder: Decoder,
    instance: String,
    /// Takes the lines that a monitor has for the user.
    notice: fn(&str),
}

impl Channel {
    /// Wraps a connected socket.
    pub fn new(socket: UnixStream, instance: &str, notice: fn(&str)) -> Self {
        Self { socket, decoder: Decoder::new(), instance: instance.to_owned(), notice }
    }

    /// The instance's id.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Sends requests, all in one write.
    ///
    /// # Errors
    /// The monitor is gone.
    pub fn send(&mut self, requests: &[Request]) -> Result<()> {
        let mut bytes = Vec::new();
        requests.iter().for_each(|request| request.frame(0).encode(&mut bytes));
        self.write(&bytes)
    }

    /// Sends one frame, waiting as long as it takes.
    ///
    /// # Errors
    /// The monitor is gone.
    pub fn send_frame(&mut self, frame: &Frame) -> Result<()> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.write(&bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self.socket.write_all(bytes) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.gone()),
        }
    }

    fn gone(&self) -> Error {
        Error::MonitorGone(crate::names::short(&self.instance).to_owned())
    }

    fn broken(&self, what: impl Into<String>) -> Error {
        Error::Protocol { instance: crate::names::short(&self.instance).to_owned(), what: what.into() }
    }

    /// The next frame, waiting for it; `None` once the monitor has closed the connection.
    ///
    /// # Errors
    /// What came is not a frame.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// The next frame among the bytes that have been read already.
    ///
    /// # Errors
    /// They are not a frame.
    pub fn buffered(&mut self) -> Result<Option<Frame>> {
        self.decoder.next_frame().map_err(|error| self.broken(error.to_string()))
    }

    /// Reads what is there; false at the end of the connection.
    ///
    /// # Errors
    /// Reading failed.
    pub fn fill(&mut self) -> Result<bool> {
        let mut bytes = [0; 64 * 1024];
        loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    self.decoder.push(&bytes[..count]);
                    return Ok(true);
                }
                Err(error) if error.kind() == IoKind::Interrupted => {}
                Err(error) if error.kind() == IoKind::WouldBlock => return Ok(true),
                // A monitor that died with our bytes unread.
                Err(error) if error.kind() == IoKind::ConnectionReset => return Ok(false),
                Err(error) => return Err(self.broken(error.to_string())),
            }
        }
    }

    /// The next response; notices are passed on, other frames are not for this kind of conversation.
    ///
    /// # Errors
    /// The monitor is gone, or its response is an error.
    pub fn response(&mut self) -> Result<Response> {
        loop {
            let frame = self.next_frame()?.ok_or_else(|| self.gone())?;
            if let Some(response) = self.read_response(&frame)? {
                return Ok(response);
            }
        }
    }

    /// Reads a response frame: `None` for another kind of frame, and for a notice, which is passed on.
    ///
    /// # Errors
    /// It is an error response, or none at all.
    pub fn read_response(&self, frame: &Frame) -> Result<Option<Response>> {
        if frame.kind != Kind::Response {
            return match frame.kind {
                Kind::Close => Err(self.gone()),
                _ => Ok(None),
            };
        }
        match Response::parse(&frame.payload).map_err(|error| self.broken(error.to_string()))? {
            Response::Notice { message } => {
                (self.notice)(&message);
                Ok(None)
            }
            Response::Error { kind, message } => Err(Error::Monitor { kind, message }),
            response => Ok(Some(response)),
        }
    }

    /// Asks, and waits for the response.
    ///
    /// # Errors
    /// The monitor is gone, or its response is an error.
    pub fn call(&mut self, request: Request) -> Result<Response> {
        self.send(&[request])?;
        self.response()
    }

    /// Asks for something that is answered by `Ok`.
    ///
    /// # Errors
    /// As for [`Channel::call`].
    pub fn command(&mut self, request: Request) -> Result<()> {
        match self.call(request)? {
            Response::Ok => Ok(()),
            other => Err(self.broken(format!("{other:?} in place of ok"))),
        }
    }

    /// Runs the program; its process id where the supervisor runs.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&mut self) -> Result<u32> {
        match self.call(Request::Start)? {
            Response::Started { pid } => Ok(pid),
            other => Err(self.broken(format!("{other:?} in place of started"))),
        }
    }

    /// Asks, and waits for the answer no longer than until `deadline`; `None` when that has passed.
    ///
    /// # Errors
    /// The monitor is gone, or its response is an error.
    pub fn call_until(&mut self, request: Request, deadline: Instant) -> Result<Option<Response>> {
        self.send(&[request])?;
        loop {
            while let Some(frame) = self.buffered()? {
                if let Some(response) = self.read_response(&frame)? {
                    return Ok(Some(response));
                }
            }
            if !self.readable(Some(deadline))? {
                return Ok(None);
            }
            if !self.fill()? {
                return Err(self.gone());
            }
        }
    }

    /// Waits until the first process has ended, no longer than `limit`; `None` when that has passed.
    /// [`Request::Wait`] must have been sent.
    ///
    /// # Errors
    /// The monitor is gone.
    pub fn wait_exit(&mut self, limit: Option<Duration>) -> Result<Option<ExitStatus>> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            while let Some(frame) = self.buffered()? {
                if let Some(Response::Exited(status)) = self.read_response(&frame)? {
                    return Ok(Some(status));
                }
            }
            if !self.readable(deadline)? {
                return Ok(None);
            }
            if !self.fill()? {
                return Err(self.gone());
            }
        }
    }

    /// Waits until the monitor has closed the connection, as it does when it ends; false if it has not in time.
    ///
    /// # Errors
    /// Polling failed.
    pub fn wait_close(&mut self, limit: Duration) -> Result<bool> {
        let deadline = Some(Instant::now() + limit);
        while self.readable(deadline)? {
            self.decoder = Decoder::new();
            if !self.fill()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn readable(&self, deadline: Option<Instant>) -> Result<bool> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], timeout.as_ref()) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.broken(format!("cannot poll: {error}"))),
            }
        }
    }

    /// Makes reads and writes return at once when there is nothing to do.
    ///
    /// # Errors
    /// The socket does not allow it.
    pub fn set_nonblocking(&self) -> Result<()> {
        self.socket.set_nonblocking(true).map_err(|error| self.broken(error.to_string()))
    }

    /// Writes as much as the socket takes; how much that was.
    ///
    /// # Errors
    /// The monitor is gone.
    pub fn write_some(&mut self, bytes: &[u8]) -> Result<usize> {
        match self.socket.write(bytes) {
            Ok(count) => Ok(count),
            Err(error) if matches!(error.kind(), IoKind::WouldBlock | IoKind::Interrupted) => Ok(0),
            Err(_) => Err(self.gone()),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_protocol::message::ErrorKind;

    fn pair() -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Channel::new(ours, &"ab".repeat(32), |_| {}), theirs)
    }

    #[test]
    fn notices_come_before_answers() {
        let (mut channel, theirs) = pair();
        Response::Notice { message: "slow".into() }.frame(0).write_to(&theirs).unwrap();
        Response::Started { pid: 7 }.frame(0).write_to(&theirs).unwrap();
        assert_eq!(channel.start().unwrap(), 7);
        let sent = Frame::read_from(&theirs).unwrap().unwrap();
        assert_eq!(Request::parse(&sent.payload).unwrap(), Request::Start);
    }

    #[test]
    fn errors_keep_their_kind() {
        let (mut channel, theirs) = pair();
        Response::error(ErrorKind::CommandNotFound, "no ls").frame(0).write_to(&theirs).unwrap();
        let error = channel.start().unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::CommandNotFound);
        assert_eq!(error.to_string(), "no ls");
    }

    #[test]
    fn a_dead_monitor_is_told() {
        let (mut channel, theirs) = pair();
        drop(theirs);
        assert!(matches!(channel.command(Request::Pause), Err(Error::MonitorGone(_))));
        assert!(channel.wait_close(Duration::from_secs(5)).unwrap());
    }

    #[test]
    fn waiting_has_a_limit() {
        let (mut channel, theirs) = pair();
        assert_eq!(channel.wait_exit(Some(Duration::from_millis(1))).unwrap(), None);
        assert!(!channel.wait_close(Duration::from_millis(1)).unwrap());
        Response::Exited(ExitStatus { code: 3, ..ExitStatus::default() }).frame(0).write_to(&theirs).unwrap();
        assert_eq!(channel.wait_exit(None).unwrap().unwrap().code, 3);
    }

    #[test]
    fn nonsense_is_a_broken_protocol() {
        let (mut channel, mut theirs) = pair();
        theirs.write_all(&[0xff; 64]).unwrap();
        assert!(matches!(channel.next_frame(), Err(Error::Protocol { .. })));
    }
}
