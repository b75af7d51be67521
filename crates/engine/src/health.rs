//! Health checks: Docker's configuration of them, what a monitor makes of it, and what it has found.

use proa_oci::image::Healthcheck;
use proa_protocol::health::{HEALTH_FILE, Health, HealthCheck, OnFailure};
use serde_json::{Value, json};

use crate::config::ContainerConfig;
use crate::engine::{Engine, Instance};
use crate::error::{Error, Result};
use crate::parse::rfc3339_nano;

const SECOND: i64 = 1_000_000_000;
/// Docker's, where neither image nor user says otherwise.
const INTERVAL: i64 = 30 * SECOND;
const TIMEOUT: i64 = 30 * SECOND;
const START_INTERVAL: i64 = 5 * SECOND;
const RETRIES: i64 = 3;
/// The shortest time that a check may be asked for.
const SHORTEST: i64 = 1_000_000;
/// The shell of images that name none.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// Takes from the image piece by piece what the user left open.
pub(crate) fn merge(own: &mut Option<Healthcheck>, image: Option<&Healthcheck>) {
    let Some(image) = image else { return };
    let Some(own) = own else {
        *own = Some(image.clone());
        return;
    };
    if own.test.is_empty() {
        own.test.clone_from(&image.test);
    }
    let pairs = [
        (&mut own.interval, image.interval),
        (&mut own.timeout, image.timeout),
        (&mut own.start_period, image.start_period),
        (&mut own.start_interval, image.start_interval),
        (&mut own.retries, image.retries),
    ];
    pairs.into_iter().filter(|(own, _)| **own == 0).for_each(|(own, image)| *own = image);
}

/// What a monitor is to do; `None` where there is nothing to check.
///
/// # Errors
/// The check makes no sense.
pub(crate) fn check(config: &ContainerConfig) -> Result<Option<HealthCheck>> {
    let on_failure = action(&config.healthcheck_on_failure_action)?;
    let Some((own, command)) = config.healthcheck.as_ref().zip(command(config)?) else {
        if on_failure != OnFailure::None {
            return Err(Error::invalid_with_hint(
                "--health-on-failure without a health check, which neither --health-cmd nor the image gives",
                "give --health-cmd",
            ));
        }
        return Ok(None);
    };
    let time = |what: &str, value: i64, default: i64| match value {
        0 => Ok(default.unsigned_abs()),
        value if value >= SHORTEST => Ok(value.unsigned_abs()),
        _ => Err(Error::invalid(format!("the health check's {what} cannot be less than 1ms"))),
    };
    let retries = if own.retries == 0 { RETRIES } else { own.retries };
    Ok(Some(HealthCheck {
        command,
        interval_ns: time("interval", own.interval, INTERVAL)?,
        timeout_ns: time("timeout", own.timeout, TIMEOUT)?,
        start_period_ns: time("start period", own.start_period, 0)?,
        start_interval_ns: time("start interval", own.start_interval, START_INTERVAL)?,
        retries: u32::try_from(retries)
            .map_err(|_| Error::invalid("the health check's number of retries cannot be negative"))?,
        on_failure,
    }))
}

/// Program and arguments of the check that is configured, if one is.
fn command(config: &ContainerConfig) -> Result<Option<Vec<String>>> {
    let test = config.healthcheck.as_ref().map_or(&[][..], |check| &check.test);
    match test.split_first().map(|(kind, rest)| (kind.as_str(), rest)) {
        None | Some(("NONE", _)) => Ok(None),
        Some(("CMD", rest)) if !rest.is_empty() => Ok(Some(rest.to_vec())),
        Some(("CMD-SHELL", [line])) => {
            let shell: Vec<String> = match config.shell.as_slice() {
                [] => SHELL.map(str::to_owned).to_vec(),
                shell => shell.to_vec(),
            };
            Ok(Some([shell, vec![line.clone()]].concat()))
        }
        Some(_) => Err(Error::invalid_with_hint(
            format!("the health check {test:?} makes no sense"),
            r#"["NONE"], ["CMD", PROGRAM, ARGUMENT…] or ["CMD-SHELL", LINE] do; --no-healthcheck takes it away"#,
        )),
    }
}

fn action(text: &str) -> Result<OnFailure> {
    match text {
        "" | "none" => Ok(OnFailure::None),
        "kill" => Ok(OnFailure::Kill),
        "restart" => Ok(OnFailure::Restart),
        "stop" => Ok(OnFailure::Stop),
        other => Err(Error::invalid_with_hint(
            format!("invalid --health-on-failure {other:?}"),
            "none, kill, restart or stop",
        )),
    }
}

impl Engine {
    /// What was found of an instance's health; `None` where it is not checked. One that never ran is starting.
    pub fn health(&self, instance: &Instance) -> Option<Health> {
        command(&instance.record.config).ok()??;
        let bytes = std::fs::read(self.paths.instance(&instance.record.id).join(HEALTH_FILE)).ok();
        Some(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
    }

    /// The word for it, as `ps --filter health=` has it.
    pub fn health_word(&self, instance: &Instance) -> &'static str {
        self.health(instance).map_or("none", |health| health.status.as_str())
    }
}

/// Docker's `State.Health`.
pub(crate) fn document(health: &Health) -> Value {
    let log = health.log.iter().map(|check| {
        json!({
            "Start": rfc3339_nano(check.start_ns),
            "End": rfc3339_nano(check.end_ns),
            "ExitCode": check.exit_code,
            "Output": check.output,
        })
    });
    json!({
        "Status": health.status.as_str(),
        "FailingStreak": health.failing_streak,
        "Log": log.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(words: &[&str]) -> Healthcheck {
        Healthcheck { test: words.iter().map(ToString::to_string).collect(), ..Healthcheck::default() }
    }

    fn of(check: Healthcheck) -> ContainerConfig {
        ContainerConfig { healthcheck: Some(check), ..ContainerConfig::default() }
    }

    #[test]
    fn pieces_come_from_the_image() {
        let image = Healthcheck { interval: 5 * SECOND, retries: 7, ..test(&["CMD", "a"]) };
        let merged = |own: Option<Healthcheck>| {
            let mut own = own;
            merge(&mut own, Some(&image));
            own.unwrap()
        };
        assert_eq!(merged(None), image);
        let own = Healthcheck { retries: 2, ..test(&["CMD-SHELL", "b"]) };
        assert_eq!(
            merged(Some(own)),
            Healthcheck { interval: 5 * SECOND, retries: 2, ..test(&["CMD-SHELL", "b"]) }
        );
        assert_eq!(merged(Some(test(&["NONE"]))).test, ["NONE"]);
        let mut none = None;
        merge(&mut none, None);
        assert_eq!(none, None);
    }

    #[test]
    fn what_a_monitor_is_told() {
        let told = check(&of(test(&["CMD-SHELL", "curl x"]))).unwrap().unwrap();
        assert_eq!(told.command, ["/bin/sh", "-c", "curl x"]);
        let second = SECOND.unsigned_abs();
        assert_eq!((told.interval_ns, told.timeout_ns, told.retries), (30 * second, 30 * second, 3));
        assert_eq!((told.start_period_ns, told.start_interval_ns), (0, 5 * second));
        let shell =
            ContainerConfig { shell: vec!["/bin/ash".into(), "-ec".into()], ..of(test(&["CMD-SHELL", "x"])) };
        assert_eq!(check(&shell).unwrap().unwrap().command, ["/bin/ash", "-ec", "x"]);
        assert_eq!(check(&of(test(&["CMD", "a", "b"]))).unwrap().unwrap().command, ["a", "b"]);
        for nothing in [&[][..], &["NONE"]] {
            assert_eq!(check(&of(test(nothing))).unwrap(), None, "{nothing:?}");
        }
        for wrong in [&["CMD"][..], &["CMD-SHELL"], &["CMD-SHELL", "a", "b"], &["curl", "x"]] {
            assert!(check(&of(test(wrong))).is_err(), "{wrong:?}");
        }
        let short = Healthcheck { interval: 999_999, ..test(&["CMD", "a"]) };
        assert!(check(&of(short)).unwrap_err().to_string().contains("interval"));
        assert!(check(&of(Healthcheck { retries: -1, ..test(&["CMD", "a"]) })).is_err());
    }

    #[test]
    fn what_is_done_with_the_unhealthy() {
        let with = |action: &str, words| ContainerConfig {
            healthcheck_on_failure_action: action.into(),
            ..of(test(words))
        };
        let told = |action| check(&with(action, &["CMD", "a"])).map(|check| check.unwrap().on_failure);
        assert_eq!(told("").unwrap(), OnFailure::None);
        assert_eq!(told("restart").unwrap(), OnFailure::Restart);
        assert!(told("reboot").is_err());
        assert!(check(&with("kill", &["NONE"])).is_err());
        assert_eq!(check(&with("none", &["NONE"])).unwrap(), None);
    }
}
