//! `tmpcopyup`: a tmpfs begins with a copy of the directory that it covers. Both are read by descriptor, and no link in
//! them is followed: an image may hold anything.

use std::os::fd::BorrowedFd;

use proa_sys::tree::{self, Devices};

use crate::{Error, Result};

/// Copies what lies in `from`, a directory under a mount, into the mount. A handle opened before the mount was attached
/// still is what lies under it.
pub(super) fn run(from: BorrowedFd, to: BorrowedFd) -> Result<()> {
    tree::copy(from, to, Devices::Keep).map_err(|errno| Error::call("tmpcopyup", errno))
}
