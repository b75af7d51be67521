//! The process that outlives the CLI and owns one instance.
//!
//! ```text
//!   proa-monitor --root DIR --run DIR [--id ID] [--client] [--agent FILE] [--again | --maintenance | --repair]
//!   proa-monitor --template JSON [detach]
//!   proa-monitor --standby JSON [detach]
//!   proa-monitor --add-kernel JSON
//!   proa-monitor --prune-kernels JSON
//!   proa-monitor --import-disk JSON
//!   proa-monitor --pack-snapshot JSON
//!   proa-monitor --check-snapshot JSON
//! ```
//!
//! The engine starts it from a sealed executable, in a session of its own, with `/dev/null` for standard
//! streams. Without `--id` the client tells the 64 digits of the id before anything else, or closes its socket where
//! there will be no instance. Errors go to the client whose connected socket is standard output (`--client`), and into `state.json`. Under the
//! name `proa-init` the same executable is PID 1 of a container.
//!
//! SIGTERM, SIGINT and SIGHUP do nothing: who wants the instance to end tells the instance. SIGKILL takes the
//! instance along, since its processes die with their parent; the next command repairs what is left.

mod args;
mod backend;
mod client;
mod clock;
mod enclosing;
mod error;
mod events;
mod guest;
mod health;
mod import;
mod log;
mod machine;
mod maker;
mod network;
mod peek;
mod record;
mod repair;
mod restart;
mod serve;
mod shared;
mod standby;
mod volumes;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use proa_protocol::instance::{InstanceConfig, Status, is_id};
use proa_protocol::kernel::{ADD_ARGUMENT, PRUNE_ARGUMENT};
use proa_protocol::snapshot::{CHECK_ARGUMENT, PACK_ARGUMENT};
use rustix::fs::{CWD, Mode as FileMode, OFlags, openat};
use rustix::process::Signal;
use serde::de::DeserializeOwned;

use crate::args::{Args, Mode};
use crate::backend::Backend;
use crate::error::{Error, IoAt};
use crate::log::{Identity, Log};
use crate::record::Record;
use crate::serve::{Again, Reaper, Server};
use crate::standby::Ready;
use crate::volumes::Volumes;

/// Digits of an instance's id.
const ID_LENGTH: usize = 64;
/// How long a client may take to read why there is no monitor.
const LAST_WORDS: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let own_name = arguments.next().unwrap_or_default();
    if own_name == proa_runtime::INIT_NAME {
        proa_runtime::init_main();
    }
    let mut arguments = arguments.peekable();
    if arguments.next_if(|first| first == maker::ARGUMENT).is_some() {
        return maker::run(arguments);
    }
    if arguments.next_if(|first| first == proa_protocol::standby::ARGUMENT).is_some() {
        return standby::run(arguments, |args, client, ready| {
            code(&monitor(args, Some(client), Some(ready)))
        });
    }
    if arguments.next_if(|first| first == ADD_ARGUMENT).is_some() {
        return errand(arguments, |wanted| proa_vm::add_kernel(&wanted).map(drop));
    }
    if arguments.next_if(|first| first == PRUNE_ARGUMENT).is_some() {
        return errand(arguments, |wanted| {
            let json = serde_json::to_vec(&proa_vm::prune_kernels(&wanted)?).unwrap_or_default();
            // Who does not read it has gone.
            let _ = std::io::stdout().write_all(&json);
            Ok(())
        });
    }
    if arguments.next_if(|first| first == PACK_ARGUMENT).is_some() {
        return errand(arguments, |wanted| proa_vm::pack_snapshot(&wanted));
    }
    if arguments.next_if(|first| first == CHECK_ARGUMENT).is_some() {
        return errand(arguments, |wanted| proa_vm::check_snapshot(&wanted));
    }
    if arguments.next_if(|first| first == proa_protocol::machine::IMPORT_ARGUMENT).is_some() {
        return import::run(arguments);
    }
    match Args::parse(arguments) {
        Err(message) => usage(&message),
        Ok(mut args) => {
            args.agent.get_or_insert_with(|| Path::new(&own_name).with_file_name("proa-agent"));
            run(args)
        }
    }
}

fn run(args: Args) -> ExitCode {
    // What it was started in is not to be kept busy.
    let _ = rustix::process::chdir("/");
    let result = match args.mode {
        Mode::Repair => repair::run(&args).inspect_err(complain),
        // The client has been told, and the state says it: standard error is nobody's.
        Mode::Run | Mode::Again | Mode::Maintenance => {
            args.client.then(first_client).transpose().and_then(|client| monitor(args, client, None))
        }
    };
    code(&result)
}

fn code(result: &Result<(), Error>) -> ExitCode {
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stderr, reason = "the engine reads what a repair says")]
fn complain(error: &Error) {
    eprintln!("{error}");
}

/// What is for who starts virtual machines, and the engine asks for.
#[expect(clippy::print_stderr, reason = "the engine reads what is said")]
fn errand<T: DeserializeOwned>(
    mut arguments: impl Iterator<Item = OsString>,
    run: impl FnOnce(T) -> Result<(), proa_vm::VmError>,
) -> ExitCode {
    let text = arguments.next().unwrap_or_default();
    let Ok(wanted) = serde_json::from_slice(text.as_encoded_bytes()) else {
        return usage("an errand needs what it is about");
    };
    // It ends with who waits for it.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    match run(wanted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "for whoever starts a monitor by hand; the engine gives it /dev/null"
)]
fn usage(message: &str) -> ExitCode {
    eprintln!("proa-monitor: {message}; it is started by proa, not by hand");
    ExitCode::from(125)
}

fn monitor(mut args: Args, client: Option<UnixStream>, standby: Option<Ready>) -> Result<(), Error> {
    // Run by a descriptor, it is named after that.
    let _ = rustix::thread::set_name(c"proa-monitor");
    // Whoever starts an instance, its root is to be open to its users.
    rustix::process::umask(FileMode::from_raw_mode(0o022));
    // The terminal's signals are for the client. Failure means that we lead a session already.
    let _ = rustix::process::setsid();
    if let (true, Some(client)) = (args.id.is_empty(), &client) {
        let Some(id) = told_id(client) else { return Ok(()) };
        args.id = id;
    }
    let told = client.as_ref().and_then(|client| client.try_clone().ok());
    let result = prepare(&args, client, standby).and_then(|server| server.run().at(&args.run));
    if let (Err(error), Some(client)) = (&result, told) {
        tell(&client, error);
    }
    result
}

/// The id that the client tells; none where it has no use for us.
fn told_id(mut client: &UnixStream) -> Option<String> {
    let mut id = [0; ID_LENGTH];
    client.read_exact(&mut id).ok()?;
    String::from_utf8(id.to_vec()).ok().filter(|id| is_id(id))
}

/// Tells the first client why there is no monitor, and waits until it has read that: it may still be writing its
/// requests, which must not fail before it reads.
fn tell(mut client: &UnixStream, error: &Error) {
    let said = error.response().frame(0).write_to(client).and_then(|()| client.shutdown(Shutdown::Write));
    let waits = client.set_nonblocking(false).and_then(|()| client.set_read_timeout(Some(LAST_WORDS)));
    if said.is_ok() && waits.is_ok() {
        // Its end, or silence: either way there is nothing more to say.
        let _ = std::io::copy(&mut client, &mut std::io::sink());
    }
}

fn first_client() -> Result<UnixStream, Error> {
    Ok(UnixStream::from(proa_sys::inherited::take_output().at("standard output".as_ref())?))
}

fn prepare(args: &Args, client: Option<UnixStream>, standby: Option<Ready>) -> Result<Server, Error> {
    let record = Record::lock(&args.root, &args.run, &args.id)?;
    record.check_dir()?;
    let state = repair::finish(args, &record)?;
    if args.mode == Mode::Again && state.status != Status::Restarting {
        return Err(Error::NotDue);
    }
    proa_sys::signals::default_library_signals();
    proa_sys::signals::survive(&[Signal::TERM, Signal::INT, Signal::HUP]).at("/".as_ref())?;
    let mut config = record.config()?;
    let first = state.started_ns == 0;
    let volumes = Volumes::attach(&args.run, &record, &mut config, first)?;
    let listener = listen(&record)?;
    let log = match args.mode {
        Mode::Run | Mode::Again => Log::open(&record.dir, &config.log, identity(&config))?,
        Mode::Maintenance | Mode::Repair => Log::nobody(),
    };
    let events = events::Events::new(&args.root, &record.dir, &config);
    let reaper = config.reaper.clone().filter(|_| config.auto_remove && args.mode == Mode::Run);
    let mut notices = Vec::new();
    let again = Again::new(args.clone(), &record, &config);
    let backend = match args.mode {
        // It has one when it starts.
        Mode::Again => Backend::Over,
        _ => Backend::new(args, &record, config, standby, &mut |line| notices.push(line))?,
    };
    let mut server = Server::new(record, state, backend, (log, events), listener, (again, notices));
    server.keep_volumes(volumes);
    if args.mode == Mode::Maintenance {
        server.hold();
    }
    if let Some(program) = reaper {
        server.remove_at_end(Reaper {
            program,
            root: args.root.clone(),
            run: args.run.clone(),
            id: args.id.clone(),
        });
    }
    if let Some(client) = client {
        server.add_client(client, true).at(&args.run)?;
    }
    if args.mode == Mode::Again {
        server.resume();
    }
    Ok(server)
}

fn identity(config: &InstanceConfig) -> Identity {
    let said = |key: &str| config.actor.get(key).cloned().unwrap_or_default();
    Identity { id: config.id.clone(), name: said("name"), image: said("image") }
}

/// Listens on the instance's socket. Its address goes by a descriptor of its directory: paths of sockets may
/// not be longer than 107 bytes, and ours can be.
fn listen(record: &Record) -> Result<UnixListener, Error> {
    use std::os::fd::AsRawFd;
    let socket = record.socket();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, &record.run_dir, flags, FileMode::empty()).at(&record.run_dir)?;
    let _ =
        rustix::fs::unlinkat(&directory, proa_protocol::instance::SOCKET_FILE, rustix::fs::AtFlags::empty());
    let number = directory.as_fd().as_raw_fd();
    let address = format!("/proc/self/fd/{number}/{}", proa_protocol::instance::SOCKET_FILE);
    let listener = UnixListener::bind(address).at(&socket)?;
    listener.set_nonblocking(true).at(&socket)?;
    Ok(listener)
}
