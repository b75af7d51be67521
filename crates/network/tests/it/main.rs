//! The firewall between real network namespaces. Needs root, `ip`, `nft`, and a kernel with bridges, veth, taps and
//! br_netfilter.

#![expect(clippy::print_stderr, reason = "what a test measured, and on which kind of host it failed")]

mod frames;
mod lab;

mod bridge;
mod changes;
mod floods;
mod isolation;
mod published;
mod spoofing;
