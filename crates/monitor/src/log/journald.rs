//! Messages to the journal of systemd, in its native protocol.
//!
//! ```text
//!   KEY=value\n                          a value of one line
//!   KEY\n<length, u64 little-endian>value\n    any value
//! ```

use proa_protocol::log::LogConfig;

use super::{Ends, Entry, Identity};
use crate::clock::Rfc3339;

/// Where the journal listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";
/// Severities of syslog.
const ERROR: &[u8] = b"PRIORITY=3\n";
const INFORMATION: &[u8] = b"PRIORITY=6\n";

/// Writes lines as messages.
pub struct Journal {
    /// The fields that all messages share.
    fields: Vec<u8>,
    clock: Rfc3339,
}

impl Journal {
    /// Messages of this instance.
    pub fn new(identity: &Identity, config: &LogConfig) -> Self {
        let mut fields = Vec::new();
        let short = &identity.id[..identity.id.len().min(12)];
        let own = [
            ("CONTAINER_ID", short),
            ("CONTAINER_ID_FULL", &identity.id),
            ("CONTAINER_NAME", &identity.name),
            ("CONTAINER_TAG", &config.tag),
            ("IMAGE_NAME", &identity.image),
            ("SYSLOG_IDENTIFIER", &config.tag),
        ];
        own.iter().for_each(|(key, value)| field(key, value.as_bytes(), &mut fields));
        for (key, value) in &config.attributes {
            field(&name(key), value.as_bytes(), &mut fields);
        }
        Self { fields, clock: Rfc3339::default() }
    }

    /// The message of a line.
    pub fn encode(&mut self, entry: &Entry) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.fields.len() + entry.text.len() + 128);
        out.extend_from_slice(if entry.stderr { ERROR } else { INFORMATION });
        out.extend_from_slice(b"SYSLOG_TIMESTAMP=");
        self.clock.append(entry.at_ns, &mut out);
        out.push(b'\n');
        if entry.ends == Ends::Split {
            out.extend_from_slice(b"CONTAINER_PARTIAL_MESSAGE=true\n");
        }
        out.extend_from_slice(&self.fields);
        field("MESSAGE", entry.text, &mut out);
        out
    }
}

fn field(key: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(key.as_bytes());
    if value.contains(&b'\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// What a field may be called: capitals, digits and underscores, not beginning with the last two.
fn name(key: &str) -> String {
    let upper = key.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    upper.skip_while(|c| !c.is_ascii_uppercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_those_of_docker() {
        let id = "0123456789abcdef".to_owned();
        let identity = Identity { id, name: "web".into(), image: "busybox".into() };
        let attributes = [("com.example.tier".to_owned(), "a\nb".to_owned())].into();
        let config = LogConfig { tag: "t".into(), attributes, ..LogConfig::default() };
        let mut journal = Journal::new(&identity, &config);
        let entry = Entry { stderr: true, at_ns: 0, text: b"oh no", ends: Ends::Split };
        let expected = b"PRIORITY=3\nSYSLOG_TIMESTAMP=1970-01-01T00:00:00Z\nCONTAINER_PARTIAL_MESSAGE=true\n\
            CONTAINER_ID=0123456789ab\nCONTAINER_ID_FULL=0123456789abcdef\nCONTAINER_NAME=web\nCONTAINER_TAG=t\n\
            IMAGE_NAME=busybox\nSYSLOG_IDENTIFIER=t\nCOM_EXAMPLE_TIER\n\x03\0\0\0\0\0\0\0a\nb\nMESSAGE=oh no\n";
        assert_eq!(String::from_utf8_lossy(&journal.encode(&entry)), String::from_utf8_lossy(expected));
    }

    #[test]
    fn names_of_fields_are_allowed_ones() {
        assert_eq!(name("_1a.b-c"), "A_B_C");
    }
}
