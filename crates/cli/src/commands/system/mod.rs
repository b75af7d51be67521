//! `proa system`: all of a state directory at once.

pub mod boot;
pub mod check;
pub mod df;
pub mod disable;
pub mod enable;
pub mod generate;
pub mod prune;
pub mod reap;
pub mod stop;
pub mod top;
pub mod unit;
