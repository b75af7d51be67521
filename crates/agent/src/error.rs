//! What can fail in a guest before its supervisor runs.

use std::path::PathBuf;

use proa_protocol::frame::FrameError;

/// Why the guest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a path failed.
    #[error("guest: cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A disk or port did not appear.
    #[error("guest: no {0} appeared; does the kernel have its driver?")]
    Missing(String),
    /// Memory that comes needs a driver.
    #[error(
        "the guest's kernel has no driver for memory that comes while it runs (CONFIG_VIRTIO_MEM, CONFIG_MEMORY_HOTPLUG): stop the instance, update it, start it"
    )]
    NoGrowth,
    /// A network device cannot be set up.
    #[error("guest: {0}")]
    Network(#[from] proa_network::Error),
    /// The instance cannot be stopped, or made what it is to be.
    #[error("{0}")]
    Instance(#[from] proa_runtime::Error),
    /// The host sent no configuration, or one that cannot be read.
    #[error("guest: {0}")]
    Configuration(String),
    /// The host sent what is not a frame.
    #[error("guest: {0}")]
    Frame(#[from] FrameError),
}

/// Adds what was tried, and on what, to an error of the system.
pub trait At<T> {
    /// `action` reads as in "cannot mount /proc".
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, Error>;
}

impl<T, E: Into<std::io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, Error> {
        self.map_err(|source| Error::Io { action, path: path.into(), source: source.into() })
    }
}
