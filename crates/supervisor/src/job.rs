//! Work on an instance's files, which may block: done in a forked child that speaks frames over a pipe.
//!
//! ```text
//!   client ──Data──▶ Input ──pipe──▶ child: runtime::archive, runtime::changes
//!   client ◀─frames, within credit── Decoder ◀──pipe──┘ (its answers and Data, in order)
//! ```
//!
//! The child holds the instance's root and these two pipes alone, and dies with us. Its last frame is the final
//! answer, which goes to the client when the child is reaped: then the channel is free for the next request.
//! The child exits with 0 once that frame is written. A client that leaves ends its job.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use proa_protocol::frame::{Decoder, Frame, Kind, MAX_STREAM};
use proa_protocol::message::{ErrorKind, Response};
use proa_runtime::{Owners, archive, changes};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Signal, WaitId, WaitIdOptions, pidfd_send_signal, set_parent_process_death_signal, waitid,
};

use crate::channel::{Channels, Key};
use crate::poll::PollSet;
use crate::stream::{Input, non_blocking};
use crate::{Slot, token};

/// Payload of a data frame. Well below the window, so that a frame always fits what a client's credit leaves.
const CHUNK: usize = 32 * 1024;
/// Channel of the child's final answer; all its other frames are on 0.
const FINAL: u32 = 1;

/// What a job does.
pub(crate) enum Task {
    /// What a path is.
    Stat { root: Root, path: String },
    /// A tree as a tar stream.
    Get { root: Root, path: String },
    /// A tar stream into a directory.
    Put { root: Root, path: String, no_overwrite_dir: bool },
    /// What differs from the image.
    Changes { upper: PathBuf, lowers: Vec<PathBuf>, mountpoints: Vec<String>, owners: Owners },
}

/// An instance's root.
pub(crate) struct Root {
    /// Its directory.
    pub(crate) directory: OwnedFd,
    /// Its user namespace, where it has one: the job becomes its root, so that owners are what they are inside and
    /// nothing can be touched that the instance could not.
    pub(crate) users: Option<OwnedFd>,
}

impl Root {
    fn enter(&self) -> Result<BorrowedFd<'_>, proa_runtime::Error> {
        if let Some(users) = &self.users {
            proa_sys::userns::become_root_of(users)
                .and_then(|()| Ok(set_parent_process_death_signal(Some(Signal::KILL))?))
                .map_err(|error| {
                    proa_runtime::Error::new(
                        ErrorKind::Internal,
                        format!("enter the user namespace: {error}"),
                    )
                })?;
        }
        Ok(self.directory.as_fd())
    }
}

/// A running job.
pub(crate) struct Job {
    /// Names it in tokens and channels.
    pub(crate) key: Key,
    /// Whom it works for.
    pub(crate) channel: u32,
    /// Its child's process id.
    pub(crate) pid: u32,
    /// The client's data.
    pub(crate) input: Input,
    pidfd: OwnedFd,
    output: Option<Rc<OwnedFd>>,
    decoder: Decoder,
    streams: bool,
    answer: Option<Frame>,
}

impl Job {
    /// Starts a job.
    pub(crate) fn start(key: Key, channel: u32, task: Task) -> io::Result<Self> {
        let (child_in, input) = pipe_with(PipeFlags::CLOEXEC)?;
        let (output, child_out) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut keep = vec![child_in.as_fd(), child_out.as_fd()];
        if let Some(root) = task.root() {
            keep.push(root.directory.as_fd());
            keep.extend(root.users.as_ref().map(AsFd::as_fd));
        }
        let job = proa_sys::job::spawn(&keep, || work(&task, &child_in, &child_out))?;
        let mut input = Input::new(Some(non_blocking(input)?));
        if !task.takes_data() {
            input.end();
        }
        Ok(Self {
            key,
            channel,
            pid: job.pid,
            input,
            pidfd: job.pidfd,
            output: Some(non_blocking(output)?),
            decoder: Decoder::new(),
            streams: matches!(task, Task::Get { .. }),
            answer: None,
        })
    }

    /// Adds what to wait for.
    pub(crate) fn poll_fds<'fd>(&'fd self, channels: &Channels, set: &mut PollSet<'fd>) {
        if let Some(fd) = self.input.wants() {
            set.add(token(self.key, Slot::Input), fd, PollFlags::OUT);
        }
        match &self.output {
            Some(fd) if self.budget(channels) > 0 => {
                set.add(token(self.key, Slot::Stdout), fd.as_fd(), PollFlags::IN);
            }
            Some(_) => {}
            None => set.add(token(self.key, Slot::Pid), self.pidfd.as_fd(), PollFlags::IN),
        }
    }

    /// One of its descriptors is ready; true when the job is over and its child reaped.
    pub(crate) fn ready(&mut self, slot: Slot, channels: &mut Channels) -> bool {
        match slot {
            Slot::Input => self.input.write(channels),
            Slot::Stdout | Slot::Stderr => self.read(channels),
            Slot::Pid => return self.reap(channels),
        }
        false
    }

    /// Ends the job; its child is reaped later.
    pub(crate) fn kill(&mut self, channels: &mut Channels) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.input.discard(channels);
        self.output = None;
    }

    /// Bytes that may be read. Where they are a stream, they and what the decoder holds must not exceed the
    /// client's credit; a single answer is bounded by itself.
    fn budget(&self, channels: &Channels) -> usize {
        if !self.streams {
            return MAX_STREAM;
        }
        channels.credit_of(self.channel).saturating_sub(self.decoder.pending()).min(MAX_STREAM)
    }

    fn read(&mut self, channels: &mut Channels) {
        let budget = self.budget(channels);
        let Some(fd) = self.output.as_ref().filter(|_| budget > 0) else { return };
        let mut bytes = Vec::with_capacity(budget);
        match rustix::io::read(fd, rustix::buffer::spare_capacity(&mut bytes)) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(count) if count > 0 => {
                self.decoder.push(&bytes);
                // The child is a copy of this very code, so what it writes are frames.
                while let Ok(Some(frame)) = self.decoder.next_frame() {
                    match (frame.kind, frame.channel) {
                        (Kind::Data, _) => channels.stream(self.channel, Kind::Data, frame.payload),
                        (_, FINAL) => self.answer = Some(frame),
                        _ => channels.forward(Frame { channel: self.channel, ..frame }),
                    }
                }
            }
            _ => self.output = None,
        }
    }

    fn reap(&mut self, channels: &mut Channels) -> bool {
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        if matches!(status, Ok(None) | Err(Errno::INTR)) {
            return false;
        }
        let done = status.is_ok_and(|status| status.is_some_and(|status| status.exit_status() == Some(0)));
        match self.answer.take() {
            Some(frame) if done => channels.forward(Frame { channel: self.channel, ..frame }),
            _ => channels.fail(
                self.channel,
                ErrorKind::Internal,
                "the work on the instance's files was cut off",
            ),
        }
        self.input.discard(channels);
        true
    }
}

impl Task {
    fn takes_data(&self) -> bool {
        matches!(self, Self::Put { .. })
    }

    fn root(&self) -> Option<&Root> {
        match self {
            Self::Stat { root, .. } | Self::Get { root, .. } | Self::Put { root, .. } => Some(root),
            Self::Changes { .. } => None,
        }
    }

    fn run(&self, input: &OwnedFd, output: &mut Frames) -> Result<Response, proa_runtime::Error> {
        match self {
            Self::Stat { root, path } => archive::stat(root.enter()?, path).map(Response::Stat),
            Self::Changes { upper, lowers, mountpoints, owners } => {
                let mountpoints: Vec<&str> = mountpoints.iter().map(String::as_str).collect();
                let changes = changes::changes(upper, lowers, &mountpoints, owners)?;
                Ok(Response::Changes { changes })
            }
            Self::Get { root, path } => {
                let root = root.enter()?;
                output.respond(0, &Response::Stat(archive::stat(root, path)?));
                archive::get(root, path, output)?;
                output.end();
                Ok(Response::Ok)
            }
            Self::Put { root, path, no_overwrite_dir } => {
                let root = root.enter()?;
                output.respond(0, &Response::Ok);
                archive::put(root, path, &mut Pipe(input), *no_overwrite_dir)?;
                Ok(Response::Ok)
            }
        }
    }
}

/// The child's whole life.
fn work(task: &Task, input: &OwnedFd, output: &OwnedFd) -> i32 {
    let mut output = Frames { pipe: output, buffer: Vec::new(), broken: false };
    let answer = match task.run(input, &mut output) {
        Ok(response) => response,
        Err(error) => Response::error(error.kind(), error.to_string()),
    };
    output.respond(FINAL, &answer);
    i32::from(output.broken)
}

/// Writes a child's frames; tar bytes are gathered into chunks.
struct Frames<'fd> {
    pipe: &'fd OwnedFd,
    buffer: Vec<u8>,
    broken: bool,
}

impl Frames<'_> {
    fn respond(&mut self, channel: u32, response: &Response) {
        let sent = self.flush().and_then(|()| response.frame(channel).write_to(Pipe(self.pipe)));
        self.broken |= sent.is_err();
    }

    fn end(&mut self) {
        let sent =
            self.flush().and_then(|()| Frame::new(0, Kind::Data, Vec::new()).write_to(Pipe(self.pipe)));
        self.broken |= sent.is_err();
    }
}

impl Write for Frames<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == CHUNK {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let frame = Frame::new(0, Kind::Data, std::mem::take(&mut self.buffer));
        frame.write_to(Pipe(self.pipe))?;
        self.buffer = frame.payload;
        self.buffer.clear();
        Ok(())
    }
}

/// A pipe's end as a reader or writer.
struct Pipe<'fd>(&'fd OwnedFd);

impl Read for Pipe<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, buffer)?)
    }
}

impl Write for Pipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
