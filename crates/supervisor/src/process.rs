//! One process served to clients: its streams, and the way from its end to the news of it.
//!
//! ```text
//!   Running ──pidfd readable, reaped──▶ Draining ──outputs ended, or grace over──▶ ended
//! ```
//!
//! Clients hear of the end after all output. What the process itself wrote is in the kernel when it ends, so
//! it is read at once. Where its pid namespace ended with it nobody else can write; otherwise a descendant may
//! hold the pipes, and gets a short grace, so that `sh -c '… &'` neither loses lines nor hangs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use proa_oci::runtime::ConsoleSize;
use proa_protocol::frame::Kind;
use proa_protocol::message::ExitStatus;
use proa_protocol::time::now_ns;
use proa_runtime::Handles;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process_group, waitid};

use crate::channel::{Channels, Key};
use crate::poll::PollSet;
use crate::stream::{Input, Output, non_blocking};
use crate::{Slot, token};

/// How long the descendants of a process that has ended may still write.
const GRACE: Duration = Duration::from_millis(100);

#[derive(Debug)]
enum Phase {
    Running,
    Draining { status: ExitStatus, until: Instant },
}

/// A process and its streams.
#[derive(Debug)]
pub(crate) struct Process {
    /// Names it in tokens and channels.
    pub(crate) key: Key,
    /// Its id where we run.
    pub(crate) pid: u32,
    /// The channel that asked for it.
    pub(crate) asked_by: u32,
    /// Its standard input.
    pub(crate) input: Input,
    input_once: bool,
    pidfd: Option<OwnedFd>,
    terminal: Option<Rc<OwnedFd>>,
    outputs: [Output; 2],
    phase: Phase,
    alone: bool,
}

impl Process {
    /// A process that has just been started. `alone`: everything that could hold its streams ends with it.
    pub(crate) fn new(
        key: Key,
        pid: u32,
        pidfd: OwnedFd,
        handles: Handles,
        alone: bool,
    ) -> Result<Self, Errno> {
        let open = |fd: Option<OwnedFd>| fd.map(non_blocking).transpose();
        let terminal = open(handles.terminal)?;
        let (input, stdout) = match &terminal {
            Some(master) => (Some(master.clone()), Some(master.clone())),
            None => (open(handles.stdin)?, open(handles.stdout)?),
        };
        Ok(Self {
            key,
            pid,
            asked_by: 0,
            input: Input::new(input),
            input_once: false,
            pidfd: Some(pidfd),
            terminal,
            outputs: [Output::new(stdout, Kind::Stdout), Output::new(open(handles.stderr)?, Kind::Stderr)],
            phase: Phase::Running,
            alone,
        })
    }

    /// The same, its input ending with the first client that ends its own.
    pub(crate) fn with_input_once(self, input_once: bool) -> Self {
        Self { input_once, ..self }
    }

    /// Whoever could still hold its streams has ended too.
    pub(crate) fn set_alone(&mut self) {
        self.alone = true;
    }

    /// Its descriptor, until it has been reaped.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Kills it and what it has started, but for what has left its process group, which it leads. Until it has been
    /// reaped the number of that is nobody else's.
    pub(crate) fn kill_group(&self) {
        let group = i32::try_from(self.pid).ok().and_then(Pid::from_raw).filter(|_| self.pidfd.is_some());
        if let Some(group) = group {
            // It may have ended at this moment.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// A client's input has ended.
    pub(crate) fn input_ended(&mut self) {
        // A terminal has no end of file but the character that its user types.
        if self.input_once && self.terminal.is_none() {
            self.input.end();
        }
    }

    /// Sets the size of its terminal; false if it has none.
    pub(crate) fn resize(&self, size: ConsoleSize) -> bool {
        let Some(master) = &self.terminal else { return false };
        let size =
            rustix::termios::Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(master, size).is_ok()
    }

    /// Adds what to wait for.
    pub(crate) fn poll_fds<'fd>(&'fd self, channels: &Channels, set: &mut PollSet<'fd>) {
        if let Some(fd) = self.pidfd() {
            set.add(token(self.key, Slot::Pid), fd, PollFlags::IN);
        }
        if let Some(fd) = self.input.wants() {
            set.add(token(self.key, Slot::Input), fd, PollFlags::OUT);
        }
        for (output, slot) in self.outputs.iter().zip([Slot::Stdout, Slot::Stderr]) {
            if let Some(fd) = output.wants(self.key, channels) {
                set.add(token(self.key, slot), fd, PollFlags::IN);
            }
        }
    }

    /// One of its descriptors is ready.
    pub(crate) fn ready(&mut self, slot: Slot, channels: &mut Channels) {
        match slot {
            Slot::Pid => self.reap(channels),
            Slot::Input => self.input.write(channels),
            Slot::Stdout => _ = self.outputs[0].read(self.key, channels),
            Slot::Stderr => _ = self.outputs[1].read(self.key, channels),
        }
    }

    /// When [`Process::ended`] must be asked even if nothing is ready.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Draining { until, .. } => Some(until),
            Phase::Running => None,
        }
    }

    /// How it ended, once all its output has been read.
    pub(crate) fn ended(&mut self, now: Instant, channels: &mut Channels) -> Option<ExitStatus> {
        let Phase::Draining { status, until } = self.phase else { return None };
        let over = self.alone || now >= until;
        for output in &mut self.outputs {
            if !over {
                output.read(self.key, channels);
            } else {
                output.read_rest(self.key, channels);
                output.close();
            }
        }
        self.outputs.iter().all(Output::ended).then_some(status)
    }

    fn reap(&mut self, channels: &mut Channels) {
        let Some(fd) = &self.pidfd else { return };
        let code = match waitid(WaitId::PidFd(fd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(None) | Err(Errno::INTR) => return,
            Ok(Some(status)) => exit_code(&status),
            // Somebody else has reaped it, who alone knows how it ended.
            Err(_) => 255,
        };
        self.pidfd = None;
        self.input.discard(channels);
        let status = ExitStatus { code, oom_killed: false, at_ns: now_ns() };
        self.phase = Phase::Draining { status, until: Instant::now() + GRACE };
    }
}

fn exit_code(status: &WaitIdStatus) -> i32 {
    status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(255)
}
