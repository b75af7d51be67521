//! The cgroup on the host of a VMM and of the servers of its shares, which bounds what a guest that has taken them over, or
//! has them work without end, can fill.
//!
//! ```text
//!   Early ─ soon ─▶ Due ─ a moment later ─▶ made, a child moves the VMM in ─▶ Joining ─▶ Held ─▶ removed at the end
//!                    └ no cgroups, or none for this user ─▶ Refused: the VMM's own limits are all there is, and `inspect`
//!                                                           says why
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

use crate::error::Error;

/// How long after it is wanted: the work of what runs no longer is not delayed by it.
const LATE: Duration = Duration::from_millis(250);

/// Bytes and tasks that a VMM needs at the most.
pub type Bounds = (u64, u32);

/// The cgroup of one VMM.
#[derive(Default)]
pub struct Enclosing {
    stage: Stage,
    told: bool,
}

/// Where the VMM is.
#[derive(Default)]
enum Stage {
    /// Its guest has not begun.
    #[default]
    Early,
    Due(Instant),
    Joining(Enclosure, Job),
    Held(Enclosure),
    /// Why there is none that holds it; what was made of one.
    Refused(String, Option<Enclosure>),
}

impl Enclosing {
    /// The guest has begun.
    pub fn soon(&mut self) {
        self.stage = Stage::Due(Instant::now() + LATE);
    }

    /// Where the VMM is bounded, or why it is not; nothing as long as that is not known. Told once.
    pub fn take_place(&mut self) -> Option<String> {
        let place = match &self.stage {
            Stage::Held(enclosure) => enclosure.place(),
            Stage::Refused(why, _) => format!("none: {why}"),
            Stage::Early | Stage::Due(_) | Stage::Joining(..) => return None,
        };
        (!std::mem::replace(&mut self.told, true)).then_some(place)
    }

    /// When [`Enclosing::tick`] must be called.
    pub fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Due(due) => Some(due),
            _ => None,
        }
    }

    /// Adds what to wait for, under this token; then [`Enclosing::joined`] is to be called.
    pub fn poll_fds<'fd>(&'fd self, set: &mut PollSet<'fd>, token: u64) {
        if let Stage::Joining(_, joiner) = &self.stage {
            set.add(token, joiner.pidfd.as_fd(), PollFlags::IN);
        }
    }

    /// Makes the cgroup of the instance's VMM and what serves it when that is due.
    pub fn tick(&mut self, id: &str, pids: &[u32], bounds: Bounds) {
        if self.deadline().is_some_and(|due| Instant::now() >= due) {
            self.stage =
                enclose(id, pids, bounds).unwrap_or_else(|error| Stage::Refused(error.to_string(), None));
        }
    }

    /// The child that moves the VMM may have ended.
    pub fn joined(&mut self) {
        let Stage::Joining(_, joiner) = &self.stage else { return };
        let status =
            waitid(WaitId::PidFd(joiner.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        if matches!(status, Ok(None)) {
            return;
        }
        let is_done = matches!(status, Ok(Some(status)) if status.exit_status() == Some(0));
        let Stage::Joining(enclosure, _) = std::mem::take(&mut self.stage) else { return };
        self.stage = if is_done {
            Stage::Held(enclosure)
        } else {
            // The VMM may be in a part of it.
            Stage::Refused("the kernel has not let its VMM in".to_owned(), Some(enclosure))
        };
    }

    /// The guest is to have another size.
    ///
    /// # Errors
    /// The kernel refuses the limit.
    pub fn limit(&mut self, (memory, tasks): Bounds) -> Result<(), Error> {
        match &mut self.stage {
            Stage::Joining(enclosure, _) | Stage::Held(enclosure) => Ok(enclosure.limit(memory, tasks)?),
            Stage::Early | Stage::Due(_) | Stage::Refused(..) => Ok(()),
        }
    }

    /// The VMM has ended.
    ///
    /// # Errors
    /// Its cgroup cannot be removed.
    pub fn remove(&mut self) -> Result<(), Error> {
        match std::mem::take(&mut self.stage) {
            Stage::Joining(enclosure, joiner) => {
                // It has nobody to move any more, or is about to see that.
                let _ = waitid(WaitId::PidFd(joiner.pidfd.as_fd()), WaitIdOptions::EXITED);
                Ok(enclosure.remove()?)
            }
            Stage::Held(enclosure) | Stage::Refused(_, Some(enclosure)) => Ok(enclosure.remove()?),
            Stage::Early | Stage::Due(_) | Stage::Refused(_, None) => Ok(()),
        }
    }
}

fn enclose(id: &str, pids: &[u32], (memory, tasks): Bounds) -> Result<Stage, Error> {
    let enclosure = Enclosure::make(id, memory, tasks)?;
    let joiner =
        proa_sys::job::spawn(&[], || i32::from(pids.iter().any(|pid| enclosure.join(*pid).is_err())));
    Ok(match joiner {
        Ok(joiner) => Stage::Joining(enclosure, joiner),
        Err(error) => Stage::Refused(format!("its VMM cannot be moved: {error}"), Some(enclosure)),
    })
}
