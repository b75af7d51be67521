//! `proa run`: an instance of an image, made and run.
//!
//! ```text
//!   image ─▶ create ─▶ monitor ─▶ attach and start in one write ─▶ relay ─▶ exit code
//!     monitor's program is started ┘                                 └ --rm: remove
//! ```

use std::io::IsTerminal;
use std::io::Write;

use proa_engine::channel::Channel;
use proa_engine::create::{CreateRequest, Created};
use proa_engine::monitor::Waiting;
use proa_engine::{Engine, Kind};
use proa_image::Image;
use proa_oci::reference::Reference;
use proa_protocol::message::Request;

use super::image::pull;
use crate::context::{self, Context};
use crate::error::{Failure, Outcome};
use crate::flags::{Attached, ContainerFlags, Wanted};
use crate::relay::{self, Ended};
use crate::terminal;

/// Make an instance of an image and run it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run in the background and print the id
    #[arg(short, long)]
    detach: bool,
    /// Attach to stdin, stdout or stderr
    #[arg(short, long, value_name = "STREAM")]
    attach: Vec<String>,
    /// What to type to leave the terminal
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Pass signals on to the process
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    sig_proxy: bool,
    #[command(flatten)]
    container: ContainerFlags,
}

impl Args {
    /// What its options ask for.
    pub fn wanted(&self) -> Result<Wanted, Failure> {
        self.container.read(&self.attach, self.detach)
    }
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    run_inner(context, args).map_err(Failure::of_run)
}

fn run_inner(context: &Context, args: &Args) -> Outcome {
    let keys = detach_keys(args.detach_keys.as_deref())?;
    let wanted = args.wanted()?;
    let attached = Attached {
        stdin: wanted.config.attach_stdin && wanted.config.open_stdin,
        stdout: wanted.config.attach_stdout,
        stderr: wanted.config.attach_stderr,
    };
    let tty = wanted.config.tty;
    if attached.stdin && tty {
        check_terminal()?;
    }
    let (engine, monitor) = context.engine_and_monitor(wanted.level)?;
    let created = create(context, &args.container, wanted)?;
    let id = created.record.id.clone();
    let remove = created.record.auto_remove;
    let result = if args.detach {
        start_detached(engine, monitor, created)
    } else {
        let options = relay::Options {
            stdin: attached.stdin,
            tty,
            sig_proxy: args.sig_proxy,
            detach_keys: keys,
            running: false,
        };
        run_attached(engine, monitor, created, attached, &options)
    };
    let (code, over) = match &result {
        Ok(finished) => (finished.code, finished.over),
        Err(_) => (0, true),
    };
    if remove && over {
        // Its failure to start is the one to tell.
        let removed = engine.remove_ended(&id, true);
        result?;
        removed?;
        return Ok(code);
    }
    result.map(|finished| finished.code)
}

/// How a relay ended, for us.
pub struct Finished {
    /// Our exit code.
    pub code: i32,
    /// Whether the instance has ended.
    pub over: bool,
}

fn start_detached(engine: &Engine, monitor: Waiting, created: Created) -> Result<Finished, Failure> {
    engine.wait_dependencies(&created.record)?;
    let mut channel = engine.give_monitor(monitor, &created)?;
    channel.start()?;
    println!("{}", created.record.id);
    Ok(Finished { code: 0, over: false })
}

fn run_attached(
    engine: &Engine,
    monitor: Waiting,
    created: Created,
    attached: Attached,
    options: &relay::Options,
) -> Result<Finished, Failure> {
    engine.wait_dependencies(&created.record)?;
    let mut channel = engine.give_monitor(monitor, &created)?;
    let id = created.record.id.clone();
    send_start(&mut channel, attached, options)?;
    let ended = relay::relay(channel, options, move || drop(created))?;
    finish(engine, &id, ended)
}

/// Attaches and starts in one write.
pub fn send_start(
    channel: &mut Channel,
    attached: Attached,
    options: &relay::Options,
) -> Result<(), Failure> {
    let Attached { stdin, stdout, stderr } = attached;
    let mut requests = vec![Request::Attach { stdin, stdout, stderr }];
    if options.tty
        && let Some(size) = terminal::size()
    {
        requests.push(Request::Resize(size));
    }
    requests.push(Request::Start);
    Ok(channel.send(&requests)?)
}

/// What the end of a relay means for the command.
pub fn finish(engine: &Engine, id: &str, ended: Ended) -> Result<Finished, Failure> {
    const SIGPIPE: i32 = 13;
    let code = |signal| 128 + signal;
    Ok(match ended {
        Ended::Exited(status) => Finished { code: status.code, over: true },
        Ended::Detached => Finished { code: 0, over: false },
        Ended::OutputClosed => Finished { code: code(SIGPIPE), over: false },
        Ended::Interrupted(signal) => {
            let over = !engine.has_monitor(id)?;
            if !over {
                let name = engine.find(id).map_or_else(|_| id.to_owned(), |instance| instance.record.name);
                context::notice(&format!("left; instance {name} goes on"));
            }
            Finished { code: code(signal), over }
        }
    })
}

/// Keys that leave a terminal.
pub fn detach_keys(text: Option<&str>) -> Result<Vec<u8>, Failure> {
    relay::parse_detach_keys(text.unwrap_or("ctrl-p,ctrl-q"))
}

/// With `-it` there must be a terminal to type on.
pub fn check_terminal() -> Result<(), Failure> {
    if std::io::stdin().is_terminal() {
        return Ok(());
    }
    Err(Failure::new("standard input is not a terminal, and -t asks for one")
        .with_hint("use -i alone for input from a pipe"))
}

/// Makes the instance that the options ask for.
pub fn create(context: &Context, flags: &ContainerFlags, wanted: Wanted) -> Result<Created, Failure> {
    let cidfile = flags.cidfile.as_deref().map(open_cidfile).transpose()?;
    let made = create_instance(context, flags, wanted);
    if let (Some(path), Err(_)) = (&flags.cidfile, &made) {
        // The failure is the one to tell; an empty file would only stand in the way of the next attempt.
        let _ = std::fs::remove_file(path);
    }
    let created = made?;
    if let (Some(path), Some(mut file)) = (&flags.cidfile, cidfile) {
        file.write_all(created.record.id.as_bytes()).map_err(|error| Failure::io("write", path, error))?;
    }
    created.warnings.iter().for_each(|line| context::notice(line));
    Ok(created)
}

fn create_instance(context: &Context, flags: &ContainerFlags, wanted: Wanted) -> Result<Created, Failure> {
    let image = image(context, flags, &wanted.image)?;
    let request = CreateRequest {
        name: flags.name.clone(),
        image,
        config: wanted.config,
        host_config: wanted.host_config,
        level: wanted.level,
        settings: context.security_settings()?,
        network: context.network_settings()?,
        log: context.log_settings()?,
        standby: if flags.no_standby { 0 } else { context.vm_settings()?.standby },
    };
    Ok(context.engine()?.create(request)?)
}

fn open_cidfile(path: &std::path::Path) -> Result<std::fs::File, Failure> {
    std::fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Failure::new(format!("{} is there already", path.display()))
            .with_hint("remove it if the instance it names is gone"),
        _ => Failure::io("make", path, error),
    })
}

/// The image, pulled if the policy says so.
fn image(context: &Context, flags: &ContainerFlags, name: &str) -> Result<Image, Failure> {
    let platform = flags.platform.as_deref();
    let fetch = || pull::fetch(context, &Reference::parse(name)?, platform, flags.quiet);
    if flags.pull == "always" {
        return fetch();
    }
    let found = context.engine()?.store()?.resolve(name).map_err(Failure::from);
    match found {
        Ok(image) if platform.is_none_or(|wanted| fits(&image, wanted)) => Ok(image),
        Ok(image) if flags.pull == "never" => Err(Failure::new(format!(
            "the image {name} is for {}, not for {}",
            image.config.platform(),
            platform.unwrap_or_default()
        ))),
        Ok(_) => fetch(),
        Err(failure) if failure.kind() == Kind::NotFound && flags.pull != "never" => {
            if !flags.quiet {
                context::notice(&format!("the image {name} is not here, so it is pulled"));
            }
            fetch()
        }
        Err(failure) if failure.kind() == Kind::NotFound => {
            Err(failure.with_hint(format!("`proa pull {name}` fetches it")))
        }
        Err(failure) => Err(failure),
    }
}

fn fits(image: &Image, wanted: &str) -> bool {
    let Some(wanted) = proa_oci::image::Platform::parse(wanted) else { return false };
    let has = image.config.platform();
    has.os == wanted.os
        && has.architecture == wanted.architecture
        && (wanted.variant.is_none() || has.variant == wanted.variant)
}
