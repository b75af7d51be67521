//! Waiting for what becomes of an instance, and for those that another depends on.
//!
//! What happens is in the journal, so that is watched and the state read again after each event. It is read again
//! after a while in any case: a monitor that was killed tells nobody.

use proa_protocol::events::Journal;
use proa_protocol::health::HealthStatus;
use proa_protocol::instance::Status;

use crate::db::Record;
use crate::engine::{Engine, Instance};
use crate::error::{Error, Result};
use crate::events::Watch;
use crate::parse;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Made, and never started.
    Created,
    /// Its program runs.
    Running,
    /// It is frozen.
    Paused,
    /// It does not run and will not by itself.
    Stopped,
    /// Its health check says that it is well.
    Healthy,
    /// Its health check says that it is not.
    Unhealthy,
}

/// Nanoseconds after which the state is read again though nothing was told.
const LOOK_AGAIN: i64 = 1_000_000_000;
const CONDITIONS: &str = "created, running, paused, stopped (or exited), healthy or unhealthy";

impl Condition {
    /// Reads Podman's words.
    ///
    /// # Errors
    /// There is no such condition.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "created" | "configured" => Self::Created,
            "running" => Self::Running,
            "paused" => Self::Paused,
            "stopped" | "exited" => Self::Stopped,
            "healthy" => Self::Healthy,
            "unhealthy" => Self::Unhealthy,
            other => {
                return Err(Error::invalid_with_hint(format!("invalid condition {other:?}"), CONDITIONS));
            }
        })
    }

    fn holds(self, engine: &Engine, instance: &Instance) -> bool {
        let status = instance.state.status;
        let health = |wanted| {
            status == Status::Running && engine.health(instance).is_some_and(|health| health.status == wanted)
        };
        match self {
            Self::Created => status == Status::Created,
            Self::Running => status == Status::Running,
            Self::Paused => status == Status::Paused,
            Self::Stopped => status == Status::Exited,
            Self::Healthy => health(HealthStatus::Healthy),
            Self::Unhealthy => health(HealthStatus::Unhealthy),
        }
    }
}

/// What an instance wants of one that it depends on, in Compose's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// The other's name.
    pub name: String,
    wants: Wants,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wants {
    Started,
    Healthy,
    Completed,
}

impl Dependency {
    /// Reads `NAME[:started|healthy|completed]`.
    ///
    /// # Errors
    /// There is no such condition, or no name.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, word) = text.split_once(':').unwrap_or((text, "started"));
        let wants = match word {
            "started" | "service_started" => Wants::Started,
            "healthy" | "service_healthy" => Wants::Healthy,
            "completed" | "service_completed_successfully" => Wants::Completed,
            _ => return Err(wrong(text)),
        };
        if name.is_empty() {
            return Err(wrong(text));
        }
        Ok(Self { name: name.to_owned(), wants })
    }

    /// Whether it holds now; an error where it never will by itself.
    fn holds(&self, engine: &Engine, other: &Instance) -> Result<bool> {
        let never = |what: String, hint: &str| {
            Err(Error::conflict(format!("the instance depends on {}, which {what}", self.name), hint))
        };
        let state = &other.state;
        let health = engine.health(other).map(|health| health.status);
        match (self.wants, state.status) {
            (Wants::Healthy, _) if health.is_none() => {
                never("has no health check".into(), "make it with --health-cmd, or depend on NAME:started")
            }
            (Wants::Completed, Status::Exited) if state.exit_code == 0 => Ok(true),
            (Wants::Completed, Status::Exited) => {
                never(format!("has failed with code {}", state.exit_code), "see `proa logs`")
            }
            (_, Status::Created) => never("was never started".into(), "`proa start` it first"),
            (_, Status::Exited) => {
                never(format!("has ended with code {}", state.exit_code), "`proa start` it first")
            }
            (Wants::Started, status) => Ok(matches!(status, Status::Running | Status::Paused)),
            (Wants::Healthy, Status::Running) if health == Some(HealthStatus::Unhealthy) => {
                never("is unhealthy".into(), "`proa inspect` shows what its health check says")
            }
            (Wants::Healthy, status) => {
                Ok(status == Status::Running && health == Some(HealthStatus::Healthy))
            }
            (Wants::Completed, _) => Ok(false),
        }
    }
}

fn wrong(text: &str) -> Error {
    Error::invalid_with_hint(
        format!("invalid dependency {text:?}"),
        "NAME, NAME:started, NAME:healthy or NAME:completed",
    )
}

impl Engine {
    /// Waits until one of the conditions holds for an instance; its exit code, or -1 where it has not ended.
    ///
    /// # Errors
    /// It is removed meanwhile, or the journal cannot be watched.
    pub fn wait_condition(&self, instance: &Instance, conditions: &[Condition]) -> Result<i32> {
        self.watch_instance(&instance.record.id, |seen| {
            let holds = conditions.iter().any(|condition| condition.holds(self, seen));
            Ok(holds.then(|| if seen.is_live() { -1 } else { seen.state.exit_code }))
        })
    }

    /// Waits until everything is as an instance wants it that it depends on.
    ///
    /// # Errors
    /// Something of it can never become so.
    pub fn wait_dependencies(&self, record: &Record) -> Result<()> {
        for text in &record.host_config.depends_on {
            let dependency = Dependency::parse(text)?;
            let other = self.find(&dependency.name)?;
            self.watch_instance(&other.record.id, |seen| Ok(dependency.holds(self, seen)?.then_some(())))?;
        }
        Ok(())
    }

    /// Looks at an instance now and after each event, until there is an answer.
    fn watch_instance<T>(&self, id: &str, look: impl Fn(&Instance) -> Result<Option<T>>) -> Result<T> {
        if let Some(answer) = look(&self.find(id)?)? {
            return Ok(answer);
        }
        // Watched before the next look: what happens after that is not missed.
        let watch = Watch::new(Journal::new(&self.paths.root).directory())?;
        loop {
            if let Some(answer) = look(&self.find(id)?)? {
                return Ok(answer);
            }
            watch.wait(Some(parse::now_ns() + LOOK_AGAIN))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read() {
        assert_eq!(Condition::parse("exited").unwrap(), Condition::Stopped);
        assert_eq!(Condition::parse("healthy").unwrap(), Condition::Healthy);
        assert!(Condition::parse("well").unwrap_err().hint().contains("unhealthy"));
        let wants = |text| Dependency::parse(text).map(|dependency| (dependency.name, dependency.wants)).ok();
        assert_eq!(wants("db"), Some(("db".into(), Wants::Started)));
        assert_eq!(wants("db:healthy"), Some(("db".into(), Wants::Healthy)));
        assert_eq!(wants("job:service_completed_successfully"), Some(("job".into(), Wants::Completed)));
        for text in ["", ":healthy", "db:well", "db:"] {
            assert_eq!(wants(text), None, "{text:?}");
        }
    }
}
