//! `proa system`: all of a state directory at once.

pub mod check;
pub mod df;
pub mod prune;
pub mod reap;
pub mod stop;
pub mod top;
