//! `proa exec`: a further program in an instance that runs.

use std::path::PathBuf;

use proa_engine::spec::{ExecRequest, exec_process};
use proa_oci::runtime::ConsoleSize;
use proa_protocol::message::{ExecConfig, Request, Response};

use super::run::{check_terminal, detach_keys};
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::flags::environment;
use crate::relay::{self, Ended};
use crate::terminal;

/// Run a program in a running instance
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run in the background
    #[arg(short, long)]
    detach: bool,
    /// What to type to leave the terminal
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
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
    /// User: NAME|UID[:GROUP|GID]
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory inside
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// All capabilities
    #[arg(long)]
    privileged: bool,
    /// Instance, program and arguments
    #[arg(required = true, num_args = 2.., value_name = "INSTANCE COMMAND [ARG...]", trailing_var_arg = true)]
    instance: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let (name, command) =
        args.instance.split_first().ok_or_else(|| Failure::usage("an instance is needed"))?;
    let keys = detach_keys(args.detach_keys.as_deref())?;
    let env = environment(&args.env_file, &args.env)?;
    let engine = context.engine()?;
    let instance = engine.find(name)?;
    // Asked first, since an instance that does not run may have no readable configuration either.
    let mut channel = engine.connect(&instance)?;
    if args.tty && args.interactive && !args.detach {
        check_terminal()?;
    }
    let config = engine.read_config(&instance.record.id)?;
    let request = ExecRequest {
        command: command.to_vec(),
        env,
        working_dir: args.workdir.clone().unwrap_or_default(),
        privileged: args.privileged.then_some(config.isolation),
        terminal: args.tty.then(|| terminal::size().unwrap_or(ConsoleSize { height: 0, width: 0 })),
    };
    let process = exec_process(&config.spec.process.unwrap_or_default(), &request)
        .map_err(|error| Failure::from(error).of_exec())?;
    let user = args.user.clone().unwrap_or(config.launch.user);
    let stdin = args.interactive && !args.detach;
    let exec = Request::Exec(Box::new(ExecConfig { process, user, stdin, attach: !args.detach }));
    if args.detach {
        return match channel.call(exec).map_err(|error| Failure::from(error).of_exec())? {
            Response::Started { .. } => Ok(0),
            other => Err(Failure::new(format!("unexpected answer {other:?}"))),
        };
    }
    channel.send(&[exec])?;
    let options =
        relay::Options { stdin, tty: args.tty, sig_proxy: false, detach_keys: keys, running: false };
    match relay::relay(channel, &options, || {}).map_err(Failure::of_exec)? {
        Ended::Exited(status) => Ok(status.code),
        Ended::Detached => Ok(0),
        Ended::OutputClosed => Ok(141),
        Ended::Interrupted(signal) => Ok(128 + signal),
    }
}
