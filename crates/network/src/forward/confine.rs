//! What the forwarder gives up: capabilities, and most of the kernel's calls.

use std::io;

use proa_sys::call_filter::keep_to;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

/// What it calls once its ports are known. Everything else ends it, and its monitor starts another.
const CALLS: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_exit_group,
    // The standard library looks at each descriptor before it closes it.
    #[cfg(debug_assertions)]
    libc::SYS_fcntl,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigreturn,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socket,
];

/// Keeps what sockets with others' addresses and ports need, where there are any.
pub(super) fn narrow(has_transparent: bool) -> rustix::io::Result<()> {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let nothing = CapabilitySet::empty();
    // A client's port may be below 1024.
    let all = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | CapabilitySet::NET_BIND_SERVICE;
    let kept = if has_transparent { all } else { nothing };
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: nothing })?;
    rustix::thread::set_no_new_privs(true)
}

/// Keeps to those calls for good.
pub(super) fn filter() -> io::Result<()> {
    keep_to(CALLS, &[libc::AF_INET, libc::AF_INET6])
}
