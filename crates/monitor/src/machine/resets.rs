//! Resets: a system may reset its machine, and one that does so again and again is slowed down.
//!
//! An installer resets once, a firmware that was given new settings twice. A guest that resets as soon as it runs costs
//! its host a CPU and gets nowhere: after [`FREE`] such resets it waits before each further one, twice as long each time.

use std::time::{Duration, Instant};

/// Resets in a row that cost nothing.
const FREE: u32 = 4;
/// A guest that has run for so long was not reset in a row.
const APART: Duration = Duration::from_secs(20);
/// What comes sooner belongs to the same: a BIOS that finds itself running again resets the board once more.
const SAME: Duration = Duration::from_millis(250);
/// The first wait, and the longest.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// The resets of one run.
#[derive(Debug, Default)]
pub struct Resets {
    last: Option<Instant>,
    in_a_row: u32,
    held_until: Option<Instant>,
}

impl Resets {
    /// Notes one; how long the guest is to be held, if it is.
    pub fn note(&mut self, now: Instant) -> Option<Duration> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < SAME) {
            return None;
        }
        let soon = self.last.is_some_and(|last| now.saturating_duration_since(last) < APART);
        self.in_a_row = if soon { self.in_a_row.saturating_add(1) } else { 1 };
        self.last = Some(now);
        let beyond = self.in_a_row.checked_sub(FREE + 1)?;
        let wait = FIRST.saturating_mul(1 << beyond.min(10)).min(LONGEST);
        self.held_until = Some(now + wait);
        // What it waits is not what it ran.
        self.last = self.held_until;
        Some(wait)
    }

    /// Until when it is held.
    pub fn held_until(&self) -> Option<Instant> {
        self.held_until
    }

    /// Whether the guest, which was held, may go on now; told once.
    pub fn release(&mut self, now: Instant) -> bool {
        self.held_until.take_if(|until| *until <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_in_a_row_are_slowed_down_and_those_apart_are_not() {
        let mut now = Instant::now();
        let mut resets = Resets::default();
        let mut waits = Vec::new();
        for _ in 0..12 {
            now += SAME;
            let wait = resets.note(now).unwrap_or_default();
            // Asked for twice, and done once.
            assert_eq!(resets.note(now), None);
            now += wait;
            assert_eq!(resets.release(now), !wait.is_zero());
            waits.push(wait.as_secs());
        }
        assert_eq!(waits, [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60]);
        for _ in 0..10 {
            now += APART;
            assert_eq!(resets.note(now), None);
        }
    }

    #[test]
    fn it_is_held_until_its_time() {
        let mut now = Instant::now();
        let mut resets = Resets::default();
        for _ in 0..=FREE {
            now += SAME;
            resets.note(now);
        }
        assert_eq!(resets.held_until(), Some(now + FIRST));
        assert!(!resets.release(now) && resets.release(now + FIRST) && !resets.release(now + FIRST));
    }
}
