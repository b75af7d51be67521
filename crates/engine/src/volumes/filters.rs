//! Conditions of `volume ls` and `volume prune`.

use crate::db::VolumeRecord;
use crate::error::Result;
use crate::filters::{Conditions, has_label, wrong};
use crate::parse;

/// Conditions. Those of one key need one to hold, those of different keys all; labels must all hold.
#[derive(Debug, Clone, Default)]
pub struct VolumeFilters(Conditions);

impl VolumeFilters {
    /// Reads those of a listing.
    ///
    /// # Errors
    /// A key is unknown, or a value makes no sense.
    pub fn of_list(texts: &[String]) -> Result<Self> {
        Self::parse(texts, &["dangling", "driver", "label", "name"])
    }

    /// Reads those of a pruning.
    ///
    /// # Errors
    /// A key is unknown, or a value makes no sense.
    pub fn of_prune(texts: &[String]) -> Result<Self> {
        Self::parse(texts, &["all", "label", "label!"])
    }

    fn parse(texts: &[String], keys: &[&str]) -> Result<Self> {
        let pair = |text: &String| {
            let (key, value) = match text.split_once("!=") {
                Some((key, value)) if !key.contains('=') => (format!("{key}!"), value),
                _ => text
                    .split_once('=')
                    .map(|(key, value)| (key.to_owned(), value))
                    .ok_or_else(|| wrong(text, keys))?,
            };
            let key = key.trim().to_ascii_lowercase();
            let is_switch = key == "dangling" || key == "all";
            if !keys.contains(&key.as_str()) || (is_switch && parse::boolean(value).is_none()) {
                return Err(wrong(text, keys));
            }
            Ok((key, value.trim().to_owned()))
        };
        texts.iter().map(pair).collect::<Result<_>>().map(|pairs| Self(Conditions(pairs)))
    }

    /// Whether named volumes are to go as well.
    pub(super) fn asks_for_all(&self) -> bool {
        self.0.of("all").any(|value| parse::boolean(value) == Some(true))
    }

    pub(super) fn matches(&self, volume: &VolumeRecord, used: bool) -> bool {
        self.0.has_labels(&volume.labels)
            && self.0.of("label!").all(|wanted| !has_label(&volume.labels, wanted))
            && self.0.any("dangling", |value| parse::boolean(value) == Some(!used))
            && self.0.any("driver", |driver| driver == proa_protocol::volume::DRIVER)
            && self.0.any("name", |name| {
                // Docker takes a regular expression; its anchors are what is used of it.
                let part = name.trim_start_matches('^').trim_end_matches('$');
                match (name.starts_with('^'), name.ends_with('$')) {
                    (true, true) => volume.name == part,
                    (true, false) => volume.name.starts_with(part),
                    (false, true) => volume.name.ends_with(part),
                    (false, false) => volume.name.contains(part),
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn conditions() {
        let labels = [("tier".to_owned(), "one".to_owned()), ("x".to_owned(), String::new())].into();
        let volume = VolumeRecord { name: "data-1".into(), labels, ..VolumeRecord::default() };
        let holds = |texts: &[&str]| VolumeFilters::of_list(&strings(texts)).unwrap().matches(&volume, true);
        for texts in [
            &[][..],
            &["dangling=false", "driver=local"],
            &["name=ata", "label=tier", "label=x="],
            &["name=no", "name=^data-1$"],
        ] {
            assert!(holds(texts), "{texts:?}");
        }
        for texts in [&["dangling=1"][..], &["driver=nfs"], &["label=tier", "label=tier=two"], &["name=^ata"]]
        {
            assert!(!holds(texts), "{texts:?}");
        }
        for text in ["", "dangling", "dangling=perhaps", "colour=red", "label!=x"] {
            assert!(VolumeFilters::of_list(&strings(&[text])).is_err(), "{text}");
        }
        let prune = |text: &str| VolumeFilters::of_prune(&strings(&[text])).unwrap();
        assert!(!prune("label!=tier").matches(&volume, false));
        assert!(prune("label!=tier=two").matches(&volume, false));
        assert!(prune("all=1").asks_for_all() && !prune("all=0").asks_for_all());
    }
}
