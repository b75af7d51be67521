//! A tar stream over a monitor's channel, as a reader and as a writer.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use proa_protocol::frame::{Frame, Kind, MAX_STREAM, WINDOW};
use proa_protocol::message::{Request, Response};

use crate::channel::Channel;
use crate::error::{Error, Result};

/// Reads what an instance sends.
pub(super) struct ArchiveReader<'a> {
    channel: &'a mut Channel,
    pending: VecDeque<u8>,
    ended: bool,
    failure: Option<Error>,
}

impl<'a> ArchiveReader<'a> {
    /// Asks for the tree at `path`.
    pub(super) fn open(channel: &'a mut Channel, path: &str) -> Result<Self> {
        match channel.call(Request::ArchiveGet { path: path.to_owned() })? {
            Response::Stat(_) => Ok(Self { channel, pending: VecDeque::new(), ended: false, failure: None }),
            other => Err(Error::Protocol {
                instance: channel.instance().to_owned(),
                what: format!("{other:?} in place of a stat"),
            }),
        }
    }

    fn next(&mut self) -> Result<()> {
        let frame = self.channel.next_frame()?;
        let frame = frame.ok_or_else(|| Error::MonitorGone(self.channel.instance().to_owned()))?;
        if frame.kind != Kind::Data {
            self.channel.read_response(&frame)?;
        } else if frame.payload.is_empty() {
            self.ended = true;
        } else {
            self.channel.send_frame(&Frame::credit(0, frame.payload.len() as u32))?;
            self.pending.extend(frame.payload);
        }
        Ok(())
    }

    /// Reads to the end, and learns whether the instance sent all there is.
    pub(super) fn finish(mut self) -> Result<()> {
        let rest = io::copy(&mut self, &mut io::sink());
        if let Some(error) = self.failure {
            return Err(error);
        }
        rest.map_err(|error| Error::io("copy from", self.channel.instance().as_ref(), error))?;
        self.channel.response().map(drop)
    }
}

impl Read for ArchiveReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.pending.is_empty() && !self.ended {
            if let Err(error) = self.next() {
                let told = io::Error::other(error.to_string());
                self.failure = Some(error);
                self.ended = true;
                return Err(told);
            }
        }
        self.pending.read(buffer)
    }
}

/// Sends a tar stream to an instance.
pub(super) struct ArchiveWriter<'a> {
    channel: &'a mut Channel,
    window: u32,
    failure: Option<Error>,
}

impl<'a> ArchiveWriter<'a> {
    /// Asks to unpack into the directory at `path`.
    pub(super) fn open(channel: &'a mut Channel, path: &str) -> Result<Self> {
        channel.command(Request::ArchivePut { path: path.to_owned(), no_overwrite_dir: true })?;
        Ok(Self { channel, window: WINDOW, failure: None })
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        while (self.window as usize) < bytes.len() {
            let frame = self.channel.next_frame()?;
            let frame = frame.ok_or_else(|| Error::MonitorGone(self.channel.instance().to_owned()))?;
            self.window = self.window.saturating_add(frame.credited());
            self.channel.read_response(&frame)?;
        }
        self.window -= bytes.len() as u32;
        self.channel.send_frame(&Frame::new(0, Kind::Data, bytes.to_vec()))
    }

    /// The reason why writing failed: the instance's own words where it has said some.
    pub(super) fn failure(mut self, error: io::Error) -> Error {
        if let Some(failure) = self.failure.take() {
            // What broke the connection may have been said before it broke.
            return match failure {
                Error::MonitorGone(_) => self.channel.response().err().unwrap_or(failure),
                other => other,
            };
        }
        Error::io("copy to", self.channel.instance().as_ref(), error)
    }

    /// Ends the stream and waits until all of it is in place.
    pub(super) fn finish(mut self) -> Result<()> {
        if let Err(error) = self.send(&[]) {
            self.failure = Some(error);
            return Err(self.failure(io::ErrorKind::BrokenPipe.into()));
        }
        self.channel.response().map(drop)
    }
}

impl Write for ArchiveWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(MAX_STREAM)];
        if bytes.is_empty() {
            // An empty frame would be the end.
            return Ok(0);
        }
        match self.send(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                let told = io::Error::other(error.to_string());
                self.failure = Some(error);
                Err(told)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
