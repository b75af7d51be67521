//! The user's terminal: raw mode, size, and getting it back whatever happens.

use std::io::IsTerminal;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use proa_oci::runtime::ConsoleSize;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::error::Failure;

/// How the terminal was before raw mode, for as long as that lasts.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode of the terminal on standard input; the terminal is as before when this is dropped.
pub struct Raw(());

impl Raw {
    /// Enters raw mode; nothing where standard input is no terminal.
    ///
    /// # Errors
    /// The terminal does not allow it.
    pub fn enter() -> Result<Option<Self>, Failure> {
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let failed = |errno: rustix::io::Errno| Failure::terminal(errno.into());
        let before = tcgetattr(stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        restore_on_panic();
        tcsetattr(stdin(), OptionalActions::Drain, &raw).map_err(failed)?;
        Ok(Some(Self(())))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// A panic's message is only readable on a terminal that is as it was.
fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        print(panic);
    }));
}

fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that is gone has no mode.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &before);
    }
}

/// Size of the user's terminal, where there is one.
pub fn size() -> Option<ConsoleSize> {
    let of = |fd: BorrowedFd<'_>| tcgetwinsize(fd).ok();
    let size = of(stdout()).or_else(|| of(stdin()))?;
    Some(ConsoleSize { height: size.ws_row, width: size.ws_col })
}
