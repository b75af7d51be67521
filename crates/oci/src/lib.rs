//! The OCI specifications as plain data, with no I/O.
//!
//! * [`runtime`]: `config.json` of the OCI runtime specification 1.2, the common language between the
//!   engine, the host's runtime and the guest's.
//! * [`state`]: what the same specification says of a running container.
//! * [`image`]: manifests, indexes, configs and descriptors of the OCI image specification 1.1 and of
//!   Docker's schema 2, with limits on what an attacker may write into them.
//! * [`disk`]: disks as artifacts of that specification.
//! * [`reference`]: image references as Docker normalizes them, and digests.

pub mod defaults;
pub mod disk;
pub mod image;
pub mod reference;
pub mod runtime;
pub mod state;
