//! The real binaries, driven as a user drives them.
#![allow(clippy::print_stdout, reason = "a failing random test prints its seed")]

mod bad_input;
mod commands;
mod crash;
mod harness;
mod parity;
mod policy;
mod streams;
