//! Images: from a registry or an archive into a store, as layers ready to be mounted.
//!
//! * [`store`]: what images there are, and what they are made of.
//! * [`pull()`], [`push()`], [`registry`]: speaking with registries.
//! * [`archive`]: images as files: `load`, `save`, `import`.
//! * [`disk`]: disks of machines as images, in chunks.
//! * [`layer`]: a layer's tar as an EROFS image or a directory.
//!
//! Long operations tell a [`Progress`] what they do; nothing here prints, and nothing reads the environment.

pub mod archive;
pub mod disk;
pub mod layer;
pub mod registry;
pub mod store;

mod decompress;
mod digest;
mod error;
mod ingest;
mod layout;
mod pipe;
mod progress;
mod pull;
mod push;

pub use error::{Error, ErrorKind, Result};
pub use progress::{Event, Progress};
pub use pull::{PullOptions, pull};
pub use push::push;
pub use registry::{RegistryConfig, RegistryOptions};
pub use store::{Image, ImageId, LayerCopy, LayerFile, RemoveHooks, Removed, Store};
