//! A container's terminal: handed to an engine over its socket, or served here between it and our own.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use proa_sys::sockets::send_with;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::error::{Failure, Result};

/// What engines are told the terminal's master is called.
const MASTER: &[u8] = b"/dev/ptmx";

/// Sends a terminal's master to whoever listens at `socket` (`--console-socket`).
///
/// # Errors
/// Nobody listens there.
pub fn send(socket: &Path, master: BorrowedFd) -> Result<()> {
    let failed = |error: std::io::Error| Failure::at(socket, error).context("--console-socket");
    let stream = UnixStream::connect(socket).map_err(failed)?;
    send_with(&stream, MASTER, master).map(drop).map_err(|errno| failed(errno.into()))
}

/// Our own terminal in raw mode, until dropped.
#[derive(Debug)]
pub struct Raw(Option<Termios>);

impl Raw {
    /// Makes standard input raw, if it is a terminal.
    pub fn new() -> Self {
        let stdin = rustix::stdio::stdin();
        let saved = isatty(stdin).then(|| tcgetattr(stdin).ok()).flatten();
        if let Some(mut termios) = saved.clone() {
            termios.make_raw();
            let _ = tcsetattr(stdin, OptionalActions::Now, &termios);
        }
        Self(saved)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(saved) = &self.0 {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, saved);
        }
    }
}

/// Gives the container's terminal the size of ours, if we have one.
pub fn copy_size(master: &OwnedFd) {
    if let Ok(size) = tcgetwinsize(rustix::stdio::stdin()) {
        let _ = tcsetwinsize(master, size);
    }
}

/// Moves what can be read from one to the other; `false` at the end.
pub fn copy(from: BorrowedFd, to: BorrowedFd) -> bool {
    let mut buffer = [0; 8192];
    match rustix::io::read(from, &mut buffer) {
        Ok(0) => false,
        Ok(length) => write_all(to, &buffer[..length]),
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => true,
        // EIO: the last process with the terminal has closed it.
        Err(_) => false,
    }
}

fn write_all(to: BorrowedFd, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}
