//! The options of `run` and `create`, and what they become: Docker's two configurations.

mod later;
mod life;
mod limits;
mod machine;
mod namespaces;
mod network;
mod process;
mod security;
mod storage;

use std::path::{Path, PathBuf};

use proa_engine::config::{ContainerConfig, HostConfig};
use proa_engine::life::parse_level;
use proa_protocol::instance::IsolationLevel;
use proa_protocol::kernel::name_of;

use crate::error::Failure;
use crate::terminal;

pub use limits::UpdateFlags;
pub use machine::MachineFlags;
pub use process::environment;

/// Options that `run` and `create` share.
#[derive(Debug, Clone, clap::Args)]
pub struct ContainerFlags {
    /// Isolation level: container (the host's kernel) or vm (a kernel of its own)
    #[arg(long, value_name = "LEVEL", default_value = "container", help_heading = "Isolation")]
    pub isolation: String,
    /// Kernel of a vm, by its name (proa kernel ls) or by a path with a slash in it
    #[arg(long, value_name = "NAME|FILE", help_heading = "Isolation")]
    pub kernel: Option<PathBuf>,
    /// Word for the command line of a vm's kernel
    #[arg(long = "kernel-arg", value_name = "WORD", help_heading = "Isolation")]
    pub kernel_args: Vec<String>,
    /// Boot a vm, rather than start it from a template
    #[arg(long, help_heading = "Isolation")]
    pub no_template: bool,
    /// Neither take a vm that stands by, nor leave one behind for the next instance
    #[arg(long, help_heading = "Isolation")]
    pub no_standby: bool,
    /// Size of a vm's writable disk
    #[arg(long, value_name = "BYTES", help_heading = "Isolation")]
    pub disk_size: Option<String>,
    /// Name of the instance
    #[arg(long)]
    pub name: Option<String>,
    /// Remove the instance when it ends
    #[arg(long)]
    pub rm: bool,
    /// Pull the image: always, missing or never
    #[arg(long, value_name = "POLICY", default_value = "missing")]
    pub pull: String,
    /// No progress while pulling
    #[arg(short, long)]
    pub quiet: bool,
    /// Platform of the image, as linux/amd64
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Write the instance's id to FILE, which must not exist
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Who keeps the output: json-file, local, journald, syslog or none
    #[arg(long, value_name = "DRIVER")]
    pub log_driver: Option<String>,
    /// Option of the log driver, as max-size=BYTES, max-file=COUNT, mode=non-blocking, tag=TEXT
    #[arg(long, value_name = "KEY=VALUE")]
    pub log_opt: Vec<String>,
    #[command(flatten)]
    process: process::ProcessFlags,
    #[command(flatten)]
    network: network::NetworkFlags,
    #[command(flatten)]
    storage: storage::StorageFlags,
    #[command(flatten)]
    limits: limits::LimitFlags,
    #[command(flatten)]
    security: security::SecurityFlags,
    #[command(flatten)]
    namespaces: namespaces::NamespaceFlags,
    #[command(flatten)]
    life: life::LifeFlags,
    #[command(flatten)]
    later: later::LaterFlags,
    /// Image, command and arguments
    #[arg(required = true, value_name = "IMAGE [COMMAND] [ARG...]", trailing_var_arg = true)]
    pub image: Vec<String>,
}

/// What the options ask for.
#[derive(Debug)]
pub struct Wanted {
    /// The image.
    pub image: String,
    /// The image's side.
    pub config: ContainerConfig,
    /// The host's side.
    pub host_config: HostConfig,
    /// The isolation level.
    pub level: IsolationLevel,
}

/// Which streams a client of the first process has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attached {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

impl ContainerFlags {
    /// Reads all of them. `detached` is `-d`, or `create`.
    ///
    /// # Errors
    /// One makes no sense.
    pub fn read(&self, attach: &[String], detached: bool) -> Result<Wanted, Failure> {
        self.later.refuse()?;
        let level = parse_level(&self.isolation).map_err(usage)?;
        if !["always", "missing", "never", ""].contains(&self.pull.as_str()) {
            return Err(Failure::usage(format!("invalid --pull {:?}", self.pull))
                .with_hint("always, missing or never"));
        }
        let mut config = self.process.config(&self.image)?;
        let attached = self.attached(attach, detached)?;
        config.attach_stdin = attached.stdin;
        config.attach_stdout = attached.stdout;
        config.attach_stderr = attached.stderr;
        let mut host = HostConfig {
            auto_remove: self.rm,
            container_id_file: self
                .cidfile
                .as_ref()
                .map_or_else(String::new, |path| path.display().to_string()),
            console_size: console_size(config.tty),
            ..HostConfig::default()
        };
        let of_kernel = |path: &Path| match name_of(path) {
            Some(name) => Ok(PathBuf::from(name)),
            None => absolute(path),
        };
        host.vm.kernel = self.kernel.as_deref().map(of_kernel).transpose()?;
        host.vm.kernel_args.clone_from(&self.kernel_args);
        host.vm.no_template = self.no_template;
        host.vm.disk_size =
            self.disk_size.as_deref().map(proa_engine::parse::bytes).transpose().map_err(usage)?;
        self.network.apply(&mut config, &mut host)?;
        self.log(&mut host)?;
        self.process.apply(&mut host)?;
        self.storage.apply(&mut config, &mut host)?;
        self.limits.apply(&mut host)?;
        self.security.apply(&mut host)?;
        self.namespaces.apply(&mut host);
        self.life.apply(&mut config, &mut host)?;
        Ok(Wanted { image: config.image.clone(), config, host_config: host, level })
    }

    /// Docker's rule: without `-a` and `-d`, everything, and standard input if there is to be one.
    fn attached(&self, attach: &[String], detached: bool) -> Result<Attached, Failure> {
        let mut attached = Attached::default();
        for name in attach {
            match name.to_ascii_lowercase().as_str() {
                "stdin" => attached.stdin = true,
                "stdout" => attached.stdout = true,
                "stderr" => attached.stderr = true,
                _ => {
                    return Err(Failure::usage(format!("invalid --attach {name:?}"))
                        .with_hint("stdin, stdout or stderr"));
                }
            }
        }
        if attach.is_empty() && !detached {
            return Ok(Attached { stdin: self.process.interactive(), stdout: true, stderr: true });
        }
        if detached && !attach.is_empty() {
            return Err(Failure::usage("--attach and --detach exclude each other"));
        }
        Ok(attached)
    }

    fn log(&self, host: &mut HostConfig) -> Result<(), Failure> {
        host.log_config.kind = self.log_driver.clone().unwrap_or_default();
        host.log_config.config = pairs("--log-opt", &self.log_opt)?.into_iter().collect();
        Ok(())
    }
}

fn console_size(tty: bool) -> [u16; 2] {
    let size = if tty { terminal::size() } else { None };
    size.map_or([0, 0], |size| [size.height, size.width])
}

/// What the engine says of an option, with the code of options that make no sense.
pub fn usage(error: proa_engine::Error) -> Failure {
    Failure::from(error).with_code(crate::error::ENGINE)
}

/// A path of the host as other processes see it, whose working directory is another.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::io("use", path, error))
}

/// Reads `KEY=VALUE` texts.
fn pairs(flag: &str, texts: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Failure::usage(format!("invalid {flag} {text:?}")).with_hint("KEY=VALUE")),
    };
    texts.iter().map(pair).collect()
}

#[cfg(test)]
mod tests;
