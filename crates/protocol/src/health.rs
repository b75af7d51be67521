//! Whether an instance is well: what is asked of its monitor, and what the monitor has found.
//!
//! ```text
//!   <root>/instances/<id>/health.json   Health: written by the monitor after each check, replaced by rename
//! ```

use serde::{Deserialize, Serialize};

/// Name of the file with what was found.
pub const HEALTH_FILE: &str = "health.json";

/// How to see whether an instance is well. Times in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthCheck {
    /// Program and arguments; the code 0 means that all is well.
    pub command: Vec<String>,
    /// From the end of a check to the next.
    pub interval_ns: u64,
    /// How long a check may take.
    pub timeout_ns: u64,
    /// In which failures do not count, until a check has succeeded.
    pub start_period_ns: u64,
    /// Between checks of that time.
    pub start_interval_ns: u64,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
    /// What is done then.
    pub on_failure: OnFailure,
}

/// What is done with an instance that has become unhealthy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// Nothing.
    #[default]
    None,
    /// It is killed; its restart policy says what follows.
    Kill,
    /// It is ended and run again, whatever its restart policy.
    Restart,
    /// It is ended and stays down.
    Stop,
}

/// How an instance is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// No check has succeeded yet, and too few have failed.
    #[default]
    Starting,
    /// The last checks were well.
    Healthy,
    /// Too many checks in a row have failed, or it does not run.
    Unhealthy,
}

impl HealthStatus {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// What has been found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// How it is.
    pub status: HealthStatus,
    /// Checks that have failed since the last that has not.
    pub failing_streak: u32,
    /// The last checks, the oldest first.
    pub log: Vec<Checked>,
}

/// One check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Checked {
    /// When it began, nanoseconds since the epoch.
    pub start_ns: i64,
    /// When it ended.
    pub end_ns: i64,
    /// Its code; -1 where it could not be run, or took too long.
    pub exit_code: i32,
    /// The beginning of what it wrote.
    pub output: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_frozen() {
        let log = vec![Checked { start_ns: 5, end_ns: 7, exit_code: 1, output: "no\n".into() }];
        let health = Health { status: HealthStatus::Unhealthy, failing_streak: 3, log };
        let text = concat!(
            r#"{"status":"unhealthy","failing_streak":3,"#,
            r#""log":[{"start_ns":5,"end_ns":7,"exit_code":1,"output":"no\n"}]}"#
        );
        assert_eq!(serde_json::to_string(&health).unwrap(), text);
        assert_eq!(serde_json::from_str::<Health>(text).unwrap(), health);
        assert_eq!(serde_json::from_str::<Health>("{}").unwrap(), Health::default());
    }
}
