//! A failure as the user and the engine above see it: one line and an exit code.

use std::io;
use std::path::Path;

/// Result of a command.
pub type Result<T> = std::result::Result<T, Failure>;

/// Exit code of a failure, as in runc.
const FAILED: u8 = 1;
/// Exit code of an `exec` that could not run its program, as in runc.
const EXEC_FAILED: u8 = 255;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    message: String,
    /// The program's exit code.
    pub code: u8,
}

impl Failure {
    /// A failure with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: FAILED }
    }

    /// A command line that is not understood.
    pub fn usage(message: impl std::fmt::Display) -> Self {
        Self::new(format!("{message}; see proa-runtime --help"))
    }

    /// An error of the kernel about a path.
    pub fn at(path: impl AsRef<Path>, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        let text = error.to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        Self::new(format!("{}: {}", path.as_ref().display(), text.to_lowercase()))
    }

    /// Says what was being done.
    pub fn context(mut self, what: impl std::fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// The same as a failure of `exec`.
    pub fn of_exec(mut self) -> Self {
        self.code = EXEC_FAILED;
        self
    }
}

impl From<proa_runtime::Error> for Failure {
    fn from(error: proa_runtime::Error) -> Self {
        Self::new(error.to_string())
    }
}
