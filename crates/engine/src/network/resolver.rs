//! The process that answers names in the networks of a root: started by whoever starts an instance and finds none.

use std::process::{Command, Stdio};

use proa_network::files;
use proa_protocol::network::{DIRECTORY, RESOLVER_LOCK, table_name};
use proa_sys::lock;
use rustix::process::Signal;

use crate::config::HostConfig;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::holder;

impl Engine {
    /// Starts it unless it is there, if an instance has a place in a network. Of several that find none, each starts one,
    /// and one of these stays.
    ///
    /// # Errors
    /// The program cannot be run.
    pub(crate) fn ensure_resolver(&self, host: &HostConfig) -> Result<()> {
        let run = &self.paths.run;
        let path = run.join(DIRECTORY).join(RESOLVER_LOCK);
        if host.networks.is_empty()
            || lock::is_held(&path).map_err(|error| Error::io("lock", &path, error))?
        {
            return Ok(());
        }
        files::make_base(run)?;
        let program = &self.programs.resolver;
        let mut command = Command::new(program);
        command.arg("--run").arg(run).args(["--table", &table_name(run)]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        // It leaves our session by itself, and nobody waits for it.
        command.spawn().map(drop).map_err(|error| Error::io("run", program, error))
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
