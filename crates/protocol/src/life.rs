//! What keeps an instance going: its restart policy and health check, as the engine writes them and the monitor
//! follows them.
//!
//! | policy | its program ends | its monitor was killed | the host boots |
//! | --- | --- | --- | --- |
//! | `No` | stays down | stays down | stays down |
//! | `OnFailure(most)` | again after a code other than 0, `most` times (0: for ever) | the same, as after code 137 | the same |
//! | `Always` | again | again | again, also when it was stopped |
//! | `UnlessStopped` | again | again | again, unless it was stopped |
//!
//! Stopped is an instance whose end a user has asked for; nothing starts it again but a user, or with `Always` a
//! boot of the host.

use serde::{Deserialize, Serialize};

use crate::health::HealthCheck;
use crate::instance::{InstanceState, Status};

/// When a program that has ended is run again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// After a code other than 0, so many times; 0 for no limit.
    OnFailure(u32),
    /// Always.
    Always,
    /// Always, and at the host's boot unless a user has stopped it.
    UnlessStopped,
}

impl Restart {
    /// Whether a program is run again that has ended with `code`, after so many restarts.
    pub fn again(self, code: i32, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(most) => code != 0 && (most == 0 || restarts < most),
            Self::Always | Self::UnlessStopped => true,
        }
    }

    /// Whether an instance in this state is started at the host's boot.
    pub fn at_boot(self, state: &InstanceState) -> bool {
        let wanted = self == Self::Always || !state.stopped;
        state.status == Status::Exited && wanted && self.again(state.exit_code, state.restart_count)
    }
}

/// How an instance is kept going and ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Life {
    /// When it is run again.
    pub restart: Restart,
    /// The signal that asks it to end; 0 for SIGTERM.
    pub stop_signal: i32,
    /// Seconds before it is killed then; negative for never.
    pub stop_timeout: Option<i64>,
    /// How to see whether it is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
}

impl Life {
    /// Whether nothing was asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_decide_as_their_table_says() {
        use Restart::{Always, No, OnFailure, UnlessStopped};
        assert!(!No.again(1, 0));
        assert!(OnFailure(0).again(1, 1000) && !OnFailure(0).again(0, 0));
        assert!(OnFailure(2).again(137, 1) && !OnFailure(2).again(137, 2));
        assert!(Always.again(0, 7) && UnlessStopped.again(0, 7));
        let state = |status, stopped, exit_code| InstanceState {
            status,
            stopped,
            exit_code,
            restart_count: 1,
            ..InstanceState::default()
        };
        let ended = |stopped, code| state(Status::Exited, stopped, code);
        assert!(Always.at_boot(&ended(true, 0)) && Always.at_boot(&ended(false, 0)));
        assert!(!UnlessStopped.at_boot(&ended(true, 3)) && UnlessStopped.at_boot(&ended(false, 0)));
        assert!(!OnFailure(0).at_boot(&ended(true, 3)) && OnFailure(0).at_boot(&ended(false, 3)));
        assert!(!OnFailure(0).at_boot(&ended(false, 0)) && !OnFailure(1).at_boot(&ended(false, 3)));
        assert!(!No.at_boot(&ended(false, 3)));
        for other in [Status::Created, Status::Running, Status::Paused, Status::Restarting] {
            assert!(!Always.at_boot(&state(other, false, 0)), "{other:?}");
        }
    }

    #[test]
    fn the_words_are_frozen() {
        let text = |restart| {
            let life = Life { restart, stop_signal: 15, stop_timeout: Some(3), health: None };
            serde_json::to_string(&life).unwrap()
        };
        let frozen = |restart: &str| format!(r#"{{"restart":{restart},"stop_signal":15,"stop_timeout":3}}"#);
        assert_eq!(text(Restart::No), frozen(r#""no""#));
        assert_eq!(text(Restart::OnFailure(3)), frozen(r#"{"on-failure":3}"#));
        assert_eq!(text(Restart::Always), frozen(r#""always""#));
        assert_eq!(text(Restart::UnlessStopped), frozen(r#""unless-stopped""#));
    }
}
