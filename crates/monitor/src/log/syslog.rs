//! Messages to a syslog server: RFC 3164 and RFC 5424, in the forms that Docker has.

use std::fmt::Write;

use proa_protocol::log::{SyslogConfig, SyslogFormat};

use super::Entry;

/// Severities.
const ERROR: u8 = 3;
const INFORMATION: u8 = 6;
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Writes lines as messages.
pub struct Syslog {
    facility: u8,
    format: SyslogFormat,
    hostname: String,
    tag: String,
    /// The sender's.
    pid: u32,
}

impl Syslog {
    /// Messages of an instance called `tag`.
    pub fn new(config: &SyslogConfig, tag: &str) -> Self {
        Self {
            facility: config.facility,
            format: config.format,
            hostname: config.hostname.clone(),
            tag: tag.to_owned(),
            pid: std::process::id(),
        }
    }

    /// The message of a line.
    pub fn encode(&self, entry: &Entry) -> Vec<u8> {
        let priority = self.facility << 3 | if entry.stderr { ERROR } else { INFORMATION };
        let Self { hostname, tag, pid, .. } = self;
        let mut head = format!("<{priority}>");
        let second = entry.at_ns.div_euclid(1_000_000_000);
        let micros = entry.at_ns.rem_euclid(1_000_000_000) / 1000;
        // Writing to a text cannot fail.
        let _ = match self.format {
            SyslogFormat::Unix => write!(head, "{} {tag}[{pid}]: ", local(second)),
            SyslogFormat::Rfc3164 => write!(head, "{} {hostname} {tag}[{pid}]: ", local(second)),
            SyslogFormat::Rfc5424 => {
                let time = proa_protocol::time::utc(second);
                write!(head, "1 {time}Z {hostname} {tag} {pid} {tag} - ")
            }
            SyslogFormat::Rfc5424Micro => {
                let time = proa_protocol::time::utc(second);
                write!(head, "1 {time}.{micros:06}Z {hostname} {tag} {pid} {tag} - ")
            }
        };
        let mut out = head.into_bytes();
        out.reserve(entry.text.len() + 1);
        out.extend_from_slice(entry.text);
        // Servers take a message of a stream to end with a line.
        out.push(b'\n');
        out
    }
}

/// The host's time of day, as RFC 3164 has it: `Jan  2 15:04:05`.
fn local(second: i64) -> String {
    let text = proa_protocol::time::utc(second + proa_sys::localtime::offset(second));
    stamp(&text)
}

fn stamp(text: &str) -> String {
    let number =
        |range: std::ops::Range<usize>| text.get(range).and_then(|digits| digits.parse().ok()).unwrap_or(1);
    let (month, day): (usize, usize) = (number(5..7), number(8..10));
    format!("{} {day:>2} {}", MONTHS[(month - 1) % 12], text.get(11..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::Ends;
    use super::*;

    fn message(format: SyslogFormat, stderr: bool) -> String {
        let config = SyslogConfig { facility: 3, format, hostname: "here".into(), ..Default::default() };
        let syslog = Syslog { pid: 7, ..Syslog::new(&config, "tag") };
        let at_ns = 1_700_000_000_000_123_456;
        let entry = Entry { stderr, at_ns, text: b"text", ends: Ends::Line };
        String::from_utf8(syslog.encode(&entry)).unwrap()
    }

    #[test]
    fn forms() {
        let utc = "1 2023-11-14T22:13:20";
        assert_eq!(message(SyslogFormat::Rfc5424, false), format!("<30>{utc}Z here tag 7 tag - text\n"));
        let micro = message(SyslogFormat::Rfc5424Micro, true);
        assert_eq!(micro, format!("<27>{utc}.000123Z here tag 7 tag - text\n"));
        let old = message(SyslogFormat::Rfc3164, false);
        assert!(old.starts_with("<30>Nov 1") && old.ends_with(" here tag[7]: text\n"), "{old}");
        let unix = message(SyslogFormat::Unix, false);
        assert!(unix.starts_with("<30>Nov 1") && !unix.contains("here"), "{unix}");
        assert_eq!(stamp("2026-01-02T15:04:05"), "Jan  2 15:04:05");
    }
}
