//! Restart policies as Docker writes them, and instances that are to be started again.

use proa_protocol::life::{Life, Restart};

use crate::config::{ContainerConfig, HostConfig, RestartPolicy};
use crate::db::Record;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::{health, monitor, signals};

impl RestartPolicy {
    /// Reads `no`, `always`, `unless-stopped` or `on-failure[:COUNT]`.
    ///
    /// # Errors
    /// It is none of these.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, count) = text.split_once(':').map_or((text, None), |(name, count)| (name, Some(count)));
        let maximum_retry_count = match count {
            Some(count) => count.parse().map_err(|_| {
                Error::invalid(format!(
                    "invalid restart policy {text:?}: the number of retries must be an integer"
                ))
            })?,
            None => 0,
        };
        let name = if name.is_empty() { "no" } else { name };
        let policy = Self { name: name.to_owned(), maximum_retry_count };
        policy.rule()?;
        Ok(policy)
    }

    /// What a monitor follows.
    ///
    /// # Errors
    /// There is no such policy.
    pub fn rule(&self) -> Result<Restart> {
        let rule = match self.name.as_str() {
            "" | "no" => Restart::No,
            "always" => Restart::Always,
            "unless-stopped" => Restart::UnlessStopped,
            "on-failure" => {
                let most = u32::try_from(self.maximum_retry_count).map_err(|_| {
                    Error::invalid("the number of retries of a restart policy cannot be negative")
                })?;
                return Ok(Restart::OnFailure(most));
            }
            other => {
                return Err(Error::invalid_with_hint(
                    format!("invalid restart policy {other:?}"),
                    "no, on-failure[:COUNT], always or unless-stopped",
                ));
            }
        };
        if self.maximum_retry_count != 0 {
            return Err(Error::invalid(format!(
                "a number of retries cannot be used with the restart policy {:?}",
                self.name
            )));
        }
        Ok(rule)
    }
}

/// What a monitor is told of an instance's life.
///
/// # Errors
/// The policy makes no sense, or goes against `--rm`.
pub(crate) fn life(config: &ContainerConfig, host: &HostConfig) -> Result<Life> {
    let restart = host.restart_policy.rule()?;
    if host.auto_remove && restart != Restart::No {
        return Err(Error::invalid("--restart and --rm exclude each other"));
    }
    let stop_signal = if config.stop_signal.is_empty() { 0 } else { signals::number(&config.stop_signal)? };
    Ok(Life { restart, stop_signal, stop_timeout: config.stop_timeout, health: health::check(config)? })
}

impl Engine {
    /// Has an instance started again whose monitor was killed, as its restart policy asks for; false where that
    /// could not be done, which is told. Its start is not waited for.
    pub(crate) fn resume(&self, record: &Record) -> bool {
        let resumed = self.read_config(&record.id).and_then(|config| {
            self.restore_confinement(&config)?;
            let _switch = self.prepare_switch(&record.host_config)?;
            let mode = monitor::Mode::Again;
            let answer =
                monitor::spawn(&self.programs, &self.paths, &record.id, mode, self.notice)?.response();
            self.ensure_resolver(&record.host_config)?;
            answer
        });
        match resumed {
            // Where another command was faster, it has seen to it.
            Ok(_) | Err(Error::Monitor { kind: proa_protocol::message::ErrorKind::Conflict, .. }) => true,
            Err(error) => {
                (self.notice)(&format!("instance {} cannot be started again: {error}", record.name));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_dockers() {
        let rule = |text| RestartPolicy::parse(text).and_then(|policy| policy.rule()).ok();
        assert_eq!(rule("no"), Some(Restart::No));
        assert_eq!(rule(""), Some(Restart::No));
        assert_eq!(rule("always"), Some(Restart::Always));
        assert_eq!(rule("unless-stopped"), Some(Restart::UnlessStopped));
        assert_eq!(rule("on-failure"), Some(Restart::OnFailure(0)));
        assert_eq!(rule("on-failure:3"), Some(Restart::OnFailure(3)));
        for wrong in
            ["sometimes", "always:3", "no:1", "on-failure:x", "on-failure:-1", "on-failure:", "Always"]
        {
            assert_eq!(rule(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn removal_at_the_end_and_restarts_exclude_each_other() {
        let mut host = HostConfig { auto_remove: true, ..HostConfig::default() };
        assert!(life(&ContainerConfig::default(), &host).unwrap().is_default());
        host.restart_policy = RestartPolicy::parse("on-failure").unwrap();
        assert!(life(&ContainerConfig::default(), &host).unwrap_err().to_string().contains("--rm"));
    }
}
