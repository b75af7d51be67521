//! `docker diff`.
use std::path::{Path, PathBuf};

use proa_protocol::message::Change;

use crate::{Error, Result};

/// What the writable layer `upper` changes over `lowers` (lowest first). `mountpoints` are the container's mount
/// destinations: what the runtime made there, and only that, is left out.
pub fn changes(upper: &Path, _lowers: &[PathBuf], _mountpoints: &[&str]) -> Result<Vec<Change>> {
    Err(Error::unsupported(upper.display().to_string()))
}
