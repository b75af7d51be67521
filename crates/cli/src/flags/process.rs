//! Program, environment, labels, names, streams.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proa_engine::config::{ContainerConfig, HostConfig};
use proa_engine::signals;

use super::{pairs, usage};
use crate::error::Failure;

/// Program, environment, labels, names, streams.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Process")]
pub(super) struct ProcessFlags {
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    tty: bool,
    /// Environment: KEY=VALUE, or KEY for the value it has here
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from FILE
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory inside
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User: NAME|UID[:GROUP|GID]
    #[arg(short, long)]
    user: Option<String>,
    /// Program in place of the image's; "" for none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Run a minimal init that reaps processes and passes signals on
    #[arg(long)]
    init: bool,
    /// Signal that asks it to end
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds before it is killed
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    stop_timeout: Option<i64>,
    /// Host name
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// Domain name
    #[arg(long, value_name = "NAME")]
    domainname: Option<String>,
    /// Line for /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// Name server
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// Resolver option
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Label
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Read labels from FILE
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    /// Annotation of the runtime spec
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
}

impl ProcessFlags {
    pub(super) fn interactive(&self) -> bool {
        self.interactive
    }

    pub(super) fn config(&self, image_and_command: &[String]) -> Result<ContainerConfig, Failure> {
        let (image, command) =
            image_and_command.split_first().ok_or_else(|| Failure::usage("an image is needed"))?;
        if let Some(signal) = &self.stop_signal {
            signals::number(signal).map_err(usage)?;
        }
        Ok(ContainerConfig {
            hostname: self.hostname.clone().unwrap_or_default(),
            domainname: self.domainname.clone().unwrap_or_default(),
            user: self.user.clone().unwrap_or_default(),
            tty: self.tty,
            open_stdin: self.interactive,
            stdin_once: self.interactive,
            env: environment(&self.env_file, &self.env)?,
            cmd: (!command.is_empty()).then(|| command.to_vec()),
            image: image.clone(),
            working_dir: self.workdir.clone().unwrap_or_default(),
            entrypoint: self.entrypoint.clone().map(|program| vec![program]),
            labels: labels(&self.label_file, &self.label)?,
            stop_signal: self.stop_signal.clone().unwrap_or_default(),
            stop_timeout: self.stop_timeout,
            ..ContainerConfig::default()
        })
    }

    pub(super) fn apply(&self, host: &mut HostConfig) -> Result<(), Failure> {
        host.init = self.init.then_some(true);
        host.extra_hosts.clone_from(&self.add_host);
        host.dns.clone_from(&self.dns);
        host.dns_options.clone_from(&self.dns_option);
        host.dns_search.clone_from(&self.dns_search);
        host.annotations = pairs("--annotation", &self.annotation)?.into_iter().collect();
        Ok(())
    }
}

/// Variables of files and then of options. A name alone has the value it has here, and is nothing where it has none.
///
/// # Errors
/// A file cannot be read, or a name is none.
pub fn environment(files: &[PathBuf], given: &[String]) -> Result<Vec<String>, Failure> {
    let mut env = Vec::new();
    for file in files {
        for line in lines(file)? {
            let name = line.split_once('=').map_or(line.as_str(), |(name, _)| name);
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(Failure::usage(format!("invalid variable {line:?} in {}", file.display())));
            }
            env.extend(with_value(&line));
        }
    }
    for text in given {
        if text.is_empty() || text.starts_with('=') {
            return Err(Failure::usage(format!("invalid variable {text:?}")));
        }
        env.extend(with_value(text));
    }
    Ok(env)
}

fn with_value(text: &str) -> Option<String> {
    if text.contains('=') {
        return Some(text.to_owned());
    }
    std::env::var(text).ok().map(|value| format!("{text}={value}"))
}

fn labels(files: &[PathBuf], given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut texts = Vec::new();
    for file in files {
        texts.extend(lines(file)?);
    }
    texts.extend(given.iter().cloned());
    let pair = |text: String| match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (text, String::new()),
    };
    Ok(texts.into_iter().map(pair).collect())
}

/// Lines that are neither empty nor comments.
pub(super) fn lines(path: &Path) -> Result<Vec<String>, Failure> {
    let failed = |error| Failure::io("read", path, error).with_code(crate::error::ENGINE);
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}
