//! Which networks a listing shows.

use super::{NetworkRecord, is_predefined};
use crate::error::{Error, Result};
use crate::filters::{Conditions, wrong};

const KEYS: &[&str] = &["id", "name", "label", "driver", "scope", "type"];

/// Conditions of `network ls`. Those of one key need one to hold, but labels all.
#[derive(Debug, Clone, Default)]
pub struct NetworkFilters(Conditions);

impl NetworkFilters {
    /// Reads `key=value` texts.
    ///
    /// # Errors
    /// A key is unknown, or there is no value.
    pub fn parse(texts: &[String]) -> Result<Self> {
        let pair = |text: &String| match text.split_once('=') {
            Some((key, value)) if KEYS.contains(&key) => Ok((key.to_owned(), value.to_owned())),
            _ => Err(wrong(text, KEYS)),
        };
        let is_type = |text: &String| matches!(text.strip_prefix("type="), None | Some("builtin" | "custom"));
        if let Some(text) = texts.iter().find(|text| !is_type(text)) {
            return Err(Error::invalid_with_hint(
                format!("invalid filter {text:?}"),
                "type=builtin or type=custom",
            ));
        }
        texts.iter().map(pair).collect::<Result<_>>().map(|pairs| Self(Conditions(pairs)))
    }

    /// Whether it shows this one.
    pub fn matches(&self, record: &NetworkRecord) -> bool {
        self.0.has_labels(&record.labels)
            && self.0.any("id", |id| record.id.starts_with(id))
            && self.0.any("name", |name| record.name.contains(name))
            && self.0.any("driver", |driver| record.driver_word() == driver)
            && self.0.any("scope", |scope| scope == "local")
            && self
                .0
                .any("type", |kind| kind == if is_predefined(&record.name) { "builtin" } else { "custom" })
    }
}
