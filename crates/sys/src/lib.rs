//! Safe wrappers for the Linux calls rustix lacks.

pub mod bpf;
pub mod clone;
pub mod exec;
pub mod filters;
pub mod job;
pub mod memory;
pub mod mount;
pub mod process;
pub mod seal;
pub mod signals;
