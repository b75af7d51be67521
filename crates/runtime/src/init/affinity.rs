//! CPUs of a process that joins a container: those it starts on, and those it has once it is in the cgroup.

use rustix::thread::{CpuSet, sched_setaffinity};

use super::{Init, Job, Place};
use crate::{Error, Result};

pub(super) fn initial(job: &Job) -> Result<()> {
    match job.place {
        Place::Existing { .. } => set(&job.process.affinity[0]),
        // The specification has none for the first process.
        Place::New { .. } => Ok(()),
    }
}

pub(super) fn last(init: &mut Init) -> Result<()> {
    match init.job.place {
        Place::Existing { .. } => set(&init.job.process.affinity[1]),
        Place::New { .. } => Ok(()),
    }
}

fn set(mask: &[u64]) -> Result<()> {
    let numbers = (0..mask.len() * 64).filter(|number| mask[number / 64] & 1 << (number % 64) != 0);
    let mut set = CpuSet::new();
    for number in numbers {
        if number >= CpuSet::MAX_CPU {
            return Err(Error::invalid(format!("CPU {number} is beyond {}", CpuSet::MAX_CPU)));
        }
        set.set(number);
    }
    if set.count() == 0 {
        return Ok(());
    }
    sched_setaffinity(None, &set).map_err(|errno| Error::call("sched_setaffinity", errno))
}
