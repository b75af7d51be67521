//! A running virtual machine, and the boundary behind which hypervisors differ.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::{VmError, VmSpec};

/// How long a guest may take until its first answer: many times what software emulation needs.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How a VMM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmExit {
    /// With this code; 0 after the guest powered itself off.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// A virtual machine and the processes that carry it; dropping it kills them.
pub struct Vm {
    stream: UnixStream,
    pidfd: OwnedFd,
    pid: u32,
}

impl Vm {
    /// Starts a virtual machine, making first what it needs and the store lacks: kernel, initramfs, probe
    /// result, writable disk. Lines for the user's standard error go to `notice`. Does not wait for the guest.
    ///
    /// # Errors
    /// A part is missing or cannot be started; the message says what to do.
    pub fn start(_spec: &VmSpec, _notice: &mut dyn FnMut(String)) -> Result<Self, VmError> {
        Err(VmError::MissingVmm { program: "qemu-system-x86_64" })
    }

    /// The connection to the guest's agent, non-blocking; carries frames.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Process id of the VMM.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Readable when the VMM has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How the VMM ended, if it has.
    ///
    /// # Errors
    /// Waiting failed.
    pub fn try_wait(&mut self) -> Result<Option<VmExit>, VmError> {
        Ok(None)
    }

    /// Kills the VMM and its helpers; `try_wait` and `wait` tell when they are gone.
    pub fn kill(&mut self) {}

    /// Waits until the VMM has ended.
    ///
    /// # Errors
    /// Waiting failed.
    pub fn wait(&mut self) -> Result<VmExit, VmError> {
        Ok(VmExit::Code(0))
    }

    /// What the guest's kernel wrote to its console last (bounded, control characters removed).
    pub fn console(&self) -> String {
        String::new()
    }

    /// The error to report for a VMM that ended before its guest was asked to.
    pub fn died(&self, exit: VmExit) -> VmError {
        VmError::Died { status: format!("{exit:?}"), detail: self.console() }
    }

    /// The error to report for a guest that has not answered within [`ANSWER_TIMEOUT`].
    pub fn silent(&self) -> VmError {
        VmError::Silent { seconds: ANSWER_TIMEOUT.as_secs(), detail: self.console() }
    }

    /// Private and shared memory of the VMM and its helpers need these process ids.
    pub fn helper_pids(&self) -> Vec<u32> {
        Vec::new()
    }
}
