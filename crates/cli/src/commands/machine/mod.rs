//! `proa machine`: whole disks that boot by themselves. All else that is done with instances is done with them by the same
//! commands.

pub mod create;
pub mod import;
pub mod ls;
pub mod save;
pub mod screenshot;
pub mod snapshot;
