//! The VMM's cgroup on the host, which bounds what a guest that has taken its VMM over can fill.
//!
//! ```text
//!   Due ─ a moment after the first answer ─▶ made, a child moves the VMM in ─▶ Joining ─▶ Held ─▶ removed at the end
//!    └ no cgroups, or none for this user ─▶ Refused: the VMM's own limits are all there is, and `inspect` says why
//! ```
//!
//! It is made and joined off the way of the start, since a v1 cgroup is joined by waiting for the kernel (invariant 13).

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use proa_runtime::Enclosure;
use proa_supervisor::PollSet;
use proa_sys::job::Job;
use rustix::event::PollFlags;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::Guest;
use crate::error::Error;

/// How long after the first answer: the work of what runs no longer is not delayed by it.
const LATE: Duration = Duration::from_millis(250);
const JOINER_TOKEN: u64 = 2;

/// Where the VMM is.
pub enum Enclosing {
    /// The guest has not answered yet.
    Early,
    Due(Instant),
    Joining(Enclosure, Job),
    Held(Enclosure),
    /// Why there is none that holds it; what was made of one.
    Refused(String, Option<Enclosure>),
}

impl Guest {
    /// The guest has answered.
    pub(super) fn enclose_soon(&mut self) {
        self.enclosing = Enclosing::Due(Instant::now() + LATE);
    }

    /// Where its VMM is bounded, or why it is not; nothing as long as that is not known. Told once.
    pub fn take_place(&mut self) -> Option<String> {
        let place = match &self.enclosing {
            Enclosing::Held(enclosure) => enclosure.place(),
            Enclosing::Refused(why, _) => format!("none: {why}"),
            Enclosing::Early | Enclosing::Due(_) | Enclosing::Joining(..) => return None,
        };
        (!std::mem::replace(&mut self.place_told, true)).then_some(place)
    }

    pub(super) fn enclose_deadline(&self) -> Option<Instant> {
        match self.enclosing {
            Enclosing::Due(due) => Some(due),
            _ => None,
        }
    }

    pub(super) fn poll_joiner<'fd>(&'fd self, set: &mut PollSet<'fd>) {
        if let Enclosing::Joining(_, joiner) = &self.enclosing {
            set.add(JOINER_TOKEN, joiner.pidfd.as_fd(), PollFlags::IN);
        }
    }

    /// Makes the cgroup when that is due.
    pub(super) fn tick_enclosing(&mut self) {
        if self.enclose_deadline().is_none_or(|due| Instant::now() < due) {
            return;
        }
        self.enclosing = self.enclose().unwrap_or_else(|error| Enclosing::Refused(error.to_string(), None));
    }

    fn enclose(&self) -> Result<Enclosing, Error> {
        let (memory, tasks) = self.vm.bounds();
        let enclosure = Enclosure::make(&self.id, memory, tasks)?;
        let pid = self.vm.pid();
        let joiner = proa_sys::job::spawn(&[], || i32::from(enclosure.join(pid).is_err()));
        match joiner {
            Ok(joiner) => Ok(Enclosing::Joining(enclosure, joiner)),
            Err(error) => {
                Ok(Enclosing::Refused(format!("its VMM cannot be moved: {error}"), Some(enclosure)))
            }
        }
    }

    /// The child that moves the VMM has ended.
    pub(super) fn joined(&mut self) {
        let Enclosing::Joining(_, joiner) = &self.enclosing else { return };
        let status =
            waitid(WaitId::PidFd(joiner.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        if matches!(status, Ok(None)) {
            return;
        }
        let is_done = matches!(status, Ok(Some(status)) if status.exit_status() == Some(0));
        let Enclosing::Joining(enclosure, _) = std::mem::replace(&mut self.enclosing, Enclosing::Early)
        else {
            return;
        };
        self.enclosing = if is_done {
            Enclosing::Held(enclosure)
        } else {
            // The VMM may be in a part of it.
            Enclosing::Refused("the kernel has not let its VMM in".to_owned(), Some(enclosure))
        };
    }

    /// The guest is to have another size.
    pub(super) fn widen(&mut self) -> Result<(), Error> {
        let (memory, tasks) = self.vm.bounds();
        match &mut self.enclosing {
            Enclosing::Joining(enclosure, _) | Enclosing::Held(enclosure) => {
                Ok(enclosure.limit(memory, tasks)?)
            }
            Enclosing::Early | Enclosing::Due(_) | Enclosing::Refused(..) => Ok(()),
        }
    }

    /// The VMM has ended.
    pub(super) fn open_enclosure(&mut self) -> Result<(), Error> {
        match std::mem::replace(&mut self.enclosing, Enclosing::Early) {
            Enclosing::Joining(enclosure, joiner) => {
                // It has nobody to move any more, or is about to see that.
                let _ = waitid(WaitId::PidFd(joiner.pidfd.as_fd()), WaitIdOptions::EXITED);
                Ok(enclosure.remove()?)
            }
            Enclosing::Held(enclosure) | Enclosing::Refused(_, Some(enclosure)) => Ok(enclosure.remove()?),
            Enclosing::Early | Enclosing::Due(_) | Enclosing::Refused(_, None) => Ok(()),
        }
    }
}
