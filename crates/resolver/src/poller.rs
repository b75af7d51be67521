//! What the server waits for: descriptors by what they are, and moments.

use std::collections::BinaryHeap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::slab::Key;

/// Events taken at once.
const BATCH: usize = 64;

/// What a descriptor is, and where it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The steward's messages.
    Steward,
    /// A listening socket: the network's place, and the socket's number.
    Listener(usize, usize),
    /// A client's connection.
    Connection(usize),
    /// A question to a server.
    Question(usize),
}

impl Token {
    fn pack(self) -> u64 {
        let (kind, place, number) = match self {
            Self::Steward => (0, 0, 0),
            Self::Listener(place, number) => (1, place, number),
            Self::Connection(place) => (2, place, 0),
            Self::Question(place) => (3, place, 0),
        };
        kind << 56 | (number as u64) << 32 | place as u64
    }

    fn unpack(data: u64) -> Self {
        let place = (data & 0xffff_ffff) as usize;
        match data >> 56 {
            1 => Self::Listener(place, (data >> 32 & 0xff_ffff) as usize),
            2 => Self::Connection(place),
            3 => Self::Question(place),
            _ => Self::Steward,
        }
    }
}

/// What is waited for of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// That it can be read.
    Read,
    /// That it can be written.
    Write,
    /// Nothing for now.
    Nothing,
}

impl Interest {
    fn flags(self) -> EventFlags {
        match self {
            Self::Read => EventFlags::IN,
            Self::Write => EventFlags::OUT,
            Self::Nothing => EventFlags::empty(),
        }
    }
}

/// Whose time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// A client's connection.
    Connection(Key),
    /// A question, in its so-many-th attempt.
    Question(Key, u32),
}

/// Waits.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
    alarms: BinaryHeap<(std::cmp::Reverse<Instant>, Alarm)>,
}

impl Poller {
    /// Waits for nothing yet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, alarms: BinaryHeap::new() })
    }

    /// Waits for a descriptor too, until it is closed.
    ///
    /// # Errors
    /// The kernel lacks memory.
    pub fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token.pack()), interest.flags())?)
    }

    /// Waits for something else of a descriptor.
    ///
    /// # Errors
    /// It is not waited for.
    pub fn change(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(token.pack()), interest.flags())?)
    }

    /// Wakes up at a moment.
    pub fn alarm(&mut self, at: Instant, alarm: Alarm) {
        self.alarms.push((std::cmp::Reverse(at), alarm));
    }

    /// An alarm whose moment has come.
    pub fn due(&mut self, now: Instant) -> Option<Alarm> {
        let (std::cmp::Reverse(at), _) = self.alarms.peek()?;
        if *at > now {
            return None;
        }
        self.alarms.pop().map(|(_, alarm)| alarm)
    }

    /// Waits for events, or the next alarm.
    ///
    /// # Errors
    /// The descriptor is broken.
    pub fn wait(&self, tokens: &mut Vec<Token>) -> io::Result<()> {
        let mut events = Vec::with_capacity(BATCH);
        let next = self.alarms.peek().map(|(std::cmp::Reverse(at), _)| *at);
        let timeout = next.map(|at| timespec(at.saturating_duration_since(Instant::now())));
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        tokens.clear();
        tokens.extend(events.iter().map(|event: &epoll::Event| Token::unpack(event.data.u64())));
        Ok(())
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::Slab;

    #[test]
    fn tokens_are_what_they_were() {
        for token in
            [Token::Steward, Token::Listener(70_000, 3), Token::Connection(5), Token::Question(1 << 20)]
        {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }

    #[test]
    fn alarms_come_in_their_order() {
        let (mut poller, now) = (Poller::new().unwrap(), Instant::now());
        let key = Slab::default().insert(());
        poller.alarm(now + Duration::from_secs(2), Alarm::Connection(key));
        poller.alarm(now + Duration::from_secs(1), Alarm::Question(key, 1));
        assert_eq!(poller.due(now), None);
        let later = now + Duration::from_secs(3);
        assert_eq!(poller.due(later), Some(Alarm::Question(key, 1)));
        assert_eq!(poller.due(later), Some(Alarm::Connection(key)));
        assert_eq!(poller.due(later), None);
    }
}
