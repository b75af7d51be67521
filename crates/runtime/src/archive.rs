//! `docker cp`.
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;

use proa_protocol::message::PathStat;

use crate::{Error, Result};

/// What `path` is.
pub fn stat(_root: BorrowedFd, path: &str) -> Result<PathStat> {
    Err(Error::unsupported(path))
}

/// Writes a tar stream of the file or tree at `path`, whose entries begin with its last component.
pub fn get(_root: BorrowedFd, path: &str, _out: &mut dyn Write) -> Result<()> {
    Err(Error::unsupported(path))
}

/// Unpacks a tar stream into the directory at `path`.
pub fn put(_root: BorrowedFd, path: &str, _tar: &mut dyn Read, _no_overwrite_dir: bool) -> Result<()> {
    Err(Error::unsupported(path))
}
