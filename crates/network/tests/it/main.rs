//! The firewall between real network namespaces. Needs root, `ip`, `nft`, and a kernel with bridges, veth, taps and
//! br_netfilter.

mod frames;
mod lab;

mod changes;
mod isolation;
mod published;
mod spoofing;
