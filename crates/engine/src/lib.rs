//! Use cases and records.

pub mod config;
pub mod db;
pub mod error;
pub mod mounts;
pub mod names;
pub mod parse;
pub mod signals;
pub mod spec;
