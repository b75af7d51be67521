//! Safe wrappers for the Linux calls rustix lacks.

pub mod seal;
