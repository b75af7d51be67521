//! From keys to flags.

use super::At;
use super::parse::{Entry, File, words};

/// Stands for the program with its state directory.
pub(super) const PROA: &str = "@PROA@";

/// What a unit has beside what is given.
#[derive(Debug, Default)]
pub(super) struct Converted {
    /// Lines of its section `Unit`, before those that are given.
    pub unit: Vec<String>,
    /// Lines of its section `Service`; [`PROA`] in them is the program.
    pub service: Vec<String>,
}

/// What becomes of a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum How {
    /// The flag with the value, each time.
    Each(&'static str),
    /// The flag with each word of the value.
    Words(&'static str),
    /// The flag with the last value.
    Last(&'static str),
    /// The flag where the last value is true.
    Switch(&'static str),
    /// The flag with its own value where the last value is true.
    Fixed(&'static str, &'static str),
    /// Something that is done elsewhere.
    Special,
}

/// The flags for a section's entries, after its keys have been checked.
pub(super) fn flags(file: &File, section: &str, keys: &[(&str, How)]) -> Result<Vec<String>, At> {
    for entry in file.entries(section) {
        if !keys.iter().any(|(key, _)| *key == entry.key) {
            return Err((entry.line, format!("unknown key {} in [{section}]", entry.key)));
        }
    }
    let mut flags = Vec::new();
    for (key, how) in keys {
        let entries: Vec<&Entry> = file.entries(section).filter(|entry| entry.key == *key).collect();
        let last = entries.last().copied();
        match how {
            How::Special => {}
            How::Each(flag) => flags.extend(entries.iter().map(|entry| with_value(flag, &entry.value))),
            How::Words(flag) => {
                for entry in entries {
                    flags.extend(words_of(entry)?.iter().map(|word| with_value(flag, word)));
                }
            }
            How::Last(flag) => flags.extend(last.map(|entry| with_value(flag, &entry.value))),
            How::Switch(flag) if truth(last)? => flags.push((*flag).to_owned()),
            How::Fixed(flag, value) if truth(last)? => flags.push(with_value(flag, value)),
            How::Switch(_) | How::Fixed(..) => {}
        }
    }
    Ok(flags)
}

/// One word: a value that begins with a dash is no flag.
pub(super) fn with_value(flag: &str, value: &str) -> String {
    format!("{flag}={value}")
}

/// The words of an entry's value.
pub(super) fn words_of(entry: &Entry) -> Result<Vec<String>, At> {
    words(&entry.value).map_err(|text| (entry.line, format!("{}: {text}", entry.key)))
}

fn truth(entry: Option<&Entry>) -> Result<bool, At> {
    let Some(entry) = entry else { return Ok(false) };
    match entry.value.to_ascii_lowercase().as_str() {
        "1" | "yes" | "true" | "on" => Ok(true),
        "0" | "no" | "false" | "off" => Ok(false),
        other => Err((entry.line, format!("{}: {other:?} is neither true nor false", entry.key))),
    }
}

/// A command line of a unit.
pub(super) fn line(directive: &str, command: &[&str], more: &[String]) -> String {
    let words = command.iter().map(|text| (*text).to_owned()).chain(more.iter().map(|text| word(text)));
    format!("{directive}{PROA} {}", words.collect::<Vec<_>>().join(" "))
}

/// A text as one word of a unit's command line. Specifiers (`%h`) are left to systemd, variables are not.
pub(super) fn word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,%@+[]".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    let mut word = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => word.extend(['\\', letter]),
            '$' => word.push_str("$$"),
            '\n' => word.push_str("\\n"),
            '\t' => word.push_str("\\t"),
            '\r' => word.push_str("\\r"),
            letter if letter.is_ascii_control() => word.push_str(&format!("\\x{:02x}", letter as u32)),
            letter => word.push(letter),
        }
    }
    word.push('"');
    word
}
