//! The server of names (DNS) and of addresses (DHCP, see [`dhcp`]) of the networks of one root.
//!
//! ```text
//!   steward   reads `<run>/networks`, makes the sockets, brings the firewall's table back
//!      │      (privileged; parses nothing but files of ours)
//!      ▼ update: what changed, with sockets
//!   server    reads packets of instances and of servers elsewhere
//!             (nobody, no capabilities, no files, a filter on its calls)
//! ```
//!
//! Both are one program; the server is the steward's forked child, and starts anew when it ends.
//!
//! Which names are answered:
//!
//! - names of the network's own endpoints, with or without the network's name as suffix, whatever their case;
//! - `host.docker.internal`, `host.proa.internal` and `gateway.docker.internal`: the host's address in the network;
//! - the reverse of the network's addresses;
//! - a lone unknown name: there is none. Docker asks the servers of elsewhere for it, so that whoever is there learns the
//!   names of instances that do not run, and may answer for them;
//! - all else: what the endpoint's servers, or the host's, answer. On an internal network only servers in that network are
//!   asked, as with Docker; without one there is no such name (Docker says that the server has failed, and clients then
//!   wait for nothing).
//!
//! The messages' reader is ours (`wire`). hickory-proto is as quick as need be (0.55 µs for a query and its answer), but comes
//! with some fifty crates, Unicode's tables among them, for the process that faces hostile packets; and what goes through
//! should go through as it came.

pub mod args;
pub mod confine;
pub mod dhcp;
pub mod files;
pub mod firewall;
pub mod limits;
pub mod listen;
pub mod poller;
pub mod question;
pub mod resolv_conf;
pub mod server;
pub mod slab;
pub mod steward;
pub mod stream;
pub mod update;
pub mod watch;
pub mod wire;
pub mod zone;
