//! The real binaries, driven as a user drives them.
#![allow(clippy::print_stdout, reason = "a failing random test prints its seed")]

mod bad_input;
mod boot_unit;
mod commands;
mod copy_attacks;
mod crash;
#[path = "../../../network/tests/it/frames.rs"]
mod frames;
mod harness;
mod keep_id;
mod kernels;
mod lan;
mod liars;
mod load;
mod lsm;
mod machines;
mod network;
mod oracle;
mod parity;
mod policy;
mod resize;
mod rootless;
mod rootless_network;
mod rootless_vm;
mod servers;
mod snapshots;
mod standby;
mod storm;
mod streams;
mod templates;
mod watching;
