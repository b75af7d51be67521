//! The resolver as it is run, in a network namespace of its own for each test, asked from others behind its bridges.
//!
//! Needs root, `ip` and `nft`.

mod addresses;
mod dns;
mod firewall;
mod fixture;
mod forward;
mod hostile;
mod life;
mod names;
