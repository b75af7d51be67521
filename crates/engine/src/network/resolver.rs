//! The process that answers names in the networks of a root: started by whoever starts an instance and finds none.
//!
//! An ordinary user's keeps the network namespace that the bridges are in as well, so it is waited for, and before a
//! monitor is told of its instance.

use std::io::Read;
use std::process::{Command, Stdio};

use proa_network::{Switch, files};
use proa_protocol::network::{DIRECTORY, RESOLVER_LOCK, table_name};
use proa_sys::lock;
use rustix::process::Signal;

use crate::config::HostConfig;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::holder;

/// How often it is started where another ends at that very moment.
const STARTS: u32 = 5;

impl Engine {
    /// Where the bridges are, which an ordinary user's resolver is started for.
    ///
    /// # Errors
    /// The namespace cannot be made.
    pub(crate) fn switch(&self) -> Result<Switch> {
        if proa_sys::userns::is_initial() {
            return Ok(Switch::Host);
        }
        let run = &self.paths.run;
        files::make_base(run)?;
        for _ in 0..STARTS {
            if let Some((switch, notice)) = Switch::visit(run) {
                if !notice.is_empty() {
                    (self.notice)(&notice);
                }
                return Ok(switch);
            }
            self.start_switch()?;
        }
        Err(Error::conflict("the network namespace of this user is not handed out", "try again"))
    }

    /// Returns when there is one, or when it has ended because there is another.
    fn start_switch(&self) -> Result<()> {
        let program = &self.programs.resolver;
        let failed = |error| Error::io("run", program, error);
        let mut child = self.resolver().arg("--switch").stderr(Stdio::piped()).spawn().map_err(failed)?;
        let mut said = String::new();
        // It closes that when it is ready.
        child.stderr.take().map(|mut errors| errors.read_to_string(&mut said)).transpose().map_err(failed)?;
        let said = said.trim().trim_start_matches("proa-resolver: ");
        if said.is_empty() { Ok(()) } else { Err(Error::unsupported(said, "")) }
    }

    fn resolver(&self) -> Command {
        let run = &self.paths.run;
        let mut command = Command::new(&self.programs.resolver);
        command.arg("--run").arg(run).args(["--table", &table_name(run)]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        command
    }

    /// Has an ordinary user's network namespace made before a monitor looks for it.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn prepare_switch(&self, host: &HostConfig) -> Result<Switch> {
        if host.networks.is_empty() { Ok(Switch::Gone) } else { self.switch() }
    }

    /// Starts it unless it is there, if an instance has a place in a network. Of several that find none, each starts one,
    /// and one of these stays.
    ///
    /// # Errors
    /// The program cannot be run.
    pub(crate) fn ensure_resolver(&self, host: &HostConfig) -> Result<()> {
        let run = &self.paths.run;
        let path = run.join(DIRECTORY).join(RESOLVER_LOCK);
        if host.networks.is_empty()
            || !proa_sys::userns::is_initial()
            || lock::is_held(&path).map_err(|error| Error::io("lock", &path, error))?
        {
            return Ok(());
        }
        files::make_base(run)?;
        let program = &self.programs.resolver;
        // It leaves our session by itself, and nobody waits for it.
        self.resolver().spawn().map(drop).map_err(|error| Error::io("run", program, error))
    }

    /// Ends it.
    ///
    /// # Errors
    /// It does not end.
    pub(crate) fn end_resolver(&self) -> Result<()> {
        let path = self.paths.run.join(DIRECTORY).join(RESOLVER_LOCK);
        holder::end(&path, b"--run", Signal::TERM)
            .map_err(|error| Error::io("end the resolver, by", &path, error))
    }
}
