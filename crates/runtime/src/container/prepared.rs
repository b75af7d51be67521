//! A container that is set up before it is known what runs in it.
//!
//! ```text
//!   prepare ─▶ namespaces, cgroup, root, mounts; the first process waits ─ play ─▶ streams, user, …, program
//! ```
//!
//! A guest that is saved as a template has such a container, so that its clones have little left to do. Until it plays
//! its part the first process has run nothing of the container's.

use proa_oci::runtime::{ConsoleSize, Process};
use serde::{Deserialize, Serialize};

use super::{Aim, Container, Create, Handles};
use crate::fork::wait_ready;
use crate::{Error, Result};

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
            return Err(Error::unsupported("a container with an init, hooks or a listener cannot be prepared"));
        }
        Self::make(&create, None, Aim::Prepare, |_| Ok(()))
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
