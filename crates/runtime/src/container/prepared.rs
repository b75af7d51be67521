//! A container that is set up before it is known what runs in it.
//!
//! ```text
//!   prepare ─▶ namespaces, cgroup, root, mounts; the first process waits ─ play ─▶ streams, user, …, program
//! ```
//!
//! A guest that is saved as a template has such a container, so that its clones have little left to do. Until it plays
//! its part the first process has run nothing of the container's.

use std::os::fd::AsFd;

use proa_oci::runtime::{ConsoleSize, Process};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

use super::{Aim, Container, Create, Handles};
use crate::fork::wait_ready;
use crate::{Error, Result, inroot};

/// Bytes of a program that are read before it runs.
const READ_AHEAD: usize = 8 << 20;

/// What of a container can be told when all else is set up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The first process. What it is shown of the container (terminal or pipes) must be as it was prepared.
    pub process: Process,
    /// As in [`Create`].
    pub user: String,
    /// Host name in its own UTS namespace.
    pub hostname: Option<String>,
    /// Size of its terminal, if it has one.
    pub size: ConsoleSize,
}

impl Container {
    /// Makes the container, but for what its process is.
    ///
    /// # Errors
    /// Those of [`Container::create`]; the spec has what is bound to a process: hooks, a listener, an init.
    pub fn prepare(create: Create) -> Result<(Self, Handles)> {
        let seccomp = create.spec.linux.as_ref().and_then(|linux| linux.seccomp.as_ref());
        let has_listener = seccomp.is_some_and(|seccomp| seccomp.listener_path.is_some());
        if create.init || create.spec.hooks.is_some() || has_listener {
            return Err(Error::unsupported(
                "a container with an init, hooks or a listener cannot be prepared",
            ));
        }
        let (mut container, handles) = Self::make(&create, None, Aim::Prepare, |_| Ok(()))?;
        let ipc = format!("/proc/{}/ns/ipc", container.pid);
        // Only time is lost where it cannot be held.
        container.ipc = rustix::fs::open(ipc, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok();
        Ok((container, handles))
    }

    /// Reads the first of these files that is there, so that the kernel has it in memory: a program that is likely to
    /// be run. Of a longer one than some MiB it reads the beginning.
    pub fn read_ahead(&self, candidates: &[String]) {
        let Ok(root) = self.root() else { return };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let open = |path: &String| inroot::open(root.as_fd(), path, flags, ResolveFlags::empty()).ok();
        let Some(file) = candidates.iter().find_map(open) else { return };
        let mut buffer = [0; 16 << 10];
        for _ in 0..READ_AHEAD / buffer.len() {
            // What cannot be read now is read when it is run.
            if !rustix::io::read(&file, &mut buffer).is_ok_and(|count| count > 0) {
                break;
            }
        }
    }

    /// Runs a program in a prepared container.
    ///
    /// # Errors
    /// As for [`Container::start`]. The container must then be deleted.
    pub fn play(&mut self, part: &Part, handles: &mut Handles) -> Result<()> {
        let channel = self.channel()?;
        channel.send_part(part).map_err(|errno| Error::call("sendmsg", errno))?;
        let (terminal, warnings) = wait_ready(channel, || Ok(()))?;
        handles.terminal = terminal;
        self.warnings = warnings;
        self.started()
    }
}
