//! Use cases and records.
//!
//! ```text
//!   cli ──▶ Engine ──▶ db        which instances there are; ids and names are claimed there
//!             ├──────▶ spec      what a monitor is to run, from the image, flags and defaults
//!             ├──────▶ monitor   starts one monitor an instance, and knows whether it lives
//!             ├──────▶ channel   speaks the protocol with it
//!             └──────▶ image     the store
//! ```
//!
//! There is no engine process: every command opens the root, does its work and ends. So every function here may
//! be cut short at any line, and every one of them finishes or undoes what another left (see [`engine::Engine`]).
//! Nothing here prints or reads the environment.

pub mod boot;
pub mod channel;
pub mod condition;
pub mod config;
pub mod copy;
pub mod create;
pub mod db;
pub mod engine;
pub mod error;
pub mod events;
mod filters;
pub mod health;
mod holder;
pub mod inspect;
pub mod kernels;
pub mod life;
pub mod list;
pub mod logging;
pub mod logs;
pub mod lsm;
pub mod machine;
pub mod metrics;
pub mod monitor;
pub mod mounts;
pub mod names;
mod namespaces;
pub mod network;
pub mod parse;
pub mod paths;
pub mod policy;
pub mod prune;
mod restart;
pub mod rootless;
pub mod settings;
mod shelf;
pub mod signals;
pub mod snapshots;
pub mod spec;
pub mod standby;
pub mod system;
pub mod templates;
pub mod update;
mod userns;
pub mod volumes;
mod write_ahead;

pub use channel::Channel;
pub use engine::{Engine, Instance};
pub use error::{Error, Kind, Result};
pub use ipnet;
pub use paths::{Bases, Paths};
pub use proa_sys::trees;
