//! The monitor driven as the engine drives it: a hand-written `instance.json`, the real program, its socket.
//!
//! Needs root (namespaces, mounts, cgroups) and Debian's busybox-static; fails clearly without.

mod client;
mod fixture;

mod crash;
mod files;
mod limits;
mod log;
mod run;
mod streams;
