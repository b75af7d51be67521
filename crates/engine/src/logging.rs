//! Log drivers: Docker's options, the host's defaults, and what a monitor is told.
//!
//! ```toml
//! [log]
//! driver = "journald"
//!
//! [log.options]          # for instances whose driver is this one
//! tag = "{{.Name}}"
//! ```
//!
//! The server's name is looked up, and the tag written out, when the instance is made (the tag again when it is
//! renamed): a monitor can do neither.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;

use proa_protocol::log::{LogConfig, LogDriver, SyslogAddress, SyslogFormat};
use serde::Deserialize;

use crate::config::HostConfig;
use crate::db::Record;
use crate::error::{Error, Result};
use crate::{names, parse, settings};

/// What holds where an instance says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// Driver; `json-file` where there is none.
    pub driver: String,
    /// Options for instances with that driver.
    pub options: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    log: LogSettings,
}

/// The driver where nobody names one.
pub const DEFAULT_DRIVER: &str = "json-file";
/// What the drivers that send call an instance.
const DEFAULT_TAG: &str = "{{.ID}}";
/// Bytes that wait with `mode=non-blocking`, unless `max-buffer-size` says otherwise.
const DEFAULT_BUFFER: u64 = 1024 * 1024;
/// Smallest file.
const LEAST_SIZE: u64 = 4096;
/// Most files.
const MOST_FILES: u32 = 1000;
const SYSLOG_PORT: u16 = 514;
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "",
    "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];
/// The facility where nobody names one: `daemon`.
const DEFAULT_FACILITY: u8 = 3;

impl LogSettings {
    /// Reads the file's `log` table.
    ///
    /// # Errors
    /// The file cannot be read or understood, or an option makes no sense.
    pub fn load(path: &Path) -> Result<Self> {
        let file: File = settings::load(path, "[log] has driver = \"NAME\" and a table [log.options]")?;
        let mut host = HostConfig::default();
        host.log_config.kind.clear();
        file.log.complete(&mut host);
        let checked = parse(&host);
        checked.map(|_| file.log).map_err(|error| Error::Invalid {
            message: format!("{}: [log]: {error}", path.display()),
            hint: error.hint(),
        })
    }

    /// Writes out what the host decides where the user says nothing: the driver, and its options.
    pub fn complete(&self, host: &mut HostConfig) {
        let default = if self.driver.is_empty() { DEFAULT_DRIVER } else { &self.driver };
        let log = &mut host.log_config;
        if log.kind.is_empty() {
            log.kind = default.to_owned();
        }
        if log.kind == default {
            for (key, value) in &self.options {
                log.config.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    }
}

/// Reads the options that an instance was made with; what depends on the instance comes with [`identify`].
///
/// # Errors
/// A driver or an option is not there, or makes no sense.
pub(crate) fn parse(host: &HostConfig) -> Result<LogConfig> {
    let driver = driver(&host.log_config.kind)?;
    let options = &host.log_config.config;
    if driver == LogDriver::None
        && let Some(key) = options.keys().next()
    {
        return Err(Error::invalid(format!("invalid log option {key:?}: the driver none has no options")));
    }
    let mut config = LogConfig { driver, ..LogConfig::default() };
    if driver == LogDriver::Local {
        (config.max_size, config.max_files, config.compress) = (20 << 20, 5, true);
    }
    for (key, value) in options {
        read(&mut config, key, value)?;
    }
    if options.contains_key("max-buffer-size")
        && options.get("mode").is_none_or(|mode| mode != "non-blocking")
    {
        return Err(Error::invalid_with_hint(
            "max-buffer-size without mode=non-blocking",
            "the instance waits for its log unless mode=non-blocking",
        ));
    }
    if driver == LogDriver::Syslog {
        config.syslog.hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        if !options.contains_key("syslog-facility") {
            config.syslog.facility = DEFAULT_FACILITY;
        }
    }
    tag(options.get("tag").map_or("", String::as_str), &|_| Some(String::new()))?;
    Ok(config)
}

/// The name of the file that an instance's log goes to, if there is one.
pub(crate) fn file(host: &HostConfig) -> Option<&'static str> {
    driver(&host.log_config.kind).ok()?.file()
}

fn driver(name: &str) -> Result<LogDriver> {
    let name = if name.is_empty() { DEFAULT_DRIVER } else { name };
    let found = LogDriver::ALL.iter().find(|(known, _)| *known == name);
    found.map(|(_, driver)| *driver).ok_or_else(|| {
        Error::unsupported(
            format!("log driver {name:?} is not there"),
            LogDriver::ALL.map(|(known, _)| known).join(", "),
        )
    })
}

fn read(config: &mut LogConfig, key: &str, value: &str) -> Result<()> {
    use LogDriver::{Journald, JsonFile, Local, Syslog};
    let wrong = || Error::invalid(format!("invalid log option {key}={value}"));
    match (key, config.driver) {
        ("mode", _) if value == "blocking" => {}
        ("mode", _) if value == "non-blocking" => {
            config.max_buffer = config.max_buffer.or(Some(DEFAULT_BUFFER))
        }
        ("max-buffer-size", _) => config.max_buffer = Some(size(value).ok_or_else(wrong)?.max(LEAST_SIZE)),
        ("max-size", JsonFile) if value == "-1" => config.max_size = 0,
        ("max-size", JsonFile | Local) => config.max_size = size(value).ok_or_else(wrong)?.max(LEAST_SIZE),
        ("max-file", JsonFile | Local) => {
            let count = value.parse().ok().filter(|count| (1..=MOST_FILES).contains(count));
            config.max_files = count.ok_or_else(wrong)?;
        }
        ("compress", JsonFile | Local) => config.compress = value.parse().map_err(|_| wrong())?,
        // Their values are the instance's.
        ("labels" | "env", JsonFile | Journald) | ("tag", JsonFile | Journald | Syslog) => {}
        ("syslog-address", Syslog) => config.syslog.address = address(value)?,
        ("syslog-facility", Syslog) => config.syslog.facility = facility(value).ok_or_else(wrong)?,
        ("syslog-format", Syslog) => config.syslog.format = format(value).ok_or_else(wrong)?,
        // There is no second copy to switch off.
        ("cache-disabled", _) if value == "true" => {}
        _ if key == "mode" => return Err(wrong()),
        (known, _) if known.starts_with("syslog-tls-") => {
            return Err(Error::unsupported(
                format!("log option {key:?}: there is no TLS to a syslog server"),
                "",
            ));
        }
        _ => {
            return Err(Error::Invalid {
                message: format!("unknown log option {key:?} of the driver {}", name(config.driver)),
                hint: known_options(config.driver).into(),
            });
        }
    }
    Ok(())
}

fn name(driver: LogDriver) -> &'static str {
    LogDriver::ALL.iter().find(|(_, known)| *known == driver).map_or("", |(name, _)| name)
}

fn known_options(driver: LogDriver) -> &'static str {
    match driver {
        LogDriver::JsonFile => "max-size, max-file, compress, labels, env, tag, mode, max-buffer-size",
        LogDriver::Local => "max-size, max-file, compress, mode, max-buffer-size",
        LogDriver::Journald => "labels, env, tag, mode, max-buffer-size",
        LogDriver::Syslog => {
            "syslog-address, syslog-facility, syslog-format, tag, mode, max-buffer-size; a message has no place for \
             labels and variables"
        }
        LogDriver::None => "",
    }
}

fn size(text: &str) -> Option<u64> {
    parse::bytes(text).ok().and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0)
}

fn facility(text: &str) -> Option<u8> {
    let known = FACILITIES.iter().position(|name| !name.is_empty() && *name == text);
    let number = known.or_else(|| text.parse().ok().filter(|number| *number < FACILITIES.len()))?;
    u8::try_from(number).ok()
}

fn format(text: &str) -> Option<SyslogFormat> {
    match text {
        "" => Some(SyslogFormat::Unix),
        "rfc3164" => Some(SyslogFormat::Rfc3164),
        "rfc5424" => Some(SyslogFormat::Rfc5424),
        "rfc5424micro" => Some(SyslogFormat::Rfc5424Micro),
        _ => None,
    }
}

fn address(text: &str) -> Result<SyslogAddress> {
    let wrong = || {
        let hint = "unix://PATH, unixgram://PATH, udp://HOST[:PORT] or tcp://HOST[:PORT]";
        Error::invalid_with_hint(format!("invalid syslog-address {text:?}"), hint)
    };
    let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
    match scheme {
        "unix" | "unixgram" if rest.starts_with('/') && rest.len() < 108 => {
            let path = rest.to_owned();
            Ok(if scheme == "unix" { SyslogAddress::Unix(path) } else { SyslogAddress::Unixgram(path) })
        }
        "udp" => look_up(rest).map(SyslogAddress::Udp),
        "tcp" => look_up(rest).map(SyslogAddress::Tcp),
        "tcp+tls" => {
            Err(Error::unsupported("tcp+tls: there is no TLS to a syslog server", "use udp:// or tcp://"))
        }
        _ => Err(wrong()),
    }
}

fn look_up(host: &str) -> Result<SocketAddr> {
    let has_port =
        host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok() && !host.ends_with(']'));
    let with_port = if has_port { host.to_owned() } else { format!("{host}:{SYSLOG_PORT}") };
    let unknown = |why: String| Error::invalid(format!("cannot find the syslog server {host:?}: {why}"));
    let mut found = with_port.to_socket_addrs().map_err(|error| unknown(error.to_string()))?;
    found.next().ok_or_else(|| unknown("it has no address".into()))
}

/// Adds what depends on the instance: its tag, labels and variables.
pub(crate) fn identify(config: &mut LogConfig, record: &Record) -> Result<()> {
    let options = &record.host_config.log_config.config;
    let listed =
        |key: &str| options.get(key).map_or("", String::as_str).split(',').filter(|name| !name.is_empty());
    config.attributes.clear();
    for name in listed("labels") {
        if let Some(value) = record.config.labels.get(name) {
            config.attributes.insert(name.to_owned(), value.clone());
        }
    }
    for name in listed("env") {
        let value = record.config.env.iter().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        if let Some(value) = value {
            config.attributes.insert(name.to_owned(), value.to_owned());
        }
    }
    let named = options.get("tag").filter(|text| !text.is_empty());
    let written = tag(named.map_or(DEFAULT_TAG, String::as_str), &|field| value(record, field))?;
    match config.driver {
        LogDriver::JsonFile if named.is_some() => {
            config.attributes.insert("tag".into(), written);
        }
        LogDriver::Journald | LogDriver::Syslog => config.tag = written,
        LogDriver::JsonFile | LogDriver::Local | LogDriver::None => {}
    }
    Ok(())
}

/// Writes out a tag: text with `{{.Field}}` in it.
fn tag(template: &str, value: &dyn Fn(&str) -> Option<String>) -> Result<String> {
    let wrong = |what: &str| {
        let fields = FIELDS.map(|field| format!("{{{{.{field}}}}}")).join(" ");
        Error::invalid_with_hint(format!("invalid log option tag={template:?}: {what}"), fields)
    };
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (field, behind) = after.split_once("}}").ok_or_else(|| wrong("}} is missing"))?;
        let field = field.trim().strip_prefix('.').filter(|field| FIELDS.contains(field));
        text.push_str(before);
        text.push_str(&field.and_then(value).ok_or_else(|| wrong("no such field"))?);
        rest = behind;
    }
    text.push_str(rest);
    if text.chars().any(char::is_control) {
        return Err(wrong("it is not one line"));
    }
    Ok(text)
}

const FIELDS: [&str; 7] = ["ID", "FullID", "Name", "ImageID", "ImageFullID", "ImageName", "DaemonName"];

fn value(record: &Record, field: &str) -> Option<String> {
    let image = record.image_id.trim_start_matches("sha256:");
    Some(match field {
        "ID" => names::short(&record.id).to_owned(),
        "FullID" => record.id.clone(),
        "Name" => record.name.clone(),
        "ImageID" => names::short(image).to_owned(),
        "ImageFullID" => record.image_id.clone(),
        "ImageName" => record.image.clone(),
        "DaemonName" => "proa".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(kind: &str, options: &[(&str, &str)]) -> HostConfig {
        let mut host = HostConfig::default();
        host.log_config.kind = kind.to_owned();
        let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        host.log_config.config = options.iter().map(pair).collect();
        host
    }

    fn read(kind: &str, options: &[(&str, &str)]) -> Result<LogConfig> {
        parse(&host(kind, options))
    }

    #[test]
    fn options_of_each_driver() {
        let json = read("", &[("max-size", "1m"), ("max-file", "2"), ("compress", "true")]).unwrap();
        assert_eq!((json.max_size, json.max_files, json.compress), (1 << 20, 2, true));
        assert_eq!(read("json-file", &[("max-size", "-1")]).unwrap().max_size, 0);
        let local = read("local", &[]).unwrap();
        assert_eq!((local.max_size, local.max_files, local.compress), (20 << 20, 5, true));
        let waits = read("journald", &[("mode", "blocking")]).unwrap();
        assert_eq!(waits.max_buffer, None);
        let drops = read("journald", &[("mode", "non-blocking")]).unwrap();
        assert_eq!(drops.max_buffer, Some(1 << 20));
        let drops = read("json-file", &[("mode", "non-blocking"), ("max-buffer-size", "4m")]).unwrap();
        assert_eq!(drops.max_buffer, Some(4 << 20));
        let options = [
            ("syslog-address", "udp://127.0.0.1"),
            ("syslog-facility", "local3"),
            ("syslog-format", "rfc5424"),
        ];
        let syslog = read("syslog", &options).unwrap().syslog;
        assert_eq!(syslog.address, SyslogAddress::Udp("127.0.0.1:514".parse().unwrap()));
        assert_eq!((syslog.facility, syslog.format), (19, SyslogFormat::Rfc5424));
        let tcp = read("syslog", &[("syslog-address", "tcp://[::1]:601")]).unwrap().syslog;
        assert_eq!(tcp.address, SyslogAddress::Tcp("[::1]:601".parse().unwrap()));
        assert_eq!(tcp.facility, DEFAULT_FACILITY);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (driver, key, value) in [
            ("json-file", "max-file", "0"),
            ("json-file", "max-size", "x"),
            ("json-file", "colour", "red"),
            ("json-file", "syslog-address", "udp://x"),
            ("json-file", "mode", "sometimes"),
            ("json-file", "max-buffer-size", "1m"),
            ("json-file", "tag", "{{.Nonsense}}"),
            ("json-file", "tag", "{{.ID"),
            ("json-file", "tag", "two\nlines"),
            ("local", "labels", "a"),
            ("none", "max-size", "1m"),
            ("syslog", "syslog-address", "tcp+tls://x:1"),
            ("syslog", "syslog-address", "unix://relative"),
            ("syslog", "syslog-facility", "loud"),
            ("syslog", "syslog-tls-ca-cert", "/x"),
            ("syslog", "labels", "a"),
            ("fluentd", "tag", "x"),
        ] {
            let error = read(driver, &[(key, value)]).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn tags_are_written_out() {
        let value = |field: &str| Some(field.to_lowercase());
        assert_eq!(tag("a/{{.Name}}-{{ .ID }}!", &value).unwrap(), "a/name-id!");
        assert_eq!(tag("plain", &value).unwrap(), "plain");
    }

    #[test]
    fn the_host_decides_what_is_left_open() {
        let options = [("max-size".to_owned(), "1m".to_owned())].into();
        let settings = LogSettings { driver: "local".into(), options };
        let mut open = host("", &[("max-file", "2")]);
        settings.complete(&mut open);
        assert_eq!(open.log_config.kind, "local");
        assert_eq!(open.log_config.config["max-size"], "1m");
        assert_eq!(open.log_config.config["max-file"], "2");
        let mut other = host("journald", &[]);
        settings.complete(&mut other);
        assert_eq!((other.log_config.kind.as_str(), other.log_config.config.len()), ("journald", 0));
    }

    #[test]
    fn the_file_is_checked() {
        let load = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            LogSettings::load(file.path())
        };
        let settings = load("[log]\ndriver = 'syslog'\n[log.options]\ntag = 'x'\n").unwrap();
        assert_eq!((settings.driver.as_str(), settings.options["tag"].as_str()), ("syslog", "x"));
        assert_eq!(load("[security]\n").unwrap(), LogSettings::default());
        for text in ["[log]\ndriver = 'x'", "[log]\ncolour = 1", "[log.options]\nsyslog-format = 'x'"] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.starts_with('/') && !error.contains('\n'), "{error}");
        }
    }
}
