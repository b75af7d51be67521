//! `proa machine screenshot`

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use crate::context::Context;
use crate::error::{Failure, Outcome};

/// Write what is on a machine's screen as a PNG
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write it to FILE rather than to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name or id
    machine: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    let instance = engine.find(&args.machine)?;
    if args.output.is_none() && std::io::stdout().is_terminal() {
        return Err(Failure::usage("a picture is nothing for a terminal")
            .with_hint("name a file with -o FILE, or send it into a pipe"));
    }
    let picture = engine.screenshot(&instance)?;
    match &args.output {
        Some(path) => std::fs::write(path, picture).map_err(|error| Failure::io("write", path, error))?,
        None => std::io::stdout().write_all(&picture).map_err(Failure::terminal)?,
    }
    Ok(0)
}
