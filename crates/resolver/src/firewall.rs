//! Brings the firewall's tables back when somebody has removed them (`nft flush ruleset`, a restart of the host's own
//! firewall).
//!
//! What the kernel announces is only a reason to look: the tables are put back if they are missing, under the lock of all
//! who change them, and with what the files say then. So announcements of changes of our own lead to nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use proa_network::Switch;
use proa_network::files::Lock;
use proa_network::firewall::Firewall;
use proa_sys::netlink::{attributes, number};
use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::files;

/// `NFNLGRP_NFTABLES`, as a bit.
const GROUP: u32 = 1 << 6;
/// `NFNL_SUBSYS_NFTABLES` with `NFT_MSG_DELTABLE`.
const DELETE_TABLE: u16 = 10 << 8 | 2;
/// `NFTA_TABLE_NAME`
const NAME: u16 = 1;
/// `struct nlmsghdr`, and `struct nfgenmsg` behind it.
const HEAD: usize = 16;
const FIXED: usize = 4;

/// Looks after the tables of a name.
#[derive(Debug)]
pub struct Guard {
    socket: OwnedFd,
    table: String,
    run: PathBuf,
    switch: Switch,
}

impl Guard {
    /// Hears from now on what happens to tables where the bridges are.
    ///
    /// # Errors
    /// The kernel has no nftables, or the caller no `CAP_NET_ADMIN`.
    pub fn new(run: &Path, table: &str, switch: Switch) -> Result<Self, proa_network::Error> {
        let hear = || listen().map_err(proa_network::Error::file("hear of", "changes of the firewall"));
        let socket = switch.inside(hear)?;
        Ok(Self { socket, table: table.to_owned(), run: run.to_owned(), switch })
    }

    /// Whether a table of ours was removed since the last call, or may have been.
    pub fn heard(&self) -> bool {
        let mut buffer = vec![0; 64 * 1024];
        let mut removed = false;
        loop {
            match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => removed |= is_removal(&buffer[..length], &self.table),
                // Some were lost.
                Err(Errno::NOBUFS) => removed = true,
                Err(Errno::INTR) => {}
                Err(_) => return removed,
            }
        }
    }

    /// Puts missing tables back, if there are networks that need them; whether it did.
    ///
    /// # Errors
    /// Says what failed.
    pub fn restore(&self) -> Result<bool, String> {
        let restored = self.switch.inside(|| Ok(self.restore_here()));
        restored.map_err(|error| with_source(&error))?
    }

    fn restore_here(&self) -> Result<bool, String> {
        let _lock = Lock::take_existing(&self.run).map_err(|error| with_source(&error))?;
        let firewall = Firewall::new(self.table.clone());
        let networks: Vec<_> =
            files::networks(&self.run).iter().filter_map(|id| files::network(&self.run, id)).collect();
        let text = |error| with_source(&error);
        if networks.is_empty() || firewall.is_installed().map_err(text)? {
            return Ok(false);
        }
        let endpoints: Vec<_> = networks
            .iter()
            .flat_map(|network| {
                let instances = files::endpoints(&self.run, &network.id);
                instances
                    .into_iter()
                    .filter_map(|instance| files::endpoint(&self.run, &network.id, &instance))
            })
            .collect();
        firewall.restore(&networks, &endpoints).map_err(text)?;
        Ok(true)
    }
}

impl AsFd for Guard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn listen() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(NETFILTER))?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
    Ok(socket)
}

fn with_source(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Whether the kernel's messages tell of the removal of a table of this name.
fn is_removal(mut rest: &[u8], table: &str) -> bool {
    while rest.len() >= HEAD {
        let length = number(rest, 0) as usize;
        let Some(message) = rest.get(HEAD..length) else { return false };
        let kind = u16::from_ne_bytes([rest[4], rest[5]]);
        let is_ours = |(attribute, value): &(u16, &[u8])| {
            *attribute == NAME && value.strip_suffix(&[0]) == Some(table.as_bytes())
        };
        if kind == DELETE_TABLE && attributes(message, FIXED).iter().any(is_ours) {
            return true;
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_sys::netlink::attribute;

    fn message(kind: u16, name: &[u8]) -> Vec<u8> {
        let mut body = vec![0; FIXED];
        attribute(&mut body, NAME, name);
        let mut message = ((HEAD + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.resize(HEAD, 0);
        message.extend(body);
        message
    }

    #[test]
    fn only_the_removal_of_our_tables_is_heard() {
        let ours = message(DELETE_TABLE, b"proa\0");
        assert!(is_removal(&ours, "proa"));
        assert!(!is_removal(&ours, "proa_1"));
        assert!(!is_removal(&message(DELETE_TABLE - 2, b"proa\0"), "proa"));
        let both = [message(DELETE_TABLE, b"filter\0"), ours.clone()].concat();
        assert!(is_removal(&both, "proa"));
        assert!(!is_removal(&ours[..ours.len() - 1], "proa"));
        assert!(!is_removal(&[0; 16], "proa"));
    }
}
