//! Where an instance's output goes, and the format of the driver `local`.
//!
//! ```text
//!   <instance>/log.json   json-file: Docker's, one object a line      .1 .2 …  older ones, .N.gz when compressed
//!   <instance>/log.local  local: Docker's as well,
//!                         length, LogEntry, length: the lengths big-endian u32, the entry in protobuf
//!                         {1: "stdout"|"stderr", 2: ns since the epoch, 3: bytes without newline, 4: partial}
//! ```
//!
//! A compressed file's gzip header names, as its comment, the inode of the file that it was made of: so a reader
//! that has that one open finds its place.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Name of the driver `local`'s file.
pub const LOCAL_FILE: &str = "log.local";
/// Ends the name of a compressed file.
pub const COMPRESSED: &str = ".gz";
/// More than an entry of the driver `local` has.
pub const MAX_LOCAL_ENTRY: u32 = 1 << 20;

/// Who keeps the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogDriver {
    /// Files of JSON lines.
    #[default]
    JsonFile,
    /// Files in a shorter form.
    Local,
    /// The journal of systemd.
    Journald,
    /// A syslog server.
    Syslog,
    /// Nobody.
    None,
}

impl LogDriver {
    /// All, by Docker's names.
    pub const ALL: [(&'static str, Self); 5] = [
        ("json-file", Self::JsonFile),
        ("local", Self::Local),
        ("journald", Self::Journald),
        ("syslog", Self::Syslog),
        ("none", Self::None),
    ];

    /// The name of the current file; `None` where there are no files.
    pub fn file(self) -> Option<&'static str> {
        match self {
            Self::JsonFile => Some(crate::instance::LOG_FILE),
            Self::Local => Some(LOCAL_FILE),
            Self::Journald | Self::Syslog | Self::None => None,
        }
    }
}

/// What a monitor does with output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogConfig {
    /// Who keeps it.
    #[serde(skip_serializing_if = "is_default")]
    pub driver: LogDriver,
    /// Bytes after which a new file is begun; 0 for never.
    pub max_size: u64,
    /// Files kept, the current one included.
    pub max_files: u32,
    /// Compress all but the current one.
    #[serde(skip_serializing_if = "is_default")]
    pub compress: bool,
    /// Labels and variables that each line carries.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// What the driver calls the instance.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tag: String,
    /// Bytes that may wait before the oldest are dropped; without it the instance waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_buffer: Option<u64>,
    /// Of the driver `syslog`.
    #[serde(skip_serializing_if = "is_default")]
    pub syslog: SyslogConfig,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            driver: LogDriver::default(),
            max_size: 10 * 1024 * 1024,
            max_files: 3,
            compress: false,
            attributes: BTreeMap::new(),
            tag: String::new(),
            max_buffer: None,
            syslog: SyslogConfig::default(),
        }
    }
}

/// How a syslog server is reached and spoken to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SyslogConfig {
    /// Where it is.
    pub address: SyslogAddress,
    /// The number of the facility.
    pub facility: u8,
    /// The form of a message.
    pub format: SyslogFormat,
    /// The host's name in messages.
    pub hostname: String,
}

/// Where a syslog server is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyslogAddress {
    /// The first of the usual sockets of this host that is there.
    #[default]
    Host,
    /// A unix socket, a stream or else datagrams.
    Unix(String),
    /// A unix socket of datagrams.
    Unixgram(String),
    /// `ADDRESS:PORT`
    Udp(std::net::SocketAddr),
    /// `ADDRESS:PORT`
    Tcp(std::net::SocketAddr),
}

/// The form of a message to a syslog server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyslogFormat {
    /// As a program tells the host's own server: RFC 3164 without the host.
    #[default]
    Unix,
    /// RFC 3164.
    Rfc3164,
    /// RFC 5424 in whole seconds.
    Rfc5424,
    /// RFC 5424 in microseconds.
    Rfc5424Micro,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_monitor_reads_is_frozen() {
        let plain = r#"{"max_size":10485760,"max_files":3}"#;
        assert_eq!(serde_json::to_string(&LogConfig::default()).unwrap(), plain);
        assert_eq!(serde_json::from_str::<LogConfig>(plain).unwrap(), LogConfig::default());
        let config = LogConfig {
            driver: LogDriver::Syslog,
            tag: "web".into(),
            max_buffer: Some(1000),
            syslog: SyslogConfig {
                address: SyslogAddress::Udp("127.0.0.1:514".parse().unwrap()),
                facility: 3,
                format: SyslogFormat::Rfc5424Micro,
                hostname: "here".into(),
            },
            ..LogConfig::default()
        };
        let text = serde_json::to_string(&config).unwrap();
        let expected =
            r#"{"driver":"syslog","max_size":10485760,"max_files":3,"tag":"web","max_buffer":1000,"#;
        let syslog = r#""syslog":{"address":{"udp":"127.0.0.1:514"},"facility":3,"format":"rfc5424micro","hostname":"here"}}"#;
        assert_eq!(text, format!("{expected}{syslog}"));
        assert_eq!(serde_json::from_str::<LogConfig>(&text).unwrap(), config);
    }
}
