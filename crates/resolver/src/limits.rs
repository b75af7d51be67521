//! How much of the server one sender may use, so that the others get their answers.
//!
//! Senders are counted by the addresses of endpoints. All packets of a network that come from elsewhere count as one
//! sender's: addresses can be made up, and must not fill memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use crate::zone::Zone;

/// Queries a second that a sender may keep up: a quarter of what one core answers, and more than any program asks.
const RATE: f64 = 50_000.0;
/// Queries that it may send at once.
const BURST: f64 = 10_000.0;
/// Most queries of a sender that wait for servers elsewhere.
const PER_SENDER: usize = 100;
/// Most of a network's.
const PER_NETWORK: usize = 500;
/// Most of all.
pub const WAITING: usize = 2_000;
/// Most connections of a sender.
const CONNECTIONS_PER_SENDER: usize = 16;
/// Most connections of all.
pub const CONNECTIONS: usize = 512;

/// What the senders of a network use.
#[derive(Debug, Default)]
pub struct Senders {
    known: HashMap<IpAddr, Use>,
    others: Use,
    waiting: usize,
}

#[derive(Debug)]
struct Use {
    tokens: f64,
    filled: Option<Instant>,
    waiting: usize,
    connections: usize,
}

impl Default for Use {
    fn default() -> Self {
        Self { tokens: BURST, filled: None, waiting: 0, connections: 0 }
    }
}

/// Whose use is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// An endpoint's.
    Known(IpAddr),
    /// That of all others.
    Other,
}

impl Senders {
    /// Who sends from this address.
    pub fn sender(zone: &Zone, source: IpAddr) -> Sender {
        if zone.knows(source) { Sender::Known(source) } else { Sender::Other }
    }

    /// Forgets those that nothing waits for and that are no endpoint's any more.
    pub fn tidy(&mut self, zone: &Zone) {
        self.known.retain(|source, used| zone.knows(*source) || used.waiting + used.connections > 0);
    }

    /// Whether another packet is read.
    pub fn may_ask(&mut self, sender: Sender, now: Instant) -> bool {
        let used = self.used(sender);
        if let Some(filled) = used.filled {
            let since = now.saturating_duration_since(filled).as_secs_f64();
            used.tokens = (used.tokens + since * RATE).min(BURST);
        }
        used.filled = Some(now);
        let may = used.tokens >= 1.0;
        if may {
            used.tokens -= 1.0;
        }
        may
    }

    /// Counts another query that waits, if there may be one.
    pub fn wait(&mut self, sender: Sender) -> bool {
        let full = self.waiting >= PER_NETWORK;
        let used = self.used(sender);
        let may = !full && used.waiting < PER_SENDER;
        if may {
            used.waiting += 1;
            self.waiting += 1;
        }
        may
    }

    /// One waits no more.
    pub fn waited(&mut self, sender: Sender) {
        let used = self.used(sender);
        used.waiting = used.waiting.saturating_sub(1);
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// Counts another connection, if there may be one.
    pub fn connect(&mut self, sender: Sender) -> bool {
        let used = self.used(sender);
        let may = used.connections < CONNECTIONS_PER_SENDER;
        used.connections += usize::from(may);
        may
    }

    /// One was closed.
    pub fn disconnect(&mut self, sender: Sender) {
        let used = self.used(sender);
        used.connections = used.connections.saturating_sub(1);
    }

    fn used(&mut self, sender: Sender) -> &mut Use {
        match sender {
            Sender::Known(source) => self.known.entry(source).or_default(),
            Sender::Other => &mut self.others,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const ONE: Sender = Sender::Known(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)));

    #[test]
    fn who_asks_too_fast_waits_for_its_share() {
        let (mut senders, start) = (Senders::default(), Instant::now());
        let asked = (0..20_000).filter(|_| senders.may_ask(ONE, start)).count();
        assert_eq!(asked, BURST as usize);
        assert!(senders.may_ask(Sender::Other, start));
        let later = start + Duration::from_millis(1);
        assert_eq!((0..100).filter(|_| senders.may_ask(ONE, later)).count(), 50);
    }

    #[test]
    fn one_sender_cannot_take_the_place_of_all() {
        let mut senders = Senders::default();
        assert_eq!((0..1000).filter(|_| senders.wait(ONE)).count(), PER_SENDER);
        assert!(senders.wait(Sender::Other));
        senders.waited(ONE);
        assert!(senders.wait(ONE) && !senders.wait(ONE));
        assert_eq!((0..1000).filter(|_| senders.connect(ONE)).count(), CONNECTIONS_PER_SENDER);
        senders.disconnect(ONE);
        assert!(senders.connect(ONE));
    }
}
