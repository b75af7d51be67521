//! Safe wrappers for the Linux calls rustix lacks.

pub mod bounded_log;
pub mod bpf;
pub mod clone;
pub mod device_nodes;
pub mod exec;
pub mod filters;
pub mod guest;
mod handover;
pub mod inherited;
pub mod jail;
pub mod job;
pub mod kvm;
pub mod landlock;
pub mod layer_mount;
pub mod localtime;
pub mod lock;
pub mod memory;
pub mod mount;
pub mod net;
pub mod process;
pub mod seal;
pub mod signalfd;
pub mod signals;
pub mod sigwait;
pub mod userns;
