//! What runs again when the host has booted.
//!
//! Instances are started in an order in which those come first that others depend on, or share namespaces of; each is started as a user's
//! `start` would, and no failure keeps the next from being tried. Nothing runs twice: an instance that has a monitor
//! is left alone, and of two boots at once the monitor's lock decides.

use std::collections::BTreeSet;

use proa_protocol::instance::Status;

use crate::condition::Dependency;
use crate::engine::{Engine, Instance};
use crate::error::{Error, Result};

/// What became of one instance.
#[derive(Debug)]
pub struct Booted {
    /// Its name.
    pub name: String,
    /// Why it does not run, if it does not.
    pub failure: Option<Error>,
}

impl Engine {
    /// Starts what its restart policies want to run after a boot.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn boot(&self, mut done: impl FnMut(Booted)) -> Result<()> {
        let due: Vec<Instance> = self.instances()?.into_iter().filter(is_due).collect();
        for instance in in_order(due) {
            let failure = match self.start(&instance) {
                Ok(()) => None,
                // Somebody was faster.
                Err(Error::Conflict { .. }) if self.is_up(&instance) => None,
                Err(error) => Some(error),
            };
            done(Booted { name: instance.record.name.clone(), failure });
        }
        Ok(())
    }

    fn is_up(&self, instance: &Instance) -> bool {
        self.read_state(&instance.record.id).is_ok_and(|state| state.status.is_live())
    }
}

fn is_due(instance: &Instance) -> bool {
    let rule = instance.record.host_config.restart_policy.rule();
    instance.state.status == Status::Exited && rule.is_ok_and(|rule| rule.at_boot(&instance.state))
}

/// Those first that others depend on, then the oldest; where they depend on each other in a circle, the oldest.
fn in_order(mut due: Vec<Instance>) -> Vec<Instance> {
    due.sort_by_key(|instance| instance.record.created_ns);
    let mut ordered: Vec<Instance> = Vec::with_capacity(due.len());
    while !due.is_empty() {
        let names = |instance: &'_ Instance| [instance.record.name.clone(), instance.record.id.clone()];
        let waiting: BTreeSet<String> = due.iter().flat_map(names).collect();
        let is_free = |instance: &Instance| {
            let own = instance.record.host_config.depends_on.iter();
            let mut names = own.filter_map(|text| Dependency::parse(text).ok());
            names.all(|dependency| !waiting.contains(&dependency.name))
                && instance.record.host_config.sharers().all(|id| !waiting.contains(id))
        };
        let next = due.iter().position(is_free).unwrap_or(0);
        ordered.push(due.remove(next));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ContainerConfig, HostConfig};
    use crate::db::Record;
    use proa_protocol::instance::{InstanceState, IsolationLevel};

    fn instance(name: &str, created_ns: i64, depends_on: &[&str]) -> Instance {
        let depends_on = depends_on.iter().map(ToString::to_string).collect();
        Instance {
            record: Record {
                id: "ab".repeat(32),
                name: name.into(),
                image_id: String::new(),
                image: String::new(),
                level: IsolationLevel::Container,
                created_ns,
                auto_remove: false,
                config: ContainerConfig::default(),
                host_config: Box::new(HostConfig { depends_on, ..HostConfig::default() }),
            },
            state: InstanceState { status: Status::Exited, ..InstanceState::default() },
        }
    }

    #[test]
    fn who_is_needed_comes_first() {
        let names = |due| in_order(due).into_iter().map(|instance| instance.record.name).collect::<Vec<_>>();
        let web = || instance("web", 1, &["db:healthy", "cache"]);
        let due = vec![web(), instance("cache", 3, &["db"]), instance("db", 5, &["elsewhere"])];
        assert_eq!(names(due), ["db", "cache", "web"]);
        let circle = vec![instance("b", 2, &["a"]), instance("a", 1, &["b"]), instance("c", 3, &[])];
        assert_eq!(names(circle), ["c", "a", "b"]);
    }

    #[test]
    fn what_ran_and_is_wanted_is_due() {
        let with = |policy: &str, status, stopped| {
            let mut instance = instance("x", 1, &[]);
            instance.record.host_config.restart_policy.name = policy.into();
            instance.state = InstanceState { status, stopped, exit_code: 137, ..InstanceState::default() };
            is_due(&instance)
        };
        assert!(with("always", Status::Exited, true) && with("on-failure", Status::Exited, false));
        assert!(!with("unless-stopped", Status::Exited, true) && !with("no", Status::Exited, false));
        assert!(!with("always", Status::Created, false) && !with("always", Status::Running, false));
    }
}
