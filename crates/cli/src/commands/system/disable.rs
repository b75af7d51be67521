//! `proa system disable`: see [`super::unit`].

pub use super::unit::{DisableArgs as Args, disable as run};
