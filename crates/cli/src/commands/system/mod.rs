//! `proa system`: all of a state directory at once.

pub mod check;
pub mod df;
pub mod reap;
pub mod stop;
