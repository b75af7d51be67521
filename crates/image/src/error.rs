//! The crate's one error: what went wrong, where, and what to do about it, in one or two lines.

use std::io;
use std::path::{Path, PathBuf};

use proa_oci::image::DocumentError;
use proa_oci::reference::{Digest, DigestError, ReferenceError};

use crate::layer::LayerError;

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Anything that can go wrong with images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store has no such image.
    #[error("no such image: {0}")]
    NotFound(String),
    /// An id's beginning that several images share.
    #[error("'{prefix}' is the beginning of {count} image ids: give more digits")]
    AmbiguousId {
        /// What was asked for.
        prefix: String,
        /// How many ids begin with it.
        count: usize,
    },
    /// Instances still use the image.
    #[error("image {image} is in use by {users} (remove them first, or untag with --force)")]
    InUse {
        /// The image as it was named.
        image: String,
        /// Who uses it.
        users: String,
    },
    /// An id that several repositories name.
    #[error("image {image} has {count} names: give one of them, or --force to remove them all")]
    SeveralNames {
        /// The image as it was named.
        image: String,
        /// How many names it has.
        count: usize,
    },
    /// A name that cannot be given to an image.
    #[error("'{0}' has a digest: an image can be named only NAME[:TAG]")]
    NotATag(String),
    /// The text is no reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The text is no digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A manifest, index or config that is refused.
    #[error("{what}: {source}")]
    Document {
        /// Whose it is.
        what: String,
        /// Why.
        source: Box<DocumentError>,
    },
    /// The content is not what its address says.
    #[error("{what}: content has the digest {actual}, not {expected} (it was damaged or changed on its way)")]
    DigestMismatch {
        /// Which content.
        what: String,
        /// Its address.
        expected: Digest,
        /// What arrived.
        actual: Digest,
    },
    /// The content is longer or shorter than was said.
    #[error("{what}: {actual} bytes instead of {expected}")]
    SizeMismatch {
        /// Which content.
        what: String,
        /// What was said.
        expected: u64,
        /// What arrived; for content that is too long, where reading stopped.
        actual: u64,
    },
    /// A layer's tar is not the one the image's config names.
    #[error("layer {blob}: unpacks to {actual}, but the image's config says {expected}")]
    WrongDiffId {
        /// The layer as the manifest names it.
        blob: Digest,
        /// The config's word.
        expected: Digest,
        /// What it unpacks to.
        actual: Digest,
    },
    /// A layer cannot be decompressed.
    #[error("layer {blob}: {source}")]
    Decompress {
        /// The layer.
        blob: String,
        /// Why.
        source: io::Error,
    },
    /// A layer cannot be converted.
    #[error("layer {blob}: {source}")]
    Layer {
        /// The layer.
        blob: String,
        /// Why.
        source: LayerError,
    },
    /// A call on a file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Reading or writing a stream failed.
    #[error("{what}: {source}")]
    Stream {
        /// Which stream.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The database failed.
    #[error("image store {path}: {source}")]
    Database {
        /// The database's file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The database was written by a newer version.
    #[error("image store {path} has format {found}, this version knows {known}: use a newer proa")]
    Format {
        /// The database's file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest known.
        known: i64,
    },
    /// What the database says is not there any more.
    #[error(
        "image {image} is damaged: {what} (repair with 'proa system check --repair', then pull it again)"
    )]
    Damaged {
        /// The image.
        image: String,
        /// What is wrong.
        what: String,
    },
    /// Speaking with a registry failed.
    #[error(transparent)]
    Registry(#[from] crate::registry::RegistryError),
    /// An archive is not one of the kinds that can be read.
    #[error("archive: {0}")]
    Archive(String),
    /// A configuration or credentials file is wrong.
    #[error("{path}: {message}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// An instruction of `import --change` is wrong.
    #[error("--change '{change}': {message}")]
    Change {
        /// The instruction.
        change: String,
        /// What is wrong.
        message: String,
    },
}

/// What kind of failure it is; the command line and the API make exit codes and statuses of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such image, here or in the registry.
    NotFound,
    /// It is in use or ambiguous.
    Conflict,
    /// The registry wants other credentials.
    Denied,
    /// What was given, or what was sent, is wrong.
    Invalid,
    /// The registry cannot be reached or does not answer.
    Unavailable,
    /// This machine failed.
    Other,
}

impl Error {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::AmbiguousId { .. } | Self::InUse { .. } | Self::SeveralNames { .. } => ErrorKind::Conflict,
            Self::NotATag(_)
            | Self::Reference(_)
            | Self::Digest(_)
            | Self::Document { .. }
            | Self::DigestMismatch { .. }
            | Self::SizeMismatch { .. }
            | Self::WrongDiffId { .. }
            | Self::Decompress { .. }
            | Self::Layer { .. }
            | Self::Archive(_)
            | Self::Config { .. }
            | Self::Change { .. } => ErrorKind::Invalid,
            Self::Registry(error) => error.kind(),
            Self::Io { .. }
            | Self::Stream { .. }
            | Self::Database { .. }
            | Self::Format { .. }
            | Self::Damaged { .. } => ErrorKind::Other,
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn stream(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Stream { what: what.into(), source }
    }

    /// An error of a stream whose reader may have wrapped one of ours.
    pub(crate) fn from_stream(what: String, source: io::Error) -> Self {
        match source.downcast::<Self>() {
            Ok(error) => error,
            Err(source) => Self::Stream { what, source },
        }
    }

    pub(crate) fn document(what: impl Into<String>) -> impl FnOnce(DocumentError) -> Self {
        move |source| Self::Document { what: what.into(), source: Box::new(source) }
    }
}
