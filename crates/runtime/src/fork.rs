//! Forking the processes of a container, waiting for them, ending them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proa_oci::defaults::{LANDLOCK_ANNOTATION, LANDLOCK_SOCKETS};
use proa_oci::runtime::{IdMapping, Spec};
use proa_sys::clone::{ExitOnDrop, Fork, exit_now, fork_into, fork_sibling, share_into};
use proa_sys::seal::Sealed;
use proa_sys::userns;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Signal, WaitId, WaitIdOptions, pidfd_send_signal, set_dumpable_behavior, waitid,
};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

use crate::cgroup::Cgroup;
use crate::channel::{self, Channel, Report};
use crate::container::{Aim, Create, Detach, Handles};
use crate::init::{self, Job, Place};
use crate::plan::{CapabilityPlan, Plan};
use crate::seccomp::Filter;
use crate::{Error, Result, stdio};

/// A process that sets itself up.
#[derive(Debug)]
pub(crate) struct Forked {
    pub pid: u32,
    pub pidfd: OwnedFd,
    pub channel: Channel,
}

/// Forks the first process of a container.
pub(crate) fn fork_first(
    create: &Create,
    plan: &Plan,
    cgroup: &Cgroup,
    aim: Aim,
    detach: Option<&Detach>,
) -> Result<(Forked, Handles)> {
    let view = cgroup.view();
    let init =
        create.init.then(Sealed::own).transpose().map_err(|error| Error::call("seal the init", error))?;
    let place = Place::New { plan, rootfs: &create.rootfs, cgroups: &view };
    let scoped = is_scoped(create.spec);
    let (process, user, stdio, open) = (&plan.process, create.user, create.stdio, aim == Aim::Prepare);
    let job = Job { process, user, stdio, init, scoped, place, open, detach };
    let target = cgroup.fork_target()?;
    if plan.namespaces.join_between() || plan.namespaces.join_pid().is_some() && !userns::is_initial() {
        let join =
            || init::namespaces::join(&plan.namespaces, true).map_err(|error| error.context("namespaces"));
        return fork_between(&job, plan.namespaces.at_clone, target, join);
    }
    let Some(path) = plan.namespaces.join_pid() else {
        return fork(&job, plan.namespaces.at_clone, None, target, None);
    };
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::at(path, errno))?;
    let back = enter_link(namespace.as_fd()).map_err(|error| error.context(path))?;
    let forked = fork(&job, plan.namespaces.at_clone, None, target, None);
    leave(&back)?;
    forked
}

/// Forks a process that joins namespaces and there forks the one that does the job, as a child of ours.
fn fork_between(
    job: &Job,
    namespaces: u64,
    cgroup: Option<OwnedFd>,
    join: impl FnOnce() -> Result<()>,
) -> Result<(Forked, Handles)> {
    let (ours, theirs, handles, ends) = connect(job)?;
    let (report, between) = channel::pair()?;
    // SAFETY: this crate's callers have one thread (invariant 4); its documentation asks for that.
    let forked = unsafe { fork_into(0, cgroup.as_ref().map(AsFd::as_fd)) };
    match forked.map_err(|error| Error::call("clone3", error))? {
        Fork::Child => {
            let _guard = ExitOnDrop;
            drop((ours, handles, report));
            let forked = join().and_then(|()| fork_for_parent(job, namespaces, &between, theirs, ends));
            if let Err(error) = forked {
                between.send_failure(&error);
            }
            exit_now(0)
        }
        Fork::Parent { pidfd: intermediate, .. } => {
            drop((theirs, ends, between));
            let forked = report.receive_forked();
            end(intermediate.as_fd());
            let (pid, pidfd) = forked?;
            Ok((Forked { pid, pidfd, channel: ours }, handles))
        }
    }
}

fn fork_for_parent(
    job: &Job,
    namespaces: u64,
    between: &Channel,
    channel: Channel,
    ends: stdio::ChildEnds,
) -> Result<()> {
    // SAFETY: a fork of a process with one thread has one.
    match unsafe { fork_sibling(namespaces) }.map_err(|error| Error::call("clone3", error))? {
        Fork::Child => init::run(job, channel, ends),
        Fork::Parent { pid, pidfd } => {
            between.send_forked(pid, pidfd.as_fd()).map_err(|errno| Error::call("sendmsg", errno))
        }
    }
}

/// What a process of its own makes, in new namespaces of these kinds or in such as it joins; they go with it.
pub(crate) fn made_aside(namespaces: u64, make: impl FnOnce() -> Result<OwnedFd>) -> Result<OwnedFd> {
    let (ours, theirs) = channel::pair()?;
    // SAFETY: this crate's callers have one thread (invariant 4); its documentation asks for that.
    match unsafe { fork_into(namespaces, None) }.map_err(|error| Error::call("clone3", error))? {
        Fork::Child => {
            let _guard = ExitOnDrop;
            drop(ours);
            match make() {
                // Whoever does not hear it has gone.
                Ok(made) => _ = theirs.send_root(Some(made.as_fd()), &[]),
                Err(error) => theirs.send_failure(&error),
            }
            exit_now(0)
        }
        Fork::Parent { pidfd, .. } => {
            drop(theirs);
            let made = ours.receive_made();
            end(pidfd.as_fd());
            made
        }
    }
}

/// Whether the spec asks for a Landlock domain.
pub(crate) fn is_scoped(spec: &Spec) -> bool {
    spec.annotations.get(LANDLOCK_ANNOTATION).is_some_and(|value| value == LANDLOCK_SOCKETS)
}

/// Forks a process that does a job; `join_pid` is a process in whose pid namespace it is to be. It is told at its birth to
/// go on behind the filter `go_on`, if there is one.
pub(crate) fn fork(
    job: &Job,
    namespaces: u64,
    join_pid: Option<BorrowedFd>,
    cgroup: Option<OwnedFd>,
    go_on: Option<&Filter>,
) -> Result<(Forked, Handles)> {
    if let Some(process) = join_pid.filter(|_| !userns::is_initial()) {
        // The way back to a pid namespace of the host's is closed to root of a user namespace.
        let forked = fork_between(job, namespaces, cgroup, || enter_process(process).map(drop))?;
        // One that has ended already is heard of when its answer is waited for.
        let _ = go_on.map(|filter| go(&forked.0.channel, filter));
        return Ok(forked);
    }
    let (ours, theirs, handles, ends) = connect(job)?;
    go_on.map_or(Ok(()), |filter| go(&ours, filter))?;
    let back = join_pid.map(enter_process).transpose()?;
    // SAFETY: this crate's callers have one thread (invariant 4); its documentation asks for that.
    let forked = unsafe { fork_into(namespaces, cgroup.as_ref().map(AsFd::as_fd)) };
    if let Ok(Fork::Child) = forked {
        drop((ours, handles));
        init::run(job, theirs, ends);
    }
    back.map_or(Ok(()), |back| leave(&back))?;
    match forked.map_err(|error| Error::call("clone3", error))? {
        Fork::Parent { pid, pidfd } => Ok((Forked { pid, pidfd, channel: ours }, handles)),
        Fork::Child => Err(Error::internal("the child came back")),
    }
}

/// The same of a process that shares our memory, and for which we stand still, until it runs its program behind the
/// filter or has ended. Not for a time namespace, which the kernel gives to no process that shares its memory.
pub(crate) fn share(
    job: &Job,
    join_pid: Option<BorrowedFd>,
    cgroup: Option<OwnedFd>,
    filter: &Filter,
) -> Result<(Forked, Handles)> {
    let (channel, mut theirs, handles, mut ends) = connect(job)?;
    go(&channel, filter)?;
    let back = join_pid.map(enter_process).transpose()?;
    let mut held = None;
    let (ours, to_hold) = ((&mut theirs, &mut ends), &mut held);
    // SAFETY: what the process works with is ours, and is only lent to it; what it holds closes no descriptor when it
    // is freed here (`Init`). There is one thread (invariant 4).
    let shared = unsafe {
        share_into(cgroup.as_ref().map(AsFd::as_fd), move || {
            init::become_program(job, ours.0, ours.1, to_hold);
        })
    };
    back.map_or(Ok(()), |back| leave(&back))?;
    let (pid, pidfd) = shared.map_err(|error| Error::call("clone3", error))?;
    Ok((Forked { pid, pidfd, channel }, handles))
}

/// Our end of a new process's channel and its end, ours of its streams and its ends.
fn connect(job: &Job) -> Result<(Channel, Channel, Handles, stdio::ChildEnds)> {
    // Nobody in the container may trace the child or open its descriptors while it is still one of us.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|errno| Error::call("prctl", errno))?;
    let (handles, ends) = stdio::open(job.stdio)?;
    let (ours, theirs) = channel::pair()?;
    Ok((ours, theirs, handles, ends))
}

fn own_pid_namespace() -> Result<OwnedFd> {
    let path = "/proc/self/ns/pid";
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::at(path, errno))
}

/// Lets the next child be born in the pid namespace of a process; returns the way back.
fn enter_process(pidfd: BorrowedFd) -> Result<OwnedFd> {
    let back = own_pid_namespace()?;
    move_into_thread_name_spaces(pidfd, ThreadNameSpaceType::PROCESS_ID)
        .map_err(|errno| Error::call("enter the pid namespace", errno))?;
    Ok(back)
}

fn enter_link(namespace: BorrowedFd) -> Result<OwnedFd> {
    let back = own_pid_namespace()?;
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::ProcessID))
        .map_err(|errno| Error::call("enter the pid namespace", errno))?;
    Ok(back)
}

fn leave(back: &OwnedFd) -> Result<()> {
    move_into_link_name_space(back.as_fd(), Some(LinkNameSpaceType::ProcessID))
        .map_err(|errno| Error::call("leave the pid namespace", errno))
}

/// Gives the word to run the program, behind this filter. It may be given before the process is set up, which
/// then does not stop.
pub(crate) fn go(channel: &Channel, filter: &Filter) -> Result<()> {
    channel.send_go(filter).map_err(|errno| match errno {
        Errno::PIPE => Error::internal("the process was killed before its program ran"),
        errno => Error::call("sendmsg", errno),
    })
}

/// Waits until the process is set up; its terminal and what could not be granted. On the way it runs the hooks of
/// the runtime.
pub(crate) fn wait_ready(
    channel: &Channel,
    hooks: impl FnOnce() -> Result<()>,
) -> Result<(Option<OwnedFd>, Vec<String>)> {
    let mut report = channel.receive_report()?;
    if matches!(report, Report::Hooks) {
        hooks()?;
        channel.send_hooks_done().map_err(|errno| Error::call("sendmsg", errno))?;
        report = channel.receive_report()?;
    }
    match report {
        Report::Ready { warnings, terminal } => Ok((terminal, warnings)),
        Report::Failed(error) => Err(error),
        Report::Hooks => Err(Error::internal("unexpected message from the process")),
        Report::Closed => Err(Error::internal("the process ended before it was set up")),
    }
}

/// Waits until its program runs.
pub(crate) fn wait_program(channel: &Channel) -> Result<()> {
    match channel.receive_report()? {
        Report::Closed => Ok(()),
        Report::Failed(error) => Err(error),
        Report::Ready { .. } | Report::Hooks => Err(Error::internal("unexpected message from the process")),
    }
}

/// Whether a container with these capabilities could take `nodev` away again: then its device rules must hold
/// from the start (invariant 11).
pub(crate) fn can_remount(capabilities: &CapabilityPlan) -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    capabilities.bounding & SYS_ADMIN != 0
}

/// Tells the kernel how ids inside a new user namespace translate.
pub(crate) fn write_id_maps(pid: u32, [uids, gids]: [&[IdMapping]; 2]) -> Result<()> {
    let write = |file: &str, mappings: &[IdMapping]| {
        let line = |m: &IdMapping| format!("{} {} {}\n", m.container_id, m.host_id, m.size);
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, mappings.iter().map(line).collect::<String>())
            .map_err(|error| Error::at(&path, error))
    };
    write("uid_map", uids)?;
    write("gid_map", gids)
}

/// What the process inside a user namespace may not do for itself: its files in `/proc` and its pipes are those of
/// the root outside. `map_of` is a process that surely is in the namespace.
pub(crate) fn help_in_user_namespace(
    pid: u32,
    map_of: u32,
    oom_score: Option<i32>,
    handles: &Handles,
) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    if let Some(score) = oom_score
        && std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()).is_err()
    {
        warnings.push(init::oom::not_granted(score));
    }
    let (Some(uid), Some(gid)) = (root_outside(map_of, "uid_map"), root_outside(map_of, "gid_map")) else {
        return Ok(warnings);
    };
    for pipe in [&handles.stdin, &handles.stdout, &handles.stderr].into_iter().flatten() {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        match rustix::fs::fchown(pipe, Some(uid), Some(gid)) {
            // Without rights of ours the program cannot open its streams anew; nothing else is lost.
            Ok(()) | Err(Errno::PERM) => {}
            Err(errno) => return Err(Error::call("owner of the streams", errno)),
        }
    }
    Ok(warnings)
}

/// The id outside of a user namespace that is 0 inside.
fn root_outside(pid: u32, file: &str) -> Option<u32> {
    let map = std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    proa_sys::userns::parse_map(&map).find_map(|[inside, outside, _]| (inside == 0).then_some(outside))
}

/// The mount namespace of a child that has not been reaped.
pub(crate) fn open_namespace(pid: u32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/mnt");
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::at(path, errno))
}

/// Reaps a child if it has ended.
pub(crate) fn try_wait(pidfd: BorrowedFd) -> Result<Option<i32>> {
    let status = waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
        .map_err(|errno| Error::call("waitid", errno))?;
    Ok(status
        .and_then(|status| status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal))))
}

/// Whether a process has not ended.
pub(crate) fn is_running(pidfd: BorrowedFd) -> bool {
    !wait_end(pidfd, 0)
}

/// Kills a child, waits up to 10 s for its end, and reaps it, if nobody has. `false` if it does not end.
pub(crate) fn end(pidfd: BorrowedFd) -> bool {
    // It may have ended.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    let ended = wait_end(pidfd, 10);
    let _ = try_wait(pidfd);
    ended
}

fn wait_end(pidfd: BorrowedFd, seconds: i64) -> bool {
    let limit = Timespec { tv_sec: seconds, tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)) {
            Err(Errno::INTR) => {}
            other => return other.is_ok_and(|ready| ready > 0),
        }
    }
}
