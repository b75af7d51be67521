//! Docker's defaults as plain data: capabilities, masked and read-only paths, mounts, namespaces, seccomp profile.

use crate::runtime::{Seccomp, Spec};

/// The spec that Docker gives a container before image and flags are applied.
pub fn default_spec() -> Spec {
    Spec::default()
}

/// Docker's default capabilities.
pub fn default_capabilities() -> Vec<String> {
    Vec::new()
}

/// Docker's default system call filter for a process with these capabilities in its bounding set.
pub fn default_seccomp(_capabilities: &[String]) -> Seccomp {
    Seccomp::default()
}
