//! Removing what nobody uses, by Docker's conditions, and images beyond what they may take.
//!
//! ```toml
//! [images]
//! keep = "20GB"      # after a pull, the images used longest ago go until the rest fits
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proa_image::store::Pruned;
use proa_image::{Image, ImageId};
use serde::Deserialize;

use crate::engine::{Engine, Instance};
use crate::error::{Error, Result};
use crate::{parse, settings};

/// What is to go: all conditions hold.
#[derive(Debug, Clone, Default)]
pub struct PruneFilters {
    /// Made before this moment, nanoseconds since the epoch.
    until_ns: Option<i64>,
    /// Labels, with a value where one was named; `false` for those that must not be there.
    labels: Vec<(bool, String, Option<String>)>,
}

impl PruneFilters {
    /// Reads `until=TIME`, `label=KEY[=VALUE]` and `label!=KEY[=VALUE]`.
    ///
    /// # Errors
    /// A text is none of these.
    pub fn parse(texts: &[String], now_ns: i64, zone: &jiff::tz::TimeZone) -> Result<Self> {
        let wrong = |text: &str| {
            let hint = "until=TIME, label=KEY[=VALUE] or label!=KEY[=VALUE]";
            Error::invalid_with_hint(format!("invalid filter {text:?}"), hint)
        };
        let mut filters = Self::default();
        for text in texts {
            let (key, value) = text.split_once('=').ok_or_else(|| wrong(text))?;
            match key {
                "until" => filters.until_ns = Some(parse::moment_ns(value, now_ns, zone)?),
                "label" | "label!" if !value.is_empty() => {
                    let (key_of, wanted) = value
                        .split_once('=')
                        .map_or((value, None), |(key, value)| (key, Some(value.to_owned())));
                    filters.labels.push((key == "label", key_of.to_owned(), wanted));
                }
                _ => return Err(wrong(text)),
            }
        }
        Ok(filters)
    }

    /// Whether something made then, with these labels, is to go.
    pub fn matches(&self, made_ns: i64, labels: &BTreeMap<String, String>) -> bool {
        let has = |key: &String, value: &Option<String>| {
            labels.get(key).is_some_and(|found| value.as_ref().is_none_or(|value| found == value))
        };
        self.until_ns.is_none_or(|until| made_ns < until)
            && self.labels.iter().all(|(wanted, key, value)| has(key, value) == *wanted)
    }
}

/// Instances that were removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrunedInstances {
    /// Their ids.
    pub ids: Vec<String>,
    /// Bytes that are free now.
    pub bytes: u64,
}

impl Engine {
    /// Removes all instances that do not run, but for machines: their disks are kept nowhere else.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn prune_instances(&self, filters: &PruneFilters) -> Result<PrunedInstances> {
        let mut pruned = PrunedInstances::default();
        let goes =
            |instance: &&Instance| !instance.is_live() && instance.record.host_config.machine.is_none();
        for instance in self.instances()?.iter().filter(goes) {
            if !filters.matches(instance.record.created_ns, &instance.record.config.labels) {
                continue;
            }
            let (own, _) = self.sizes(instance);
            match self.remove(instance, false, true) {
                Ok(()) => {
                    pruned.ids.push(instance.record.id.clone());
                    pruned.bytes += own;
                }
                // Started, or removed, by somebody else at this moment.
                Err(Error::Conflict { .. } | Error::NoSuchInstance(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pruned)
    }

    /// Removes images without a name, or with `all` those that no instance uses.
    ///
    /// # Errors
    /// The store cannot be changed.
    pub fn prune_images(&self, all: bool, filters: &PruneFilters) -> Result<Pruned> {
        let store = self.store()?;
        let listed = store.list()?;
        let wanted: BTreeSet<ImageId> =
            listed.iter().filter(|image| fits(image, filters)).map(|image| image.id.clone()).collect();
        // One that came meanwhile is kept.
        let pruned = store.prune_those(all, &|id| wanted.contains(id), self)?;
        self.tell_pruned(&pruned);
        Ok(pruned)
    }

    /// Removes images until the rest takes no more than `budget` bytes: those used longest ago first, and never one
    /// that an instance uses, nor `keep`.
    ///
    /// # Errors
    /// The store cannot be changed.
    pub fn prune_images_to(&self, budget: u64, keep: Option<&ImageId>) -> Result<Pruned> {
        let pruned = self.store()?.prune_to(budget, keep, self)?;
        self.tell_pruned(&pruned);
        Ok(pruned)
    }

    fn tell_pruned(&self, pruned: &Pruned) {
        use proa_image::store::Removed;
        for one in &pruned.removed {
            match one {
                Removed::Untagged(name) => self.tell_image("untag", name, name),
                Removed::Deleted(id) => self.tell_image("delete", id.as_str(), id.as_str()),
                Removed::Layer(_) => {}
            }
        }
    }
}

fn fits(image: &Image, filters: &PruneFilters) -> bool {
    let made = image.config.created.parse::<jiff::Timestamp>().unwrap_or_default();
    filters.matches(i64::try_from(made.as_nanosecond()).unwrap_or(i64::MAX), &image.config.config.labels)
}

/// The `images` table of the configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageSettings {
    keep: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    images: ImageSettings,
}

impl ImageSettings {
    /// Bytes that images may take after a pull, if that is limited.
    ///
    /// # Errors
    /// The file cannot be read or understood.
    pub fn budget(path: &Path) -> Result<Option<u64>> {
        let hint = "[images] has keep = \"SIZE\", as 20GB";
        let file: File = settings::load(path, hint)?;
        file.images.keep.map(|text| budget(&text)).transpose().map_err(|_| {
            Error::invalid_with_hint(format!("{}: [images]: keep is no size", path.display()), hint)
        })
    }
}

/// Reads a size.
///
/// # Errors
/// It is none.
pub fn budget(text: &str) -> Result<u64> {
    u64::try_from(parse::bytes(text)?).map_err(|_| Error::invalid(format!("invalid size {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions() {
        let labels = BTreeMap::from([("tier".to_owned(), "one".to_owned())]);
        let holds = |texts: &[&str], made_ns: i64| {
            let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
            let now = 10_000 * 1_000_000_000;
            PruneFilters::parse(&texts, now, &jiff::tz::TimeZone::UTC).unwrap().matches(made_ns, &labels)
        };
        let second = 1_000_000_000;
        assert!(holds(&[], 0));
        assert!(holds(&["until=1h"], 6399 * second) && !holds(&["until=1h"], 6401 * second));
        assert!(holds(&["label=tier", "label=tier=one", "label!=tier=two", "label!=other"], 0));
        assert!(!holds(&["label=other"], 0) && !holds(&["label!=tier"], 0) && !holds(&["label=tier=two"], 0));
        for text in ["", "until", "label=", "dangling=true"] {
            let zone = jiff::tz::TimeZone::UTC;
            assert!(PruneFilters::parse(&[text.to_owned()], 0, &zone).is_err(), "{text}");
        }
    }

    #[test]
    fn the_budget_is_read() {
        let load = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            ImageSettings::budget(file.path())
        };
        assert_eq!(load("").unwrap(), None);
        assert_eq!(load("[images]\nkeep = '2GB'").unwrap(), Some(2 << 30));
        for text in ["[images]\nkeep = 'much'", "[images]\nkept = '2GB'", "images = 1"] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.starts_with('/') && !error.contains('\n'), "{error}");
        }
    }
}
