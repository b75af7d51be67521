//! What people write on a command line: sizes, durations, moments, switches.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
pub use proa_protocol::time::now_ns;

use crate::error::{Error, Result};

/// Bytes from `64m`, `1.5g`, `2GiB`, `100`: binary multiples, as Docker reads memory.
///
/// # Errors
/// It is not a size.
pub fn bytes(text: &str) -> Result<i64> {
    let wrong = || Error::Invalid {
        message: format!("invalid size {text:?}"),
        hint: "a number with an optional b, k, m, g, t or p, as 64m or 1.5g".into(),
    };
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let letter = match unit.as_str() {
        "" | "b" => return exact(number).ok_or_else(wrong),
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(wrong()),
    };
    exact(number * 1024f64.powi(letter)).ok_or_else(wrong)
}

fn exact(number: f64) -> Option<i64> {
    // 2^63 as a float: everything below it fits.
    (number.is_finite() && (0.0..9_223_372_036_854_775_808.0).contains(&number)).then_some(number as i64)
}

/// Nanoseconds from Go's duration text: `1h30m`, `1.5s`, `250ms`, `-2m`, `0`.
///
/// # Errors
/// It is not a duration.
pub fn duration_ns(text: &str) -> Result<i64> {
    let wrong = || Error::Invalid {
        message: format!("invalid duration {text:?}"),
        hint: "numbers with h, m, s, ms, us or ns, as 1h30m or 250ms".into(),
    };
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    let mut total = 0f64;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let length = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..length] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return Err(wrong()),
        };
        total += number * unit;
        rest = &rest[length..];
    }
    let total = sign * total;
    if total.abs() >= i64::MAX as f64 {
        return Err(wrong());
    }
    Ok(total as i64)
}

/// A moment in nanoseconds since the epoch, from what `logs --since` takes: RFC 3339 with or without a zone,
/// a date, seconds since the epoch with an optional fraction, or a duration before `now_ns`.
///
/// Without a zone it is the local time of `zone`.
///
/// # Errors
/// It is none of these.
pub fn moment_ns(text: &str, now_ns: i64, zone: &TimeZone) -> Result<i64> {
    let wrong = || Error::Invalid {
        message: format!("invalid time {text:?}"),
        hint: "a time as 2026-01-02T13:23:37Z, seconds since 1970, or a duration before now as 42m".into(),
    };
    if let Some(ns) = epoch_seconds(text) {
        return Ok(ns);
    }
    if let Ok(ago) = duration_ns(text) {
        return now_ns.checked_sub(ago).ok_or_else(wrong);
    }
    let nanoseconds = |at: Timestamp| i64::try_from(at.as_nanosecond()).map_err(|_| wrong());
    if let Ok(at) = text.parse::<Timestamp>() {
        return nanoseconds(at);
    }
    let civil = text.parse::<DateTime>().or_else(|_| text.parse::<Date>().map(|date| date.at(0, 0, 0, 0)));
    let civil = civil.or_else(|_| DateTime::strptime("%Y-%m-%dT%H", text)).map_err(|_| wrong())?;
    let zoned = civil.to_zoned(zone.clone()).map_err(|_| wrong())?;
    nanoseconds(zoned.timestamp())
}

fn epoch_seconds(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.is_empty() || !digits(seconds) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let nanoseconds: i64 = format!("{fraction:0<9}").parse().ok()?;
    seconds.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

/// RFC 3339 in UTC with nanoseconds, trailing zeros dropped, as Go prints it.
pub fn rfc3339_nano(ns: i64) -> String {
    Timestamp::from_nanosecond(ns.into())
        .map_or_else(|_| String::from("0001-01-01T00:00:00Z"), |at| at.to_string())
}

/// The same for a moment where 0 means never, with Go's zero time for that.
pub fn rfc3339_or_zero(ns: i64) -> String {
    if ns == 0 { "0001-01-01T00:00:00Z".into() } else { rfc3339_nano(ns) }
}

/// Go's `strconv.ParseBool`.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Billionths of a CPU from `1.5`.
///
/// # Errors
/// It is not a positive decimal with at most nine places.
pub fn nano_cpus(text: &str) -> Result<i64> {
    let wrong = || Error::Invalid {
        message: format!("invalid number of CPUs {text:?}"),
        hint: "a positive decimal, as 0.5 or 2".into(),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) || fraction.len() > 9
    {
        return Err(wrong());
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
    let fraction: i64 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
    whole.checked_mul(1_000_000_000).and_then(|ns| ns.checked_add(fraction)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        for (text, expected) in [
            ("0", 0),
            ("100", 100),
            ("100b", 100),
            ("64m", 64 << 20),
            ("64M", 64 << 20),
            ("64MB", 64 << 20),
            ("64MiB", 64 << 20),
            ("1.5g", 3 << 29),
            ("2 kb", 2048),
            ("1t", 1 << 40),
        ] {
            assert_eq!(bytes(text).unwrap(), expected, "{text}");
        }
        for text in ["", "m", "lots", "-1", "1x", "1mm", "1..2m", "9999999p", "1e3"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_gos() {
        let second = 1_000_000_000;
        for (text, expected) in [
            ("0", 0),
            ("1s", second),
            ("1h30m", 5400 * second),
            ("1.5s", second * 3 / 2),
            ("250ms", second / 4),
            ("-2m", -120 * second),
            ("1us", 1000),
            ("7ns", 7),
        ] {
            assert_eq!(duration_ns(text).unwrap(), expected, "{text}");
        }
        for text in ["", "5", "s", "1d", "1h2", "h1", "-", "99999999999h"] {
            assert!(duration_ns(text).is_err(), "{text}");
        }
    }

    #[test]
    fn moments_in_all_forms() {
        let now = 2_000_000_000_000_000_000;
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let at = |text| moment_ns(text, now, &zone).unwrap();
        assert_eq!(at("10m"), now - 600_000_000_000);
        assert_eq!(at("1700000000"), 1_700_000_000_000_000_000);
        assert_eq!(at("1700000000.25"), 1_700_000_000_250_000_000);
        assert_eq!(at("1970-01-01T00:00:01Z"), 1_000_000_000);
        assert_eq!(at("1970-01-01T00:00:01.5+00:00"), 1_500_000_000);
        assert_eq!(at("1970-01-01T02:00:00"), 0);
        assert_eq!(at("1970-01-01T02:00"), 0);
        assert_eq!(at("1970-01-01T02"), 0);
        assert_eq!(at("1970-01-02"), 22 * 3600 * 1_000_000_000);
        for text in ["", "yesterday", "2026-13-01", "1700000000.0123456789", "T10"] {
            assert!(moment_ns(text, now, &zone).is_err(), "{text}");
        }
    }

    #[test]
    fn times_print_as_in_go() {
        assert_eq!(rfc3339_nano(1_700_000_000_120_000_000), "2023-11-14T22:13:20.12Z");
        assert_eq!(rfc3339_nano(1_700_000_000_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339_or_zero(0), "0001-01-01T00:00:00Z");
    }

    #[test]
    fn cpus_are_exact() {
        assert_eq!(nano_cpus("1.5").unwrap(), 1_500_000_000);
        assert_eq!(nano_cpus(".1").unwrap(), 100_000_000);
        assert_eq!(nano_cpus("2").unwrap(), 2_000_000_000);
        for text in ["", ".", "-1", "1.0000000001", "x", "99999999999"] {
            assert!(nano_cpus(text).is_err(), "{text}");
        }
    }
}
