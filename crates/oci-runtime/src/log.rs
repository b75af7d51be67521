//! `--log`: what engines read when a command failed, in runc's two formats. Without it, warnings and what `--debug`
//! tells are on standard error, where errors are anyway.

use std::io::Write;
use std::path::PathBuf;

use crate::error::{Failure, Result};

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// `time="…" level=error msg="…"`.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// Where errors are written, beside standard error.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// The file, appended to.
    pub path: Option<PathBuf>,
    /// Its format.
    pub format: Format,
}

impl Log {
    /// As `--log` and `--log-format` ask.
    ///
    /// # Errors
    /// The format is not known.
    pub fn new(path: Option<PathBuf>, format: Option<&str>) -> Result<Self> {
        let format = match format {
            None | Some("text") => Format::Text,
            Some("json") => Format::Json,
            Some(other) => return Err(Failure::usage(format!("--log-format {other}: use text or json"))),
        };
        Ok(Self { path, format })
    }

    /// Writes a line for whoever reads along: `level` is `warning` or `debug`.
    #[expect(clippy::print_stderr, reason = "a command line tool's warnings")]
    pub fn tell(&self, level: &str, message: &str) {
        match &self.path {
            Some(_) => self.write(level, message),
            None => eprintln!("proa-runtime: {level}: {}", message.replace('\n', "; ")),
        }
    }

    /// Writes a line into the file, if there is one. That it cannot be written changes nothing.
    pub fn write(&self, level: &str, message: &str) {
        let Some(path) = &self.path else { return };
        let line = line(self.format, level, message, &crate::clock::now());
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

fn line(format: Format, level: &str, message: &str, time: &str) -> String {
    let message = serde_json::Value::from(message);
    match format {
        Format::Text => format!("time=\"{time}\" level={level} msg={message}\n"),
        Format::Json => format!("{{\"level\":\"{level}\",\"msg\":{message},\"time\":\"{time}\"}}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_runcs() {
        assert_eq!(
            line(Format::Text, "error", "a \"b\"", "T"),
            "time=\"T\" level=error msg=\"a \\\"b\\\"\"\n"
        );
        assert_eq!(
            line(Format::Json, "error", "a\n", "T"),
            "{\"level\":\"error\",\"msg\":\"a\\n\",\"time\":\"T\"}\n"
        );
    }
}
