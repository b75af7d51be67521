//! Hearing of processes that the kernel kills for memory, as it happens.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::fs::{Mode, OFlags};

use super::{field, try_write};

/// Becomes ready when memory has run out.
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// An eventfd that the kernel writes to.
    V1,
    /// `memory.events`, with the count of kills when it was last read.
    V2 { kills: u64 },
}

impl OomWatch {
    /// Where that is not possible, the count at the end still tells.
    pub(super) fn v1(memory: &Path) -> Option<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let control = rustix::fs::open(memory.join("memory.oom_control"), flags, Mode::empty()).ok()?;
        let line = format!("{} {}", fd.as_raw_fd(), control.as_raw_fd());
        try_write(memory, "cgroup.event_control", &line).ok()?;
        Some(Self { fd, kind: Kind::V1 })
    }

    pub(super) fn v2(dir: &Path) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(dir.join("memory.events"), flags, Mode::empty()).ok()?;
        // The kernel tells of changes since the last read.
        let kills = count(&fd)?;
        Some(Self { fd, kind: Kind::V2 { kills } })
    }

    /// What to poll for.
    pub fn wants(&self) -> (BorrowedFd<'_>, PollFlags) {
        let flags = match self.kind {
            Kind::V1 => PollFlags::IN,
            Kind::V2 { .. } => PollFlags::PRI,
        };
        (self.fd.as_fd(), flags)
    }

    /// Whether memory has run out since it was last asked; to be asked when it is ready.
    pub fn has_fired(&mut self) -> bool {
        match &mut self.kind {
            Kind::V1 => rustix::io::read(&self.fd, &mut [0; 8]).is_ok(),
            Kind::V2 { kills } => {
                let now = count(&self.fd).unwrap_or(*kills);
                std::mem::replace(kills, now) < now
            }
        }
    }
}

fn count(fd: &OwnedFd) -> Option<u64> {
    let mut bytes = [0; 512];
    let read = rustix::io::pread(fd, &mut bytes, 0).ok()?;
    field(std::str::from_utf8(&bytes[..read]).ok()?, "oom_kill")
}
