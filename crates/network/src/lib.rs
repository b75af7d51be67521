//! Links, addresses and firewall of networks: what a monitor makes when its instance starts, and takes away at the end.

pub mod firewall;
