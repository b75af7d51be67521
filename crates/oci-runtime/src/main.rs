//! Proa's OCI runtime as a program, for `podman --runtime`, `ctr run --runc-binary`, `dockerd --add-runtime`.
//!
//! ```text
//!   proa-runtime [global options] COMMAND [options] ID …
//!
//!            create                start              (its end)             delete
//!   (nothing) ─────▶ [ created ] ─────▶ [ running ] ───────────▶ [ stopped ] ─────▶ (nothing)
//!                        │ delete         │   ▲  │                               ▲
//!                        │          pause ▼   │  └──────── delete --force ───────┤
//!                        │             [ paused ] resume                         │
//!                        └───────────────────────────────────────────────────────┘
//! ```
//!
//! Each command is a process of its own that does its part and ends. What they share is on disk ([`store`]), and
//! the life of the first process, which is nobody's child once it is created, is led by `proa_runtime`
//! (`Container::create_detached`, `gate`). Nothing stays behind to watch it: that is the engine's part.
//!
//! An error is one line on standard error and, with `--log`, one in the engine's log. Exit codes are runc's: 1
//! for a failure, 255 for an `exec` that failed, else that of the program.

mod args;
mod clock;
mod commands;
mod console;
mod criu;
mod error;
mod foreground;
mod global;
mod launch;
mod log;
mod out;
mod store;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::args::{Opt, Parsed, Words};
use crate::commands::{
    checkpoint, create, delete, events, exec, features, kill, pause, processes, restore, run, spec, start,
    state, update,
};
use crate::error::{Failure, Result};
use crate::global::Global;
use crate::log::Log;

const HELP: &str = "\
usage: proa-runtime [--root DIR] [--log FILE] [--log-format text|json] [--debug] COMMAND [options] ID

  create   make a container of a bundle       start    run its program
  run      both, and wait for its end         exec     run another process in it
  state    tell its state                     list     tell of all
  ps       its processes                      events   its resource use
  kill     send it a signal                   delete   remove it
  pause    freeze it                          resume   thaw it
  update   set other limits                   features what this runtime can do
  spec     write a config.json
  checkpoint  write its processes to files (by criu)   restore  make it anew from them
";

/// A command: its name, its options, its words, what it does.
struct Command {
    name: &'static str,
    options: &'static [&'static [Opt]],
    words: Words,
    run: fn(&Global, &Parsed) -> Result<u8>,
}

const fn command(
    name: &'static str,
    options: &'static [&'static [Opt]],
    words: Words,
    run: fn(&Global, &Parsed) -> Result<u8>,
) -> Command {
    Command { name, options, words, run }
}

const COMMANDS: &[Command] = {
    use Words::{Most, ThenProgram};
    &[
        command("create", &[launch::OPTIONS], Most(1), create::run),
        command("start", &[], Most(1), start::run),
        command("run", &[launch::OPTIONS, run::OPTIONS], Most(1), run::run),
        command("state", &[], Most(1), state::run),
        command("list", &[state::LIST], Most(0), state::list),
        command("kill", &[kill::OPTIONS], Most(2), kill::run),
        command("delete", &[delete::OPTIONS], Most(1), delete::run),
        command("exec", &[exec::OPTIONS], ThenProgram(1), exec::run),
        command("ps", &[processes::OPTIONS], ThenProgram(1), processes::run),
        command("pause", &[], Most(1), pause::pause),
        command("resume", &[], Most(1), pause::resume),
        command("update", &[update::OPTIONS], Most(1), update::run),
        command("events", &[events::OPTIONS], Most(1), events::run),
        command("features", &[], Most(0), |_, parsed| features::run(parsed)),
        command("spec", &[spec::ROOTLESS, spec::OPTIONS], Most(0), |_, parsed| spec::run(parsed)),
        command("checkpoint", &[checkpoint::SHARED, checkpoint::OPTIONS], Most(1), checkpoint::run),
        command("restore", &[checkpoint::SHARED, restore::OPTIONS], Most(1), restore::run),
    ]
};

/// Commands a fork of which goes into a container, where it must not lead to a file that can be written
/// (invariant 10, CVE-2019-5736).
const ENTER: &[&str] = &["create", "run", "exec"];

fn main() -> ExitCode {
    let mut log = Log::default();
    match dispatch(std::env::args_os().skip(1).collect(), &mut log) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            complain(&failure, &log);
            ExitCode::from(failure.code)
        }
    }
}

#[expect(clippy::print_stderr, reason = "a command line tool's errors")]
fn complain(failure: &Failure, log: &Log) {
    let line = failure.to_string().replace('\n', "; ");
    log.write("error", &line);
    // Suites and engines tell an error by the word, where they read what a runtime writes here.
    eprintln!("proa-runtime: error: {line}");
}

fn dispatch(args: Vec<OsString>, log: &mut Log) -> Result<u8> {
    let mut parsed = Parsed::default();
    let rest = parsed.read(args, &[global::OPTIONS], Words::Name)?;
    *log = Global::log(&parsed)?;
    if parsed.is("version") {
        return version();
    }
    let Some((name, rest)) = rest.split_first() else {
        return if parsed.is("help") { out::text(HELP) } else { Err(Failure::usage("a command is needed")) };
    };
    let command = COMMANDS.iter().find(|command| command.name == name);
    let command = command.ok_or_else(|| Failure::usage(format!("unknown command '{}'", name.display())))?;
    // A command's own options come first: `--rootless` of `spec` has no value.
    let known: Vec<&[Opt]> = command.options.iter().copied().chain([global::OPTIONS]).collect();
    parsed.read(rest.to_vec(), &known, command.words)?;
    *log = Global::log(&parsed)?;
    if parsed.is("help") {
        return out::text(HELP);
    }
    if ENTER.contains(&command.name) {
        proa_sys::seal::ensure_sealed()
            .map_err(|error| Failure::new(format!("cannot run from a seal: {error}")))?;
    }
    let global = Global::new(&parsed, Log::clone(log))?;
    global.debug(&format!("{}: {}", command.name, parsed.words.join(" ")));
    (command.run)(&global, &parsed)
}

/// As docker, podman and containerd read it: what comes after the name and `version`, and the line `spec:`.
fn version() -> Result<u8> {
    let (own, spec) = (env!("CARGO_PKG_VERSION"), proa_oci::runtime::SPEC_VERSION);
    out::text(&format!("proa-runtime version {own}\ncommit: v{own}\nspec: {spec}\n"))
}
