//! `proa system enable`: see [`super::unit`].

pub use super::unit::{EnableArgs as Args, enable as run};
