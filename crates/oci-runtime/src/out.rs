//! Standard output.

use std::io::Write;

use serde::Serialize;

use crate::error::{Failure, Result};

/// Prints a text as it is. The exit code of success.
///
/// # Errors
/// Nobody reads.
pub fn text(text: &str) -> Result<u8> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Failure::at("standard output", error))?;
    Ok(0)
}

/// Prints a value, indented.
///
/// # Errors
/// As for [`text`].
pub fn json(value: &impl Serialize) -> Result<u8> {
    let json = serde_json::to_string_pretty(value).map_err(|error| Failure::new(error.to_string()))?;
    text(&(json + "\n"))
}

/// Prints a value on one line.
///
/// # Errors
/// As for [`text`].
pub fn line(value: &impl Serialize) -> Result<u8> {
    let json = serde_json::to_string(value).map_err(|error| Failure::new(error.to_string()))?;
    text(&(json + "\n"))
}
