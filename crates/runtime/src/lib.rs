//! The OCI runtime as a library: namespaces, cgroups, mounts, seccomp, exec.

pub mod archive;
pub mod changes;
mod container;
mod error;
mod mini_init;
pub mod seccomp;

pub use container::{CgroupPolicy, Child, Container, Create, Handles, Rootfs, Stdio};
pub use error::{Error, Result};
pub use mini_init::{INIT_NAME, init_main};
