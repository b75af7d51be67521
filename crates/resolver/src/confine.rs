//! What the process that reads packets gives up: its user, its capabilities, files, programs, core dumps, most of the
//! kernel's calls.

use std::io;

use proa_sys::call_filter::keep_to;
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getppid, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

/// `nobody`, who owns nothing.
const NOBODY: u32 = 65_534;
/// Descriptors: all that `limits` allows, with some to spare.
const DESCRIPTORS: u64 = 4096;
/// Bytes of memory.
const MEMORY: u64 = 512 << 20;

/// What it calls from then on. Everything else ends it.
const CALLS: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_ioctl,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sendto,
    libc::SYS_sigaltstack,
    libc::SYS_socket,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Gives all that up, for good. `parent` is who this process must not outlive.
///
/// # Errors
/// A step failed, or the parent is gone.
pub fn enter(parent: Option<rustix::process::Pid>) -> io::Result<()> {
    limit(Resource::Core, 0)?;
    limit(Resource::As, MEMORY)?;
    become_nobody()?;
    let nothing = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: nothing, permitted: nothing, inheritable: nothing })?;
    rustix::thread::set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // The change of user has cleared it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != parent {
        return Err(Errno::SRCH.into());
    }
    keep_to(CALLS, &[libc::AF_INET, libc::AF_INET6])
}

/// What the steward gives up: all but what sockets, the firewall and the server's change of user need; and in a user's
/// namespace what it takes to enter another one and to start pasta again, which confines itself.
///
/// # Errors
/// The kernel refuses.
pub fn narrow(keeps_switch: bool) -> io::Result<()> {
    limit(Resource::Core, 0)?;
    let mut kept = CapabilitySet::NET_ADMIN
        | CapabilitySet::NET_BIND_SERVICE
        | CapabilitySet::NET_RAW
        | CapabilitySet::SETUID
        | CapabilitySet::SETGID;
    if keeps_switch {
        kept |= CapabilitySet::SYS_ADMIN | CapabilitySet::SETPCAP | CapabilitySet::SYS_PTRACE;
    }
    let now = rustix::thread::capabilities(None)?;
    let kept = now.permitted & kept;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Lets the process have as many descriptors as it is meant to, if it may.
pub fn raise_descriptors() {
    let now = rustix::process::getrlimit(Resource::Nofile);
    let most = now.maximum.map_or(DESCRIPTORS, |maximum| maximum.min(DESCRIPTORS));
    // Without it, it serves fewer at once.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) });
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    Ok(setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?)
}

/// In a user namespace `nobody` may not exist: then the user stays, who is nobody outside it.
fn become_nobody() -> io::Result<()> {
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let steps = [
        rustix::thread::set_thread_groups(&[]),
        rustix::thread::set_thread_res_gid(group, group, group),
        rustix::thread::set_thread_res_uid(user, user, user),
    ];
    match steps.into_iter().find_map(Result::err) {
        None | Some(Errno::INVAL) => Ok(()),
        // Where it is forbidden to change groups, there is nothing to gain by it.
        Some(Errno::PERM) if !in_first_namespace() => Ok(()),
        Some(errno) => Err(errno.into()),
    }
}

/// Whether all users are mapped to themselves.
fn in_first_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295"))
}
