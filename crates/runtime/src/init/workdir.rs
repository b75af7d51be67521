//! The working directory, made where it is missing. It is opened inside the root without magic links, and what
//! the kernel then calls it is checked, so a descriptor of the host's can never be entered (CVE-2024-21626).

use std::os::fd::AsFd;

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Init;
use crate::{Error, Result, inroot};

pub(super) fn run(init: &mut Init) -> Result<()> {
    let path = init.job.process.spec.cwd.as_str();
    let open =
        || inroot::open(init.root.as_fd(), path, OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::empty());
    let dir = match open() {
        Err(Errno::NOENT) => {
            inroot::make_dir_all(init.root.as_fd(), path, 0o755)?;
            open()
        }
        other => other,
    }
    .map_err(|errno| match errno {
        Errno::LOOP => Error::invalid(format!("{path}: leads out of the container")),
        errno => Error::at(path, errno),
    })?;
    rustix::process::fchdir(&dir).map_err(|errno| Error::at(path, errno))?;
    match rustix::process::getcwd(Vec::new()) {
        Ok(real) if real.as_bytes().starts_with(b"/") => Ok(()),
        _ => Err(Error::invalid(format!("{path}: leads out of the container"))),
    }
}
