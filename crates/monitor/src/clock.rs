//! Wall-clock time, and RFC 3339 with nanoseconds as Docker's logs have it.

use std::io::Write;

pub use proa_protocol::time::now_ns;

/// Writes times; keeps the text of the last one, which all lines that came together share.
#[derive(Debug, Default)]
pub struct Rfc3339 {
    last: Option<i64>,
    text: Vec<u8>,
}

impl Rfc3339 {
    /// Appends the UTC time, its fraction without trailing zeros.
    pub fn append(&mut self, ns: i64, out: &mut Vec<u8>) {
        if self.last != Some(ns) {
            self.last = Some(ns);
            self.text = format_time(ns);
        }
        out.extend_from_slice(&self.text);
    }
}

fn format_time(ns: i64) -> Vec<u8> {
    let mut text = proa_protocol::time::utc(ns.div_euclid(1_000_000_000)).into_bytes();
    let mut fraction = ns.rem_euclid(1_000_000_000);
    if fraction > 0 {
        let mut width = 9;
        while fraction % 10 == 0 {
            fraction /= 10;
            width -= 1;
        }
        // Writing to a vector cannot fail.
        let _ = write!(text, ".{fraction:0width$}");
    }
    text.push(b'Z');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ns: i64) -> String {
        let mut out = Vec::new();
        Rfc3339::default().append(ns, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn times_are_written_as_docker_does() {
        assert_eq!(text(0), "1970-01-01T00:00:00Z");
        assert_eq!(text(1_000_000_000 * 951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(text(1_795_000_000_123_456_789), "2026-11-18T11:06:40.123456789Z");
        assert_eq!(text(1_795_000_000_120_000_000), "2026-11-18T11:06:40.12Z");
        assert_eq!(text(1_795_000_000_000_000_001), "2026-11-18T11:06:40.000000001Z");
        assert_eq!(text(-1), "1969-12-31T23:59:59.999999999Z");
        assert_eq!(text(1_000_000_000 * 4_107_542_400), "2100-03-01T00:00:00Z");
    }
}
