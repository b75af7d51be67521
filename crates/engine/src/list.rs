//! Which instances a listing shows: `ps --filter`.

use std::collections::BTreeMap;

use proa_protocol::instance::Status;

use crate::db::Record;
use crate::engine::{Engine, Instance};
use crate::error::Result;
use crate::filters::{Conditions, pair, wrong};
use crate::inspect::status_word;

/// Conditions of a listing. Those of one key need one to hold, those of different keys all.
#[derive(Debug, Clone, Default)]
pub struct Filters(Conditions);

const KEYS: &[&str] = &[
    "id",
    "name",
    "label",
    "status",
    "ancestor",
    "exited",
    "before",
    "since",
    "isolation",
    "volume",
    "network",
    "health",
];

impl Filters {
    /// Reads `key=value` texts.
    ///
    /// # Errors
    /// A key is unknown, or there is no value.
    pub fn parse(texts: &[String]) -> Result<Self> {
        let mut pairs = Vec::new();
        for text in texts {
            let (key, value) = pair(text, KEYS)?;
            // As it was given.
            let given = text.split_once('=').map_or("", |(_, value)| value);
            let statuses = ["created", "running", "paused", "exited", "restarting", "removing", "dead"];
            let healths = ["starting", "healthy", "unhealthy", "none"];
            if (key == "status" && !statuses.contains(&given))
                || (key == "health" && !healths.contains(&given))
                || (key == "exited" && given.parse::<i32>().is_err())
            {
                return Err(wrong(text, KEYS));
            }
            pairs.push((key, value));
        }
        Ok(Self(Conditions(pairs)))
    }

    /// Whether states that a plain listing hides are asked for.
    pub fn names_state(&self) -> bool {
        ["status", "exited"].iter().any(|key| self.0.of(key).next().is_some())
    }

    fn matches(&self, instance: &Instance, ancestors: &[Ancestor], volumes: &VolumeTest) -> bool {
        let record = &instance.record;
        let host = &record.host_config;
        // All labels that are named must be there; other keys are alternatives.
        self.0.has_labels(&record.config.labels)
            && self.0.any("id", |id| record.id.starts_with(id))
            && self.0.any("name", |name| {
                record.name.contains(name.trim_start_matches(['/', '^']).trim_end_matches('$'))
            })
            && self.0.any("status", |word| status_word(instance.state.status) == word)
            && self.0.any("exited", |code| {
                instance.state.status == Status::Exited && code.parse() == Ok(instance.state.exit_code)
            })
            && self.0.any("isolation", |level| record.level.as_str() == level)
            && self.0.any("network", |name| host.network_names().contains(&name))
            && self.0.any("volume", |path| {
                let is = |text: &str| {
                    text == path || (text.starts_with('/') && text.trim_end_matches('/') == path)
                };
                let binds = host.binds.iter().any(|bind| bind.split(':').any(is));
                let mounts = host.mounts.iter().any(|mount| is(&mount.source) || is(&mount.target));
                binds
                    || mounts
                    || record.config.volumes.keys().any(|place| is(place))
                    || volumes(record, path)
            })
            && (ancestors.is_empty() || ancestors.iter().any(|ancestor| ancestor.is_of(instance)))
    }
}

/// Whether an instance has the volume of this name.
type VolumeTest<'a> = dyn Fn(&Record, &str) -> bool + 'a;

/// An image that instances are asked to come from.
struct Ancestor {
    id: Option<String>,
    name: String,
}

impl Ancestor {
    fn is_of(&self, instance: &Instance) -> bool {
        let by_id = self.id.as_ref().is_some_and(|id| *id == instance.record.image_id);
        by_id || instance.record.image == self.name
    }
}

impl Engine {
    /// The instances a listing shows, the newest first.
    ///
    /// # Errors
    /// An instance named in a filter does not exist.
    pub fn list(&self, filters: &Filters) -> Result<Vec<Instance>> {
        let mut ancestors = Vec::new();
        for name in filters.0.of("ancestor") {
            let id = self.store()?.resolve(name).ok().map(|image| image.id.to_string());
            ancestors.push(Ancestor { id, name: name.to_owned() });
        }
        let mut instances = self.instances()?;
        let uses =
            if filters.0.of("volume").next().is_some() { self.db.volume_uses()? } else { BTreeMap::new() };
        let has =
            |record: &Record, name: &str| uses.get(name).is_some_and(|users| users.contains(&record.id));
        instances.retain(|instance| filters.matches(instance, &ancestors, &has));
        if filters.0.of("health").next().is_some() {
            instances.retain(|instance| filters.0.any("health", |word| self.health_word(instance) == word));
        }
        for name in filters.0.of("before") {
            let moment = self.db.find(name)?.created_ns;
            instances.retain(|instance| instance.record.created_ns < moment);
        }
        for name in filters.0.of("since") {
            let moment = self.db.find(name)?.created_ns;
            instances.retain(|instance| instance.record.created_ns > moment);
        }
        Ok(instances)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ContainerConfig, HostConfig};
    use crate::db::Record;
    use proa_protocol::instance::{InstanceState, IsolationLevel};

    fn instance() -> Instance {
        let labels = [("tier".to_owned(), "one".to_owned()), ("flag".to_owned(), String::new())].into();
        Instance {
            record: Record {
                id: "ab".repeat(32),
                name: "web-1".into(),
                image_id: "sha256:1".into(),
                image: "busybox".into(),
                level: IsolationLevel::Vm,
                created_ns: 5,
                auto_remove: false,
                config: ContainerConfig { labels, ..ContainerConfig::default() },
                host_config: Box::new(HostConfig {
                    binds: vec!["/a:/b".into()],
                    network_mode: "none".into(),
                    ..HostConfig::default()
                }),
            },
            state: InstanceState { status: Status::Exited, exit_code: 3, ..InstanceState::default() },
        }
    }

    #[test]
    fn conditions() {
        let holds = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
            Filters::parse(&texts).unwrap().matches(&instance(), &[], &|_, _| false)
        };
        for texts in [
            &[][..],
            &["id=abab"],
            &["name=web"],
            &["name=^/web-1$"],
            &["name=other", "name=web"],
            &["label=tier"],
            &["label=tier=one", "label=flag"],
            &["status=running", "status=exited"],
            &["exited=3"],
            &["isolation=vm", "network=none", "volume=/b"],
        ] {
            assert!(holds(texts), "{texts:?}");
        }
        for texts in [
            &["id=ba"][..],
            &["name=other"],
            &["label=tier=two"],
            &["label=tier", "label=none"],
            &["status=running"],
            &["exited=0"],
            &["name=web", "isolation=container"],
            &["volume=/c"],
        ] {
            assert!(!holds(texts), "{texts:?}");
        }
        for text in ["", "name", "colour=red", "status=happy", "exited=x"] {
            assert!(Filters::parse(&[text.to_owned()]).is_err(), "{text}");
        }
    }
}
