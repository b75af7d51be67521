//! Where the bridges of a root are: in the host's network namespace, or in one that belongs to an ordinary user.
//!
//! An ordinary user has no rights over the host's interfaces, but all over those of a namespace of its own. So its
//! bridges, links and firewall are in one, made by the same code, and two things join it with the host:
//!
//! ```text
//!     host's namespace                       │ the user's switch
//!     pasta (uplink) ── sockets of the user  │ tap `uplink` ◀─ masqueraded ─ bridges ─ instances
//!     forwarder (an instance's, `forward`)   │ sockets with the clients' addresses ─▶ bridges ─▶ instance
//!     resolver ── asks the host's servers    │ listens at the bridges' addresses
//! ```
//!
//! The **resolver** keeps it (`keeper`): makes it, runs pasta, which it starts again when it ends, and hands the
//! namespace out at a socket. Everybody else holds a descriptor ([`Switch`]) and is never in it but with a thread for a
//! moment, since who has left the host's namespace as an ordinary user cannot come back.
//!
//! ```text
//!   (none) ─ first who asks ─▶ resolver: namespace, routes, pasta ─▶ there ─ nobody asks, nothing runs ─▶ (none)
//!                                              ▲                       │ resolver killed
//!                                              └── adopted by the next ┘ as long as an instance's monitor holds it
//! ```
//!
//! It belongs to a user namespace, in which everybody must be who works in it: so a command that finds nobody who keeps
//! the user's (`engine::rootless`) takes that of those who hold a switch ([`holders`]).
//!
//! Invariants: a namespace without the resolver goes on serving what runs in it, without names and a way out; of two
//! resolvers one has the lock; where a namespace of a root is alive, no second one is made.

mod keeper;
mod routes;
mod uplink;

use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proa_protocol::network::{DIRECTORY, Held, RESOLVER_LOCK, SWITCH_SOCKET};
use proa_sys::process::aside;
use proa_sys::sockets::{in_directory, receive_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Error, files};

pub use keeper::Keeper;
pub(crate) use routes::MARK;

/// Longest line with which a namespace is handed out.
const MAX_NOTICE: usize = 1024;
/// How long the keeper may take to answer: it may be starting pasta again.
const PATIENCE: Duration = Duration::from_secs(10);

/// The network namespace in which a root's bridges are.
#[derive(Debug, Clone)]
pub enum Switch {
    /// The host's own.
    Host,
    /// An ordinary user's.
    User(Arc<Visit>),
    /// An ordinary user's that is not there: nothing of it is left to be taken away.
    Gone,
}

/// A namespace, and the conversation by which it was got: as long as that is open the keeper stays.
#[derive(Debug)]
pub struct Visit {
    namespace: OwnedFd,
    _keeper: Option<UnixStream>,
}

impl Switch {
    /// The caller's own where that is the host's root, else what the user's keeper hands out, if there is one.
    pub fn of(run: &Path) -> Self {
        if proa_sys::userns::is_initial() {
            return Self::Host;
        }
        Self::visit(run).map_or(Self::Gone, |(switch, _)| switch)
    }

    /// The namespace that a user's keeper hands out, with what the user is to know about it. None where there is no
    /// keeper.
    pub fn visit(run: &Path) -> Option<(Self, String)> {
        let connect = |path: &Path| UnixStream::connect(path);
        let keeper = in_directory(&run.join(DIRECTORY), SWITCH_SOCKET, connect).ok()?;
        keeper.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut text = [0; MAX_NOTICE];
        let (length, namespace) = receive_with(&keeper, &mut text).ok()?;
        let notice = String::from_utf8_lossy(text.get(1..length)?).into_owned();
        Some((Self::User(Arc::new(Visit { namespace: namespace?, _keeper: Some(keeper) })), notice))
    }

    fn kept(namespace: OwnedFd) -> Self {
        Self::User(Arc::new(Visit { namespace, _keeper: None }))
    }

    /// Does something in that namespace.
    ///
    /// # Errors
    /// It is gone, cannot be entered, or what `work` says.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
        match self {
            Self::Host => work(),
            Self::User(visit) => aside(|| {
                enter(visit.namespace.as_fd())?;
                work()
            }),
            Self::Gone => Err(Error::NoSwitch),
        }
    }

    /// Whether there is nothing left of it.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone)
    }

    /// An ordinary user's namespace.
    pub fn namespace(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::User(visit) => Some(visit.namespace.as_fd()),
            Self::Host | Self::Gone => None,
        }
    }

    /// Where others find it as long as this process lives.
    pub(crate) fn held(&self) -> Option<Held> {
        let namespace = self.namespace()?;
        let inode = rustix::fs::fstat(namespace).ok()?.st_ino;
        let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        Some(Held { path, inode })
    }
}

/// Processes that hold a root's namespace: its resolver, and monitors of instances. Whoever wants to work in it must be
/// in their user namespace.
pub fn holders(run: &Path) -> Vec<u32> {
    let path = run.join(DIRECTORY).join(RESOLVER_LOCK);
    let is_held = || proa_sys::lock::is_held(&path).unwrap_or(false);
    let resolver = is_held().then(|| std::fs::read_to_string(&path).ok()).flatten();
    let mut holders: Vec<u32> = resolver.iter().filter_map(|text| text.trim().parse().ok()).collect();
    let (_, places) = files::read_all(run);
    holders.extend(places.iter().filter_map(|(_, live)| holder(live.switch.as_ref()?)));
    holders
}

/// The process that holds what it is said to.
fn holder(held: &Held) -> Option<u32> {
    let found = std::fs::read_link(&held.path).ok()?;
    let is_it = found.to_str() == Some(&format!("net:[{}]", held.inode));
    held.path.split('/').nth(2).filter(|_| is_it)?.parse().ok()
}

/// Moves the calling thread into a network namespace.
pub(crate) fn enter(namespace: BorrowedFd) -> Result<(), Error> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
        .map_err(Error::call("enter the user's network namespace"))
}

/// The addresses by which an ordinary user's instances reach the host: those that it reaches others from. Nothing is
/// sent to find them out.
pub fn host_addresses() -> Vec<IpAddr> {
    let own = |here: &str, there: &str| {
        let socket = UdpSocket::bind((here, 0)).ok()?;
        socket.connect((there, 53)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    // Addresses that nobody has (RFC 5737, RFC 3849) take the default route.
    let found = [own("0.0.0.0", "203.0.113.1"), own("::", "2001:db8::1")];
    found.into_iter().flatten().filter(|address| !address.is_loopback()).collect()
}
