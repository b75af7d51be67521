//! How long an instance waits before its program is run again: Docker's back-off.
//!
//! The first wait takes 100 ms, each further one twice as long, up to a minute. A run of ten seconds begins anew.
//! All of it is the time of the monotonic clock, which neither a jump of the wall clock nor a suspended host
//! moves: it is time in which the program could have run.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);
/// A run this long has worked.
const WORKED: Duration = Duration::from_secs(10);

/// The waits of one instance.
#[derive(Debug, Default)]
pub struct BackOff {
    last: Option<Duration>,
    running_since: Option<Instant>,
}

impl BackOff {
    /// The program runs.
    pub fn started(&mut self, now: Instant) {
        self.running_since = Some(now);
    }

    /// The program has ended, or could not be run: how long to wait now.
    pub fn next_wait(&mut self, now: Instant) -> Duration {
        let ran =
            self.running_since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let wait = match self.last {
            Some(last) if ran < WORKED => (last * 2).min(LONGEST),
            _ => FIRST,
        };
        self.last = Some(wait);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that ends after each of these times; the waits between, in milliseconds.
    fn waits(runs: impl IntoIterator<Item = Duration>) -> Vec<u128> {
        let mut clock = Instant::now();
        let mut back_off = BackOff::default();
        let wait = |ran| {
            back_off.started(clock);
            clock += ran;
            let wait = back_off.next_wait(clock);
            clock += wait;
            wait.as_millis()
        };
        runs.into_iter().map(wait).collect()
    }

    #[test]
    fn waits_double_up_to_a_minute() {
        let short = std::iter::repeat_n(Duration::from_millis(5), 13);
        let doubled = [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000, 60_000];
        assert_eq!(waits(short), doubled);
    }

    #[test]
    fn ten_seconds_of_running_begin_anew() {
        let runs = [0, 1, 9, 10, 0, 3600, 0].map(Duration::from_secs);
        assert_eq!(waits(runs), [100, 200, 400, 100, 200, 100, 200]);
    }

    #[test]
    fn a_start_that_fails_is_a_run_of_no_time() {
        let mut back_off = BackOff::default();
        let now = Instant::now();
        back_off.started(now);
        let after = now + Duration::from_secs(20);
        let waits = [(); 3].map(|()| back_off.next_wait(after).as_millis());
        assert_eq!(waits, [100, 200, 400]);
    }
}
