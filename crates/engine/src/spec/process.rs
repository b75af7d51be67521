//! The program: what the image says, what the user says, and Docker's rules for both together.

use proa_oci::defaults;
use proa_oci::image::ExecConfig as ImageExec;
use proa_oci::runtime::{ConsoleSize, Process, Rlimit, User};
use proa_protocol::instance::IsolationLevel;

use super::environment;
use crate::config::{ContainerConfig, Empty, HostConfig, Ulimit};
use crate::error::{Error, Result};

/// Fills what the user left open from the image.
///
/// An entrypoint given by the user takes the image's command away with the image's entrypoint; one that is a
/// single empty string takes the entrypoint away and puts none in its place.
pub fn merge(config: &mut ContainerConfig, image: &ImageExec) {
    let given = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let some = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
    if !given(&config.entrypoint) {
        if !given(&config.cmd) {
            config.cmd = some(&image.cmd);
        }
        if config.entrypoint.is_none() {
            config.entrypoint = some(&image.entrypoint);
        }
    } else if config.entrypoint.as_deref() == Some(&[String::new()]) {
        config.entrypoint = None;
    }
    let fill = |field: &mut String, from: &str| {
        if field.is_empty() {
            field.push_str(from);
        }
    };
    fill(&mut config.user, &image.user);
    fill(&mut config.working_dir, &image.working_dir);
    fill(&mut config.stop_signal, &image.stop_signal);
    config.stop_timeout = config.stop_timeout.or(image.stop_timeout);
    crate::health::merge(&mut config.healthcheck, image.healthcheck.as_ref());
    if config.shell.is_empty() && config.healthcheck.is_some() {
        config.shell.clone_from(&image.shell);
    }
    environment::add_missing(&mut config.env, &image.env);
    for (key, value) in &image.labels {
        config.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    config.exposed_ports.extend(image.exposed_ports.iter().map(|port| (port.clone(), Empty {})));
    config.volumes.extend(image.volumes.iter().map(|path| (path.clone(), Empty {})));
}

/// The first process of an instance.
pub(super) fn first_process(
    config: &ContainerConfig,
    host: &HostConfig,
    hostname: &str,
    default: Process,
) -> Result<Process> {
    let lists = [&config.entrypoint, &config.cmd];
    let args: Vec<String> = lists.into_iter().flatten().flatten().cloned().collect();
    if args.first().is_none_or(String::is_empty) {
        return Err(Error::Invalid {
            message: format!("no command given, and the image {} has none", config.image),
            hint: "name one after the image".into(),
        });
    }
    let [height, width] = host.console_size;
    Ok(Process {
        terminal: config.tty,
        console_size: (config.tty && height > 0).then_some(ConsoleSize { height, width }),
        args,
        env: environment(&config.env, hostname, config.tty),
        cwd: working_directory(&config.working_dir)?,
        rlimits: rlimits(&host.ulimits)?,
        user: User { additional_groups: host.group_add.clone(), ..default.user },
        oom_score_adj: (host.oom_score_adj != 0).then_some(host.oom_score_adj),
        ..default
    })
}

fn environment(given: &[String], hostname: &str, terminal: bool) -> Vec<String> {
    let mut env = vec![format!("PATH={}", defaults::DEFAULT_PATH), format!("HOSTNAME={hostname}")];
    if terminal {
        env.push("TERM=xterm".into());
    }
    environment::merge(&mut env, given);
    env
}

fn working_directory(path: &str) -> Result<String> {
    if path.is_empty() {
        return Ok("/".into());
    }
    if !path.starts_with('/') {
        return Err(Error::Invalid {
            message: format!("the working directory {path:?} is not an absolute path"),
            hint: "begin it with a slash".into(),
        });
    }
    Ok(path.to_owned())
}

/// Names of `--ulimit`; a limit is `RLIMIT_` and the name in capitals.
const ULIMITS: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

impl Ulimit {
    /// Reads `name=soft[:hard]`.
    ///
    /// # Errors
    /// There is no such limit, or the numbers make no sense.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |what: &str| Error::Invalid {
            message: format!("invalid ulimit {text:?}: {what}"),
            hint: "NAME=SOFT[:HARD], as nofile=1024:2048; -1 for no limit".into(),
        };
        let (name, values) = text.split_once('=').ok_or_else(|| wrong("no value"))?;
        if !ULIMITS.contains(&name) {
            return Err(wrong("no such limit"));
        }
        let number = |value: &str| match value {
            "unlimited" => Ok(-1),
            value => value.parse::<i64>().ok().filter(|n| *n >= -1).ok_or_else(|| wrong("not a number")),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard) = (number(soft)?, number(hard)?);
        if hard != -1 && (soft == -1 || soft > hard) {
            return Err(wrong("the soft limit is above the hard one"));
        }
        Ok(Self { name: name.to_owned(), hard, soft })
    }
}

fn rlimits(ulimits: &[Ulimit]) -> Result<Vec<Rlimit>> {
    let value = |number: i64| u64::try_from(number).unwrap_or(u64::MAX);
    let mut limits: Vec<Rlimit> = Vec::new();
    for limit in ulimits {
        if !ULIMITS.contains(&limit.name.as_str()) {
            return Err(Error::invalid(format!("no such ulimit: {:?}", limit.name)));
        }
        let kind = format!("RLIMIT_{}", limit.name.to_ascii_uppercase());
        limits.retain(|known| known.kind != kind);
        limits.push(Rlimit { kind, soft: value(limit.soft), hard: value(limit.hard) });
    }
    Ok(limits)
}

/// What a user asks of a further process.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Changes to the instance's environment.
    pub env: Vec<String>,
    /// Directory; empty for the instance's.
    pub working_dir: String,
    /// All capabilities that there are at this level.
    pub privileged: Option<IsolationLevel>,
    /// A terminal, and its size.
    pub terminal: Option<ConsoleSize>,
}

/// A further process in an instance: as its first one, but for what is asked.
///
/// # Errors
/// There is no command, or the directory is not absolute.
pub fn exec_process(first: &Process, request: &ExecRequest) -> Result<Process> {
    if request.command.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("no command given"));
    }
    let mut env = first.env.clone();
    if request.terminal.is_some() {
        environment::add_missing(&mut env, &["TERM=xterm".into()]);
    } else if !first.terminal {
        env.retain(|entry| entry != "TERM=xterm");
    }
    environment::merge(&mut env, &request.env);
    let cwd = if request.working_dir.is_empty() {
        first.cwd.clone()
    } else {
        working_directory(&request.working_dir)?
    };
    let mut first = first.clone();
    if let Some(level) = request.privileged {
        first.capabilities = Some(defaults::capability_sets(super::security::all_capabilities(level)));
        first.apparmor_profile = first.apparmor_profile.map(|_| "unconfined".into());
    }
    Ok(Process {
        terminal: request.terminal.is_some(),
        console_size: request.terminal.filter(|size| size.height > 0),
        args: request.command.clone(),
        env,
        cwd,
        ..first
    })
}
