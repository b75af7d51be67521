//! What can go wrong between a tar stream and a layer.

use std::io;
use std::path::{Path, PathBuf};

/// Why a layer could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The stream failed; what it said is the source (the network, a decompressor, a digest that differs).
    #[error("cannot read the layer's tar stream")]
    Read(#[source] io::Error),
    /// The layer could not be written.
    #[error("{}: cannot {action}", path.display())]
    Write {
        /// The layer's path, or the path in the layer.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The bytes are not a tar archive.
    #[error("damaged tar stream at byte {offset}: {reason}; pull the image again, or rebuild it")]
    Malformed {
        /// Where in the stream.
        offset: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// An entry that no layer may have.
    #[error("layer entry \"{entry}\": {reason}")]
    Entry {
        /// Its name, unprintable bytes escaped.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The layer asks for more than it may have.
    #[error("the layer has more than {max} {what}: refused as a likely decompression bomb")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The most there may be.
        max: u64,
    },
    /// A file of somebody who has no id in this user namespace.
    #[error(
        "{} in the layer belongs to user {uid} and group {gid}, and your user namespace has no such id: it takes \
         newuidmap (package uidmap) and a line as NAME:100000:65536 in /etc/subuid and /etc/subgid",
        path.display()
    )]
    NoId {
        /// The path in the layer.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// An image file that is not a sound EROFS image.
    #[error("{}: not a sound layer image: {reason}; remove the image and pull it again", path.display())]
    Corrupt {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl LayerError {
    /// An error of the entry `name`, whose bytes must not reach a terminal as they are.
    pub(super) fn entry(name: &[u8], reason: impl Into<String>) -> Self {
        Self::Entry { entry: name.escape_ascii().to_string(), reason: reason.into() }
    }

    /// An error of writing at `path`.
    pub(super) fn write(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Write { path, action, source }
    }
}
