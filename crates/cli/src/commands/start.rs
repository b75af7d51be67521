//! `proa start`: instances that do not run.

use super::run::{Finished, check_terminal, detach_keys, finish, send_start};
use crate::context::Context;
use crate::error::{Failure, Outcome, each};
use crate::flags::Attached;
use crate::relay;

/// Run instances that do not run
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Join standard output and error, and pass signals on
    #[arg(short, long)]
    attach: bool,
    /// Join standard input
    #[arg(short, long)]
    interactive: bool,
    /// What to type to leave the terminal
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    if args.attach || args.interactive {
        let [name] = args.instances.as_slice() else {
            return Err(Failure::usage("only one instance can be attached to").with_code(1));
        };
        return attached(context, args, name);
    }
    each(&args.instances, |name| {
        let instance = engine.find(name)?;
        engine.start(&instance)?;
        println!("{name}");
        Ok(())
    })
}

fn attached(context: &Context, args: &Args, name: &str) -> Outcome {
    let engine = context.engine()?;
    let instance = engine.find(name)?;
    if instance.is_live() {
        return super::attach::join(context, &instance, args.interactive, true, args.detach_keys.as_deref());
    }
    let config = &instance.record.config;
    let options = relay::Options {
        stdin: args.interactive && config.open_stdin,
        tty: config.tty,
        sig_proxy: true,
        detach_keys: detach_keys(args.detach_keys.as_deref())?,
        running: false,
    };
    if options.stdin && options.tty {
        check_terminal()?;
    }
    let mut channel = engine.prepare_start(&instance)?;
    send_start(&mut channel, Attached { stdin: options.stdin, stdout: true, stderr: true }, &options)?;
    let ended = relay::relay(channel, &options, || {})?;
    let Finished { code, over } = finish(engine, &instance.record.id, ended)?;
    if over && instance.record.auto_remove {
        engine.remove_ended(&instance.record.id, true)?;
    }
    Ok(code)
}
