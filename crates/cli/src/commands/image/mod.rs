//! Commands on images; most have a short form at the top level, as Docker's have.

pub mod history;
pub mod images;
pub mod import;
pub mod load;
pub mod login;
pub mod logout;
pub mod prune;
pub mod pull;
pub mod push;
pub mod rmi;
pub mod save;
pub mod tag;

use proa_oci::reference::familiar_repository;

/// A normalized name as users write it.
pub fn familiar(name: &str) -> &str {
    familiar_repository(name)
}
