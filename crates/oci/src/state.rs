//! The state of a container, as hooks, `state` and seccomp listeners get it (runtime specification 1.2).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being created.
    #[default]
    Creating,
    /// Its program has not been run yet.
    Created,
    /// Its program runs.
    Running,
    /// Its program has ended.
    Stopped,
}

/// The state of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct State {
    /// Version of the specification.
    pub oci_version: String,
    /// Id of the container.
    pub id: String,
    /// Where it is in its life.
    pub status: Status,
    /// First process, as whoever reads this sees it; 0 where there is none.
    #[serde(skip_serializing_if = "is_zero")]
    pub pid: u32,
    /// Absolute path of the bundle.
    pub bundle: String,
    /// The spec's annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a seccomp listener gets with the descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerProcessState {
    /// Version of the specification.
    pub oci_version: String,
    /// Names of the descriptors, in their order.
    pub fds: Vec<String>,
    /// The process, as the runtime sees it.
    pub pid: u32,
    /// The spec's `listenerMetadata`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub metadata: String,
    /// State of its container.
    pub state: State,
}

/// Name of the descriptor of a seccomp listener.
pub const SECCOMP_FD: &str = "seccompFd";

fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl State {
    /// As JSON.
    pub fn to_json(&self) -> String {
        // Strings and numbers: nothing in it can fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl ContainerProcessState {
    /// As JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_specification() {
        let mut state =
            State { oci_version: "1.2.0".into(), id: "a".into(), bundle: "/b".into(), ..State::default() };
        assert_eq!(state.to_json(), r#"{"ociVersion":"1.2.0","id":"a","status":"creating","bundle":"/b"}"#);
        (state.status, state.pid) = (Status::Running, 7);
        let process =
            ContainerProcessState { fds: vec![SECCOMP_FD.into()], pid: 8, state, ..Default::default() };
        assert_eq!(
            process.to_json(),
            r#"{"ociVersion":"","fds":["seccompFd"],"pid":8,"state":{"ociVersion":"1.2.0","id":"a","status":"running","pid":7,"bundle":"/b"}}"#
        );
    }
}
