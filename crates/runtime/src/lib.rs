//! The OCI runtime as a library: namespaces, cgroups, mounts, seccomp, exec.

pub mod archive;
mod cgroup;
pub mod changes;
mod channel;
mod container;
mod error;
mod fork;
mod init;
mod inroot;
mod mini_init;
mod plan;
mod processes;
mod rootfs;
pub mod seccomp;
mod stdio;
mod user;

pub use cgroup::remove_leftovers;
pub use container::{CgroupPolicy, Child, Container, Create, Handles, Rootfs, Stdio};
pub use error::{Error, Result};
pub use init::{Phase, STEPS, Step};
pub use mini_init::{INIT_NAME, init_main};
