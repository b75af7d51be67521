//! Landlock, as far as instances need it: domains that cannot connect to what was made outside them.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `struct landlock_ruleset_attr` as of ABI 6.
#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

const CREATE_RULESET_VERSION: u32 = 1;
const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;
/// The first ABI with scopes (Linux 6.12).
const ABI_WITH_SCOPES: i64 = 6;

/// The version that the kernel speaks; 0 where it has no Landlock, or it is off.
pub fn abi() -> i64 {
    // SAFETY: with this flag the kernel reads no attributes.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<RulesetAttr>(),
            0usize,
            CREATE_RULESET_VERSION,
        )
    };
    version.max(0)
}

/// Puts the calling thread, and what it becomes and forks, into a domain that cannot connect to abstract unix
/// sockets made outside it; false where the kernel cannot do that. Needs `no_new_privs` or `CAP_SYS_ADMIN`.
///
/// # Errors
/// The kernel can do it, and refuses.
pub fn scope_abstract_sockets() -> io::Result<bool> {
    if abi() < ABI_WITH_SCOPES {
        return Ok(false);
    }
    let attr =
        RulesetAttr { handled_access_fs: 0, handled_access_net: 0, scoped: SCOPE_ABSTRACT_UNIX_SOCKET };
    // SAFETY: the attributes live through the call, which reads exactly their size.
    let ruleset = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size_of::<RulesetAttr>(), 0u32)
    };
    if ruleset < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just returned this descriptor, which is nobody else's.
    let ruleset = unsafe { OwnedFd::from_raw_fd(ruleset as i32) };
    // SAFETY: the call takes a descriptor and flags, no memory.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) };
    if done == 0 { Ok(true) } else { Err(io::Error::last_os_error()) }
}
