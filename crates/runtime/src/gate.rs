//! The gate at which a container's first process waits for `start`, when that is another process than the one
//! that created it.
//!
//! ```text
//!   create                       first process                    start
//!     ├ listens on <state>/gate        │                             │
//!     ├ forks ────────────────────────▶│ steps of the container      │
//!     │◀────────────────────── Ready ──┤                             │
//!     ├ Go (filter) ──────────────────▶│                             │
//!     └ ends                           │ waits at the gate ◀─────────┤ connects, says Start
//!                                      │ last steps, exec            │
//!                                      ├ Failed, or end of stream ──▶│ removes <state>/gate
//! ```
//!
//! The socket is made and listened on before the fork, so there is no moment at which `start` could come too
//! early. Its name is in the host's state directory, which only its owner may enter and which the container does
//! not see. Both the listening socket and the connection are close-on-exec: the program gets neither, and the
//! name without a listener behind it is the proof that the program runs, though nobody has removed it.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::AtFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen as listen_on,
    socket_with,
};

use crate::channel::Channel;
use crate::fork::wait_program;
use crate::{Error, Result};

/// The socket's name in the state directory.
const NAME: &str = "gate";
/// `start` and those who ask whether the gate is shut.
const BACKLOG: i32 = 64;

/// Makes the gate of a container in its state directory.
///
/// # Errors
/// The socket cannot be made.
pub fn listen(dir: BorrowedFd) -> Result<OwnedFd> {
    let socket = new_socket()?;
    let address = address(dir)?;
    bind(&socket, &address).map_err(|errno| Error::at(NAME, errno))?;
    listen_on(&socket, BACKLOG).map_err(|errno| Error::at(NAME, errno))?;
    Ok(socket)
}

/// Lets the first process behind the gate run its program, and waits until it does.
///
/// # Errors
/// Nobody waits there, or why the program cannot run: the container has ended then.
pub fn start(dir: BorrowedFd) -> Result<()> {
    let Some(socket) = knock(dir)? else {
        return Err(Error::invalid("the container's first process does not wait for its start"));
    };
    let channel = Channel::from(socket);
    channel.send_start().map_err(|errno| Error::call("start", errno))?;
    wait_program(&channel)?;
    match rustix::fs::unlinkat(dir, NAME, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::at(NAME, errno)),
    }
}

/// Whether the first process waits at the gate. It takes no notice of the question.
///
/// # Errors
/// The socket cannot be asked.
pub fn is_shut(dir: BorrowedFd) -> Result<bool> {
    match rustix::fs::statat(dir, NAME, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => knock(dir).map(|socket| socket.is_some()),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(Error::at(NAME, errno)),
    }
}

/// First process: waits for the word to run. What it says next is heard by whoever gave the word.
pub(crate) fn wait(gate: &OwnedFd) -> Result<Channel> {
    loop {
        let connection = match accept_with(gate, SocketFlags::CLOEXEC) {
            Ok(connection) => Channel::from(connection),
            Err(Errno::INTR | Errno::CONNABORTED) => continue,
            Err(errno) => return Err(Error::call("accept", errno)),
        };
        if connection.receive_start()? {
            return Ok(connection);
        }
    }
}

fn knock(dir: BorrowedFd) -> Result<Option<OwnedFd>> {
    let socket = new_socket()?;
    match connect(&socket, &address(dir)?) {
        Ok(()) => Ok(Some(socket)),
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
        Err(errno) => Err(Error::at(NAME, errno)),
    }
}

fn new_socket() -> Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|errno| Error::call("socket", errno))
}

/// By descriptor, since a socket's path has at most 107 bytes and state directories are often longer.
fn address(dir: BorrowedFd) -> Result<SocketAddrUnix> {
    let path = format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd());
    SocketAddrUnix::new(path.as_str()).map_err(|errno| Error::at(path, errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    use rustix::fs::{Mode, OFlags};

    #[test]
    fn the_gate_opens_once_and_questions_do_not_open_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        assert!(!is_shut(dir.as_fd()).unwrap());
        let gate = listen(dir.as_fd()).unwrap();
        assert!(is_shut(dir.as_fd()).unwrap());
        let waiting = std::thread::spawn(move || {
            let connection = wait(&gate).unwrap();
            connection.send_failure(&Error::invalid("no program"));
        });
        assert_eq!(start(dir.as_fd()).unwrap_err().to_string(), "no program");
        waiting.join().unwrap();
        // As after a start that was killed: the name is there, nobody is behind it.
        assert!(!is_shut(dir.as_fd()).unwrap());
        assert!(start(dir.as_fd()).unwrap_err().to_string().contains("does not wait"));
    }
}
