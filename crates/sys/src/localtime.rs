//! The host's time zone.

/// Seconds that the host's clock on the wall is ahead of UTC at this second of the epoch.
pub fn offset(second: i64) -> i64 {
    let time = second as libc::time_t;
    // SAFETY: tm is plain data for which zero is valid.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the right types, and the call keeps neither.
    let done = unsafe { libc::localtime_r(&raw const time, &raw mut parts) };
    if done.is_null() { 0 } else { parts.tm_gmtoff }
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_zone_is_a_day_away() {
        assert!(super::offset(1_700_000_000).abs() <= 14 * 3600);
    }
}
