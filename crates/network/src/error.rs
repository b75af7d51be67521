//! What can go wrong.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
use thiserror::Error;

/// A network cannot be made, or an instance cannot be part of it.
#[derive(Debug, Error)]
pub enum Error {
    /// The kernel refuses something about an interface.
    #[error("{action} {interface}: {errno}")]
    Interface {
        /// What was to be done.
        action: &'static str,
        /// With which interface.
        interface: String,
        /// Why not.
        errno: Errno,
    },
    /// A system call failed.
    #[error("{action}: {errno}")]
    Call {
        /// What was to be done.
        action: &'static str,
        /// Why not.
        errno: Errno,
    },
    /// A file cannot be read or written.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The firewall.
    #[error(transparent)]
    Firewall(#[from] crate::firewall::Error),
    /// An ordinary user has no pasta.
    #[error(
        "networks of an ordinary user need pasta, which is not there: apt install passt, or use --network none or host"
    )]
    NoPasta,
    /// Nobody keeps an ordinary user's network namespace.
    #[error("the network namespace of this user is gone; start the instance again")]
    NoSwitch,
    /// Somebody else has the port.
    #[error(
        "port {address}/{protocol} of the host is in use by another program; choose another with -p, or stop that \
         program (`ss -lnp` shows it)"
    )]
    PortInUse {
        /// Address and port.
        address: std::net::SocketAddr,
        /// Transport.
        protocol: &'static str,
    },
    /// The host's port is one that this user may not have.
    #[error(
        "port {address}/{protocol} of the host is reserved for root; choose one from 1024 on, or lower \
         net.ipv4.ip_unprivileged_port_start"
    )]
    PortReserved {
        /// Address and port.
        address: std::net::SocketAddr,
        /// Transport.
        protocol: &'static str,
    },
    /// The kernel does not know the transport.
    #[error(
        "port {address}/{protocol} of the host: the kernel has no such transport; load its module (`modprobe {protocol}`)"
    )]
    NoTransport {
        /// Address and port.
        address: std::net::SocketAddr,
        /// Transport.
        protocol: &'static str,
    },
    /// An address to publish at is none of the host's.
    #[error("{address} is no address of this host; -p ADDRESS:PORT:PORT needs one of its own")]
    NotOurAddress {
        /// The address.
        address: std::net::IpAddr,
    },
}

impl Error {
    pub(crate) fn call(action: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Call { action, errno }
    }

    pub(crate) fn at(action: &'static str, interface: &str) -> impl FnOnce(Errno) -> Self {
        let interface = interface.to_owned();
        move |errno| Self::Interface { action, interface, errno }
    }

    /// Of something that was to be done with a file, or something else that has a name.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
