//! Moments as RFC 3339 writes them.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Now, in UTC.
pub fn now() -> String {
    rfc3339(clock_gettime(ClockId::Realtime))
}

fn rfc3339(time: Timespec) -> String {
    format!("{}.{:09}Z", proa_protocol::time::utc(time.tv_sec), time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        let at = |tv_sec| rfc3339(Timespec { tv_sec, tv_nsec: 5 });
        assert_eq!(at(0), "1970-01-01T00:00:00.000000005Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59.000000005Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000005Z");
        assert_eq!(at(1_700_000_000), "2023-11-14T22:13:20.000000005Z");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59.000000005Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000000005Z");
    }
}
