//! Landlock: domains that see less of the file system than there is, and cannot connect to what was made outside them.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

/// `struct landlock_ruleset_attr` as of ABI 6; a kernel that has less of it takes it where the rest is zero.
#[repr(C)]
#[derive(Default)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneathAttr {
    allowed_access: u64,
    parent_fd: i32,
}

const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;
/// Rights over files, in the kernel's order, and how many of them each ABI has, from the first on.
const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
const RIGHTS: [u32; 5] = [13, 14, 15, 15, 16];
/// What a rule for a file may give; that of a directory may give all.
const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
const BIND_AND_CONNECT_TCP: u64 = 3;
const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;
const SCOPE_SIGNAL: u64 = 2;
/// The first ABIs with rights over the network (Linux 6.7) and with scopes (Linux 6.12).
const ABI_WITH_NETWORK: i64 = 4;
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

/// What a domain may do with a file, or with all that is in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Read it.
    Read,
    /// Read it and write to it; make and remove nothing.
    Write,
    /// Read it and run it.
    Run,
    /// Read from, write to and control a device.
    Device,
}

impl Use {
    fn rights(self) -> u64 {
        READ_FILE
            | READ_DIR
            | match self {
                Self::Read => 0,
                Self::Write => WRITE_FILE | TRUNCATE,
                Self::Run => EXECUTE,
                Self::Device => WRITE_FILE | IOCTL_DEV,
            }
    }
}

/// A domain that can be entered.
#[derive(Debug)]
pub struct Domain {
    ruleset: OwnedFd,
}

impl Domain {
    /// One that has these uses of files and no others, and, where the kernel can tell, binds and connects no TCP, signals
    /// nobody outside, and connects to no abstract unix socket made outside; `None` where the kernel has no Landlock.
    ///
    /// # Errors
    /// A path is not there, or the kernel refuses.
    pub fn new<'a>(uses: impl IntoIterator<Item = (&'a Path, Use)>) -> io::Result<Option<Self>> {
        let abi = abi();
        let Some(rights) = usize::try_from(abi - 1).ok().map(|index| RIGHTS[index.min(RIGHTS.len() - 1)])
        else {
            return Ok(None);
        };
        let handled = (1 << rights) - 1;
        let domain = Self::make(&RulesetAttr {
            handled_access_fs: handled,
            handled_access_net: if abi >= ABI_WITH_NETWORK { BIND_AND_CONNECT_TCP } else { 0 },
            scoped: if abi >= ABI_WITH_SCOPES { SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL } else { 0 },
        })?;
        uses.into_iter().try_for_each(|(path, wanted)| domain.allow(path, wanted.rights() & handled))?;
        Ok(Some(domain))
    }

    fn make(attr: &RulesetAttr) -> io::Result<Self> {
        // SAFETY: the attributes live through the call, which reads exactly their size.
        let ruleset =
            unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, attr, size_of::<RulesetAttr>(), 0u32) };
        if ruleset < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just returned this descriptor, which is nobody else's.
        Ok(Self { ruleset: unsafe { OwnedFd::from_raw_fd(ruleset as i32) } })
    }

    fn allow(&self, path: &Path, rights: u64) -> io::Result<()> {
        let file = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let is_directory = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode).is_dir();
        let allowed_access = if is_directory { rights } else { rights & OF_FILES };
        let rule = PathBeneathAttr { allowed_access, parent_fd: file.as_raw_fd() };
        // SAFETY: the rule and the descriptors live through the call, which reads the rule's size.
        let done = unsafe {
            let (ruleset, rule) = (self.ruleset.as_raw_fd(), &raw const rule);
            libc::syscall(libc::SYS_landlock_add_rule, ruleset, RULE_PATH_BENEATH, rule, 0u32)
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Puts the calling thread, and what it becomes and forks, into it. Needs `no_new_privs` or `CAP_SYS_ADMIN`; takes no
    /// lock and allocates nothing.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn enter(&self) -> io::Result<()> {
        // SAFETY: the call takes a descriptor and flags, no memory.
        let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.ruleset.as_raw_fd(), 0u32) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
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
    let attr = RulesetAttr { scoped: SCOPE_ABSTRACT_UNIX_SOCKET, ..RulesetAttr::default() };
    Domain::make(&attr)?.enter()?;
    Ok(true)
}
