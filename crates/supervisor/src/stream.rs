//! The two ends of a process's streams: bytes from clients into a descriptor, and out of one to clients.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use proa_protocol::frame::{Kind, MAX_STREAM};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::channel::{Channels, Key};

/// Makes a descriptor of ours non-blocking.
pub fn non_blocking(fd: OwnedFd) -> Result<Rc<OwnedFd>, Errno> {
    fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
    Ok(Rc::new(fd))
}

/// Bytes on the way from clients into a process. Each client's share is bounded by its window, and credit is
/// returned when the bytes have been written, or when nobody can read them any more.
#[derive(Debug, Default)]
pub struct Input {
    fd: Option<Rc<OwnedFd>>,
    queue: VecDeque<Piece>,
    end_after_queue: bool,
}

#[derive(Debug)]
struct Piece {
    channel: u32,
    bytes: Vec<u8>,
    written: usize,
}

impl Input {
    /// An input into `fd`; without one, all bytes are thrown away.
    pub fn new(fd: Option<Rc<OwnedFd>>) -> Self {
        Self { fd, ..Self::default() }
    }

    /// Takes bytes from a client and writes what can be written at once.
    pub fn push(&mut self, channel: u32, bytes: Vec<u8>, channels: &mut Channels) {
        if self.fd.is_none() || self.end_after_queue {
            return channels.consumed(channel, bytes.len());
        }
        self.queue.push_back(Piece { channel, bytes, written: 0 });
        if self.queue.len() == 1 {
            self.write(channels);
        }
    }

    /// Ends the input once all that was taken has been written.
    pub fn end(&mut self) {
        self.end_after_queue = true;
        self.close_if_done();
    }

    /// The descriptor to wait for until it can be written to, if there is something to write.
    pub fn wants(&self) -> Option<BorrowedFd<'_>> {
        if self.queue.is_empty() { None } else { self.fd.as_ref().map(|fd| fd.as_fd()) }
    }

    /// Writes as much as the descriptor takes.
    pub fn write(&mut self, channels: &mut Channels) {
        let Some(fd) = self.fd.clone() else { return };
        while let Some(piece) = self.queue.front_mut() {
            match rustix::io::write(&fd, &piece.bytes[piece.written..]) {
                Ok(count) => {
                    piece.written += count;
                    if piece.written < piece.bytes.len() {
                        continue;
                    }
                    channels.consumed(piece.channel, piece.bytes.len());
                    self.queue.pop_front();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // The reader is gone.
                Err(_) => return self.discard(channels),
            }
        }
        self.queue = VecDeque::new();
        self.close_if_done();
    }

    /// Closes the input and throws away what was not written.
    pub fn discard(&mut self, channels: &mut Channels) {
        self.fd = None;
        for piece in std::mem::take(&mut self.queue) {
            channels.consumed(piece.channel, piece.bytes.len());
        }
    }

    fn close_if_done(&mut self) {
        if self.end_after_queue && self.queue.is_empty() {
            self.fd = None;
        }
    }
}

/// One output stream of a process.
#[derive(Debug)]
pub struct Output {
    fd: Option<Rc<OwnedFd>>,
    kind: Kind,
}

/// What a read of an output found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Bytes, which went to the readers.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// Its end, now or earlier.
    End,
}

impl Output {
    /// An output from `fd`; without one, it has ended.
    pub fn new(fd: Option<Rc<OwnedFd>>, kind: Kind) -> Self {
        Self { fd, kind }
    }

    /// Whether its end was seen.
    pub fn ended(&self) -> bool {
        self.fd.is_none()
    }

    /// Ends it, whatever may still come.
    pub fn close(&mut self) {
        self.fd = None;
    }

    /// The descriptor to wait for, if all readers have credit.
    pub fn wants(&self, process: Key, channels: &Channels) -> Option<BorrowedFd<'_>> {
        let fd = self.fd.as_ref()?;
        // A descriptor in the set reports its hang-up always, so one that must wait is left out.
        (channels.budget(process, self.kind) != Some(0)).then(|| fd.as_fd())
    }

    /// Reads once, no more than all readers have credit for.
    pub fn read(&mut self, process: Key, channels: &mut Channels) -> Found {
        match channels.budget(process, self.kind) {
            Some(0) => Found::Nothing,
            budget => self.read_up_to(budget.unwrap_or(MAX_STREAM).min(MAX_STREAM), process, channels),
        }
    }

    /// Reads what the kernel still holds, credit or not: for a process that has ended, whose pipes bound it.
    /// Others may still hold the far end and write for ever, so no more is read than there is now.
    pub fn read_rest(&mut self, process: Key, channels: &mut Channels) {
        let Some(fd) = &self.fd else { return };
        // A terminal cannot tell how much it holds; it is less than this.
        let mut left = rustix::io::ioctl_fionread(fd).map_or(0, |bytes| bytes as usize).max(MAX_STREAM);
        while left > 0 {
            match self.read_up_to(left.min(MAX_STREAM), process, channels) {
                Found::Bytes(count) => left -= count.min(left),
                Found::Nothing | Found::End => return,
            }
        }
    }

    fn read_up_to(&mut self, limit: usize, process: Key, channels: &mut Channels) -> Found {
        let Some(fd) = &self.fd else { return Found::End };
        let mut bytes = Vec::with_capacity(limit);
        loop {
            match rustix::io::read(fd, rustix::buffer::spare_capacity(&mut bytes)) {
                Ok(0) => break,
                Ok(count) => {
                    bytes.shrink_to_fit();
                    channels.fan_out(process, self.kind, bytes);
                    return Found::Bytes(count);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Found::Nothing,
                // A terminal whose last holder is gone says EIO.
                Err(_) => break,
            }
        }
        self.fd = None;
        Found::End
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Role;
    use proa_protocol::frame::{Frame, WINDOW};
    use proa_protocol::message::{ExitStatus, Response};
    use rustix::pipe::{PipeFlags, pipe_with};

    const PROCESS: Key = 3;

    fn readers(count: u32) -> Channels {
        let mut channels = Channels::default();
        for number in 1..=count {
            let role = Role::Process { key: PROCESS, stdin: true, stdout: true, stderr: false };
            channels.open(number).role = role;
        }
        channels
    }

    fn output_pipe() -> (Output, OwnedFd) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        (Output::new(Some(non_blocking(read).unwrap()), Kind::Stdout), write)
    }

    fn fill(fd: &OwnedFd, bytes: usize) {
        let mut left = bytes;
        while left > 0 {
            left -= rustix::io::write(fd, &vec![b'x'; left.min(4096)]).unwrap();
        }
    }

    fn drain(channels: &mut Channels) -> Vec<Frame> {
        std::iter::from_fn(|| channels.pop()).collect()
    }

    fn bytes_for(frames: &[Frame], channel: u32) -> usize {
        let stream = frames.iter().filter(|frame| frame.channel == channel && frame.kind == Kind::Stdout);
        stream.map(|frame| frame.payload.len()).sum()
    }

    #[test]
    fn all_readers_get_all_bytes() {
        let mut channels = readers(3);
        let (mut output, write) = output_pipe();
        rustix::io::write(&write, b"hello").unwrap();
        assert_eq!(output.read(PROCESS, &mut channels), Found::Bytes(5));
        let frames = drain(&mut channels);
        assert_eq!(frames.len(), 3);
        assert!(frames.iter().all(|frame| frame.payload == b"hello"));
        drop(write);
        assert_eq!(output.read(PROCESS, &mut channels), Found::End);
        assert!(output.ended());
    }

    #[test]
    fn the_slowest_reader_sets_the_pace() {
        let mut channels = readers(2);
        let (mut output, write) = output_pipe();
        let mut sent = 0;
        while channels.budget(PROCESS, Kind::Stdout) != Some(0) {
            fill(&write, 16 * 1024);
            assert!(matches!(output.read(PROCESS, &mut channels), Found::Bytes(_)));
            sent += bytes_for(&drain(&mut channels), 1);
            // The second reader consumes at once, the first never.
            channels.credit(2, WINDOW);
        }
        assert_eq!(sent, WINDOW as usize);
        assert!(output.wants(PROCESS, &channels).is_none());
        fill(&write, 10);
        assert_eq!(output.read(PROCESS, &mut channels), Found::Nothing);
        channels.credit(1, 4);
        assert!(output.wants(PROCESS, &channels).is_some());
        assert_eq!(output.read(PROCESS, &mut channels), Found::Bytes(4));
    }

    #[test]
    fn without_readers_output_is_thrown_away() {
        let mut channels = Channels::default();
        let (mut output, write) = output_pipe();
        fill(&write, 100);
        assert!(output.wants(PROCESS, &channels).is_some());
        assert_eq!(output.read(PROCESS, &mut channels), Found::Bytes(100));
        assert!(!channels.has_outgoing());
    }

    #[test]
    fn last_output_waits_for_a_slow_reader_and_its_end_comes_after_it() {
        let mut channels = readers(2);
        let (mut output, write) = output_pipe();
        let status = ExitStatus { code: 7, ..ExitStatus::default() };
        for _ in 0..4 {
            fill(&write, MAX_STREAM);
            output.read(PROCESS, &mut channels);
            channels.credit(2, WINDOW);
        }
        fill(&write, 5000);
        output.read_rest(PROCESS, &mut channels);
        channels.process_ended(PROCESS, status);
        let frames = drain(&mut channels);
        assert_eq!((bytes_for(&frames, 1), bytes_for(&frames, 2)), (4 * MAX_STREAM, 4 * MAX_STREAM + 5000));
        // The fast reader has heard of the end, the slow one not yet.
        assert!(channels.role(2).is_none());
        channels.credit(1, 3000);
        assert_eq!(bytes_for(&drain(&mut channels), 1), 3000);
        channels.credit(1, 3000);
        let frames = drain(&mut channels);
        assert_eq!(bytes_for(&frames, 1), 2000);
        let kinds: Vec<Kind> = frames.iter().map(|frame| frame.kind).collect();
        assert_eq!(kinds, [Kind::Stdout, Kind::Response, Kind::Close]);
        assert_eq!(Response::parse(&frames[1].payload).unwrap(), Response::Exited(status));
    }

    #[test]
    fn an_endless_writer_does_not_hold_up_the_end() {
        let mut channels = readers(1);
        let (mut output, write) = output_pipe();
        fill(&write, MAX_STREAM);
        output.read_rest(PROCESS, &mut channels);
        assert_eq!(bytes_for(&drain(&mut channels), 1), MAX_STREAM);
        assert!(!output.ended());
        drop(write);
    }

    fn input_pipe() -> (Input, OwnedFd) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        (Input::new(Some(non_blocking(write).unwrap())), read)
    }

    fn credited(channels: &mut Channels) -> u32 {
        drain(channels).iter().map(Frame::credited).sum()
    }

    #[test]
    fn input_is_credited_when_it_is_written() {
        let mut channels = readers(1);
        let (mut input, read) = input_pipe();
        let mut sent = 0;
        while input.wants().is_none() {
            assert!(channels.received(1, 50_000));
            input.push(1, vec![b'y'; 50_000], &mut channels);
            sent += 50_000;
        }
        // The pipe is full: the last piece is not credited.
        assert_eq!(credited(&mut channels), sent - 50_000);
        input.end();
        let mut buffer = vec![0; 1 << 20];
        assert!(rustix::io::read(&read, &mut buffer).unwrap() > 0);
        input.write(&mut channels);
        assert_eq!(credited(&mut channels), 50_000);
        // The end comes after the queue.
        while rustix::io::read(&read, &mut buffer).unwrap() > 0 {}
    }

    #[test]
    fn input_without_a_reader_is_thrown_away_and_credited() {
        let mut channels = readers(1);
        let (mut input, read) = input_pipe();
        drop(read);
        for _ in 0..2 {
            assert!(channels.received(1, 10));
            input.push(1, vec![0; 10], &mut channels);
        }
        assert_eq!(credited(&mut channels), 20);
    }

    #[test]
    fn more_than_a_window_is_an_error() {
        let mut channels = readers(1);
        assert!(channels.received(1, WINDOW as usize));
        assert!(!channels.received(1, 1));
    }
}
