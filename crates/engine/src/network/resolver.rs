//! The process that answers names in the networks of a root: started by whoever starts an instance and finds none.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use proa_network::files;
use proa_protocol::network::{DIRECTORY, RESOLVER_LOCK, table_name};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::holder;

impl Engine {
    /// Starts it unless it is there. Of several that find none, each starts one, and one of these stays.
    ///
    /// # Errors
    /// The program cannot be run.
    pub(crate) fn ensure_resolver(&self) -> Result<()> {
        let run = &self.paths.run;
        let path = run.join(DIRECTORY).join(RESOLVER_LOCK);
        files::make_base(run)?;
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let file = file.map_err(|error| Error::io("open", &path, error))?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => return Ok(()),
            other => other.map_err(|errno| Error::io("lock", &path, errno))?,
        }
        drop(file);
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
