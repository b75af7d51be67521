//! Conditions as `KEY=VALUE`, of which listings, prunes and events have several kinds.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Keys and values, in the order in which they were given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Conditions(pub Vec<(String, String)>);

impl Conditions {
    /// The values of a key.
    pub fn of<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// Whether one of a key's values holds, or there is none.
    pub fn any(&self, key: &str, holds: impl Fn(&str) -> bool) -> bool {
        let mut values = self.of(key).peekable();
        values.peek().is_none() || values.any(holds)
    }

    /// Whether all labels that are named are there.
    pub fn has_labels(&self, labels: &BTreeMap<String, String>) -> bool {
        self.of("label").all(|wanted| has_label(labels, wanted))
    }
}

/// Whether there is a label as `KEY` or `KEY=VALUE` says.
pub(crate) fn has_label(labels: &BTreeMap<String, String>, wanted: &str) -> bool {
    let (key, value) = wanted.split_once('=').map_or((wanted, None), |(key, value)| (key, Some(value)));
    labels.get(key).is_some_and(|found| value.is_none_or(|value| found == value))
}

/// What to say of a condition that is none.
pub(crate) fn wrong(text: &str, keys: &[&str]) -> Error {
    Error::invalid_with_hint(
        format!("invalid filter {text:?}"),
        format!("KEY=VALUE, with one of the keys {}", keys.join(", ")),
    )
}

/// A key as it is known, and its value without spaces around it.
///
/// # Errors
/// The key is none of these, or there is no value.
pub(crate) fn pair(text: &str, keys: &[&str]) -> Result<(String, String)> {
    let (key, value) = text.split_once('=').ok_or_else(|| wrong(text, keys))?;
    let key = key.trim().to_ascii_lowercase();
    if keys.contains(&key.as_str()) { Ok((key, value.trim().to_owned())) } else { Err(wrong(text, keys)) }
}
