//! One client's connection: frames in, frames out, neither ever blocking.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use proa_protocol::frame::{Decoder, Frame, FrameError, MAX_MESSAGE, MAX_STREAM, WINDOW};
use rustix::event::PollFlags;

/// Bytes that may wait for a client before its requests are no longer read.
const MOST_QUEUED: usize = 2 * WINDOW as usize;
/// Bytes that wait for a client of an honest sender at most: its window, and answers to what was read at once.
const TOO_MUCH: usize = MOST_QUEUED + 4 * MAX_MESSAGE;
/// Frames written by one call.
const BATCH: usize = 16;

/// What a client has joined, as far as the monitor must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// Nothing, or what it joined has told it of its end.
    Nothing,
    /// The streams of the first process.
    First,
    /// The streams of another process.
    Exec,
}

/// A connected client.
pub struct Client {
    /// What it has joined.
    pub joined: Joined,
    /// It wants to hear of the end of the first process.
    pub waits: bool,
    /// It came with our start, and does what remains to be done with the instance when that has ended.
    pub owner: bool,
    /// It has asked for more than to hear of the end. Whoever connects and is silent waits for ours.
    pub asks: bool,
    stream: UnixStream,
    decoder: Decoder,
    queue: VecDeque<Frame>,
    queued: usize,
    /// Bytes of the first queued frame that were written.
    written: usize,
    credit: usize,
    closing: bool,
}

impl Client {
    /// A client on a connected socket.
    pub fn new(stream: UnixStream, owner: bool) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            joined: Joined::Nothing,
            waits: false,
            owner,
            asks: false,
            stream,
            decoder: Decoder::new(),
            queue: VecDeque::new(),
            queued: 0,
            written: 0,
            credit: WINDOW as usize,
            closing: false,
        })
    }

    /// Whether there is a reason to stay for it before anything runs.
    pub fn keeps_us(&self) -> bool {
        self.owner || self.asks
    }

    /// What to wait for, if anything.
    pub fn wants(&self, congested: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::OUT, self.can_write());
        flags.set(PollFlags::IN, !congested && self.queued < MOST_QUEUED);
        // A hang-up is always reported, so one that must wait is left out.
        (!flags.is_empty()).then(|| (self.stream.as_fd(), flags))
    }

    /// Reads once. `false` when the client is gone.
    pub fn read(&mut self) -> bool {
        let mut bytes = Vec::with_capacity(MAX_STREAM);
        match rustix::io::read(&self.stream, rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(0) => false,
            Ok(_) => {
                self.decoder.push(&bytes);
                true
            }
            Err(error) => matches!(error, rustix::io::Errno::AGAIN | rustix::io::Errno::INTR),
        }
    }

    /// The next whole frame that was read.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        self.decoder.next_frame()
    }

    /// Takes credit that the client returned.
    pub fn credited(&mut self, bytes: u32) {
        self.credit = (self.credit + bytes as usize).min(WINDOW as usize);
    }

    /// Queues a frame. `false` if it is more than any honest sender would have sent.
    pub fn push(&mut self, mut frame: Frame) -> bool {
        // Each connection is one channel.
        frame.channel = 0;
        self.queued += frame.payload.len();
        self.queue.push_back(frame);
        self.queued <= TOO_MUCH
    }

    /// Closes the connection when all that is queued has been written.
    pub fn close(&mut self) {
        if !self.closing {
            self.push(Frame::close(0));
            self.closing = true;
        }
    }

    /// Writes what the socket takes. `false` when the client is gone, or is closed and has everything.
    pub fn flush(&mut self) -> bool {
        while self.can_write() {
            match self.write_batch() {
                Ok(count) => self.wrote(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        if self.queue.is_empty() {
            // An idle monitor keeps no queue.
            self.queue = VecDeque::new();
        }
        !(self.closing && self.queue.is_empty())
    }

    /// Whether the next frame may be written: one that is begun, no stream, or within the client's credit.
    fn can_write(&self) -> bool {
        self.queue.front().is_some_and(|frame| self.written > 0 || self.allows(frame, 0))
    }

    fn allows(&self, frame: &Frame, before: usize) -> bool {
        !frame.kind.is_stream() || frame.payload.len() + before <= self.credit
    }

    fn write_batch(&mut self) -> io::Result<usize> {
        let mut headers = Vec::with_capacity(BATCH);
        let mut stream_bytes = 0;
        for (index, frame) in self.queue.iter().take(BATCH).enumerate() {
            if index > 0 && !self.allows(frame, stream_bytes) {
                break;
            }
            stream_bytes += stream_length(frame);
            headers.push(frame.header());
        }
        let mut slices = Vec::with_capacity(2 * headers.len());
        for (header, frame) in headers.iter().zip(&self.queue) {
            slices.push(IoSlice::new(header));
            slices.push(IoSlice::new(&frame.payload));
        }
        let mut slices = slices.as_mut_slice();
        IoSlice::advance_slices(&mut slices, self.written);
        (&self.stream).write_vectored(slices)
    }

    fn wrote(&mut self, count: usize) {
        self.written += count;
        while let Some(frame) = self.queue.front() {
            let length = frame.header().len() + frame.payload.len();
            if self.written < length {
                return;
            }
            self.written -= length;
            self.queued -= frame.payload.len();
            self.credit = self.credit.saturating_sub(stream_length(frame));
            self.queue.pop_front();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // A forked job may hold a copy for a moment; the client shall see the end now.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn stream_length(frame: &Frame) -> usize {
    if frame.kind.is_stream() { frame.payload.len() } else { 0 }
}
