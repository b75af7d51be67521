//! All integration tests of the crate, in one binary.

mod archive;
mod crash;
mod hostile;
mod layer;
mod registry;
mod store;
mod support;
