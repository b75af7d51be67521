//! Safe wrappers for the Linux calls rustix lacks.

pub mod bpf;
pub mod clone;
pub mod exec;
pub mod mount;
pub mod process;
pub mod seal;
