//! Containers whose life is led by several processes, one after another, as the OCI runtime's command line asks.
//!
//! ```text
//!   create_detached ──▶ release ─ ─ ▶ gate::start ─ ─ ▶ (Existing) open ──▶ exec_detached, signal, pause, …
//!     (the creator may end)             (another process)        └────▶ delete
//! ```
//!
//! The first process is nobody's: it lives on when its creator ends, once that has called [`Container::release`].
//! Before, it ends with its creator, so that a creator that is killed half way leaves no process. Whoever comes
//! later knows it by its id and the moment of its start, which no other process has.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use proa_oci::runtime::{Process, Spec};
use proa_oci::state::{State as OciState, Status};
use proa_protocol::message::ErrorKind;
use proa_sys::clone::{ExitOnDrop, Fork, exit_now, fork_into};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Aim, CgroupPolicy, Child, Container, Create, Handles, State, Stdio, must_join_at_once};
use crate::cgroup::{Cgroup, SubCgroup, Wanted};
use crate::fork::{go, is_running, is_scoped};
use crate::hooks::{self, HookKind};
use crate::plan::Plan;
use crate::seccomp::Filter;
use crate::{Error, Result, processes};

/// How long a container that need not be in its cgroup is left alone before it joins it.
const LATE_JOIN_MS: i64 = 50;

/// What sets a process apart that outlives its creator.
#[derive(Debug, Default)]
pub struct Detach {
    /// Where the first process waits for `start`; without it, it runs its program once it is released.
    pub gate: Option<OwnedFd>,
    /// Descriptors beside the standard streams that the program gets, in rising order. They are not close-on-exec;
    /// all else of the caller's is.
    pub preserve_fds: Vec<u32>,
    /// Keep the root of the mount namespace, for hosts that run from a ramdisk.
    pub no_pivot: bool,
    /// Stay in the session keyring.
    pub no_new_keyring: bool,
    /// Of a process of `exec`: cgroups below the container's own that it joins.
    pub sub_cgroups: Vec<SubCgroup>,
}

/// A container that another process has created.
#[derive(Debug)]
pub struct Existing<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its spec.
    pub spec: &'a Spec,
    /// Its first process.
    pub pid: u32,
    /// When that was started, by [`Container::start_ticks`].
    pub start_ticks: u64,
    /// Its bundle.
    pub bundle: &'a Path,
    /// As when it was created.
    pub cgroup: CgroupPolicy,
}

impl Container {
    /// Makes a container that may outlive this process. `forked` is called as soon as there is a first process,
    /// to write down what [`Existing`] needs.
    ///
    /// # Errors
    /// Names the step that failed. Nothing is left behind.
    pub fn create_detached(
        create: &Create,
        detach: &Detach,
        forked: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<(Self, Handles)> {
        Self::make(create, Some(detach), Aim::Create, forked)
    }

    /// The first process no longer needs this one, and goes on to the gate.
    ///
    /// # Errors
    /// It has ended, or was released before.
    pub fn release(&mut self) -> Result<()> {
        self.oci_state.status = Status::Created;
        go(self.channel()?, &self.filter.for_process(self.pid, &self.oci_state))?;
        self.state = State::Started;
        Ok(())
    }

    /// A descriptor of the first process.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn duplicate_pidfd(&self) -> Result<OwnedFd> {
        self.pidfd.try_clone().map_err(|error| Error::call("dup", error))
    }

    /// Runs the hooks that follow the start of the program.
    ///
    /// # Errors
    /// One of them failed: the container is to be ended then.
    pub fn run_poststart_hooks(&self) -> Result<()> {
        self.hooks.as_ref().map_or(Ok(()), |own| hooks::run(HookKind::Poststart, own, &self.oci_state))
    }

    /// When the first process was started, in clock ticks since the boot: with its id, its name for all time.
    ///
    /// # Errors
    /// It has ended.
    pub fn start_ticks(&self) -> Result<u64> {
        processes::start_ticks(self.pid).ok_or_else(gone)
    }

    /// The same of a process that is not ours yet.
    ///
    /// # Errors
    /// It has ended.
    pub fn start_ticks_of(pid: u32) -> Result<u64> {
        processes::start_ticks(pid).ok_or_else(gone)
    }

    /// Whether this process, started at that moment, has not ended.
    pub fn is_alive(pid: u32, start_ticks: u64) -> bool {
        processes::is_alive(pid, start_ticks)
    }

    /// A container that another process has created; `None` if its first process has ended.
    ///
    /// # Errors
    /// The spec cannot be understood, or the kernel refuses a descriptor.
    pub fn open(existing: &Existing) -> Result<Option<Self>> {
        let Some(pidfd) = open_process(existing.pid, existing.start_ticks)? else { return Ok(None) };
        Self::with_process(existing, pidfd).map(Some)
    }

    fn with_process(existing: &Existing, pidfd: OwnedFd) -> Result<Self> {
        let none = proa_oci::runtime::Linux::default();
        let linux = existing.spec.linux.as_ref().unwrap_or(&none);
        let mut plan = Plan::new(existing.id, existing.spec, linux)?;
        plan.state.bundle = existing.bundle.display().to_string();
        let at_once = must_join_at_once(&plan, true);
        let annotations = &existing.spec.annotations;
        let wanted = Wanted { id: existing.id, linux, annotations, policy: existing.cgroup, at_once };
        Ok(Self {
            pid: existing.pid,
            pidfd,
            mount_namespace: None,
            ipc: None,
            state: State::Started,
            cgroup: Cgroup::reopen(&wanted)?,
            namespaces: plan.namespaces.all,
            scoped: is_scoped(existing.spec),
            shares_memory: false,
            owns_pids: plan.namespaces.new_pid(),
            filter: Filter::default(),
            oci_state: OciState { pid: existing.pid, status: Status::Running, ..plan.state.clone() },
            common: plan.common.clone(),
            hooks: plan.hooks.cloned(),
            children: Vec::new(),
            warnings: Vec::new(),
        })
    }

    /// Runs another process, which may outlive this one.
    ///
    /// # Errors
    /// As for [`Container::exec`].
    pub fn exec_detached(
        &mut self,
        spec: &Spec,
        process: &Process,
        stdio: Stdio,
        detach: &Detach,
    ) -> Result<(Child, Handles)> {
        let seccomp = spec.linux.as_ref().and_then(|linux| linux.seccomp.as_ref());
        self.filter = seccomp.map(Filter::new).transpose()?.unwrap_or_default();
        self.exec_as(process, "", stdio, Some(detach))
    }

    /// Whether there is something for [`Container::join_cgroup_in_background`] to do.
    pub fn joins_cgroup_late(&self) -> bool {
        self.cgroup.joins_late()
    }

    /// Puts a process and all others into the cgroup a moment from now, by a process of its own that outlives this
    /// one, unless `process` (the first, or one that `exec` started) ends before. Who holds `lock` can be sure that
    /// nobody is at it: it is locked before this returns or, where somebody has it, before anything is done.
    ///
    /// # Errors
    /// That process cannot be made.
    pub fn join_cgroup_in_background(&mut self, process: BorrowedFd, lock: OwnedFd) -> Result<()> {
        use std::os::fd::AsRawFd;
        let at_once = rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        // SAFETY: this crate's callers have one thread (invariant 4); its documentation asks for that.
        match unsafe { fork_into(0, None) }.map_err(|error| Error::call("clone3", error))? {
            Fork::Parent { .. } => Ok(()),
            Fork::Child => {
                let _guard = ExitOnDrop;
                let keep = [process.as_raw_fd(), self.pidfd.as_raw_fd(), lock.as_raw_fd()];
                // SAFETY: this child uses what is kept and never returns, so no destructor closes the others again.
                let closed = unsafe { proa_sys::job::close_others(keep.map(|fd| fd as u32).to_vec()) };
                let joined = closed.is_ok() && self.join_after_delay(process, &lock, at_once.is_ok());
                exit_now(i32::from(!joined));
            }
        }
    }

    fn join_after_delay(&mut self, process: BorrowedFd, lock: &OwnedFd, locked: bool) -> bool {
        // The caller's session may end before.
        let _ = rustix::process::setsid();
        let limit = Timespec { tv_sec: 0, tv_nsec: LATE_JOIN_MS * 1_000_000 };
        let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit));
        if !is_running(process) {
            return true;
        }
        if !locked && rustix::fs::flock(lock, rustix::fs::FlockOperation::LockExclusive).is_err() {
            return false;
        }
        // Who deletes a container has the lock while it does, and its processes have ended by then.
        !is_running(process) || self.cgroup.reopen_late().and_then(|()| self.join_late_with(process)).is_ok()
    }

    fn join_late_with(&mut self, process: BorrowedFd) -> Result<()> {
        self.make_cgroup_late()?;
        self.cgroup.move_in(|| {
            let running = is_running(process).then(|| processes::of_pidfd(process)).flatten();
            let mut all = self.members();
            all.extend(running);
            all
        })
    }

    /// All processes: those below the first, those in its pid namespace, those in its cgroup.
    pub fn all_processes(&self) -> Vec<u32> {
        let mut pids = self.members();
        if self.owns_pids
            && let Some(namespace) = processes::pid_namespace(self.pid)
        {
            pids.extend(processes::in_namespace(namespace));
        }
        pids.extend(self.cgroup.all_processes());
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Whether all processes are frozen.
    pub fn is_paused(&self) -> bool {
        self.cgroup.is_frozen()
    }

    /// Whether the end of the first process is the end of all.
    pub fn owns_process_ids(&self) -> bool {
        self.owns_pids
    }

    /// Where its cgroup is, by hierarchy (empty for v2), if it has any.
    pub fn cgroup_paths(&self) -> Vec<(String, std::path::PathBuf)> {
        self.cgroup.paths()
    }
}

/// A descriptor of the process with this id that was started at that moment; `None` if it has ended.
fn open_process(pid: u32, start_ticks: u64) -> Result<Option<OwnedFd>> {
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    let pidfd = match pidfd_open(id, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(None),
        Err(errno) => return Err(Error::call("pidfd_open", errno)),
    };
    // Only now is it sure whose number that is.
    let is_same = processes::start_ticks(pid) == Some(start_ticks) && is_running(pidfd.as_fd());
    Ok(is_same.then_some(pidfd))
}

fn gone() -> Error {
    Error::new(ErrorKind::Conflict, "the container's first process has ended")
}
