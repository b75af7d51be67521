//! The socket between a runtime and the process that it sets up, and the messages on it.
//!
//! ```text
//!   parent                         child
//!     ├─ Root (descriptor) ──────────▶│   not for exec
//!     ├─ Source (descriptor) … ──────▶│   in a user namespace: what is bound
//!     │◀──────────────────────── Hooks ┤   where the spec has hooks for the runtime
//!     ├─ HooksDone ──────────────────▶│
//!     │◀── Ready (warnings, terminal) ┤   or Failed
//!     ├─ Go (seccomp program) ───────▶│
//!     ├─ Part (JSON) ────────────────▶│   in a prepared container: what its process is; then Ready once more
//!     │◀─────────────── end of stream ┤   the exec happened; or Failed
//! ```
//!
//! Each end is close-on-exec: that the child's end closes is the proof of its exec; that the parent's closes
//! makes a waiting child end.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proa_protocol::message::ErrorKind;
use proa_sys::process::Insn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg, socketpair,
};

use crate::container::Part;
use crate::seccomp::Filter;
use crate::{Error, Result};

/// One end of the socket.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// The word to run the program: the filter before it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Go {
    pub program: Vec<Insn>,
    pub flags: u64,
    /// For the listener, if the filter has one.
    pub message: String,
}

/// Flags and length of the message.
const GO_HEAD: usize = 16;

/// A message as it comes: its sort, its body, a descriptor.
type Message = (u8, Vec<u8>, Option<OwnedFd>);

/// What a child says.
#[derive(Debug)]
pub(crate) enum Report {
    /// All is set up.
    Ready { warnings: Vec<String>, terminal: Option<OwnedFd> },
    /// The hooks of the runtime are to be run.
    Hooks,
    /// A step failed; the child has ended or is about to.
    Failed(Error),
    /// The child's end is closed: it runs the program, or was killed.
    Closed,
}

/// Both ends, the parent's first.
pub(crate) fn pair() -> Result<(Channel, Channel)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|errno| Error::call("socketpair", errno))?;
    Ok((Channel(ours), Channel(theirs)))
}

impl Channel {
    /// The same end once more.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        self.0.try_clone().map(Self).map_err(|error| Error::call("dup", error))
    }

    /// Parent: here is your root; `None` for one that the child must mount. Then so many bind sources.
    pub(crate) fn send_root(&self, root: Option<BorrowedFd>, sources: &[OwnedFd]) -> Result<(), Errno> {
        let count = if sources.is_empty() { Vec::new() } else { sources.len().to_ne_bytes().to_vec() };
        self.send(b"R", &count, root)?;
        sources.iter().try_for_each(|source| self.send(b"s", &[], Some(source.as_fd())))
    }

    /// Child: waits for a bind source.
    fn receive_source(&self) -> Result<OwnedFd> {
        match self.receive()? {
            Some((b's', _, Some(source))) => Ok(source),
            Some(_) => Err(Error::internal("unexpected message from the runtime")),
            None => proa_sys::clone::exit_now(125),
        }
    }

    /// Child: the parent's hooks may run now. Returns when they have; ends the process where the parent has gone.
    pub(crate) fn wait_for_hooks(&self) -> Result<()> {
        self.send(b"h", &[], None).map_err(|errno| Error::call("sendmsg", errno))?;
        match self.receive()? {
            Some((b'H', ..)) => Ok(()),
            Some(_) => Err(Error::internal("unexpected message from the runtime")),
            None => proa_sys::clone::exit_now(125),
        }
    }

    /// Parent: the hooks have run.
    pub(crate) fn send_hooks_done(&self) -> Result<(), Errno> {
        self.send(b"H", &[], None)
    }

    /// A process between: this is the process that was to be forked.
    pub(crate) fn send_forked(&self, pid: u32, pidfd: BorrowedFd) -> Result<(), Errno> {
        self.send(b"p", &pid.to_ne_bytes(), Some(pidfd))
    }

    /// Parent: waits for what a process between has forked.
    pub(crate) fn receive_forked(&self) -> Result<(u32, OwnedFd)> {
        match self.receive()? {
            Some((b'p', pid, Some(pidfd))) if pid.len() == 4 => {
                Ok((u32::from_ne_bytes([pid[0], pid[1], pid[2], pid[3]]), pidfd))
            }
            Some((b'f', bytes, _)) if !bytes.is_empty() => {
                Err(Error::new(kind_from(bytes[0]), String::from_utf8_lossy(&bytes[1..])))
            }
            _ => Err(Error::internal("the process that joins namespaces was killed")),
        }
    }

    /// Parent: waits for the root that a process between has made.
    pub(crate) fn receive_made(&self) -> Result<OwnedFd> {
        match self.receive()? {
            Some((b'R', _, Some(root))) => Ok(root),
            Some((b'f', bytes, _)) if !bytes.is_empty() => {
                Err(Error::new(kind_from(bytes[0]), String::from_utf8_lossy(&bytes[1..])))
            }
            _ => Err(Error::internal("the process that mounts the root was killed")),
        }
    }

    /// Child: waits for the root. Ends the process where the parent has gone.
    pub(crate) fn receive_root(&self) -> Result<(Option<OwnedFd>, Vec<OwnedFd>)> {
        match self.receive()? {
            Some((b'R', count, root)) => {
                let count = count.try_into().map_or(0, usize::from_ne_bytes);
                Ok((root, (0..count).map(|_| self.receive_source()).collect::<Result<_>>()?))
            }
            Some(_) => Err(Error::internal("unexpected message from the runtime")),
            None => proa_sys::clone::exit_now(125),
        }
    }

    /// `start`: run the program.
    pub(crate) fn send_start(&self) -> Result<(), Errno> {
        self.send(b"S", &[], None)
    }

    /// Child: whether that was said. A peer that says nothing, or went away, only asked.
    pub(crate) fn receive_start(&self) -> Result<bool> {
        Ok(matches!(self.receive()?, Some((b'S', _, None))))
    }

    /// Parent: run the program, behind this filter.
    pub(crate) fn send_go(&self, filter: &Filter) -> Result<(), Errno> {
        let message = filter.listener.as_ref().map_or("", |listener| &listener.message);
        let mut bytes = Vec::with_capacity(GO_HEAD + message.len() + filter.program.len() * 8);
        bytes.extend_from_slice(&filter.flags.to_ne_bytes());
        bytes.extend_from_slice(&(message.len() as u64).to_ne_bytes());
        bytes.extend_from_slice(message.as_bytes());
        for insn in &filter.program {
            bytes.extend_from_slice(&insn.code.to_ne_bytes());
            bytes.extend_from_slice(&[insn.jt, insn.jf]);
            bytes.extend_from_slice(&insn.k.to_ne_bytes());
        }
        self.send(b"G", &bytes, None)
    }

    /// Child: waits for the word to run. Ends the process where the parent has gone.
    pub(crate) fn receive_go(&self) -> Result<Go> {
        let bytes = match self.receive()? {
            Some((b'G', bytes, None)) => bytes,
            Some(_) => return Err(Error::internal("unexpected message from the runtime")),
            None => proa_sys::clone::exit_now(125),
        };
        let insn = |b: &[u8]| Insn {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        };
        let broken = || Error::internal("unexpected message from the runtime");
        let number = |at: usize| {
            let bytes = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u64::from_ne_bytes).ok_or_else(broken)
        };
        let end = GO_HEAD.saturating_add(number(8)? as usize);
        let message = String::from_utf8_lossy(bytes.get(GO_HEAD..end).ok_or_else(broken)?).into_owned();
        Ok(Go { flags: number(0)?, message, program: bytes[end..].chunks_exact(8).map(insn).collect() })
    }

    /// Parent: this is what a prepared container's process is.
    pub(crate) fn send_part(&self, part: &Part) -> Result<(), Errno> {
        // Strings and numbers always serialize.
        self.send(b"P", &serde_json::to_vec(part).unwrap_or_default(), None)
    }

    /// Child: waits for that. Ends the process where the parent has gone.
    pub(crate) fn receive_part(&self) -> Result<Part> {
        match self.receive()? {
            Some((b'P', bytes, None)) => {
                serde_json::from_slice(&bytes).map_err(|error| Error::internal(error.to_string()))
            }
            Some(_) => Err(Error::internal("unexpected message from the runtime")),
            None => proa_sys::clone::exit_now(125),
        }
    }

    /// Child: all is set up.
    pub(crate) fn send_ready(&self, warnings: &[String], terminal: Option<BorrowedFd>) -> Result<(), Errno> {
        self.send(b"r", warnings.join("\n").as_bytes(), terminal)
    }

    /// Child: it cannot be done. That the parent may be gone changes nothing.
    pub(crate) fn send_failure(&self, error: &Error) {
        let kind = [error.kind() as u8];
        let message = error.to_string();
        let _ = self.send(b"f", &[&kind, message.as_bytes()].concat(), None);
    }

    /// Parent: waits for what the child says next.
    pub(crate) fn receive_report(&self) -> Result<Report> {
        Ok(match self.receive()? {
            Some((b'r', text, terminal)) => {
                let warnings = String::from_utf8_lossy(&text).lines().map(ToOwned::to_owned).collect();
                Report::Ready { warnings, terminal }
            }
            Some((b'h', ..)) => Report::Hooks,
            Some((b'f', bytes, _)) if !bytes.is_empty() => {
                Report::Failed(Error::new(kind_from(bytes[0]), String::from_utf8_lossy(&bytes[1..])))
            }
            Some(_) => {
                Report::Failed(Error::internal("unexpected message from the container's first process"))
            }
            None => Report::Closed,
        })
    }

    /// Parent: why the child has ended, if it has said so already; else the error, which that may have caused.
    pub(crate) fn cause_of(&self, error: Error) -> Error {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let has_said = poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0);
        match has_said.then(|| self.receive_report()) {
            Some(Ok(Report::Failed(cause))) => cause,
            _ => error,
        }
    }

    fn send(&self, head: &[u8], body: &[u8], fd: Option<BorrowedFd>) -> Result<(), Errno> {
        let fds = fd.as_slice();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let parts = [IoSlice::new(head), IoSlice::new(body)];
        // The peer may have died: an error then, not a signal.
        sendmsg(&self.0, &parts, &mut control, SendFlags::NOSIGNAL).map(drop)
    }

    /// Waits for a message and tells its length, so that no more memory than that is touched. 0 at the end.
    fn next_length(&self) -> Result<usize> {
        loop {
            match recv(&self.0, &mut [0_u8; 0][..], RecvFlags::PEEK | RecvFlags::TRUNC) {
                Ok((_, length)) => return Ok(length),
                // The other end ended with a message of ours unread. What it said before that comes next.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(errno) => return Err(Error::call("recv", errno)),
            }
        }
    }

    fn receive(&self) -> Result<Option<Message>> {
        let length = self.next_length()?;
        if length == 0 {
            return Ok(None);
        }
        let mut buffer = vec![0; length];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = loop {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            match recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                // As above: it may have ended since.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                other => break other.map_err(|errno| Error::call("recvmsg", errno))?,
            }
        };
        let fd = control.drain().find_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        buffer.truncate(message.bytes.max(1));
        let body = buffer.split_off(1);
        Ok(Some((buffer[0], body, fd)))
    }
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn kind_from(byte: u8) -> ErrorKind {
    use ErrorKind::{CommandNotExecutable, CommandNotFound, Conflict, InvalidInput, NoSuchPath, Unsupported};
    [CommandNotFound, CommandNotExecutable, InvalidInput, NoSuchPath, Conflict, Unsupported]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
        .unwrap_or(ErrorKind::Internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_child_has_said_explains_what_its_end_has_caused() {
        let (parent, child) = pair().unwrap();
        let later = || Error::internal("no such process");
        assert_eq!(parent.cause_of(later()).to_string(), later().to_string());
        child.send_failure(&Error::invalid("the cause"));
        drop(child);
        assert_eq!(parent.cause_of(later()).to_string(), "the cause");
        assert_eq!(parent.cause_of(later()).to_string(), later().to_string());
    }

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let (parent, child) = pair().unwrap();
        parent.send_root(Some(parent.as_fd()), &[]).unwrap();
        let (root, sources) = child.receive_root().unwrap();
        assert!(root.is_some() && sources.is_empty());
        let own = [(); 3].map(|()| child.as_fd().try_clone_to_owned().unwrap());
        parent.send_root(None, &own).unwrap();
        drop(own);
        let (root, sources) = child.receive_root().unwrap();
        assert!(root.is_none() && sources.len() == 3);
        // Each is another end of the child's.
        drop(sources);
        let filter = [Insn { code: 6, jt: 1, jf: 2, k: 0x7fff_0000 }];
        let program = filter.to_vec();
        parent.send_go(&Filter { program: program.clone(), flags: 2, listener: None }).unwrap();
        assert_eq!(child.receive_go().unwrap(), Go { program, flags: 2, message: String::new() });
        child.send_ready(&["one".into(), "two".into()], Some(child.as_fd())).unwrap();
        let Report::Ready { warnings, terminal: Some(_) } = parent.receive_report().unwrap() else {
            panic!()
        };
        assert_eq!(warnings, ["one", "two"]);
        child.send_failure(&Error::new(ErrorKind::CommandNotFound, "no such thing"));
        let Report::Failed(error) = parent.receive_report().unwrap() else { panic!() };
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::CommandNotFound, "no such thing"));
        // What was said is heard, though the child ends without having heard us.
        child.send_failure(&Error::invalid("last words"));
        parent.send_go(&Filter::default()).unwrap();
        drop(child);
        let Report::Failed(error) = parent.receive_report().unwrap() else { panic!() };
        assert_eq!(error.to_string(), "last words");
        assert!(matches!(parent.receive_report().unwrap(), Report::Closed));
    }
}
