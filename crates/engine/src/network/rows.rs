//! Which networks a listing shows.

use super::NetworkRecord;
use crate::error::{Error, Result};

const KEYS: &[&str] = &["id", "name", "label", "driver"];

/// Conditions of `network ls`. Those of one key need one to hold, but labels all.
#[derive(Debug, Clone, Default)]
pub struct NetworkFilters(Vec<(String, String)>);

impl NetworkFilters {
    /// Reads `key=value` texts.
    ///
    /// # Errors
    /// A key is unknown, or there is no value.
    pub fn parse(texts: &[String]) -> Result<Self> {
        let pair = |text: &String| match text.split_once('=') {
            Some((key, value)) if KEYS.contains(&key) => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Error::Invalid {
                message: format!("invalid filter {text:?}"),
                hint: format!("KEY=VALUE, with one of the keys {}", KEYS.join(", ")),
            }),
        };
        texts.iter().map(pair).collect::<Result<_>>().map(Self)
    }

    /// Whether it shows this one.
    pub fn matches(&self, record: &NetworkRecord) -> bool {
        let driver = super::driver_word(record.driver);
        let holds = |key: &str, value: &str| match key {
            "id" => record.id.starts_with(value),
            "name" => record.name.contains(value),
            "driver" => driver == value,
            _ => match value.split_once('=') {
                Some((label, value)) => record.labels.get(label).is_some_and(|found| found == value),
                None => record.labels.contains_key(value),
            },
        };
        let alternatives = |key: &str| {
            let mut of_key = self.0.iter().filter(|(known, _)| known == key).peekable();
            of_key.peek().is_none() || of_key.any(|(_, value)| holds(key, value))
        };
        let labels = self.0.iter().filter(|(key, _)| key == "label").all(|(key, value)| holds(key, value));
        labels && ["id", "name", "driver"].into_iter().all(alternatives)
    }
}
