//! What can go wrong before or around an instance.

use std::io;
use std::path::{Path, PathBuf};

use proa_protocol::message::{ErrorKind, Response};

/// A failure, told to the first client and kept in the instance's state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another monitor holds the lock.
    #[error("the instance has a monitor already: it is running, or its files are being worked on")]
    HasMonitor,
    /// Somebody else has started it meanwhile, or it is not to be started any more.
    #[error("the instance is not to be started again")]
    NotDue,
    /// A file does not hold what it should.
    #[error("{path}: {error}; recreate the instance, or restore the file")]
    BadJson {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// Reading, writing or making a file failed.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Who is to keep the output cannot be reached.
    #[error("cannot reach {name}: {error}")]
    LogDriver {
        /// Who.
        name: String,
        /// Why.
        error: io::Error,
    },
    /// A layer cannot be mounted.
    #[error("{}", with_source(.0))]
    Layer(#[from] proa_sys::layer_mount::LayerMountError),
    /// Its networks.
    #[error(transparent)]
    Network(#[from] proa_network::Error),
    /// Nothing runs.
    #[error("the instance is not running")]
    NotRunning,
    /// A machine has the network devices that it was started with.
    #[error("a machine that runs gets no other network devices; stop it first")]
    FixedDevices,
    /// What a machine's guest wrote to its disks is read by nobody else.
    #[error(
        "a machine's files are its own system's: nothing on the host reads its disks; use ssh, or `proa attach`"
    )]
    NoFiles,
    /// A virtual machine has no network device left that could be wired to another network.
    #[error(
        "the virtual machine runs, and has used its {} spare network devices; `proa stop` it, then connect it",
        proa_vm::SPARE_DEVICES
    )]
    NoDevice,
    /// One thing after another.
    #[error("the instance is being changed or copied at this moment; try again when that has ended")]
    Changing,
    /// Its devices are not those that a copy would be started with.
    #[error("its networks were changed while it runs; restart it first")]
    OtherNetworks,
    /// Nor are its memory and CPUs.
    #[error("it was given memory or CPUs while it runs, which a copy would not have; restart it first")]
    OtherSize,
    /// Only virtual machines are copied as they run.
    #[error("only virtual machines are copied as they run")]
    NoSnapshot,
    /// It shares namespaces of an instance that does not run.
    #[error(
        "instance {instance}, whose {what} this one shares, is not running: `proa start {instance}` first"
    )]
    OtherGone {
        /// Beginning of its id.
        instance: String,
        /// What is shared.
        what: &'static str,
    },
    /// A volume cannot be used.
    #[error("volume {name}: {error}")]
    Volume {
        /// Which.
        name: String,
        /// Why.
        error: String,
    },
    /// A command works on all of a volume.
    #[error("a command is working on it at this moment; try again when that has ended")]
    VolumeBusy,
    /// The container's runtime failed.
    #[error(transparent)]
    Runtime(#[from] proa_runtime::Error),
    /// The virtual machine cannot be had.
    #[error(transparent)]
    Vm(#[from] proa_vm::VmError),
}

impl Error {
    /// The sort of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::HasMonitor
            | Self::OtherGone { .. }
            | Self::NotRunning
            | Self::NotDue
            | Self::Changing
            | Self::OtherNetworks
            | Self::OtherSize
            | Self::VolumeBusy => ErrorKind::Conflict,
            Self::FixedDevices | Self::NoDevice | Self::NoFiles | Self::NoSnapshot => ErrorKind::Unsupported,
            Self::Network(_)
            | Self::BadJson { .. }
            | Self::Io { .. }
            | Self::LogDriver { .. }
            | Self::Layer(_)
            | Self::Volume { .. } => ErrorKind::Internal,
            Self::Runtime(error) => error.kind(),
            Self::Vm(_) => ErrorKind::Unsupported,
        }
    }

    /// The answer that tells it to a client.
    pub fn response(&self) -> Response {
        Response::error(self.kind(), self.to_string())
    }
}

fn with_source(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Names the path of an I/O error.
pub trait IoAt<T> {
    /// Adds the path.
    fn at(self, path: &Path) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> IoAt<T> for Result<T, E> {
    fn at(self, path: &Path) -> Result<T, Error> {
        self.map_err(|error| Error::Io { path: path.to_owned(), error: error.into() })
    }
}
