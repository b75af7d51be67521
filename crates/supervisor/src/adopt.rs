//! An instance that stands still to be copied, and what goes on: itself, or a copy of it.
//!
//! ```text
//!   Running ─ freeze ─▶ frozen ─ thaw ─▶ Running
//!                         │ copied: in another guest
//!                         └ adopt ─▶ frozen, no clients ─ Start ─▶ Running, answered as its first start was
//! ```
//!
//! Frozen processes see nothing of what is changed under them: host name, files, addresses and the kernel's generator
//! are those of the copy before one of them runs.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use proa_protocol::message::{ErrorKind, LaunchConfig};
use proa_runtime::Error;
use proa_sys::process::aside;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Supervisor, internal};

/// Nobody's channel.
const NOBODY: u32 = u32::MAX;
/// What a machine is known by, and its length with the end of the line.
const MACHINE_ID: &str = "etc/machine-id";
const MACHINE_ID_LENGTH: u64 = 33;

impl Supervisor {
    /// Stops all processes of an instance that runs.
    ///
    /// # Errors
    /// It does not run, or is frozen already.
    pub fn freeze(&mut self) -> Result<(), Error> {
        self.join_now()?;
        let live = self.running()?;
        if live.paused {
            return Err(Error::new(ErrorKind::Conflict, "the instance is paused; unpause it first"));
        }
        live.container.pause()
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn thaw(&mut self) -> Result<(), Error> {
        self.running()?.container.resume()
    }

    /// Makes of a frozen instance what it is from now on: clients are gone, and it has this host name and these files.
    /// It goes on with the next `Start`. A fork gets other ids as well.
    ///
    /// # Errors
    /// It does not run, or something cannot be written.
    pub fn adopt(
        &mut self,
        hostname: Option<&str>,
        launch: LaunchConfig,
        is_fork: bool,
    ) -> Result<(), Error> {
        for channel in self.channels.numbers() {
            self.channel_closed(channel);
        }
        self.processes.execs.values_mut().for_each(|exec| exec.asked_by = NOBODY);
        self.adopted = true;
        let live = self.running()?;
        if let Some(name) = hostname {
            set_hostname(live.container.pid(), name).map_err(|error| internal("host name", &error))?;
        }
        if is_fork {
            let root = live.container.root()?;
            renew_machine_id(root).map_err(|error| internal("/etc/machine-id", &error))?;
        }
        live.files.rewrite(launch.files)
    }
}

/// Sets the host name that a process sees. One that shares our own has none to itself.
fn set_hostname(pid: u32, name: &str) -> io::Result<()> {
    let theirs = File::open(format!("/proc/{pid}/ns/uts"))?;
    aside(|| {
        move_into_link_name_space(theirs.as_fd(), Some(LinkNameSpaceType::HostNameAndNISDomainName))?;
        Ok(rustix::system::sethostname(name.as_bytes())?)
    })
}

/// Writes another id into the file, if there is one with an id in it.
fn renew_machine_id(root: impl AsFd) -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = openat2(&root, MACHINE_ID, flags, Mode::empty(), ResolveFlags::IN_ROOT) else {
        return Ok(());
    };
    let file = File::from(file);
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() != MACHINE_ID_LENGTH {
        return Ok(());
    }
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    std::os::unix::fs::FileExt::write_all_at(&file, id.as_bytes(), 0)
}
