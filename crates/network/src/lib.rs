//! Links, addresses and firewall of networks: what a monitor makes when its instance starts, and takes away at the end.

pub mod attach;
mod error;
pub mod files;
pub mod firewall;
mod forward;
pub mod link;
pub mod ports;
pub mod switch;

pub use attach::{Attachment, Tap};
pub use error::Error;
pub use switch::Switch;
