//! What can go wrong, with the sort of failure that decides exit codes at the edges.

use std::io;
use std::path::Path;

use proa_protocol::message::ErrorKind;

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, ready to be shown to the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    /// A failure of some kind, with a message that names the path or value it is about.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The sort of failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// An error of the kernel about a path.
    pub(crate) fn at(path: impl AsRef<Path>, error: impl Into<io::Error>) -> Self {
        Self::internal(format!("{}: {}", path.as_ref().display(), describe(&error.into())))
    }

    /// An error of the kernel about a call or thing that is not a path.
    pub(crate) fn call(what: &str, error: impl Into<io::Error>) -> Self {
        Self::internal(format!("{what}: {}", describe(&error.into())))
    }

    /// Says where in the work it happened.
    pub(crate) fn context(mut self, what: impl std::fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

/// The system's text without the `(os error N)` that Rust appends.
pub(crate) fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match (error.raw_os_error(), text.rfind(" (os error ")) {
        (Some(_), Some(end)) => lowercase_first(&text[..end]),
        _ => text,
    }
}

fn lowercase_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_path_and_read_like_sentences() {
        let error = Error::at("/proc/x", io::Error::from_raw_os_error(2)).context("mount");
        assert_eq!(error.to_string(), "mount: /proc/x: no such file or directory");
        assert_eq!(error.kind(), ErrorKind::Internal);
    }
}
