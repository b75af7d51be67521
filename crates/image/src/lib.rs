//! References, registry client, content store and EROFS layers.

pub mod layer;
