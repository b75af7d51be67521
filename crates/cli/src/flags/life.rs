//! What keeps an instance going: restart policy and health check.

use proa_engine::condition::Dependency;
use proa_engine::config::{ContainerConfig, HostConfig, RestartPolicy};
use proa_engine::parse;
use proa_oci::image::Healthcheck;

use super::usage;
use crate::error::Failure;

/// Restart policy and health check.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Life")]
pub(super) struct LifeFlags {
    /// Run it again when it ends: no, on-failure[:COUNT], always or unless-stopped
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    /// Start it when this holds of another instance: started, healthy or completed (with code 0)
    #[arg(long, value_name = "NAME[:CONDITION]")]
    depends_on: Vec<String>,
    /// Shell line that says by its code 0 that all is well
    #[arg(long, value_name = "LINE")]
    health_cmd: Option<String>,
    /// Time between two checks (30s)
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    health_interval: Option<String>,
    /// Time that a check may take (30s)
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    health_timeout: Option<String>,
    /// Failures in a row that make it unhealthy (3)
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    health_retries: Option<i64>,
    /// Time after the start in which failures do not count (0s)
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    health_start_period: Option<String>,
    /// Time between two checks of the start period (5s)
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    health_start_interval: Option<String>,
    /// No health check, though the image has one
    #[arg(long)]
    no_healthcheck: bool,
    /// What is done when it becomes unhealthy: none, kill, restart or stop
    #[arg(long, value_name = "ACTION")]
    health_on_failure: Option<String>,
}

impl LifeFlags {
    pub(super) fn apply(&self, config: &mut ContainerConfig, host: &mut HostConfig) -> Result<(), Failure> {
        if let Some(policy) = &self.restart {
            host.restart_policy = RestartPolicy::parse(policy).map_err(usage)?;
        }
        if host.auto_remove && host.restart_policy.name != "no" {
            return Err(Failure::usage("--restart and --rm exclude each other"));
        }
        for text in &self.depends_on {
            Dependency::parse(text).map_err(usage)?;
        }
        host.depends_on.clone_from(&self.depends_on);
        config.healthcheck = self.healthcheck()?;
        config.healthcheck_on_failure_action = self.health_on_failure.clone().unwrap_or_default();
        Ok(())
    }

    fn healthcheck(&self) -> Result<Option<Healthcheck>, Failure> {
        let line = self.health_cmd.iter().filter(|line| !line.is_empty());
        let own = Healthcheck {
            test: line.flat_map(|line| ["CMD-SHELL".to_owned(), line.clone()]).collect(),
            interval: duration("interval", self.health_interval.as_deref())?,
            timeout: duration("timeout", self.health_timeout.as_deref())?,
            start_period: duration("start-period", self.health_start_period.as_deref())?,
            start_interval: duration("start-interval", self.health_start_interval.as_deref())?,
            retries: self.health_retries.unwrap_or(0),
        };
        if own.retries < 0 {
            return Err(Failure::usage("--health-retries cannot be negative"));
        }
        match (self.no_healthcheck, own == Healthcheck::default()) {
            (true, true) => Ok(Some(Healthcheck { test: vec!["NONE".into()], ..own })),
            (true, false) => Err(Failure::usage("--no-healthcheck and --health-* exclude each other")),
            (false, nothing) => Ok((!nothing).then_some(own)),
        }
    }
}

fn duration(name: &str, text: Option<&str>) -> Result<i64, Failure> {
    let ns = text.map(parse::duration_ns).transpose().map_err(usage)?.unwrap_or(0);
    if ns < 0 {
        return Err(Failure::usage(format!("--health-{name} cannot be negative")));
    }
    Ok(ns)
}
