//! The command line, which the monitor or the engine writes.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// How long there may be nobody to serve.
const IDLE: Duration = Duration::from_secs(60);

/// The parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// Runtime directory.
    pub run: PathBuf,
    /// Name of the firewall's tables; without it they are not looked after.
    pub table: Option<String>,
    /// The file that names the host's servers.
    pub resolv_conf: PathBuf,
    /// How long there may be nobody to serve.
    pub idle: Duration,
    /// Keep the network namespace of an ordinary user, in which the bridges are.
    pub switch: bool,
}

impl Args {
    /// Reads `--run DIR [--table NAME] [--resolv-conf FILE] [--idle SECONDS] [--switch]`.
    ///
    /// # Errors
    /// Says which argument is wrong.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut parsed = Self {
            run: PathBuf::new(),
            table: None,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            idle: IDLE,
            switch: false,
        };
        let mut args = args.into_iter();
        while let Some(name) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{} needs a value", name.display()));
            match name.to_str() {
                Some("--run") => parsed.run = value()?.into(),
                Some("--table") => parsed.table = Some(table(value()?)?),
                Some("--resolv-conf") => parsed.resolv_conf = value()?.into(),
                Some("--switch") => parsed.switch = true,
                Some("--idle") => parsed.idle = seconds(value()?)?,
                _ => return Err(format!("unknown argument {}", name.display())),
            }
        }
        if parsed.run.as_os_str().is_empty() {
            return Err("--run is needed".into());
        }
        Ok(parsed)
    }
}

fn table(value: OsString) -> Result<String, String> {
    let is_plain = |name: &String| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    value
        .into_string()
        .ok()
        .filter(|name| !name.is_empty() && is_plain(name))
        .ok_or_else(|| "--table needs a name of letters, digits and underscores".into())
}

fn seconds(value: OsString) -> Result<Duration, String> {
    let number = value.to_str().and_then(|text| text.parse().ok());
    number.map(Duration::from_secs).ok_or_else(|| format!("{} is no number of seconds", value.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        Args::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_line_is_read() {
        let args = parse("--run /r --table proa_1 --idle 3").unwrap();
        assert_eq!((args.table.as_deref(), args.idle), (Some("proa_1"), Duration::from_secs(3)));
        assert!(parse("--run /r --switch").unwrap().switch);
        assert_eq!(parse("--run /r").unwrap().resolv_conf, PathBuf::from("/etc/resolv.conf"));
    }

    #[test]
    fn wrong_lines_are_refused() {
        for line in ["", "--run", "--run /r --table a;b", "--run /r --idle x", "--run /r extra"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
