//! `proa attach`: the streams of an instance that runs.

use proa_engine::{Instance, Kind};
use proa_protocol::instance::Status;
use proa_protocol::message::Request;

use super::run::{check_terminal, detach_keys, finish};
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::{relay, terminal};

/// Join the streams of a running instance
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave standard input out
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the process
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    sig_proxy: bool,
    /// What to type to leave the terminal
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Name or id
    instance: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let instance = context.engine()?.find(&args.instance)?;
    join(context, &instance, !args.no_stdin, args.sig_proxy, args.detach_keys.as_deref())
}

/// Joins the streams of an instance that runs, until it ends or the user leaves.
///
/// # Errors
/// It does not run.
pub fn join(
    context: &Context,
    instance: &Instance,
    stdin: bool,
    sig_proxy: bool,
    keys: Option<&str>,
) -> Outcome {
    let engine = context.engine()?;
    if instance.state.status == Status::Paused {
        return Err(Failure::new(format!("instance {} is paused", instance.record.name))
            .with_hint(format!("`proa unpause {}` thaws it", instance.record.name)));
    }
    let config = &instance.record.config;
    let options = relay::Options {
        stdin: stdin && config.open_stdin,
        tty: config.tty,
        sig_proxy,
        detach_keys: detach_keys(keys)?,
        running: true,
    };
    if options.stdin && options.tty {
        check_terminal()?;
    }
    let mut channel = engine.connect(instance)?;
    let mut requests = vec![Request::Attach { stdin: options.stdin, stdout: true, stderr: true }];
    if let (true, Some(size)) = (options.tty, terminal::size()) {
        requests.push(Request::Resize(size));
    }
    channel.send(&requests)?;
    let ended = relay::relay(channel, &options, || {}).map_err(|failure| match failure.kind() {
        Kind::Conflict => {
            failure.with_hint(format!("`proa logs {}` shows what it wrote", instance.record.name))
        }
        _ => failure,
    })?;
    Ok(finish(engine, &instance.record.id, ended)?.code)
}
