//! The system call filter, as late as can be: without `no_new_privs` installing it needs `CAP_SYS_ADMIN`, so it
//! comes before the last capabilities go; with it, after them. Either way only what starts the program follows.

use std::os::fd::{AsFd, OwnedFd};

use proa_sys::process::{install_filter, install_filter_with_listener};
use proa_sys::sockets::send_with;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::{Init, Job, Place};
use crate::channel::Go;
use crate::{Error, Result, seccomp};

pub(super) fn before_capabilities(init: &mut Init) -> Result<()> {
    if init.job.process.spec.no_new_privileges { Ok(()) } else { install(init) }
}

pub(super) fn after_capabilities(init: &mut Init) -> Result<()> {
    if init.job.process.spec.no_new_privileges { install(init) } else { Ok(()) }
}

fn install(init: &mut Init) -> Result<()> {
    let Go { program, flags, message } = &init.go;
    if program.is_empty() {
        return Ok(());
    }
    let fail = |error| Error::call("install the filter", error);
    let Some(listener) = init.listener.take() else {
        return install_filter(program, *flags).map_err(fail);
    };
    let notifications = install_filter_with_listener(program, *flags).map_err(fail)?;
    // From here on a call may wait for the listener, which has all it needs with this one.
    send_with(&listener, message.as_bytes(), notifications.as_fd())
        .map(drop)
        .map_err(|errno| Error::call("seccomp listener", errno))
}

/// Connects to the listener, before the process is where its path means something else.
pub(super) fn connect(job: &Job) -> Result<Option<OwnedFd>> {
    let path = match &job.place {
        Place::New { plan, .. } => plan.linux.seccomp.as_ref().and_then(seccomp::listener_path),
        Place::Existing { listener, .. } => *listener,
    };
    let Some(path) = path else { return Ok(None) };
    let fail = |errno| Error::at(path, errno).context("seccomp listener");
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(fail)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).map_err(fail)?).map_err(fail)?;
    Ok(Some(socket))
}
