//! What networks let through: two nftables tables of one name for each root of Proa.
//!
//! ```text
//!   rules.nft      the rules, which never change: `table inet NAME` (published ports, isolation, masquerading) and
//!                  `table bridge NAME` (what may come out of an instance's link), both over sets
//!   element.rs     what a network or an instance is in those sets
//!   transaction.rs adds and removes elements, each change one transaction of the kernel, without another program
//!   flows.rs       forgets what the kernel remembers of ports of UDP that change hands
//!   nft.rs         puts the tables there when they are missing, by nft
//! ```
//!
//! Invariants: a packet is either under all of the rules or there is no table at all, since tables come and go with
//! their rules in one transaction; sets are hashes, so that a packet costs the same however many instances there
//! are; our chains accept what is not about our bridges, so that the host's other tables have their say.
//!
//! Somebody may flush the host's ruleset at any time; then changes say [`Error::NoTable`], and [`Firewall::restore`]
//! brings back everything. The caller's lock keeps that apart from changes: it is held exclusively around
//! [`Firewall::ensure`], [`Firewall::restore`] (from the reading of what it is given) and [`Firewall::remove`], and
//! shared (`LOCK_SH`) around a change together with the file that records it. Changes need no order among each other.
//!
//! An instance's elements have to be there before its link is a port of the bridge, and may go only after it: what
//! comes from an interface that is not in the set of ports is not filtered. MAC addresses are unique among a root's
//! networks whose instances may not talk. With br_netfilter an instance reaches its own published ports only if its
//! port of the bridge is in hairpin mode; the rules see to it that nothing else is mirrored. Needs Linux 5.7.

mod element;
mod flows;
mod nft;
mod transaction;
mod value;

use std::sync::{Mutex, PoisonError};
use std::{fmt, io};

use proa_protocol::network::{Live, Network};
use proa_sys::netlink::Netlink;

pub(crate) use element::way;
pub(crate) use nft::run as run_script;

/// A failure of the firewall.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tables are missing, or another version's: [`Firewall::restore`] and try again.
    #[error("the firewall has no table '{name}' of this version of Proa")]
    NoTable {
        /// Its name.
        name: String,
    },
    /// There is another element with that key.
    #[error(
        "the firewall has {key} already, and it leads elsewhere: the port is published by another instance"
    )]
    Taken {
        /// Address, transport and port.
        key: String,
    },
    /// The kernel cannot filter what crosses a bridge.
    #[error(
        "the kernel cannot filter bridges, so instances could take each other's addresses: it needs CONFIG_NF_TABLES_BRIDGE"
    )]
    NoBridgeFamily,
    /// There is no nft.
    #[error("networks need nft, which is not there: install the package nftables")]
    NoNft,
    /// nft failed.
    #[error("{program} cannot install the firewall's rules: {text}")]
    Nft {
        /// Its path.
        program: &'static str,
        /// What it says.
        text: String,
    },
    /// The kernel refused.
    #[error("the kernel refuses {what}")]
    Kernel {
        /// What it was asked for.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// An address that is none.
    #[error("'{text}' is no MAC address")]
    Mac {
        /// As given.
        text: String,
    },
}

/// Which of the two tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    /// Packets of IP.
    Inet = 1,
    /// Frames that cross a bridge.
    Bridge = 7,
}

impl fmt::Display for Family {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        })
    }
}

/// The tables of one root, in the network namespace of whoever first uses this.
///
/// Its socket is kept, since the kernel makes who closes one wait until nobody reads what was removed: tens of
/// milliseconds. So drop it when nobody waits any more.
#[derive(Debug)]
pub struct Firewall {
    name: String,
    netlink: Mutex<Option<Netlink>>,
}

impl Firewall {
    /// Tables of this name: letters, digits and underscores.
    pub fn new(name: String) -> Self {
        debug_assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{name}");
        Self { name, netlink: Mutex::new(None) }
    }

    /// Whether the tables are there, with the rules of this version.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn is_installed(&self) -> Result<bool, Error> {
        self.ask(transaction::is_installed)
    }

    /// Puts the tables there, without elements, if they are missing or another version's; whether it did. Where
    /// instances may run already, [`Firewall::restore`] does that without leaving them unfiltered for a moment.
    ///
    /// # Errors
    /// nft is missing or fails, or the kernel lacks what it needs.
    pub fn ensure(&self) -> Result<bool, Error> {
        let is_missing = !self.is_installed()?;
        if is_missing {
            self.install(Vec::new())?;
        }
        Ok(is_missing)
    }

    /// Replaces the tables by fresh ones with what these networks and instances have, in one transaction.
    ///
    /// Of two instances that claim the same port the first has it.
    ///
    /// # Errors
    /// As for [`Firewall::ensure`], or an endpoint has no MAC address.
    pub fn restore(&self, networks: &[Network], endpoints: &[Live]) -> Result<(), Error> {
        let mut elements: Vec<_> = networks.iter().flat_map(element::of_network).collect();
        for live in endpoints {
            elements.extend(element::of_endpoint(live)?);
        }
        self.install(elements)
    }

    /// Removes the tables, if they are there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&self) -> Result<(), Error> {
        self.ask(transaction::remove_tables)
    }

    /// Isolates a network's bridge from everything else as the network says. Does nothing for one without a bridge.
    ///
    /// # Errors
    /// [`Error::NoTable`], or the kernel refuses.
    pub fn add_network(&self, network: &Network) -> Result<(), Error> {
        let elements = element::of_network(network);
        self.ask(|netlink, name| transaction::add(netlink, name, &elements))
    }

    /// Undoes [`Firewall::add_network`]; the bridge has to be gone.
    ///
    /// # Errors
    /// [`Error::NoTable`], or the kernel refuses.
    pub fn remove_network(&self, network: &Network) -> Result<(), Error> {
        let elements = element::of_network(network);
        self.ask(|netlink, name| transaction::remove(netlink, name, &elements))
    }

    /// Publishes an instance's ports, and binds its link to its addresses.
    ///
    /// Two things the kernel cannot redirect, and they are left out: a port on an address of an IP version that the
    /// instance has no address of, and whatever is sent to `::1`. Those are forwarded ([`crate::forward`]).
    ///
    /// # Errors
    /// [`Error::NoTable`], [`Error::Taken`], or the kernel refuses; then nothing was changed.
    pub fn add_endpoint(&self, live: &Live) -> Result<(), Error> {
        let elements = element::of_endpoint(live)?;
        self.ask(|netlink, name| transaction::add(netlink, name, &elements))
    }

    /// Undoes [`Firewall::add_endpoint`]; the link has to be gone, and its ports still claimed.
    ///
    /// # Errors
    /// [`Error::NoTable`], or the kernel refuses.
    pub fn remove_endpoint(&self, live: &Live) -> Result<(), Error> {
        let elements = element::of_endpoint(live)?;
        self.ask(|netlink, name| transaction::remove(netlink, name, &elements))
    }

    /// Lets flows of UDP to an instance's ports begin anew: to be called after [`Firewall::add_endpoint`] and
    /// [`Firewall::remove_endpoint`], since a client that never pauses would keep the old way.
    ///
    /// The kernel goes through all of its flows for each port of UDP, which takes tens of milliseconds; nobody should
    /// wait for that. Without such ports it costs nothing.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn forget_flows(&self, live: &Live) -> Result<(), Error> {
        self.ask(|netlink, _| flows::forget(netlink, live))
    }

    /// The first half of [`Firewall::remove_endpoint`]: nothing leads to the instance any more, and nothing comes from it.
    /// Its ports and addresses can then be others': the kernel says goodbye for a link that it takes down, and the bridge
    /// would send what is for the next one with the same MAC address there.
    ///
    /// # Errors
    /// [`Error::NoTable`], or the kernel refuses.
    pub fn withdraw(&self, live: &Live) -> Result<(), Error> {
        let mut elements = element::of_endpoint(&Live { link: String::new(), ..live.clone() })?;
        elements.extend(element::voice(live)?);
        self.ask(|netlink, name| transaction::remove(netlink, name, &elements))
    }

    /// The second half: the link is gone.
    ///
    /// # Errors
    /// [`Error::NoTable`], or the kernel refuses.
    pub fn remove_link(&self, live: &Live) -> Result<(), Error> {
        let elements = element::of_link(live)?;
        self.ask(|netlink, name| transaction::remove(netlink, name, &elements))
    }

    fn install(&self, elements: Vec<element::Element>) -> Result<(), Error> {
        let installed = nft::install(&self.name, elements);
        if matches!(installed, Err(Error::Nft { .. })) && !self.ask(transaction::has_bridges)? {
            return Err(Error::NoBridgeFamily);
        }
        installed
    }

    fn ask<T>(&self, what: impl FnOnce(&mut Netlink, &str) -> Result<T, Error>) -> Result<T, Error> {
        let mut kept = self.netlink.lock().unwrap_or_else(PoisonError::into_inner);
        let netlink = match &mut *kept {
            Some(netlink) => netlink,
            none => none.insert(transaction::open()?),
        };
        what(netlink, &self.name)
    }
}
