//! When an instance is checked, and what its checks mean: Docker's rules.
//!
//! ```text
//!   Off ─ started ─▶ Resting ─ interval over ─▶ Checking ─ ended ────────────────────▶ Resting
//!                      ▲                           └ time over ─▶ Lingering ─ ended ─┘
//!   any ─ stopped ─▶ Off                                          └ interval over: another failure
//! ```
//!
//! It knows times and results alone: the loop in `serve` runs the checks. Times are those of the monotonic clock: a
//! jump of the wall clock moves no check, and a host that was suspended has not let one run into its limit.
//! While the instance is paused, time stands still here as well.
//!
//! A check that does not end is killed with all its process group. One that outlives even that keeps the next from
//! being begun, so that however a check behaves there is one of them at most. Of its output the beginning is kept.

use std::time::{Duration, Instant};

use proa_protocol::health::{Checked, Health, HealthCheck, HealthStatus};

/// Checks that are remembered.
const LOGGED: usize = 5;
/// Bytes of a check's output that are kept.
const MOST_OUTPUT: usize = 4096;
/// The code of a check that did not end by itself.
const NO_CODE: i32 = -1;

enum Phase {
    Off,
    Resting { next: Instant },
    Checking(Check),
    Lingering { channel: u32, next: Instant },
}

/// A check that runs.
struct Check {
    channel: u32,
    until: Instant,
    /// When it began: since the program's start, and by the wall clock.
    after: Duration,
    start_ns: i64,
    output: Vec<u8>,
    cut: bool,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// Begin a check, and say so by [`Checks::begun`].
    Check,
    /// End what runs on this channel, which has been judged.
    Abort(u32),
    /// Nothing more: a failure was noted.
    Noted,
}

/// The checks of one instance.
pub struct Checks {
    config: HealthCheck,
    health: Health,
    phase: Phase,
    started: Instant,
    paused: Option<Instant>,
}

impl Checks {
    /// Checks of an instance of which this was found before.
    pub fn new(config: HealthCheck, health: Health, now: Instant) -> Self {
        Self { config, health, phase: Phase::Off, started: now, paused: None }
    }

    /// What is asked for.
    pub fn config(&self) -> &HealthCheck {
        &self.config
    }

    /// What has been found.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// The channel of the check that runs.
    pub fn channel(&self) -> Option<u32> {
        match &self.phase {
            Phase::Checking(check) => Some(check.channel),
            Phase::Off | Phase::Resting { .. } | Phase::Lingering { .. } => None,
        }
    }

    /// The program runs.
    pub fn started(&mut self, now: Instant) {
        self.health.status = HealthStatus::Starting;
        self.health.failing_streak = 0;
        (self.started, self.paused) = (now, None);
        self.phase = Phase::Resting { next: self.next(now) };
    }

    /// The program has ended, and what was asked of it with it.
    pub fn stopped(&mut self) {
        self.health.status = HealthStatus::Unhealthy;
        self.phase = Phase::Off;
    }

    /// The instance was frozen.
    pub fn pause(&mut self, now: Instant) {
        self.paused.get_or_insert(now);
    }

    /// The instance was thawed: all that was to come comes later by the time in between.
    pub fn resume(&mut self, now: Instant) {
        let Some(since) = self.paused.take() else { return };
        let lost = now.saturating_duration_since(since);
        self.started += lost;
        match &mut self.phase {
            Phase::Resting { next } | Phase::Lingering { next, .. } => *next += lost,
            Phase::Checking(check) => check.until += lost,
            Phase::Off => {}
        }
    }

    /// When [`Checks::due`] is to be asked.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            _ if self.paused.is_some() => None,
            Phase::Resting { next } | Phase::Lingering { next, .. } => Some(*next),
            Phase::Checking(check) => Some(check.until),
            Phase::Off => None,
        }
    }

    /// What is due.
    pub fn due(&mut self, now: Instant, now_ns: i64) -> Option<Due> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        match std::mem::replace(&mut self.phase, Phase::Off) {
            Phase::Checking(mut check) => {
                let channel = check.channel;
                let limit = Duration::from_nanos(self.config.timeout_ns);
                let words = format!("Health check exceeded timeout ({limit:?})");
                check.prefix(&words);
                self.judge(check, NO_CODE, now_ns);
                self.phase = Phase::Lingering { channel, next: self.next(now) };
                Some(Due::Abort(channel))
            }
            Phase::Lingering { channel, .. } => {
                let mut check = Check::new(channel, now, now.saturating_duration_since(self.started), now_ns);
                check.prefix("the health check before has been killed and does not end");
                self.judge(check, NO_CODE, now_ns);
                self.phase = Phase::Lingering { channel, next: self.next(now) };
                Some(Due::Noted)
            }
            other => {
                self.phase = other;
                Some(Due::Check)
            }
        }
    }

    /// A check was begun on this channel.
    pub fn begun(&mut self, channel: u32, now: Instant, now_ns: i64) {
        let until = now + Duration::from_nanos(self.config.timeout_ns);
        self.phase =
            Phase::Checking(Check::new(channel, until, now.saturating_duration_since(self.started), now_ns));
    }

    /// The check has written something.
    pub fn output(&mut self, bytes: &[u8]) {
        if let Phase::Checking(check) = &mut self.phase {
            check.push(bytes);
        }
    }

    /// The check has ended with this code.
    pub fn ended(&mut self, code: i32, now: Instant, now_ns: i64) {
        match std::mem::replace(&mut self.phase, Phase::Off) {
            Phase::Checking(check) => {
                self.judge(check, code, now_ns);
                self.phase = Phase::Resting { next: self.next(now) };
            }
            other => self.phase = other,
        }
    }

    /// The check could not be run, for this reason.
    pub fn failed(&mut self, why: &str, now: Instant, now_ns: i64) {
        self.output(why.as_bytes());
        self.ended(NO_CODE, now, now_ns);
    }

    /// What was begun on this channel has ended at last.
    pub fn gone(&mut self, gone: u32) {
        if let Phase::Lingering { channel, next } = self.phase
            && channel == gone
        {
            self.phase = Phase::Resting { next };
        }
    }

    fn next(&self, now: Instant) -> Instant {
        let in_start_period = self.health.status == HealthStatus::Starting
            && now.saturating_duration_since(self.started)
                < Duration::from_nanos(self.config.start_period_ns);
        let interval = if in_start_period { self.config.start_interval_ns } else { self.config.interval_ns };
        now + Duration::from_nanos(interval)
    }

    fn judge(&mut self, check: Check, code: i32, now_ns: i64) {
        let health = &mut self.health;
        if code == 0 {
            (health.status, health.failing_streak) = (HealthStatus::Healthy, 0);
        } else {
            let start_period = Duration::from_nanos(self.config.start_period_ns);
            let counts = health.status != HealthStatus::Starting || check.after >= start_period;
            health.failing_streak = health.failing_streak.saturating_add(u32::from(counts));
            if counts && health.failing_streak >= self.config.retries {
                health.status = HealthStatus::Unhealthy;
            }
        }
        let over = (health.log.len() + 1).saturating_sub(LOGGED);
        health.log.drain(..over);
        health.log.push(Checked {
            start_ns: check.start_ns,
            end_ns: now_ns,
            exit_code: code,
            output: check.text(),
        });
    }
}

impl Check {
    fn new(channel: u32, until: Instant, after: Duration, start_ns: i64) -> Self {
        Self { channel, until, after, start_ns, output: Vec::new(), cut: false }
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = MOST_OUTPUT - self.output.len();
        self.cut |= bytes.len() > room;
        self.output.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn prefix(&mut self, words: &str) {
        let output = std::mem::take(&mut self.output);
        self.push(words.as_bytes());
        if !output.is_empty() {
            self.push(b": ");
            self.push(&output);
        }
    }

    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.output);
        if self.cut { format!("{text}...") } else { text.into_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A clock that moves when it is told to, and the checks of an instance just started.
    struct Bed {
        now: Instant,
        checks: Checks,
        channel: u32,
    }

    impl Bed {
        fn new(change: impl FnOnce(&mut HealthCheck)) -> Self {
            let mut config = HealthCheck {
                command: vec!["check".into()],
                interval_ns: 30 * SECOND,
                timeout_ns: 5 * SECOND,
                start_period_ns: 0,
                start_interval_ns: 5 * SECOND,
                retries: 3,
                ..HealthCheck::default()
            };
            change(&mut config);
            let now = Instant::now();
            let mut checks = Checks::new(config, Health::default(), now);
            checks.started(now);
            Self { now, checks, channel: 10 }
        }

        /// Lets the time of the next thing to do come.
        fn pass(&mut self) -> (u64, Due) {
            let deadline = self.checks.deadline().unwrap();
            let passed = deadline.saturating_duration_since(self.now).as_secs();
            assert_eq!(self.checks.due(deadline - Duration::from_nanos(1), 0), None);
            self.now = deadline;
            (passed, self.checks.due(self.now, 7).unwrap())
        }

        /// Begins the next check; how many seconds were waited for it.
        fn begin(&mut self) -> u64 {
            let (passed, due) = self.pass();
            assert_eq!(due, Due::Check);
            self.channel += 1;
            self.checks.begun(self.channel, self.now, 5);
            passed
        }

        /// Has a check end with this code.
        fn check(&mut self, code: i32) -> (HealthStatus, u32) {
            self.begin();
            self.checks.ended(code, self.now, 6);
            self.found()
        }

        fn found(&self) -> (HealthStatus, u32) {
            (self.checks.health().status, self.checks.health().failing_streak)
        }
    }

    #[test]
    fn so_many_failures_in_a_row_and_one_success() {
        use HealthStatus::{Healthy, Starting, Unhealthy};
        let mut bed = Bed::new(|_| {});
        let found = [1, 1, 1, 1, 0, 1, 2, 0, 7].map(|code| bed.check(code));
        let expected = [
            (Starting, 1),
            (Starting, 2),
            (Unhealthy, 3),
            (Unhealthy, 4),
            (Healthy, 0),
            (Healthy, 1),
            (Healthy, 2),
            (Healthy, 0),
            (Healthy, 1),
        ];
        assert_eq!(found, expected);
        let codes: Vec<i32> = bed.checks.health().log.iter().map(|check| check.exit_code).collect();
        assert_eq!(codes, [0, 1, 2, 0, 7]);
    }

    #[test]
    fn failures_of_the_start_period_do_not_count_until_one_has_succeeded() {
        use HealthStatus::{Healthy, Starting, Unhealthy};
        let long = |config: &mut HealthCheck| {
            config.start_period_ns = 60 * SECOND;
            config.retries = 1;
        };
        let mut bed = Bed::new(long);
        for _ in 0..11 {
            assert_eq!(bed.check(1), (Starting, 0));
        }
        // Sixty seconds after the start failures count, and checks come less often.
        assert_eq!(bed.check(1), (Unhealthy, 1));
        assert_eq!(bed.begin(), 30);
        let mut bed = Bed::new(long);
        assert_eq!(bed.begin(), 5);
        bed.checks.ended(0, bed.now, 0);
        assert_eq!(bed.found(), (Healthy, 0));
        assert_eq!(bed.begin(), 30);
        bed.checks.ended(1, bed.now, 0);
        assert_eq!(bed.found(), (Unhealthy, 1));
    }

    #[test]
    fn a_check_that_does_not_end_is_a_failure_and_the_only_one() {
        let mut bed = Bed::new(|config| config.retries = 2);
        assert_eq!(bed.begin(), 30);
        bed.checks.output(b"half");
        assert_eq!(bed.pass(), (5, Due::Abort(11)));
        assert_eq!(bed.found(), (HealthStatus::Starting, 1));
        let last = bed.checks.health().log.last().unwrap().clone();
        assert_eq!((last.exit_code, last.output.as_str()), (-1, "Health check exceeded timeout (5s): half"));
        // It lives on: no other is begun, and that is no success.
        assert_eq!(bed.pass(), (30, Due::Noted));
        assert_eq!(bed.found(), (HealthStatus::Unhealthy, 2));
        bed.checks.gone(99);
        assert_eq!(bed.pass().1, Due::Noted);
        bed.checks.gone(11);
        assert_eq!(bed.check(0), (HealthStatus::Healthy, 0));
        // What is said of one that was judged already changes nothing.
        bed.checks.ended(1, bed.now, 0);
        assert_eq!(bed.found(), (HealthStatus::Healthy, 0));
    }

    #[test]
    fn of_a_flood_the_beginning_is_kept() {
        let mut bed = Bed::new(|_| {});
        bed.begin();
        for _ in 0..100 {
            bed.checks.output(&[b'x'; 1000]);
        }
        bed.checks.ended(0, bed.now, 0);
        let output = &bed.checks.health().log[0].output;
        assert_eq!((output.len(), output.ends_with("x...")), (4099, true));
        bed.begin();
        bed.checks.failed("no such program", bed.now, 0);
        let last = bed.checks.health().log.last().unwrap();
        assert_eq!((last.exit_code, last.output.as_str()), (-1, "no such program"));
    }

    #[test]
    fn paused_time_is_no_time() {
        let mut bed = Bed::new(|_| {});
        bed.begin();
        let until = bed.checks.deadline().unwrap();
        bed.checks.pause(bed.now + Duration::from_secs(2));
        let later = bed.now + Duration::from_secs(1000);
        assert_eq!((bed.checks.deadline(), bed.checks.due(later, 0)), (None, None));
        bed.checks.resume(later);
        assert_eq!(bed.checks.deadline(), Some(until + Duration::from_secs(998)));
    }

    #[test]
    fn who_does_not_run_is_not_checked_and_not_well() {
        let mut bed = Bed::new(|_| {});
        assert_eq!(bed.check(0), (HealthStatus::Healthy, 0));
        bed.begin();
        bed.checks.stopped();
        assert_eq!((bed.checks.deadline(), bed.checks.channel()), (None, None));
        assert_eq!(bed.found().0, HealthStatus::Unhealthy);
        bed.checks.started(bed.now);
        assert_eq!((bed.found(), bed.checks.health().log.len()), ((HealthStatus::Starting, 0), 1));
    }
}
